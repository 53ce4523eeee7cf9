"""The case of the stored index: curves, grids, prepared corpora, workers, and its parts on next to nothing."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import peers
from benchmarks.cases import index as case
from benchmarks.cases import index_1m
from benchmarks.cases.index import (
    building,
    comparison,
    contestants,
    curves,
    lexical,
    prepared,
    scaling,
    single,
    writing,
)
from benchmarks.cases.index.comparison import Asked
from benchmarks.cases.index.contestants import Contestant
from benchmarks.cases.index.curves import Point, cost_of, frontier, near_frontier, said
from benchmarks.cases.index.prepared import Prepared, exact_best
from benchmarks.cases.index.sizes import Sizes
from benchmarks.harness import Bench, Seconds
from benchmarks.peers import indexes, process
from benchmarks.peers.index_serving import Items
from benchmarks.peers.indexes import NAMES, Built, IndexPeer
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.reference import maxsim_all_pairs

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("fast_plaid_worker", "xtr_warp_worker", "pylate_index_worker")
TINY = Sizes(documents=200, repeats=2, trial=True)

points = st.lists(
    st.builds(Point, st.integers(0, 20).map(lambda n: n / 20), st.integers(1, 50).map(lambda n: n / 1000)),
    min_size=1,
    max_size=12,
)


@pytest.fixture
def bench() -> Bench:
    return Bench("index", case.FIGURES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared("synthetic-200", tmp_path_factory.mktemp("indexes")).prepare(lambda _: None)


@pytest.fixture
def here(corpus: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever corpus is prepared, it is prepared beside this one."""

    def made(name: str) -> Prepared:
        return Prepared(name, corpus.parent)

    for module in (building, comparison, single, writing, lexical, indexes):
        monkeypatch.setattr(module, "Prepared", made)


# ── curves ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(points)
def test_nothing_beats_a_point_of_the_frontier_and_something_beats_every_other(given: list[Point]) -> None:
    best = frontier(given)
    for point in given:
        beaten = any(
            other.recall >= point.recall and other.seconds <= point.seconds and other != point for other in given
        )
        assert (point in best) is not beaten
    rising = [(point.recall, point.seconds) for point in best]
    assert rising == sorted(rising)


@given(points)
def test_what_is_near_the_frontier_holds_it_and_grows_with_the_factor(given: list[Point]) -> None:
    best, near, all_of_them = frontier(given), near_frontier(given, 1.5), near_frontier(given, 1e9)
    assert all(point in near for point in best)
    assert all(point in all_of_them for point in near)
    assert len(all_of_them) == len(given)


@given(points, st.floats(0, 1), st.floats(0, 1))
def test_more_recall_never_costs_less_and_lies_between_its_neighbours(
    given: list[Point], one: float, other: float
) -> None:
    less, more = cost_of(given, min(one, other)), cost_of(given, max(one, other))
    if more is not None:
        assert less is not None
        assert less <= more * (1 + 1e-12)
        seconds = [point.seconds for point in frontier(given)]
        assert min(seconds) * (1 - 1e-12) <= more <= max(seconds) * (1 + 1e-12)
    else:
        assert max(point.recall for point in given) < max(one, other)


def test_time_between_two_points_is_geometric_in_recall() -> None:
    ends = [Point(0.9, 0.01), Point(1.0, 0.04), Point(0.95, 1.0)]
    assert cost_of(ends, 0.95) == pytest.approx(0.02)
    assert cost_of(ends, 0.5) == 0.01
    assert cost_of(ends, 1.0) == 0.04


def test_a_level_that_is_not_reached_is_said_and_the_most_exact_point_stands_for_it() -> None:
    given = [Point(0.8, 0.01), Point(0.9, 0.02)]
    assert cost_of(given, 0.95) is None
    assert said(given, 0.95) == (0.02, "not reached: 0.900 at most, in 20.0 ms")
    assert said(given, 0.9) == (0.02, "20.0 ms")


