"""The case of the kernels on the CPU, whole, on next to nothing, with peers that run here; its checks can fail.

The eager form computes: what the forms are worth is told by their own tests.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.cases import kernels as case
from benchmarks.cases.kernels import compressed, floors, inputs, quality, registers, scaling, scoring, training
from benchmarks.cases.kernels.floors import Machine, Work
from benchmarks.cases.kernels.inputs import Sizes, check_close, exact_scores, packed, quantised, threads, unit_rows
from benchmarks.harness import Bench, Timing
from benchmarks.peers import process
from benchmarks.peers.our_scoring_worker import even, training_step
from lateinteraction import kernels
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.kernels.operands import CentroidTable, Tokens

TINY = Sizes(documents=6, repeats=2, trial=True)
SPEED = Machine(read=1e9, floats=1e9, integers=4e9)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with kernels.use("eager"), threads(1):
        yield


@pytest.fixture
def bench() -> Bench:
    return Bench("kernels", case.FIGURES)


def embeddings(tokens: Tokens) -> TokenEmbeddings[np.ndarray]:
    values = tokens.values if tokens.scales is None else tokens.values * tokens.scales[:, None]
    return TokenEmbeddings(values.detach().numpy(), inputs.offsets_from(tokens))


class Scorer:
    """What both libraries answer, computed here; `off` makes them wrong, `floor` gives short documents a zero."""

    def __init__(self, *, floor: bool, off: float = 0.0) -> None:
        self.floor, self.off = floor, off
        self.requests: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        self.requests.append({"action": action, **arguments})
        if action == "scores":
            with np.load(arguments["file"]) as given:
                query, tokens, offsets = (given[name] for name in ("query", "tokens", "offsets"))
            longest = np.diff(offsets).max()
            found = []
            for start, end in pairwise(offsets):
                best = (tokens[start:end] @ query.T).max(axis=0)
                found.append((np.maximum(best, 0) if self.floor and end - start < longest else best).sum())
            np.save(arguments["out"], np.array(found, np.float32) + self.off)
        if action == "step":
            with np.load(arguments["file"]) as given:
                queries, documents = (torch.from_numpy(given[name]) for name in ("queries", "documents"))
            both = [each.flatten(0, -2).requires_grad_() for each in (queries, documents)]
            scores = training_step(
                even(both[0], queries.shape[1]), even(both[1], documents.shape[2]), documents.shape[1]
            )
            np.savez(
                arguments["out"],
                scores=scores.detach().numpy() + self.off,
                grad_queries=both[0].grad.numpy(),
                grad_documents=both[1].grad.numpy(),
            )
        return {"seconds": 0.2, "cpu_seconds": 0.1, "growth": 1_000_000}


def scorers() -> dict[str, Scorer]:
    return {"pylate": Scorer(floor=True), "maxsim-cpu": Scorer(floor=False)}


def test_every_figure_of_the_random_part_is_reported(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start_ours", "start_pylate"):
        monkeypatch.setattr(training, name, lambda: Scorer(floor=True))
    peers = scorers()
    case.measure(bench, TINY, peers, tmp_path)  # type: ignore[arg-type]
    promised = {each.name for part in (scoring, compressed, training, floors) for each in part.FIGURES}
    assert promised == set(bench.values) | set(bench.skipped)
    assert set(bench.skipped) <= {"int8: per document token"}
    assert all(np.isfinite(value) for value, _ in bench.values.values())
    # Against a peer that says 100 ms, whatever takes ours: the ratio is made of CPU times, the right way round.
    row = next(row for row in bench.rows if row["name"] == scoring.OURS)
    assert bench.values["fp32: against maxsim-cpu"][0] == pytest.approx(100 / float(row["cpu_p50_ms"]), rel=1e-2)
    assert bench.values["training, B = 64: memory growth against PyLate"][0] == 1.0
    timed = [request for request in peers["pylate"].requests if request["action"] == "time"]
    assert len(timed) == 2 * (1 + TINY.repeats)  # a warm-up and the repeats, of both ways
    assert sum(request.get("padded_before", False) for request in timed) == len(timed) // 2


def test_every_figure_of_threads_is_reported(bench: Bench) -> None:
    before = torch.get_num_threads()
    scaling.measure(bench, TINY)
    assert {each.name for each in scaling.FIGURES} == set(bench.values)
    assert torch.get_num_threads() == before


@pytest.fixture
def collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both collections, with 30 documents and 6 queries each."""
    words = ["score", "token", "query", "document", "index", "search", "table", "centroid", "residual", "sum", "code"]
    for name, splits in quality.COLLECTIONS.items():
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        rows = [{"_id": f"d{n}", "title": "", "text": " ".join(words[n % 5 : n % 12 + 2])} for n in range(30)]
        asked = [{"_id": f"q{n}", "text": f"{words[n]} {words[n + 3]}"} for n in range(6)]
        for file, lines in (("corpus.jsonl.gz", rows), ("queries.jsonl.gz", asked)):
            with gzip.open(folder / file, "wt", encoding="utf-8") as out:
                out.writelines(json.dumps(line) + "\n" for line in lines)
        for number, split in enumerate(splits):
            own = [f"q{n}\td{n}\t1\n" for n in range(6) if len(splits) == 1 or n % 2 == number]
            (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(own))
    monkeypatch.setenv("LATEINTERACTION_DATA", str(tmp_path))


