"""What a payload stores and scores, against the NumPy reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index import payloads
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import Codebook, train
from lateinteraction.adapters.index.files import FileWriter, StoredFile
from lateinteraction.adapters.index.payloads import (
    CODES,
    INT8,
    INT8_SCALES,
    OFFSETS,
    RESIDUALS,
    SCALES,
    VECTORS,
    Int8,
    Payload,
    PreparedQuery,
    Residuals,
    Vectors,
    encode_int8,
    encode_residual,
    encode_vectors,
    joined,
    offsets_array,
    read_payload,
    tensor_of,
)
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, InvalidEmbeddings
from lateinteraction.domain.quantisation import quantise_to_int8

Floats = NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)
KINDS = ("vectors", "int8", "residual 1", "residual 2", "residual 4")


@frozen
class World:
    """Documents, some of them empty, a query, and a codebook of their width."""

    documents: TokenEmbeddings[Floats]
    query: Floats
    codebook: Codebook

    def stored(self, kind: str) -> dict[str, NDArray[Any]]:
        tokens = torch.from_numpy(self.documents.tokens)
        if kind == "vectors":
            encoded = encode_vectors(tokens)
        else:
            encoded = encode_int8(tokens) if kind == "int8" else encode_residual(tokens, self.codebook)
        return {**offsets_array(self.documents.lengths), **encoded}

    def payload(self, kind: str) -> Payload:
        return read_payload(InMemory(self.stored(kind)), self.codebook)

    def codec(self) -> reference.ResidualCodec:
        return reference.ResidualCodec(*(each.numpy() for each in self.codebook.codec))

    def prepared(self) -> PreparedQuery:
        return PreparedQuery(torch.from_numpy(self.query))


def unit(rows: Floats) -> Floats:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world(seed: int, bits: int = 4, width: int | None = None) -> World:
    generator = np.random.default_rng(seed)
    width = int(generator.choice([3, 8, 20])) if width is None else width
    lengths = generator.integers(0, 6, int(generator.integers(1, 7)))
    lengths[int(generator.integers(len(lengths)))] = 4
    tokens = unit(generator.standard_normal((int(lengths.sum()), width), np.float32))
    sample = torch.from_numpy(np.concatenate([tokens, unit(generator.standard_normal((60, width), np.float32))]))
    query = unit(generator.standard_normal((int(generator.integers(1, 5)), width), np.float32))
    return World(TokenEmbeddings(tokens, offsets_of(lengths)), query, train(sample, 6, bits, seed % 1000))


def bits_of(kind: str) -> int:
    return int(kind[-1]) if kind.startswith("residual") else 4


def as_numpy(embeddings: TokenEmbeddings[torch.Tensor]) -> TokenEmbeddings[Floats]:
    return TokenEmbeddings(embeddings.tokens.numpy(), embeddings.offsets)


def maxsim(query: Floats, documents: TokenEmbeddings[Floats]) -> Floats:
    return reference.maxsim_all_pairs(TokenEmbeddings(query, offsets_of([len(query)])), documents)[0]


# ── What every payload promises ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_a_score_is_maxsim_with_the_tokens_as_they_are_stored(kind: str, seed: int) -> None:
    here = world(seed, bits_of(kind))
    payload = here.payload(kind)
    expected = maxsim(here.query, as_numpy(payload.decode()))
    np.testing.assert_allclose(payload.score(here.prepared()), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_some_documents_in_any_order_score_and_decode_as_among_all(kind: str, seed: int) -> None:
    here = world(seed, bits_of(kind))
    payload, query = here.payload(kind), here.prepared()
    rows = np.random.default_rng(seed).permutation(len(payload))[: 1 + seed % len(payload)]
    np.testing.assert_array_equal(payload.score(query, rows), payload.score(query)[rows])
    steps = len(here.query) * 2 / 255  # of a table in eight bits, which may have been made of these documents alone
    np.testing.assert_allclose(payload.approximate(query, rows), payload.approximate(query)[rows], atol=steps)
    everything = payload.decode()
    for place, item in enumerate(payload.decode(rows)):
        np.testing.assert_array_equal(item.numpy(), everything[int(rows[place])].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_no_documents_give_no_scores_and_no_tokens(kind: str) -> None:
    here = world(1, bits_of(kind))
    payload, nothing = here.payload(kind), np.empty(0, np.int64)
    assert payload.score(here.prepared(), nothing).shape == (0,)
    assert payload.approximate(here.prepared(), nothing).shape == (0,)
    assert payload.decode(nothing).tokens.shape == (0, payload.dimension)


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_may_hold_nothing_but_empty_documents(kind: str) -> None:
    here = world(1, bits_of(kind))
    nothing = TokenEmbeddings(here.documents.tokens[:0], offsets_of([0, 0]))
    payload = World(nothing, here.query, here.codebook).payload(kind)
    assert payload.score(here.prepared()).tolist() == [-np.inf, -np.inf]
    assert payload.approximate(here.prepared()).tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_a_stream_is_encoded_block_by_block_as_at_once(kind: str, seed: int) -> None:
    here = world(seed, bits_of(kind))
    cut = seed % (len(here.documents.tokens) + 1)
    tokens = here.documents.tokens
    parts = [World(TokenEmbeddings(part, offsets_of([len(part)])), here.query, here.codebook).stored(kind)
             for part in (tokens[:cut], tokens[cut:])]  # fmt: skip
    for name, array in here.stored(kind).items():
        if name != OFFSETS:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
            assert all(part[name].dtype == array.dtype for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind: str, bad: float) -> None:
    here = world(3, bits_of(kind))
    tokens = here.documents.tokens.copy()
    tokens[1, 0] = bad
    with pytest.raises(InvalidEmbeddings):
        World(TokenEmbeddings(tokens, here.documents.offsets), here.query, here.codebook).stored(kind)
    with pytest.raises(InvalidEmbeddings):
        PreparedQuery(torch.from_numpy(tokens))


@pytest.mark.parametrize(
    ("kind", "expected"), [("vectors", 256), ("int8", 132), ("residual 4", 70), ("residual 2", 38), ("residual 1", 22)]
)
def test_a_token_of_128_dimensions_takes_so_many_bytes(kind: str, expected: int) -> None:
    here = world(4, bits_of(kind), width=128)
    stored = here.stored(kind)
    assert (
        sum(array.nbytes for name, array in stored.items() if name != OFFSETS) / len(here.documents.tokens) == expected
    )


# ── Each kind ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(seed=seeds)
def test_vectors_come_back_as_float16_rounds_them(seed: int) -> None:
    here = world(seed)
    payload = here.payload("vectors")
    np.testing.assert_array_equal(payload.decode().tokens.numpy(), here.documents.tokens.astype(np.float16))
    np.testing.assert_array_equal(payload.lengths, here.documents.lengths)
    assert not payload.approximates


@given(seed=seeds)
def test_joined_payloads_are_one_payload_of_all_their_documents(seed: int) -> None:
    worlds = [world(seed + number, width=5) for number in range(3)]
    parts = [Vectors(InMemory(here.stored("vectors"))) for here in worlds]
    whole, query = joined(parts), worlds[0].prepared()
    np.testing.assert_array_equal(whole.lengths, np.concatenate([part.lengths for part in parts]))
    np.testing.assert_array_equal(whole.score(query), np.concatenate([part.score(query) for part in parts]))


def test_joining_verifies_what_it_copies() -> None:
    arrays = Verified(world(16).stored("vectors"))
    joined([Vectors(arrays)])
    assert arrays.rows[VECTORS] == set(range(len(arrays.lazily(VECTORS))))


def test_vectors_refuse_what_float16_cannot_hold() -> None:
    with pytest.raises(InvalidEmbeddings):
        encode_vectors(torch.tensor([[70_000.0, 0.0]]))


@given(seed=seeds)
def test_eight_bits_come_back_as_the_domain_rounds_them(seed: int) -> None:
    here = world(seed)
    payload = here.payload("int8")
    np.testing.assert_array_equal(payload.decode().tokens.numpy(), quantise_to_int8(here.documents).restored().tokens)
    rounded = quantise_to_int8(TokenEmbeddings(here.query, offsets_of([len(here.query)]))).restored().tokens
    expected = maxsim(rounded, as_numpy(payload.decode()))
    np.testing.assert_allclose(payload.approximate(here.prepared()), expected, atol=2e-6, rtol=1e-5)


def test_many_documents_in_eight_bits_are_scored_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world(5)
    whole = here.payload("int8").score(here.prepared())
    monkeypatch.setattr("lateinteraction.adapters.index.payloads.DECODED_AT_ONCE", 2)
    np.testing.assert_array_equal(here.payload("int8").score(here.prepared()), whole)


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(seed=seeds)
def test_residuals_are_what_the_reference_compresses(bits: int, seed: int) -> None:
    here = world(seed, bits)
    stored, codec = here.stored(f"residual {bits}"), here.codec()
    tokens = torch.from_numpy(here.documents.tokens)
    again = (tokens / torch.linalg.vector_norm(tokens, dim=1, keepdim=True)).numpy()  # a last bit may move a bucket
    compressed = reference.compress(codec, TokenEmbeddings(again, here.documents.offsets))
    np.testing.assert_array_equal(stored[CODES], compressed.codes)
    np.testing.assert_array_equal(stored[RESIDUALS], compressed.residuals)
    np.testing.assert_allclose(stored[SCALES], reference.inverse_norms(codec, compressed), rtol=2e-3)
    decoded = here.payload(f"residual {bits}").decode().tokens.numpy()
    np.testing.assert_allclose(decoded, reference.decompress(codec, compressed).tokens, atol=2e-3)
    norms = stored[SCALES].astype(np.float32)
    query = TokenEmbeddings(here.query, offsets_of([len(here.query)]))
    expected = reference.residual_maxsim(query, codec, compressed, norms)[0]
    np.testing.assert_allclose(here.payload(f"residual {bits}").score(here.prepared()), expected, atol=2e-6, rtol=1e-5)


@given(seed=seeds, few=st.booleans())
def test_residuals_are_approximated_by_their_centroids_in_eight_bits_where_they_are_many(seed: int, few: bool) -> None:
    here = world(seed)
    compressed = reference.compress(here.codec(), here.documents)
    query = TokenEmbeddings(here.query, offsets_of([len(here.query)]))
    table = reference.centroid_scores(query, here.codec().centroids)
    table = table if few else reference.quantise_table(table).restored()
    expected = reference.centroid_interaction(table, query.offsets, compressed.codes, compressed.offsets)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "IN_BYTES", 2**20 if few else 0)
        patch.setattr(payloads, "FEW", 0)
        np.testing.assert_allclose(here.payload("residual 4").approximate(here.prepared()), expected, atol=1e-5)


@given(seed=seeds)
def test_tokens_keep_their_lengths_where_they_are_no_unit_vectors(seed: int) -> None:
    here = world(seed)
    lengths = np.random.default_rng(seed).uniform(0.25, 4, len(here.documents.tokens)).astype(np.float32)
    lengths[0] = 0
    tokens = here.documents.tokens * lengths[:, None]
    decoded = (
        World(TokenEmbeddings(tokens, here.documents.offsets), here.query, here.codebook).payload("residual 4").decode()
    )
    np.testing.assert_allclose(np.linalg.norm(decoded.tokens.numpy(), axis=1), lengths, rtol=2e-3, atol=1e-6)


def test_more_bits_come_closer() -> None:
    tokens = unit(np.random.default_rng(6).standard_normal((500, 16), np.float32))
    errors: list[float] = []
    for bits in (1, 2, 4):
        codebook = train(torch.from_numpy(tokens), 16, bits)
        stored = {**offsets_array(np.array([500])), **encode_residual(torch.from_numpy(tokens), codebook)}
        errors.append(float(np.square(Residuals(InMemory(stored), codebook).decode().tokens.numpy() - tokens).mean()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.2 * errors[1]


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Verified:
    """Arrays that remember which rows were verified, and hold nonsense in all others."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = InMemory(arrays)
        self.calls: list[str] = []
        self.rows: dict[str, set[int]] = {name: set() for name in arrays}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def whole(self, name: str) -> NDArray[Any]:
        self.check_all(name)
        return self._arrays.whole(name)

    def lazily(self, name: str) -> NDArray[Any]:
        return self._arrays.lazily(name)

    def check(self, name: str, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        self._arrays.check(name, firsts, lasts)
        self.calls.append(name)
        for first, last in zip(firsts, lasts, strict=True):
            self.rows[name].update(range(int(first), int(last)))

    def check_all(self, name: str) -> None:
        self.calls.append(name)
        self.rows[name].update(range(len(self._arrays.lazily(name))))


@pytest.mark.parametrize("kind", KINDS)
def test_opening_verifies_where_documents_begin_and_no_token(kind: str) -> None:
    here = world(7, bits_of(kind))
    arrays = Verified(here.stored(kind))
    read_payload(arrays, here.codebook)
    assert arrays.calls == [OFFSETS]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_the_tokens_of_the_documents_that_are_used_are_verified_and_no_others(kind: str, seed: int) -> None:
    here = world(seed, bits_of(kind))
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(here.documents)) < 0.5)
    named = {token for row in rows for token in range(here.documents.offsets[row], here.documents.offsets[row + 1])}
    for use in (lambda payload: payload.score(here.prepared(), rows), lambda payload: payload.decode(rows)):
        arrays = Verified(here.stored(kind))
        use(read_payload(arrays, here.codebook))
        assert {name: found for name, found in arrays.rows.items() if name != OFFSETS} == {
            name: named for name in arrays.rows if name != OFFSETS
        }


