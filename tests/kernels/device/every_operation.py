"""Every operation of a form as a table, with small worlds to call it in and what comes of it.

Values are multiples of 1/8 and scales are powers of two, so that sums are exact and results equal to the last bit,
whoever adds in whatever order. As a program this runs every operation once on an accelerator, for `compute-sanitizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.kernels.dispatch import FormName, load
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens, spans_of

Outcome = tuple[Tensor, ...]
Expected = tuple[NDArray[Any], ...]
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES, torch.int8)
NEAREST = 7  # retrieved by each query token for XTR
BEST = 5
NPROBE = 6


@frozen
class World:
    """Operands of every operation, on one device."""

    queries: Tokens
    documents: Tokens
    pairs: Tensor
    upstream: Tensor
    codec: Codec
    compressed: Compressed
    scores: Tensor
    """Centroid scores (K, S)."""

    @property
    def dtype(self) -> torch.dtype:
        return self.queries.values.dtype

    @property
    def rows(self) -> Tensor:
        """The query tokens as kernels of centroids take them."""
        return self.queries.values.float()

    def on(self, device: str) -> World:
        """The same elsewhere, each tensor with memory of its own."""
        moved = {name: _moved(getattr(self, name), device) for name in World.__annotations__}
        return World(**moved)


def make(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    queries: tuple[int, int] = (3, 6),
    documents: tuple[int, int] = (9, 20),
    width: int = 33,
    centroids: int = 40,
    bits: int = 2,
) -> World:
    """Ragged items, counted and limited in length by these pairs, some of them empty, and a codec around centroids."""
    generator = torch.Generator().manual_seed(seed)
    sides = [_ragged(generator, *each, width, dtype) for each in (queries, documents)]
    shape = queries[0], documents[0]
    pairs = torch.stack([torch.randint(count, (2 * sum(shape),), generator=generator) for count in shape], dim=1)
    weights = torch.arange(2**bits) / 8 - 2**bits / 16
    codec = Codec(eighths(generator, centroids, width), (weights[1:] + weights[:-1]) / 2, weights)
    tokens = sides[1].values.shape[0]
    compressed = Compressed(
        torch.randint(centroids, (tokens,), generator=generator, dtype=torch.int32),
        torch.randint(256, (tokens, -(-width * bits // 8)), generator=generator, dtype=torch.uint8),
        2.0 ** torch.randint(-2, 3, (tokens,), generator=generator),
        sides[1].spans,
    )
    if width * bits % 8:
        compressed.residuals[:, -1] &= 2 ** (width * bits % 8) - 1
    scores = codec.centroids @ sides[0].values.float().T
    return World(*sides, pairs, eighths(generator, *shape), codec, compressed, scores)


def _ragged(generator: torch.Generator, items: int, longest: int, width: int, dtype: torch.dtype) -> Tokens:
    lengths = torch.randint(longest + 1, (items,), generator=generator)
    lengths[:2] = torch.tensor([longest, 0])[:items]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = eighths(generator, int(offsets[-1]), width)
    if dtype == torch.int8:
        return Tokens((values * 8).char(), spans_of(offsets), longest, _powers(values))
    return Tokens(values.to(dtype), spans_of(offsets), longest)


def eighths(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-8, 9, shape, generator=generator) / 8


def _powers(values: Tensor) -> Tensor:
    return torch.exp2(-torch.arange(len(values), device=values.device) % 4).float()


def _moved(given: Any, device: str) -> Any:
    if isinstance(given, Tensor):
        return given.to(device).clone(memory_format=torch.contiguous_format)
    if isinstance(given, tuple):
        return type(given)(*(_moved(each, device) for each in given))
    return given


def _sides(form: Form, world: World, *, unit: bool) -> tuple[Tokens, Tokens]:
    """Queries and documents as they are, or as unit vectors. Winners are always those of the values as they are: where
    similarities round, equal ones may differ."""
    if not unit:
        return world.queries, world.documents
    queries, documents = (
        each._replace(scales=form.inverse_norms(each.values)) for each in (world.queries, world.documents)
    )
    return queries, documents


def _gradients(form: Form, world: World, *, unit: bool) -> Outcome:
    winners = form.maxsim_all_pairs_winners(world.queries, world.documents)[1]
    return form.maxsim_all_pairs_gradients(*_sides(form, world, unit=unit), winners, world.upstream, unit=unit)


def _pairs_gradients(form: Form, world: World, *, unit: bool) -> Outcome:
    winners = form.maxsim_pairs_winners(world.queries, world.documents, world.pairs)[1]
    upstream = world.upstream[world.pairs[:, 0], world.pairs[:, 1]]
    return form.maxsim_pairs_gradients(*_sides(form, world, unit=unit), world.pairs, winners, upstream, unit=unit)


def _pairs_winners(form: Form, world: World) -> Outcome:
    """What lies beyond a query's tokens may be anything, so it is blotted out."""
    scores, winners = form.maxsim_pairs_winners(world.queries, world.documents, world.pairs)
    spans = world.queries.spans[world.pairs[:, 0]]
    there = torch.arange(world.queries.longest, device=spans.device) < (spans[:, 1:] - spans[:, :1])
    return scores, torch.where(there, winners, -1)