@pytest.mark.usefixtures("collections")
def test_every_figure_of_real_queries_is_reported(bench: Bench) -> None:
    quality.measure(bench, Sizes(documents=1_000, repeats=2, trial=True))
    assert {each.name for each in quality.FIGURES} == set(bench.values)
    overlap, note = bench.values["int8, wikiqa: top-10 overlap"]
    assert 0.5 < overlap <= 1
    assert note.startswith("6 queries, 30 documents, ")


def test_figures_have_names_of_their_own() -> None:
    assert len({figure.name for figure in case.FIGURES}) == len(case.FIGURES)


def test_the_targets_are_those_that_were_promised() -> None:
    promised = {
        "fp32: against maxsim-cpu": (">=", 3.0),
        "fp32: against PyLate's rerank": (">=", 8.0),
        "fp32: 4 queries, rate of torch.mm": (">=", 70.0),
        "int8: against fp32": (">=", 3.0),
        "int8: per document token": ("<=", 40.0),
        "centroid interaction, uniform codes: per token": ("<=", 2.0),
        "centroid interaction, Zipf codes: per token": ("<=", 2.0),
        "residual MaxSim, 2 bits: against torch": (">=", 12.0),
        "residual MaxSim, 4 bits: against torch": (">=", 10.0),
        **{f"training, B = {batch}: against PyLate": (">=", 6.0) for batch in (64, 128)},
        **{f"training, B = {batch}: memory growth against PyLate": ("<=", 0.05) for batch in (64, 128)},
        **{f"int8, {name}: top-10 overlap": (">=", 0.99) for name in ("vaswani", "wikiqa")},
        **{f"int8, {name}: same top 10 after rescoring 20": (">=", 99.5) for name in ("vaswani", "wikiqa")},
        **{f"int8, {name}: rescored, against fp32": (">=", 3.0) for name in ("vaswani", "wikiqa")},
    }
    declared = {each.name: (each.better, each.target) for each in case.FIGURES if each.target is not None}
    assert declared == promised


@pytest.mark.parametrize("name", ["pylate", "maxsim-cpu"])
def test_a_peer_that_scores_otherwise_is_not_timed(bench: Bench, tmp_path: Path, name: str) -> None:
    peers = {**scorers(), name: Scorer(floor=name == "pylate", off=0.01)}
    with pytest.raises(AssertionError, match="PyLate's rerank" if name == "pylate" else "maxsim-cpu"):
        scoring.measure(bench, TINY, SPEED, peers, tmp_path)  # type: ignore[arg-type]
    assert not bench.rows


