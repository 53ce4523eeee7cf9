"""Small worlds of segments that are on a device, resident or streamed, for the tests of searching there."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen

from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.device_search import Asked, PlacedView, search_there
from lateinteraction.adapters.index.hits import Hits
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.payloads import (
    Int8,
    Payload,
    Vectors,
    encode_int8,
    encode_residual,
    encode_vectors,
    offsets_array,
    read_payload,
)
from lateinteraction.adapters.index.resident import Decoded, Lane, Loaded, Placement, Resident, StoredTokens, Streamed
from lateinteraction.adapters.index.search import search
from lateinteraction.adapters.index.segments import Kind
from lateinteraction.adapters.index.stages import CodebookThere
from lateinteraction.adapters.index.views import SegmentView
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.kernels.operands import Codec

WIDTH = 8
KINDS: tuple[Kind, ...] = ("vectors", "int8", "residual")
Triple = tuple[float, int, int]


def unit(generator: np.random.Generator, rows: int) -> torch.Tensor:
    drawn = generator.standard_normal((rows, WIDTH), np.float32)
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def stored(kind: Kind, tokens: TokenEmbeddings[torch.Tensor], codebook: Codebook) -> tuple[StoredTokens, Payload]:
    if kind == "vectors":
        encoded = encode_vectors(tokens.tokens)
    else:
        encoded = encode_int8(tokens.tokens) if kind == "int8" else encode_residual(tokens.tokens, codebook)
    arrays = InMemory({**offsets_array(tokens.lengths), **encoded})
    payload = read_payload(arrays, codebook)
    return StoredTokens(kind, arrays, payload, codebook if kind == "residual" else None), payload


def exactly(tokens: TokenEmbeddings[torch.Tensor], kind: Kind) -> Payload:
    """Kept vectors."""
    if kind == "int8":
        return Int8(InMemory({**offsets_array(tokens.lengths), **encode_int8(tokens.tokens)}))
    return Vectors(InMemory({**offsets_array(tokens.lengths), **encode_vectors(tokens.tokens)}))


@frozen
class There:
    """A device, a way to it, and codebooks on it."""

    device: torch.device
    lane: Lane

    @classmethod
    def on(cls, name: str, block: int = 600) -> There:
        return cls(torch.device(name), Lane(torch.device(name), block))

    def codebook(self, codebook: Codebook) -> CodebookThere:
        return CodebookThere(Codec(*(part.to(self.device) for part in codebook.codec)))

    def placed(self, tokens: StoredTokens, *, resident: bool) -> Placement:
        codebook = None if tokens.codebook is None else self.codebook(tokens.codebook)
        if resident:
            return Resident.of(tokens, Loaded(tokens, self.device), codebook)
        return Streamed(tokens, self.lane, codebook)


@frozen
class World:
    """Segments of several kinds, with filters, candidates and kept vectors, where they are; and queries."""

    views: list[PlacedView]
    queries: TokenEmbeddings[torch.Tensor]
    there: There

    def host(self, k: int, options: SearchOptions) -> list[list[Triple]]:
        return [triples(hits) for hits in search([each.view for each in self.views], self.queries, k, options)]

    def device(self, k: int, options: SearchOptions) -> list[list[Triple]]:
        asked = Asked(self.views, k, options)
        return [triples(hits) for hits in search_there(asked, self.queries, self.there.device, self.there.lane)]


def world(seed: int, device: str, *, kept: bool = True, kinds: tuple[Kind, ...] = KINDS) -> World:
    generator = np.random.default_rng(seed)
    there = There.on(device)
    codebooks = [train(unit(generator, 80), 8, int(generator.choice([1, 2, 4])), seed=number) for number in range(2)]
    views: list[PlacedView] = []
    for _ in range(int(generator.integers(1, 6))):
        kind: Kind = generator.choice(np.array(kinds, object))
        lengths = generator.integers(0, 5, int(generator.integers(1, 30)))
        tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
        own, payload = stored(kind, tokens, codebooks[int(generator.integers(2))])
        eligible = generator.random(len(lengths)) < 0.7 if generator.random() < 0.5 else None
        candidates = generator.integers(0, len(lengths), 5) if generator.random() < 0.3 else None
        more = exactly(tokens, generator.choice(np.array(KINDS[:2], object))) if kept and kind != "vectors" else None
        vectors = more if generator.random() < 0.5 else None
        views.append(
            PlacedView(
                SegmentView(payload, eligible, candidates, vectors),
                there.placed(own, resident=bool(generator.random() < 0.5)),
                None if vectors is None else Decoded(vectors, there.lane),
                0 if own.codebook is None else len(own.codebook),
            )
        )
    lengths = generator.integers(0, 4, int(generator.integers(1, 4)))
    return World(views, TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths)), there)


def triples(hits: Hits) -> list[Triple]:
    return [(float(s), int(n), int(r)) for s, n, r in zip(hits.scores, hits.segments, hits.rows, strict=True)]


def assert_same(found: list[list[Triple]], expected: list[list[Triple]], device: str) -> None:
    """To the last bit on the host; elsewhere to what kernels promise, so that neighbours may change places."""
    if device == "cpu":
        assert found == expected
        return
    assert len(found) == len(expected)
    for hits, others in zip(found, expected, strict=True):
        scores = {each[1:]: each[0] for each in others}
        np.testing.assert_allclose([each[0] for each in hits], [each[0] for each in others], rtol=1e-4, atol=1e-4)
        for score, *name in hits:
            near = scores.get((name[0], name[1]), others[-1][0])
            np.testing.assert_allclose(score, near, rtol=1e-4, atol=1e-4)