def test_a_picture_is_drawn_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"a": [Point(0.8, 0.01), Point(0.9, 0.02), Point(0.7, 0.5)], "b": [Point(1.0, 0.3)]}
    if importlib.util.find_spec("matplotlib") is not None:
        assert curves.plot(drawn, "title", tmp_path / "deep" / "one.png")
        assert (tmp_path / "deep" / "one.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda _: None)
    assert not curves.plot(drawn, "title", tmp_path / "two.png")
    assert not (tmp_path / "two.png").exists()


# ── corpora ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prepared_corpus_is_what_an_exact_search_of_it_finds(corpus: Prepared) -> None:
    documents, queries = corpus.documents, corpus.queries
    assert len(documents) == 200
    truth = maxsim_all_pairs(*(TokenEmbeddings(each.tokens.numpy(), each.offsets) for each in (queries, documents)))
    for own, row in zip(corpus.best, truth, strict=True):
        assert row[own].min() >= np.sort(row)[-10] - 1e-5
    assert corpus.recall(corpus.best.tolist()) == 1.0
    assert corpus.recall([own[:5] for own in corpus.best.tolist()]) == 0.5
    assert corpus.recall([[]]) == 0.0


def test_documents_that_find_themselves_are_their_own_best(corpus: Prepared) -> None:
    few = corpus.documents.span(0, 5)
    assert exact_best(corpus.documents, few, 1)[:, 0].tolist() == list(range(5))


def test_everybody_is_given_the_same_arrays(corpus: Prepared) -> None:
    read = Items.read(str(corpus.folder), "documents")
    assert np.array_equal(read.tokens.numpy(), corpus.documents.tokens.numpy())
    assert read.lengths == corpus.documents.lengths.tolist()
    assert read.texts == [""] * 200
    assert [len(each) for each in read.each()] == read.lengths
    first = read.first(3)
    assert first.lengths == read.lengths[:3]
    assert np.array_equal(first.tokens.numpy(), read.tokens[: sum(first.lengths)].numpy())


def test_encoding_a_collection_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        calls = 0

        def encode_documents(self, documents: Sequence[Any], output: str) -> TokenEmbeddings[Any]:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return TokenEmbeddings(np.full((len(documents), 4), float(documents[0])), np.arange(len(documents) + 1))

    monkeypatch.setattr(prepared, "BLOCK", 2)
    model: Any = Model()
    with pytest.raises(KeyboardInterrupt):
        list(prepared._encoded(model, [1, 2, 3, 4, 5], tmp_path / "blocks", lambda _: None))  # type: ignore[list-item]
    blocks = list(prepared._encoded(model, [1, 2, 3, 4, 5], tmp_path / "blocks", lambda _: None))  # type: ignore[list-item]
    assert [float(block.tokens[0, 0]) for block in blocks] == [1, 3, 5]
    assert model.calls == 4


# ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_has_each_combination_once_and_names_a_worker_that_is_there(name: str) -> None:
    peer = IndexPeer.read(name)
    assert peer.worker[0] in WORKERS
    keys = {json.dumps(dict(point), sort_keys=True) for point in peer.points}
    assert len(keys) == len(peer.points) >= 9
    assert set(peer.corpora) <= set(comparison.CORPORA)


def test_the_corpora_of_each_comparison_are_those_that_peers_have_indexes_of() -> None:
    assert set(indexes.corpora()) == set(comparison.CORPORA)
    assert set(comparison.PLAID_CORPORA) == set(IndexPeer.read("plaid").corpora)
    for name in comparison.RUSTS:
        assert set(IndexPeer.read(name).corpora) == set(comparison.CORPORA)


def test_workers_of_peers_import_nothing_of_ours() -> None:
    folder = Path(peers.__file__).parent
    for name in (*WORKERS, "index_serving"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {each for each in modules if each.startswith(("lateinteraction", "benchmarks"))}
        assert ours <= {"benchmarks.peers.serving", "benchmarks.peers.index_serving"}


def test_an_index_that_failed_or_was_not_built_is_not_asked(corpus: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "interpreter", lambda _: Path(sys.executable))
    peer = IndexPeer.read("plaid")
    assert Built.find(peer, corpus) is None
    assert comparison.usable("plaid", corpus) is None
    found = [own.tolist() for own in corpus.best]
    Built(peer, corpus, {"points": [{"parameters": peer.points[0], "found": found}]}).write()
    built = comparison.usable("plaid", corpus)
    assert built is not None
    assert built.points() == [(peer.points[0], 1.0)]
    Built(peer, corpus, {"failure": "stopped after 25 minutes"}).write()
    assert comparison.usable("plaid", corpus) is None
    (corpus.folder / "plaid.json").unlink()


def test_a_peer_that_fails_is_recorded_and_no_end(
    corpus: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: None
) -> None:
    monkeypatch.setattr(process, "interpreter", lambda _: Path(sys.executable))
    monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path)
    monkeypatch.setattr(indexes, "corpora", lambda: ["synthetic-200"])
    whole = IndexPeer.read("fast-plaid")
    broken = IndexPeer("fast-plaid", "broken", "x", ["no_such_worker"], ["synthetic-200"], whole.points)
    works = IndexPeer("xtr-warp", "works", "x", ["brute_force_worker"], ["synthetic-200"], [{}])
    monkeypatch.setattr(IndexPeer, "read", {"fast-plaid": broken, "xtr-warp": works}.__getitem__)
    monkeypatch.setattr(indexes, "NAMES", ("fast-plaid", "xtr-warp"))
    assert indexes.main([]) == 0
    failed, built = (Built.find(peer, corpus) for peer in (broken, works))
    assert failed is not None
    assert built is not None
    assert "no_such_worker" in str(failed.failure)
    assert built.failure is None
    assert built.about["build"]["bytes"] > 200 * 20 * 512
    assert [recall for _, recall in built.points()] == [1.0]
    rows = (tmp_path / "index.csv").read_text()
    assert rows.count("build, synthetic-200") == 2
    assert indexes.main([]) == 0, "what is there is not built again"
    assert (tmp_path / "index.csv").read_text() == rows
    for name in ("fast-plaid.json", "xtr-warp.json"):
        (corpus.folder / name).unlink()


def test_missing_environments_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(process, "interpreter", lambda _: Path("/nowhere"))
    assert indexes.main(["plaid"]) == 1
    assert "pylate-index. Type `make peers-index`" in capsys.readouterr().out
    assert indexes.main(["plaid", "nonsense"]) == 1
    assert "error: nonsense: neither of plaid" in capsys.readouterr().out


def test_words_choose_among_corpora_and_among_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def build(peer: IndexPeer, corpus: Prepared) -> Built:
        asked.append((peer.name, corpus.name))
        return Built(peer, corpus, {"failure": "not here"})

    monkeypatch.setattr(process, "interpreter", lambda _: Path(sys.executable))
    monkeypatch.setattr(Prepared, "prepare", lambda corpus: corpus)
    monkeypatch.setattr(indexes, "Prepared", lambda name: Prepared(name, tmp_path))
    monkeypatch.setattr(indexes, "build", build)
    indexes.main(["cranfield", "plaid", "xtr-warp"])
    assert asked == [("plaid", "cranfield"), ("xtr-warp", "cranfield")]
    asked.clear()
    indexes.main(["synthetic-100000"])
    assert asked == [("fast-plaid", "synthetic-100000"), ("xtr-warp", "synthetic-100000")]
    asked.clear()
    indexes.main(["warp"])
    assert {name for name, _ in asked} == {"warp"}
    assert [corpus for _, corpus in asked] == list(IndexPeer.read("warp").corpora)


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Known:
    """A worker whose queries take as long as their parameters say, and find as much."""

    def __init__(self, corpus: Prepared) -> None:
        self.corpus, self.asked = corpus, []

    def ask(self, action: str, **request: Any) -> Mapping[str, Any]:
        parameters = request["parameters"]
        seconds = {"seconds": parameters.get("seconds", 0.001), "cpu_seconds": 0.0}
        if action == "time":
            self.asked.append((dict(parameters), request["query"]))
            return seconds
        share = round(10 * parameters.get("recall", 1.0))
        return {**seconds, "found": [list(own[:share]) for own in self.corpus.best.tolist()]}


def test_points_far_from_the_frontier_are_asked_no_more_than_to_see_that(corpus: Prepared) -> None:
    theirs, ours, brute = Known(corpus), Known(corpus), Known(corpus)
    grid = [{"recall": 0.9, "seconds": 0.01}, {"recall": 0.9, "seconds": 0.05}, {"recall": 1.0, "seconds": 0.1}]
    built = Built(
        IndexPeer("plaid", "PLAID", "x", [], [], grid),
        corpus,
        {"points": [{"parameters": each, "found": theirs.ask("find", parameters=each)["found"]} for each in grid]},
    )
    own = {contestants.KEPT: Asked(Contestant(ours), {"seconds": 0.001}, 1.0)}  # type: ignore[arg-type]
    found, mine, exact = comparison._in_turn(
        Sizes(repeats=4),
        own,
        {"plaid": Contestant(theirs)},
        {"plaid": built},
        Asked(Contestant(brute), {}, 1.0),  # type: ignore[arg-type]
    )
    assert [len(asked.seconds) for asked in found["plaid"]] == [7, 3, 7]
    assert len(mine[contestants.KEPT].seconds) == len(exact.seconds) == 4
    assert [query for _, query in ours.asked[1:]] == [3, 4, 5, 6]
    assert found["plaid"][0].point == Point(pytest.approx(0.9), 0.01, "recall 0.9, seconds 0.01")  # type: ignore[arg-type]


def report(bench: Bench, corpus: str, own: Mapping[Any, tuple[float, float]], **theirs: list[Point]) -> None:
    def asked(point: Point) -> Asked:
        nobody: Any = None
        return Asked(nobody, {}, point.recall, (Seconds(point.seconds, 0.0),))

    mine = {configuration: asked(Point(*pair)) for configuration, pair in own.items()}
    comparison._report(
        bench, corpus, mine, {name.replace("_", "-"): list(map(asked, each)) for name, each in theirs.items()}
    )


def test_the_quickest_configuration_that_reaches_a_level_is_compared_with_the_quickest_peer_that_does(
    bench: Bench,
) -> None:
    own = {contestants.RESIDUAL4: (0.96, 0.001), contestants.KEPT: (1.0, 0.002)}
    fast, warp = [Point(0.94, 0.02), Point(0.96, 0.02 + 1e-9)], [Point(0.99, 0.1)]
    report(bench, "cranfield", own, plaid=[Point(0.97, 0.4)], fast_plaid=fast, xtr_warp=warp)
    measured = {figure: value for figure, (value, _) in bench.values.items()}
    assert measured[comparison.plaid_figure("cranfield", 0.95)] == pytest.approx(400)
    assert measured[comparison.plaid_figure("cranfield", 0.99)] == pytest.approx(200)
    assert "not reached: 0.970" in bench.values[comparison.plaid_figure("cranfield", 0.99)][1]
    assert measured[comparison.rust_figure("cranfield", 0.95)] == pytest.approx(20, rel=1e-4)
    assert measured[comparison.rust_figure("cranfield", 0.99)] == pytest.approx(50)


def test_where_no_configuration_of_ours_reaches_a_level_the_figure_is_short(bench: Bench) -> None:
    report(bench, "synthetic-20000", {contestants.RESIDUAL4: (0.96, 0.001)}, plaid=[Point(0.99, 0.4)])
    assert bench.values[comparison.plaid_figure("synthetic-20000", 0.99)][0] == 0
    assert bench.values["20,000 documents: p50 at 0.99, one thread"][0] == float("inf")
    assert bench.values["20,000 documents: p50 at 0.95, one thread"][0] == pytest.approx(1)
    assert comparison.rust_figure("synthetic-20000", 0.95) in bench.skipped


@pytest.mark.deep
def test_without_peers_ours_is_measured_and_ratios_are_skipped(bench: Bench, tmp_path: Path, here: None) -> None:
    comparison.measure(bench, TINY, tmp_path)
    for figure in comparison.FIGURES:
        name = figure.name
        expected = name.startswith(("synthetic-20000: ours", "20,000 documents"))
        assert (name in bench.values) is expected, name
        assert (name in bench.skipped) is not expected, name
    assert bench.values["synthetic-20000: ours, float16, recall@10"][0] > 0.99


@pytest.mark.deep
def test_building_single_queries_and_small_writes_are_measured_whole(bench: Bench, tmp_path: Path, here: None) -> None:
    for part in (building, single, writing):
        part.measure(bench, TINY, tmp_path)
        missing = {figure.name for figure in part.FIGURES} - set(bench.values) - set(bench.skipped)
        assert not missing
    assert set(bench.skipped) == {building.AGAINST_PLAID}
    assert bench.values[building.OPENING][0] > 0


def test_waiting_for_the_disk_is_counted_and_left_out(tmp_path: Path) -> None:
    waits = writing.Waits()

    def write() -> None:
        with (tmp_path / "file").open("wb") as file:
            for _ in range(3):
                os.fsync(file.fileno())

    original = os.fsync
    whole, rest, count = waits.taken_from(write)
    assert count == 3
    assert 0 <= rest.wall < whole.wall
    assert os.fsync is original


@pytest.mark.deep
def test_a_stream_is_judged_by_the_same_embeddings_that_it_stored(bench: Bench, tmp_path: Path) -> None:
    timing, built = scaling.grow(bench, 10_000, 1_000, tmp_path)
    assert len(timing.wall) == scaling.QUERIES
    assert built["seconds"] > 0
    assert bench.values["10,000 documents: recall@10"][0] > 0.99


def test_a_chosen_part_is_a_trial_and_an_unknown_one_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bench: Bench
) -> None:
    measured: list[str] = []
    for name, part in case.PARTS.items():
        monkeypatch.setattr(part, "measure", lambda bench, sizes, scratch, name=name: measured.append(name))
    monkeypatch.setenv("PARTS", "single lexical")
    with pytest.raises(SystemExit) as end:
        case.run(bench)
    assert end.value.code == 0
    assert measured == ["single", "lexical"]
    assert "nothing is recorded" in capsys.readouterr().out
    monkeypatch.setenv("PARTS", "nonsense")
    with pytest.raises(SystemExit, match="no part is called nonsense"):
        case.run(bench)
    for name in ("PARTS", "CORPORA", "DOCUMENTS", "REPEATS"):
        monkeypatch.delenv(name, raising=False)
    case.run(bench)
    assert measured[2:] == list(case.PARTS)