def spoiled(function: Callable[..., Any], spoil: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A kernel whose first output is wrong."""

    def wrong(*arguments: Any) -> Any:
        made = function(*arguments)
        return spoil(made) if isinstance(made, Tensor) else (spoil(made[0]), *made[1:])

    return wrong


@pytest.mark.parametrize(
    "name",
    ["maxsim_all_pairs", "maxsim_top_k"],
)
def test_a_wrong_score_ends_the_run_before_anything_is_timed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(kernels, name, spoiled(getattr(kernels, name), lambda scores: scores * 1.0001))
    with pytest.raises(AssertionError):
        scoring.measure(bench, TINY, SPEED, scorers(), tmp_path)  # type: ignore[arg-type]
    assert not bench.rows


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("centroid_scores", lambda table: table + 1e-3),
        ("centroid_interaction", lambda scores: scores * 1.001),
        ("residual_maxsim", lambda scores: scores * 1.01),
        ("residual_decode", lambda tokens: tokens * 1.001),
        ("residual_encode", lambda residuals: residuals ^ 1),
        ("kmeans_assign", lambda codes: torch.where(codes > 0, codes - 1, codes + 1)),
        ("probe", lambda codes: codes.flip(1)),
    ],
)
def test_a_wrong_operation_on_compressed_tokens_is_noticed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor], Tensor]
) -> None:
    monkeypatch.setattr(kernels, name, spoiled(getattr(kernels, name), spoil))
    with pytest.raises(AssertionError):
        compressed.measure(bench, TINY, SPEED)


def test_a_gradient_off_by_one_bit_is_noticed(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nudged(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient.nextafter(torch.full_like(gradient, 9))

    right = kernels.maxsim_all_pairs
    nudged = lambda queries, documents: right(queries._replace(values=Nudged.apply(queries.values)), documents)  # noqa: E731
    monkeypatch.setattr(kernels, "maxsim_all_pairs", nudged)
    with pytest.raises(AssertionError, match="query gradient"):
        training.measure(bench, TINY, SPEED, Scorer(floor=True), tmp_path)  # type: ignore[arg-type]
    assert not bench.rows


def test_a_peer_that_trains_on_other_scores_is_not_timed(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="scores"):
        training.measure(bench, TINY, SPEED, Scorer(floor=True, off=0.5), tmp_path)  # type: ignore[arg-type]
    assert not bench.rows


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), queries=st.integers(1, 3), seed=st.integers(0, 99))
def test_exact_scores_are_those_of_the_reference(lengths: list[int], queries: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents, asked = packed(unit_rows(generator, sum(lengths)), lengths), inputs.queries_of(generator, queries)
    wide = [
        TokenEmbeddings(each.tokens.astype(np.float64), each.offsets) for each in map(embeddings, (asked, documents))
    ]
    np.testing.assert_allclose(exact_scores(asked, documents), reference.maxsim_all_pairs(*wide), rtol=1e-12)
    small = quantised(asked), quantised(documents)
    restored = [each._replace(values=each.values.double(), scales=each.scales.double()) for each in small]
    wide = [embeddings(each) for each in restored]
    np.testing.assert_allclose(exact_scores(*small), reference.maxsim_all_pairs(*wide), rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_exact_steps_are_those_of_the_reference(batch: int) -> None:
    """Multiples of 1/4, so that tokens tie."""
    generator = torch.Generator().manual_seed(batch)
    rows = batch * training.QUERY_LENGTH, batch * training.DOCUMENTS * training.LENGTH
    queries, documents = (
        torch.randint(-1, 2, (each, inputs.DIMENSION), generator=generator).double() / 4 for each in rows
    )
    upstream = torch.randint(-4, 5, (batch, batch * training.DOCUMENTS), generator=generator).double() / 4
    found = training.exact_step(queries, documents, upstream)
    both = embeddings(even(queries, training.QUERY_LENGTH)), embeddings(even(documents, training.LENGTH))
    expected = reference.maxsim_all_pairs(*both), *reference.maxsim_all_pairs_gradients(*both, upstream.numpy())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_baseline_of_residual_scoring_is_maxsim_on_what_is_stored(bits: int) -> None:
    generator = np.random.default_rng(bits)
    query = inputs.queries_of(generator, 1)
    stored = compressed.store(generator, TINY, query, unit_rows(generator, 32), bits)
    codec = reference.ResidualCodec(*(each.numpy() for each in stored.codec))
    kept = reference.CompressedEmbeddings(
        stored.compressed.codes.long().numpy(), stored.compressed.residuals.numpy(), inputs.offsets_from(stored.tokens)
    )
    owners = compressed.owners_of(stored.compressed.spans)
    found = compressed.decode_and_score(stored, compressed.lookup_of(stored.codec), owners)
    np.testing.assert_allclose(
        found.numpy(), reference.residual_maxsim(embeddings(query), codec, kept), rtol=1e-5, atol=1e-5
    )


def test_codes_are_distributed_as_they_are_called() -> None:
    generator = np.random.default_rng(0)
    uniform, zipf = (compressed.draw_codes(generator, name, 50_000, 100) for name in compressed.DISTRIBUTIONS)
    counts = [torch.bincount(codes, minlength=100).sort(descending=True).values / 50_000 for codes in (uniform, zipf)]
    assert uniform.dtype == zipf.dtype == torch.int32
    assert float(counts[0].max()) < 0.015
    harmonic = sum(1 / rank for rank in range(1, 101))
    np.testing.assert_allclose(counts[1][:5].numpy(), [1 / rank / harmonic for rank in range(1, 6)], rtol=0.1)


@pytest.mark.parametrize("quantise", [True, False])
def test_the_check_of_centroid_interaction_is_the_reference(quantise: bool) -> None:
    generator = np.random.default_rng(0)
    query, centroids = inputs.queries_of(generator, 1), unit_rows(generator, 20)
    scores = kernels.centroid_scores(query.values, centroids)
    table = kernels.quantise_table(scores) if quantise else CentroidTable(scores)
    documents = packed(torch.empty(12, 0), [3, 4, 5])
    codes = compressed.draw_codes(generator, "Zipf", 12, 20)
    restored = scores if table.steps is None else table.lows + table.steps * table.values
    expected = reference.centroid_interaction(
        restored.numpy(), inputs.offsets_from(query), codes.long().numpy(), inputs.offsets_from(documents)
    )
    np.testing.assert_allclose(compressed._exact_interaction(table, codes, documents.spans), expected, rtol=1e-5)


def test_overlap_is_of_sets() -> None:
    exact = torch.arange(20).view(2, 10)
    assert quality.overlap(exact, exact.flip(1)) == 1.0
    assert quality.overlap(exact, torch.stack([exact[0], exact[0]])) == 0.5


def test_rescoring_orders_by_float32_and_ties_by_place() -> None:
    generator = np.random.default_rng(5)
    query = inputs.queries_of(generator, 1)
    values = unit_rows(generator, 25)
    documents = packed(torch.cat([values, values]), [1] * 50)  # the second half ties with the first
    scores = exact_scores(query, documents)[0]
    places = torch.from_numpy(generator.permutation(50)[:20])[None]
    expected = sorted(places[0].tolist(), key=lambda place: (-scores[place], place))[:10]
    assert quality.rescore(query, documents, places)[0].tolist() == expected


def test_places_do_not_depend_on_how_many_queries_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    queries, documents = inputs.queries_of(generator, 5), inputs.ragged(generator, 20)
    together = quality.best_places(queries, documents, 7)
    monkeypatch.setattr(quality, "QUERIES_AT_ONCE", 2)
    assert torch.equal(quality.best_places(queries, documents, 7), together)
    assert torch.equal(quality.best_places(quality.alone(queries, 3), documents, 7), together[3:4])


def test_the_floor_is_the_longer_of_reading_and_multiplying() -> None:
    assert SPEED.floor(Work(operations=2e9, read=1e9)) == 2.0
    assert SPEED.floor(Work(operations=2e9, read=3e9)) == 3.0
    assert SPEED.floor(Work(operations=2e9, integer=True)) == 0.5
    assert SPEED.share(Work(read=1e9), Timing((9.0,), (4.0,))) == 25.0


def test_the_machine_is_as_good_as_its_best_product(bench: Bench) -> None:
    machine = floors.measure_machine(bench, TINY)
    read, arithmetic, floats, integers = (bench.values[figure.name][0] * 1e9 for figure in floors.FIGURES)
    assert machine.read == pytest.approx(read)
    assert machine.floats == pytest.approx(max(arithmetic, floats))
    assert machine.integers == pytest.approx(integers)
    assert min(read, arithmetic, floats, integers) > 0


def test_chains_of_multiply_adds_are_all_computed() -> None:
    """Each ends where x = x / 2 + 1 / 2 does, at 1."""
    call, operations = registers.multiply_adds()
    assert call() == registers.CHAINS
    assert operations % (2 * registers.CHAINS * registers.STEPS) == 0


def test_scores_that_are_apart_or_of_another_shape_are_not_close() -> None:
    truth = np.array([[1.0, 10.0]])
    check_close(torch.tensor([[1.00005, 10.0]]), truth, "x", 1e-5)
    with pytest.raises(AssertionError, match="x"):
        check_close(torch.tensor([[1.0, 10.001]]), truth, "x", 1e-5)
    with pytest.raises(AssertionError, match=r"x: \(2,\)"):
        check_close(torch.tensor([1.0, 10.0]), truth, "x", 1e-5)


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_ours_is_weighed_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose similarities would take 59 MB."""
    monkeypatch.setenv("LATEINTERACTION_KERNELS", "eager")
    ours = training.start_ours()
    grown = training.weigh(ours, [32, 2, 32, 225, 8])
    assert grown < 30e6
    with pytest.raises(ValueError, match="closed"):
        ours.ask("memory_of_step", sizes=[2, 2, 2, 2, 2])  # it has ended


def test_missing_peers_are_named_with_the_remedy(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ENVIRONMENTS", tmp_path)
    with pytest.raises(SystemExit, match=r"not installed.*pylate, maxsim-cpu.*make peers"):
        case.run(bench)


def test_a_smaller_run_is_a_trial_that_records_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Sizes] = []
    monkeypatch.setattr(process, "check_installed", lambda _: None)
    monkeypatch.setattr(case, "start_peers", scorers)
    monkeypatch.setattr(case, "measure", lambda _bench, sizes, *_: seen.append(sizes))
    for part in (quality, scaling):
        monkeypatch.setattr(part, "measure", lambda _bench, sizes: seen.append(sizes))
    for name in inputs.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    case.run(bench)
    assert seen == [Sizes(1_000, 11, trial=False)] * 3
    monkeypatch.setenv("DOCUMENTS", "50")
    with pytest.raises(SystemExit) as end:
        case.run(bench)
    assert end.value.code == 0
    assert seen[3:] == [Sizes(50, 11, trial=True)] * 3
    assert "nothing is recorded" in capsys.readouterr().out


def test_a_trial_reduces_counts_and_a_measurement_does_not() -> None:
    assert Sizes().reduced(500) == 500
    assert Sizes(documents=100, trial=True).reduced(500) == 50
    assert Sizes(documents=1, trial=True).reduced(500, 2) == 2
    assert Sizes(documents=5_000, trial=True).reduced(500) == 500