def test_a_shortlist_by_centroids_verifies_codes_alone() -> None:
    here = world(8)
    arrays = Verified(here.stored("residual 4"))
    payload = read_payload(arrays, here.codebook)
    payload.approximate(here.prepared())
    payload.approximate(here.prepared())
    assert arrays.calls == [OFFSETS, CODES]
    assert not arrays.rows[RESIDUALS]
    assert not arrays.rows[SCALES]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_verified_whole_is_not_verified_again(kind: str) -> None:
    here = world(9, bits_of(kind))
    arrays = Verified(here.stored(kind))
    payload = read_payload(arrays, here.codebook)
    payload.score(here.prepared())
    payload.decode()
    before = len(arrays.calls)
    payload.score(here.prepared())
    payload.decode(np.array([0]))
    payload.approximate(here.prepared())
    if kind != "int8":  # scored some documents at a time, which verifies them again, cheaply
        assert len(arrays.calls) == before


@pytest.mark.parametrize("names", [(VECTORS,), (INT8, INT8_SCALES), (CODES, RESIDUALS, SCALES)])
def test_arrays_of_another_kind_or_length_are_damage(names: tuple[str, ...]) -> None:
    here = world(10)
    kind = {VECTORS: "vectors", INT8: "int8", CODES: "residual 4"}[names[0]]
    for name in names:
        stored = here.stored(kind)
        for damaged in (stored[name][:-1], stored[name].astype(np.float64)):
            with pytest.raises(CorruptIndex):
                read_payload(InMemory({**stored, name: damaged}), here.codebook)