def _listed(world: World) -> Listed:
    """As if each query were a token that looked into all documents, and their codes were documents."""
    documents, spans = world.compressed.codes.type(torch.uint16), world.documents.spans
    shape = len(world.queries.spans), len(spans), 2
    return Listed(documents, spans.expand(shape).contiguous(), spans.new_zeros(len(spans)))


OPERATIONS: Mapping[str, Callable[[Form, World], Outcome]] = {
    "maxsim_all_pairs": lambda form, w: (form.maxsim_all_pairs(w.queries, w.documents),),
    "maxsim_all_pairs_winners": lambda form, w: form.maxsim_all_pairs_winners(w.queries, w.documents),
    "maxsim_all_pairs_gradients": lambda form, w: _gradients(form, w, unit=False),
    "maxsim_all_pairs_gradients, unit": lambda form, w: _gradients(form, w, unit=True),
    "maxsim_pairs": lambda form, w: (form.maxsim_pairs(w.queries, w.documents, w.pairs),),
    "maxsim_pairs_winners": _pairs_winners,
    "maxsim_pairs_gradients": lambda form, w: _pairs_gradients(form, w, unit=False),
    "maxsim_pairs_gradients, unit": lambda form, w: _pairs_gradients(form, w, unit=True),
    "maxsim_top_k": lambda form, w: form.maxsim_top_k(w.queries, w.documents, BEST),
    "inverse_norms": lambda form, w: (form.inverse_norms(w.documents.values),),
    "xtr_all_pairs": lambda form, w: form.xtr_all_pairs(w.queries, w.documents, NEAREST),
    "centroid_scores": lambda form, w: (form.centroid_scores(w.rows, w.codec.centroids),),
    "quantise_table": lambda form, w: tuple(each for each in form.quantise_table(w.scores) if each is not None),
    "probe": lambda form, w: (form.probe(w.scores, NPROBE),),
    "listed_scores": lambda form, w: (form.listed_scores(_listed(w), w.upstream.abs(), len(w.codec.centroids)),),
    "centroid_interaction": lambda form, w: (
        form.centroid_interaction(CentroidTable(w.scores), w.queries.spans, w.compressed.codes, w.documents.spans),
    ),
    "centroid_interaction, eight bits": lambda form, w: (
        form.centroid_interaction(
            form.quantise_table(w.scores), w.queries.spans, w.compressed.codes, w.documents.spans
        ),
    ),
    "residual_maxsim": lambda form, w: (form.residual_maxsim(w.queries, w.scores, w.codec, w.compressed),),
    "kmeans_assign": lambda form, w: (form.kmeans_assign(w.documents.values.float(), w.codec.centroids),),
    "kmeans_update": lambda form, w: (
        form.kmeans_update(w.documents.values.float(), w.compressed.codes, w.codec.centroids),
    ),
    "residual_encode": lambda form, w: form.residual_encode(w.documents.values.float(), w.compressed.codes, w.codec),
    "residual_decode": lambda form, w: (form.residual_decode(w.codec, w.compressed.codes, w.compressed.residuals),),
}
INEXACT = (
    "maxsim_all_pairs_gradients, unit",
    "maxsim_pairs_gradients, unit",
    "inverse_norms",
    "xtr_all_pairs",
    "centroid_interaction, eight bits",
    "kmeans_update",
    "residual_encode",
    "residual_decode",
)
"""Operations that divide, or take a root; their whole numbers are exact all the same."""
IN_TORCH = ("listed_scores",)
"""Operations that the Triton form leaves to torch."""
OF_BYTES = ("maxsim_all_pairs", "maxsim_all_pairs_winners", "maxsim_pairs", "maxsim_pairs_winners", "maxsim_top_k")
OF_HALVES = tuple(name for name in OPERATIONS if name.startswith(("maxsim", "xtr", "inverse_norms", "residual_maxsim")))
CALLS = tuple(
    (name, dtype)
    for dtype in DTYPES
    for name in (OF_BYTES if dtype == torch.int8 else OF_HALVES if dtype in HALVES else OPERATIONS)
)
"""Every operation in every dtype that it takes."""


