"""Search on a device, against search on the host. One body for both: on the host the same steps are computed there."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from device_worlds import (
    KINDS,
    WIDTH,
    There,
    World,
    assert_same,
    exactly,
    stored,
    unit,
    world,
)
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lateinteraction.adapters.index import device_search, stages
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import train
from lateinteraction.adapters.index.device_search import Asked, PlacedView, scored
from lateinteraction.adapters.index.options import SearchOptions
from lateinteraction.adapters.index.payloads import (
    CODES,
    OFFSETS,
    RESIDUALS,
    SCALES,
    PreparedQuery,
    encode_residual,
    offsets_array,
    read_payload,
)
from lateinteraction.adapters.index.resident import Decoded, Lane, StoredTokens
from lateinteraction.adapters.index.segments import Kind
from lateinteraction.adapters.index.stages import (
    Block,
    CodebookThere,
    Findings,
    Int8Block,
    Queries,
    ResidualBlock,
    VectorBlock,
    Wanted,
)
from lateinteraction.adapters.index.views import SegmentView
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex
from lateinteraction.kernels.dispatch import FormName, use
from lateinteraction.kernels.operands import Codec

seeds = st.integers(0, 2**32 - 1)
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


# ── What is found ───────────────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@pytest.mark.parametrize("options", [SearchOptions("fast"), SearchOptions("exact"), SearchOptions(rescore=False)])
@given(seed=seeds, k=st.integers(1, 12))
def test_a_device_finds_what_the_host_finds(device: str, options: SearchOptions, seed: int, k: int) -> None:
    here = world(seed, device)
    assert_same(here.device(k, options), here.host(k, options), device)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform")
@pytest.mark.parametrize("form", ["gpu"])
@pytest.mark.parametrize("seed", [12, 21])
def test_the_kernels_of_devices_take_what_is_there_as_it_is(form: FormName, seed: int) -> None:
    """Triton's, in its interpreter, on the host."""
    here = world(seed, "cpu")
    for options in (SearchOptions(), SearchOptions("exact"), SearchOptions(candidates=5)):
        expected = here.host(5, options)
        with use(form):
            assert_same(here.device(5, options), expected, "in the interpreter")
    assert {type(each.view.payload).__name__ for each in here.views} >= {"Int8", "Residuals"}
    assert here.queries.lengths.any()


@given(seed=seeds, k=st.integers(1, 6), candidates=st.integers(1, 12))
@example(seed=936, k=3, candidates=1)  # few documents of a segment, which have a table of their own elsewhere
def test_a_shortlist_that_is_made_block_by_block_is_the_one_of_all_segments(seed: int, k: int, candidates: int) -> None:
    here = world(seed, "cpu", kinds=("int8", "residual"))
    options = SearchOptions(candidates=candidates)
    assert here.device(k, options) == here.host(k, options)