@pytest.mark.parametrize(
    "change",
    [
        lambda offsets: offsets[:0],
        lambda offsets: offsets + 1,
        lambda offsets: offsets[::-1].copy(),
        lambda offsets: offsets.astype(np.int32),
        lambda offsets: np.concatenate([offsets[:1], offsets[-1:] + 5, offsets[1:]]),
        lambda offsets: offsets[:-1] if offsets[-1] != offsets[-2] else offsets[:-2],
        lambda offsets: offsets[None],
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_that_fit_no_documents_are_damage(
    kind: str, change: Callable[[NDArray[np.int64]], NDArray[Any]]
) -> None:
    here = world(11, bits_of(kind))
    stored = here.stored(kind)
    with pytest.raises(CorruptIndex):
        read_payload(InMemory({**stored, OFFSETS: change(stored[OFFSETS])}), here.codebook)


def test_nothing_that_is_a_payload_is_damage() -> None:
    with pytest.raises(CorruptIndex):
        read_payload(InMemory(offsets_array(np.array([1]))))


@pytest.mark.parametrize("code", [6, 2**31 - 1, -1])
def test_codes_of_no_centroid_are_damage_wherever_they_are_used(code: int) -> None:
    here = world(12)
    stored = here.stored("residual 4")
    codes = stored[CODES].copy()
    codes[:] = code
    payload = read_payload(InMemory({**stored, CODES: codes}), here.codebook)
    for use in (payload.score, payload.approximate):
        with pytest.raises(CorruptIndex):
            use(here.prepared())
    if code >= 0:  # torch counts negative places from the end
        with pytest.raises(CorruptIndex):
            payload.decode()


def test_residuals_want_the_codebook_that_made_them() -> None:
    here, other = world(13, 4, width=8), world(13, 2, width=8)
    arrays = InMemory(here.stored("residual 4"))
    with pytest.raises(IndexMismatch):
        read_payload(arrays)
    with pytest.raises(IndexMismatch):
        read_payload(arrays, other.codebook)
    with pytest.raises(InvalidEmbeddings):
        encode_residual(torch.zeros(1, 9), here.codebook)


def test_the_smallest_payload_is_read_and_kept_vectors_beside_it() -> None:
    here = world(14)
    arrays = InMemory({**here.stored("vectors"), **here.stored("residual 4")})
    assert isinstance(read_payload(arrays, here.codebook), Residuals)
    assert isinstance(read_payload(InMemory({**here.stored("vectors"), **here.stored("int8")})), Int8)
    np.testing.assert_array_equal(Vectors(arrays).decode().tokens, here.payload("vectors").decode().tokens)


def test_tensors_lie_on_a_mapped_file_that_cannot_be_written(tmp_path: Path) -> None:
    written = np.arange(12, dtype=np.float16).reshape(3, 4)
    (tmp_path / "rows").write_bytes(written.tobytes())
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=(3, 4))
    tensor = tensor_of(mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    del mapped
    assert tensor.tolist() == written.tolist()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_nothing_is_a_tensor_too(shape: tuple[int, ...]) -> None:
    empty = np.empty(shape, np.int8)
    empty.flags.writeable = False
    assert tuple(tensor_of(empty).shape) == shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_in_a_file_is_the_payload_in_memory(kind: str, tmp_path: Path) -> None:
    here = world(17, bits_of(kind))
    storage = FolderStorage(tmp_path / "index", create=True)
    with FileWriter(storage, "s-1", "segment") as file:
        for name, array in here.stored(kind).items():
            file.add(name, array)
        record = file.publish()
    payload, query = read_payload(StoredFile.open(storage, record), here.codebook), here.prepared()
    np.testing.assert_array_equal(payload.score(query), here.payload(kind).score(query))
    np.testing.assert_array_equal(payload.approximate(query), here.payload(kind).approximate(query))
    np.testing.assert_array_equal(payload.decode().tokens, here.payload(kind).decode().tokens)


def test_damage_is_met_by_those_documents_alone_that_it_hit(tmp_path: Path) -> None:
    rows = torch.from_numpy(unit(np.random.default_rng(0).standard_normal((4_000, 128), np.float32)))
    storage = FolderStorage(tmp_path / "index", create=True)
    with FileWriter(storage, "s-1", "segment") as file:
        for name, array in {**offsets_array(np.full(100, 40)), **encode_vectors(rows)}.items():
            file.add(name, array)
        record = file.publish()
    path = tmp_path / "index" / "s-1"
    damaged = bytearray(path.read_bytes())
    damaged[900_000] ^= 1  # token 3,500 or so, of document 87
    path.write_bytes(bytes(damaged))
    payload, query = read_payload(StoredFile.open(storage, record)), PreparedQuery(rows[:3])
    assert payload.score(query, np.arange(40)).shape == (40,)
    for hit in (np.array([87]), None):
        with pytest.raises(CorruptIndex):
            payload.score(query, hit)
        with pytest.raises(CorruptIndex):
            payload.decode(hit)


def test_a_query_is_compared_with_centroids_once_however_many_segments_there_are() -> None:
    here = world(15)
    query = here.prepared()
    assert query.table(here.codebook) is query.table(here.codebook)
    assert query.table_of_bytes(here.codebook) is query.table_of_bytes(here.codebook)
    assert query.in_eight_bits is query.in_eight_bits