def _packed(tokens: Tokens) -> TokenEmbeddings[NDArray[Any]]:
    values = tokens.values.double()
    if tokens.scales is not None:
        values = values * tokens.scales[:, None]
    return TokenEmbeddings(values.numpy(), np.concatenate([tokens.spans[:1, 0], tokens.spans[:, 1]]))


def expected_of(name: str, world: World) -> Expected:
    """What the reference says; some operations have more outputs than it speaks of."""
    queries, documents = _packed(world.queries), _packed(world.documents)
    scores = reference.maxsim_all_pairs(queries, documents)
    winners = reference.maxsim_winners(queries, documents)
    asked, found = world.pairs.T.numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
    spread = np.zeros(scores.shape)
    np.add.at(spread, (asked, found), world.upstream[asked, found])
    codec = reference.ResidualCodec(*(each.numpy() for each in world.codec))
    codes = world.compressed.codes.long().numpy()
    stored = reference.CompressedEmbeddings(codes, world.compressed.residuals.numpy(), documents.offsets)
    table, tokens = world.scores.numpy(), documents.tokens.astype(np.float32)
    quantised = reference.quantise_table(table)
    norms = world.compressed.inverse_norms.double().numpy()
    with np.errstate(divide="ignore"):
        inverse = 1 / np.linalg.norm(documents.tokens, axis=1)
    answers: Mapping[str, Callable[[], Expected]] = {
        "maxsim_all_pairs": lambda: (scores,),
        "maxsim_all_pairs_winners": lambda: (scores, winners),
        "maxsim_all_pairs_gradients": lambda: reference.maxsim_all_pairs_gradients(
            queries, documents, world.upstream.double().numpy()
        ),
        "maxsim_pairs": lambda: (scores[asked, found],),
        "maxsim_pairs_winners": lambda: (scores[asked, found],),
        "maxsim_pairs_gradients": lambda: reference.maxsim_all_pairs_gradients(queries, documents, spread),
        "maxsim_top_k": lambda: (np.take_along_axis(scores, order, axis=1), order),
        "inverse_norms": lambda: (np.where(np.isfinite(inverse), inverse, 0),),
        "xtr_all_pairs": lambda: (reference.xtr_all_pairs(queries, documents, NEAREST),),
        "centroid_scores": lambda: (reference.centroid_scores(queries, codec.centroids),),
        "quantise_table": lambda: (quantised.values, quantised.steps, quantised.lows),
        "probe": lambda: (reference.probe(table, NPROBE),),
        "listed_scores": lambda: (
            reference.listed_scores(
                [[codes[start:end] for start, end in world.documents.spans] for _ in world.queries.spans],
                world.upstream.abs().numpy(),
                len(table),
            ),
        ),
        "centroid_interaction": lambda: (
            reference.centroid_interaction(table, queries.offsets, codes, documents.offsets),
        ),
        "centroid_interaction, eight bits": lambda: (
            reference.centroid_interaction(quantised.restored(), queries.offsets, codes, documents.offsets),
        ),
        "residual_maxsim": lambda: (reference.residual_maxsim(queries, codec, stored, norms),),
        "kmeans_assign": lambda: (reference.kmeans_assign(tokens, codec.centroids),),
        "kmeans_update": lambda: (reference.kmeans_update(tokens, codes, codec.centroids),),
        "residual_encode": lambda: (reference.residual_encode(codec, tokens, codes),),
        "residual_decode": lambda: (reference.decompress(codec, stored).tokens,),
    }
    answer = answers.get(name)
    return () if answer is None else answer()


def check(name: str, found: Outcome, expected: Outcome | Expected) -> None:
    """Whole numbers to the last bit, the others too unless the operation rounds."""
    for place, (one, other) in enumerate(zip(found, expected, strict=False)):
        given = one.cpu()
        wanted = torch.as_tensor(other)
        assert given.shape == wanted.shape, f"{name}, output {place}"
        if given.is_floating_point() and name in INEXACT:
            close = 1e-2 if given.dtype in HALVES else 2e-5
            torch.testing.assert_close(given.double(), wanted.double(), rtol=close, atol=close)
        else:
            wanted = wanted.to(given.dtype)
            assert torch.equal(given, wanted), f"{name}, output {place}: {(given != wanted).sum()} entries differ"


def main(device: str = "cuda", form: FormName = "gpu") -> None:
    """Run every operation once in each dtype, on shapes that end within a tile."""
    for name, dtype in CALLS:
        world = make(1, dtype, queries=(3, 17), documents=(7, 71), width=72).on(device)
        OPERATIONS[name](load(form), world)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CALLS)} operations")


if __name__ == "__main__":
    main()