def large(device: str, kind: Kind, documents: int = 3_000, block: int = 8_192) -> World:
    """One segment of so many documents, all but a twentieth of which may be returned, resident and streamed."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 6, documents)
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    codebook = train(tokens.tokens, 64, 2)
    there = There.on(device, block)
    own, payload = stored(kind, tokens, codebook)
    view = SegmentView(payload, generator.random(documents) < 0.95)
    views = [PlacedView(view, there.placed(own, resident=resident), None, 64) for resident in (True, False)]
    return World(views, TokenEmbeddings(unit(generator, 40), offsets_of([8] * 5)), there)


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_many_documents_are_found_in_many_blocks_and_pieces(
    device: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = large(device, kind)
    expected = here.host(10, SearchOptions()), here.host(10, SearchOptions("exact"))
    monkeypatch.setattr(stages, "SCORES_AT_ONCE", 1_000)
    monkeypatch.setattr(stages, "WIDENED_BYTES", 4_096)
    monkeypatch.setattr(device_search, "TABLE_BYTES", 6_000)  # two queries at a time
    assert_same(here.device(10, SearchOptions()), expected[0], device)
    assert_same(here.device(10, SearchOptions("exact")), expected[1], device)


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_equal_the_last_are_there_however_many(device: str, kind: Kind) -> None:
    generator = np.random.default_rng(0)
    codebook = train(unit(generator, 80), 8, 4)
    row = unit(generator, 1)
    same = TokenEmbeddings(row.repeat(700, 1), offsets_of([1] * 700))
    there = There.on(device, 2_000)
    own, payload = stored(kind, same, codebook)
    views = [PlacedView(SegmentView(payload), there.placed(own, resident=each), None, 8) for each in (True, False)]
    here = World(views, TokenEmbeddings(row, offsets_of([1])), there)
    assert len(here.device(3, SearchOptions("exact"))[0]) == 1_400
    for options in (SearchOptions(), SearchOptions(candidates=900), SearchOptions("exact")):
        found, expected = here.device(3, options), here.host(3, options)
        assert [each[1:] for each in found[0]] == [each[1:] for each in expected[0]]


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_empty_documents_come_last_and_an_empty_query_finds_all(device: str, kind: Kind) -> None:
    generator = np.random.default_rng(1)
    codebook = train(unit(generator, 80), 8, 4)
    documents = TokenEmbeddings(unit(generator, 3), offsets_of([0, 1, 0, 2]))
    there = There.on(device)
    own, payload = stored(kind, documents, codebook)
    for resident in (True, False):
        view = PlacedView(SegmentView(payload), there.placed(own, resident=resident), None, 8)
        queries = TokenEmbeddings(unit(generator, 2), offsets_of([2, 0]))
        full, empty = World([view], queries, there).device(3, SearchOptions())
        assert sorted(row for _, _, row in full[:2]) == [1, 3]
        assert [(score, row) for score, _, row in full[2:]] == [(-np.inf, 0), (-np.inf, 2)]
        assert empty == [(0.0, 0, row) for row in range(4)]


@everywhere
def test_nothing_is_found_where_nothing_may_be(device: str) -> None:
    generator = np.random.default_rng(2)
    codebook = train(unit(generator, 80), 8, 4)
    there = There.on(device)
    own, payload = stored("residual", TokenEmbeddings(unit(generator, 2), offsets_of([1, 1])), codebook)
    queries = TokenEmbeddings(unit(generator, 3), offsets_of([1, 2]))
    placement = there.placed(own, resident=True)
    for view in (SegmentView(payload, np.zeros(2, np.bool_)), SegmentView(payload, candidates=np.empty(0, np.int64))):
        assert World([PlacedView(view, placement)], queries, there).device(3, SearchOptions()) == [[], []]
    assert World([], queries, there).device(3, SearchOptions()) == [[], []]
    assert World([], queries.span(0, 0), there).device(3, SearchOptions()) == []


@everywhere
def test_threads_that_search_at_once_find_what_each_finds_alone(device: str) -> None:
    here = large(device, "residual", 600, 1_024)
    expected = here.device(5, SearchOptions())
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(here.device(5, SearchOptions()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# ── What blocks compute ─────────────────────────────────────────────────────────────────────────────────────────────


def asking(queries: TokenEmbeddings[torch.Tensor], device: str) -> Queries:
    spans = np.stack([queries.offsets[:-1], queries.offsets[1:]], axis=1)
    return Queries(queries.tokens.to(device), torch.tensor(spans, device=device), list(map(int, queries.lengths)))


@everywhere
@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_blocks_compute_what_payloads_do(device: str, kind: Kind, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 6, int(generator.integers(1, 12)))
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    queries = TokenEmbeddings(unit(generator, 7), offsets_of([3, 4]))
    own, payload = stored(kind, tokens, train(unit(generator, 80), 8, 4))
    (block, first), *others = There.on(device).placed(own, resident=True).blocks(None)
    assert (first, others) == (0, [])
    ready = asking(queries, device)
    count = len(lengths)
    rows = torch.from_numpy(np.stack([generator.permutation(count)[: (count + 1) // 2] for _ in queries]))
    listed = block.scores(ready, rows.to(device)).cpu()
    best, rough = block.best(ready, count), block.rough(ready, count)
    for number, values in enumerate(queries):
        query = PreparedQuery(values)
        scores = payload.score(query)
        close(listed[number], scores[rows[number].numpy()], device)
        close(best.scores[number].cpu(), scores[best.places[number].cpu().numpy()], device)
        close(rough.scores[number].cpu(), payload.approximate(query)[rough.places[number].cpu().numpy()], device)
        for found in (best, rough):
            assert sorted(found.places[number].tolist()) == list(range(count))
            assert bool((found.scores[number].diff().nan_to_num(0) <= 0).all())


def close(found: torch.Tensor, expected: Any, device: str) -> None:
    tolerance = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, torch.as_tensor(expected), **tolerance)


# ── What it never waits for ─────────────────────────────────────────────────────────────────────────────────────────

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount", "item")


class NobodyWaits(TorchDispatchMode):
    """Raises on whatever makes the host wait for a result, and on what it copies from a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = kwargs or {}
        assert not any(each in name for each in WAITING), name
        if name == "_to_copy" and "device" in given:
            source = args[0]
            assert not (given["device"].type == "cpu" and source.device.type != "cpu"), "a copy to the host"
        if name == "index":  # by a mask its shape would depend on what the mask holds
            assert not any(each is not None and each.dtype == torch.bool for each in args[1]), name
        return func(*args, **given)