@pytest.mark.parametrize("module", [case, index_1m])
def test_figures_have_names_of_their_own(module: ModuleType) -> None:
    assert len({figure.name for figure in module.FIGURES}) == len(module.FIGURES)


def test_configurations_are_printed_with_what_they_store_and_how_they_search() -> None:
    assert str(contestants.KEPT) == (
        "ours, 4 bits + float16: codec residual4, keep float16; searched with candidates 256, probe 16"
    )
    assert str(contestants.EXACT) == "ours, float16: codec float16; searched with the defaults"


# ── environments ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for name in ("peers", "peers_index"):
        specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, name, module)
        specification.loader.exec_module(module)
    return module


def test_one_environment_holds_torch_and_the_other_finds_it_there(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def create(folder: Path) -> None:
        (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        (folder / "unfinished").touch()

    monkeypatch.setenv("TORCH_INDEX", "https://torch.example")
    monkeypatch.setattr(tool.peers.environment, "create", create)
    monkeypatch.setattr(
        tool.peers.environment, "run_pip", lambda folder, *arguments: calls.append((folder.name, *arguments))
    )
    for name, peer in tool.PEERS.items():
        tool.peers.bring_up_to_date(tmp_path / name, peer)
        tool.peers.bring_up_to_date(tmp_path / name, peer)  # does nothing
    assert [call[0] for call in calls] == ["index-t211"] * 3 + ["pylate-index"] * 3
    offered = [call for call in calls if "https://torch.example" in call]
    assert offered == [("index-t211", "install", tool.TORCH, "--extra-index-url", "https://torch.example")]
    lender = tmp_path / "index-t211" / "lib" / "python3.11" / "site-packages"
    assert not list(lender.iterdir())
    (lent,) = (tmp_path / "pylate-index" / "lib" / "python3.11" / "site-packages").iterdir()
    assert lent.suffix == ".pth"
    assert lent.read_text() == f"{lender}\n"


def test_the_environments_are_those_that_the_workers_are_run_by(tool: ModuleType) -> None:
    assert {IndexPeer.read(name).environment for name in NAMES} == set(tool.PEERS)