@pytest.mark.parametrize("spoil", [torch.nonzero, lambda t: t[0].item(), lambda t: t[t > 0], torch.unique, bool])
def test_waiting_is_seen(spoil: Any) -> None:
    with NobodyWaits(), pytest.raises(AssertionError):
        spoil(torch.ones(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effort", ["balanced", "exact"])
def test_no_stage_waits_for_another(kind: Kind, effort: Any) -> None:
    here = large("cpu", kind, 800, 4_096)
    asked = Asked(here.views, 5, SearchOptions(effort))
    expected = scored(asked, here.queries, range(5), 32, here.there.device)
    with NobodyWaits():
        found = scored(asked, here.queries, range(5), 32, here.there.device)
    assert torch.equal(found, expected)


def block_of_nothing(kind: Kind, count: int, tokens: int) -> Block:
    """A block of shapes, without values."""
    device = "meta"
    spans = torch.empty((count, 2), dtype=torch.int64, device=device)
    if kind == "vectors":
        return VectorBlock(torch.empty((tokens, WIDTH), dtype=torch.float16, device=device), spans, 9)
    scales = torch.empty(tokens, device=device)
    if kind == "int8":
        return Int8Block(torch.empty((tokens, WIDTH), dtype=torch.int8, device=device), scales, spans, 9)
    codec = Codec(*(torch.empty(shape, device=device) for shape in ((16, WIDTH), (3,), (4,))))
    codes = torch.empty(tokens, dtype=torch.int32, device=device)
    residuals = torch.empty((tokens, WIDTH // 4), dtype=torch.uint8, device=device)
    return ResidualBlock(codes, residuals, scales.half(), spans, CodebookThere(codec))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listed", [True, False])
def test_shapes_on_a_device_are_known_before_anything_is_computed(kind: Kind, listed: bool) -> None:
    """Computed with tensors that have no values: whatever asked for one, or copied some, would fail."""
    with NobodyWaits():
        values, spans = torch.empty((12, WIDTH), device="meta"), torch.empty((3, 2), dtype=torch.int64, device="meta")
        queries = Queries(values, spans, [4, 4, 4])
        findings = Findings(Wanted(listed=20, all_listed=False, closest=8, exact=11))
        rows = torch.empty(30, dtype=torch.int64, device="meta")
        findings.look(queries, block_of_nothing(kind, 50, 200), 0, approximated=listed)
        findings.look(queries, block_of_nothing(kind, 40, 200).only(rows), 50, approximated=listed)
        result = findings.result(3, torch.device("meta"))
    assert result.shape == (2, 3, 8 if listed else 11)
    assert (result.device.type, result.dtype) == ("meta", torch.int64)


@pytest.fixture
def strict_synchronisation() -> Iterator[Any]:
    """A switch: from then on, whatever makes the host wait for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says once that it does not see everything
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effort", ["balanced", "exact"])
def test_the_host_never_waits_for_the_device(kind: Kind, effort: Any, strict_synchronisation: Any) -> None:
    here = large("cuda", kind, 800, 4_096)
    asked = Asked(here.views, 5, SearchOptions(effort))
    expected = scored(asked, here.queries, range(5), 32, here.there.device)  # compiling may wait
    strict_synchronisation()
    found = scored(asked, here.queries, range(5), 32, here.there.device)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


def test_what_comes_to_the_host_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here = large("cpu", "residual", 300, 2_048)
    told: list[torch.Size] = []
    inner = device_search.to_host

    def watched(tensor: torch.Tensor) -> Any:
        told.append(tensor.shape)
        return inner(tensor)

    monkeypatch.setattr(device_search, "to_host", watched)
    here.device(10, SearchOptions())
    assert told[1:] == [(2, 5, 10 + device_search.SPARE)]  # after the queries, on their way there


# ── What is brought ─────────────────────────────────────────────────────────────────────────────────────────────────


@everywhere
def test_a_lane_brings_each_block_as_it_was_filled(device: str) -> None:
    """Two blocks of memory take turns: what is looked at must not be what comes next."""
    lane = Lane(torch.device(device), 4_000)
    rows = [(np.dtype(np.int32), (100, 3)), (np.dtype(np.float16), (7,)), (np.dtype(np.uint8), (5, 2))]
    sums: list[torch.Tensor] = []
    places: list[int] = []
    for number in range(20):

        def fill(*arrays: Any, number: int = number) -> None:
            for array in arrays:
                array[:] = number

        tensors = lane.bring(rows, fill)
        assert [tuple(each.shape) for each in tensors] == [(100, 3), (7,), (5, 2)]
        assert [each.data_ptr() % 256 for each in tensors[1:]] == [tensors[0].data_ptr() % 256] * 2
        sums.append(torch.stack([each.double().mean() for each in tensors]))
        places.append(tensors[0].data_ptr())
    lane.rest()
    assert places == places[:2] * 10
    assert places[0] != places[1]
    assert torch.stack(sums).cpu().tolist() == [[number] * 3 for number in range(20)]


@everywhere
def test_only_what_may_be_returned_is_brought(device: str) -> None:
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 6, 200)
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    own, payload = stored("int8", tokens, train(unit(generator, 80), 8, 4))
    there = There.on(device, 300)
    chosen = np.flatnonzero(generator.random(200) < 0.3)
    brought: list[int] = []
    ready = asking(TokenEmbeddings(unit(generator, 2), offsets_of([2])), device)
    scores = torch.from_numpy(payload.score(PreparedQuery(ready.tokens.values.cpu()), chosen))
    for block, first in there.placed(own, resident=False).blocks(chosen):
        assert isinstance(block, Int8Block)
        assert first == len(brought)
        count = len(block.spans)
        brought.extend(block.spans.diff(dim=1)[:, 0].tolist())
        assert block.values.shape[0] * (WIDTH + 4) + 16 * count <= 300
        listed = block.scores(ready, torch.arange(count, device=device)[None])
        close(listed[0].cpu(), scores[first : first + count], device)
    assert brought == lengths[chosen].tolist()


def test_a_document_larger_than_a_block_has_a_block_to_itself() -> None:
    generator = np.random.default_rng(6)
    tokens = TokenEmbeddings(unit(generator, 52), offsets_of([1, 50, 1]))
    own, payload = stored("vectors", tokens, train(unit(generator, 80), 8, 4))
    there = There.on("cpu", int(own.sizes().max()))
    assert [len(block.spans) for block, _ in there.placed(own, resident=False).blocks(None)] == [1, 1, 1]
    views = [PlacedView(SegmentView(payload), there.placed(own, resident=False))]
    here = World(views, TokenEmbeddings(unit(generator, 2), offsets_of([2])), there)
    assert here.device(3, SearchOptions()) == here.host(3, SearchOptions())


def test_codes_of_no_centroid_are_damage_before_a_device_follows_them() -> None:
    generator = np.random.default_rng(7)
    codebook = train(unit(generator, 80), 8, 4)
    arrays = {**offsets_array(np.array([2, 2])), **encode_residual(unit(generator, 4), codebook)}
    for wrong in (-1, len(codebook)):
        codes = arrays[CODES].copy()
        codes[2] = wrong
        spoiled = InMemory({**arrays, CODES: codes})
        tokens = StoredTokens("residual", spoiled, read_payload(spoiled, codebook), codebook)
        assert set(arrays) == {OFFSETS, CODES, RESIDUALS, SCALES}
        for resident in (True, False):
            with pytest.raises(CorruptIndex, match="codes"):
                list(There.on("cpu").placed(tokens, resident=resident).blocks(None))
    sound = InMemory(arrays)
    assert len(StoredTokens("residual", sound, read_payload(sound, codebook), codebook).columns) == 3


@everywhere
def test_kept_vectors_decide_where_all_documents_are_scored(device: str) -> None:
    """They are decoded on the host and brought; the residuals beside them are not looked at."""
    generator = np.random.default_rng(8)
    lengths = generator.integers(1, 5, 60)
    tokens = TokenEmbeddings(unit(generator, int(lengths.sum())), offsets_of(lengths))
    there = There.on(device, 900)
    for kind in ("vectors", "int8"):
        own, payload = stored("residual", tokens, train(unit(generator, 80), 8, 1))
        vectors = exactly(tokens, kind)
        view = SegmentView(payload, vectors=vectors)
        placed = PlacedView(view, there.placed(own, resident=True), Decoded(vectors, there.lane), 8)
        here = World([placed], TokenEmbeddings(unit(generator, 6), offsets_of([3, 3])), there)
        for options in (SearchOptions("exact"), SearchOptions(candidates=40)):
            assert_same(here.device(4, options), here.host(4, options), device)
        (score, _, row), *_ = here.device(1, SearchOptions("exact"))[0]
        np.testing.assert_allclose(score, vectors.score(PreparedQuery(here.queries[0]), np.array([row]))[0], rtol=1e-5)
