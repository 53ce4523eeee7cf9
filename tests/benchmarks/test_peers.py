"""How peers are asked, compared and installed; none of them is needed here."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.cases import encode
from benchmarks.harness import Bench
from benchmarks.peers import exchange, fresh, process
from benchmarks.peers.cases import CASES, LIBRARY_DEFAULTS, TEXTS, Case, Deviation, sources
from benchmarks.peers.exchange import Difference, Outcome, compare, notes, table
from benchmarks.peers.process import Embeddings, Peer, PeerFailure, PeersNotInstalled
from benchmarks.peers.serving import memory_growth
from lateinteraction.domain.recipe import EncodingRecipe

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, sys, time
import numpy as np
from benchmarks.peers.serving import read_texts, serve, timed, write_rows

def encode(texts, out, width):
    print("a library that talks")
    os.write(1, b"and one that talks to the file itself")
    return write_rows(out, [np.full((len(text), width), len(text)) for text in read_texts(texts)])

def fail(what):
    raise ValueError(f"no {what} here")

def end(status):
    print("last words", file=sys.stderr, flush=True)
    os._exit(status)

def sleep(seconds):
    time.sleep(seconds)

def measure():
    return timed(lambda: sum(range(9)))

serve({"encode": encode, "fail": fail, "end": end, "sleep": sleep, "time": measure})
"""


def started(**options: float) -> Peer:
    return Peer("parrot", [sys.executable, "-c", WORKER], **options)


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with started() as running:
        yield running


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    specification = importlib.util.spec_from_file_location("peers", ROOT / "tools" / "peers.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "peers", module)
    specification.loader.exec_module(module)
    return module


def rows(*lengths: int, width: int = 2) -> Embeddings:
    """Texts of so many rows, each with its own values."""
    tokens = np.arange(sum(lengths) * width, dtype=np.float32).reshape(-1, width)
    return Embeddings(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def changed(embeddings: Embeddings, row: int, by: float) -> Embeddings:
    tokens = embeddings.tokens.copy()
    tokens[row, 0] += by
    return Embeddings(tokens, embeddings.offsets)


def test_rows_come_back_in_order_whatever_libraries_print(peer: Peer) -> None:
    made = peer.encode(["ab", "", "漢字\n😀"], width=3)
    assert made.tokens.shape == (6, 3)
    assert [made.of(text).shape[0] for text in range(3)] == [2, 0, 4]
    assert (made.of(2) == 4).all()


def test_an_error_of_a_peer_is_told_and_it_goes_on(peer: Peer) -> None:
    with pytest.raises(PeerFailure, match=r"parrot, 'fail': ValueError: no tea here"):
        peer.ask("fail", what="tea")
    with pytest.raises(PeerFailure, match="KeyError"):
        peer.ask("no such action")
    assert peer.encode(["a"], width=1).tokens.tolist() == [[1.0]]


def test_a_timed_call_tells_its_seconds_and_memory(peer: Peer) -> None:
    answer = peer.ask("time")
    assert 0 <= answer["seconds"] < 5
    assert answer["peak_rss_mb"] > 5


def test_peak_memory_is_of_the_process_itself_whoever_started_it() -> None:
    ballast = np.ones(60_000_000)
    with started() as small:
        assert small.ask("time")["peak_rss_mb"] < ballast.nbytes / 1e6


def test_growth_counts_the_peak_of_a_call_and_not_what_it_kept_or_what_was_before() -> None:
    held: list[np.ndarray] = []
    ones = np.ones(4_000_000)  # 32 MB
    assert 60e6 < memory_growth(lambda: (ones + 1, ones + 2))["growth"] < 90e6
    assert 28e6 < memory_growth(lambda: [(ones + number).sum() for number in range(3)])["growth"] < 50e6
    kept = memory_growth(lambda: held.append(ones + 1), kept=ones.nbytes)["growth"]
    assert abs(kept) < 8e6
    assert abs(memory_growth(lambda: ones.sum())["growth"]) < 8e6


def test_a_peer_that_ends_leaves_its_last_words() -> None:
    with started() as ending, pytest.raises(PeerFailure, match=r"(?s)parrot ended during 'end'.*last words"):
        ending.ask("end", status=3)


def test_a_peer_that_takes_too_long_is_ended() -> None:
    with started(seconds=0.5) as slow, pytest.raises(PeerFailure, match="parrot ended during 'sleep'"):
        slow.ask("sleep", seconds=60)


def test_contestants_see_no_network_and_nothing_of_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("COVERAGE_PROCESS_START", "yes")
    seen = process.surroundings()
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["OMP_NUM_THREADS"] == "2"
    assert {"PYTHONPATH", "COVERAGE_PROCESS_START"}.isdisjoint(seen)
    alone = process.surroundings(threads=1)
    assert {alone[name] for name in process.THREAD_VARIABLES} == {"1"}
    assert {"OMP_NUM_THREADS", "RAYON_NUM_THREADS"} <= set(process.THREAD_VARIABLES)


def test_workers_of_peers_import_nothing_of_ours() -> None:
    folder = Path(peers.__file__).parent
    for name in ("serving", process.SCORING, *process.MODULES.values()):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {each for each in modules if each.startswith(("lateinteraction", "benchmarks"))} <= {
            "benchmarks.peers.serving"
        }


def test_equal_rows_are_not_apart() -> None:
    assert compare(rows(2, 0, 3), rows(2, 0, 3), 0.0) == Difference(0.0, (), 0.0, 3)


def test_texts_beyond_the_limit_are_named_and_the_rest_is_measured() -> None:
    found = compare(rows(2, 1, 3), changed(changed(rows(2, 1, 3), 2, 0.5), 0, 0.25), 0.3)
    assert found == Difference(0.5, (1,), 0.25, 3)


def test_other_numbers_of_rows_texts_or_dimensions_are_apart() -> None:
    assert compare(rows(2, 1), rows(1, 2), 1e9).apart == (0, 1)
    assert compare(rows(2, 1), rows(2, 1, 1), 1e9).apart == (0, 1, 2)
    assert compare(rows(2), rows(2, width=3), 1e9).apart == (0,)


def test_sets_of_rows_may_come_in_another_order_and_no_more() -> None:
    given = rows(3, 2)
    turned = Embeddings(given.tokens[[2, 0, 1, 4, 3]], given.offsets)
    assert compare(given, turned, 0.0).apart == (0, 1)
    assert compare(given, turned, 0.0, ordered=False) == Difference(0.0, (), 0.0, 2)
    twice = Embeddings(given.tokens[[0, 0, 1, 3, 4]], given.offsets)
    assert compare(given, twice, 1.0, ordered=False).apart == (0,)
    assert compare(twice, given, 1.0, ordered=False).apart == (0,)
    assert compare(rows(1, 2), rows(2, 1), 1e9, ordered=False).apart == (0, 1)


def test_not_a_number_is_apart() -> None:
    assert compare(rows(2, 1), changed(rows(2, 1), 0, float("nan")), 1e9).apart == (0,)


READERS = ("pylate", "sentence-transformers")
MAKERS = (*READERS, "ours")
REASON = Deviation(("pylate",), "documents", (3, 4, 5), "They drop what we keep.")
GOOD, APART = Difference(2e-7, (), 2e-7, 12), Difference(0.5, (3, 4), 1e-7, 12)


def outcome(difference: Difference | None, **more: object) -> Outcome:
    settings = {"case": "a case", "origin": "pylate", "direction": "theirs → ours", "peer": "pylate"}
    return Outcome(**{**settings, "role": "documents", "difference": difference, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "good", "cell"),
    [
        (outcome(GOOD), True, "2.0e-07"),
        (outcome(APART), False, "5.0e-01 !"),
        (outcome(APART, deviation=REASON), True, "1.0e-07, 2/12 *"),
        (outcome(GOOD, deviation=REASON), True, "2.0e-07"),
        (outcome(Difference(0.5, (2, 3), 1e-7, 12), deviation=REASON), False, "5.0e-01 !"),
        (outcome(None, error="OSError: gone"), False, "error !"),
        (outcome(None, error="OSError: gone", deviation=REASON), False, "error !"),
    ],
)
def test_a_cell_shows_what_counts(what: Outcome, good: bool, cell: str) -> None:
    assert what.good is good
    _, header, line = table([what]).splitlines()
    assert line.split("  ", 2)[-1].strip() == cell
    assert header.index("documents") == line.index(cell)


def test_notes_give_each_reason_once_and_each_failure() -> None:
    outcomes = [
        outcome(APART, deviation=REASON),
        outcome(APART, deviation=REASON, case="another"),
        outcome(APART, role="queries"),
        outcome(None, error="OSError: gone"),
        outcome(None, error="OSError: gone", case="x", origin="ours", direction="ours → theirs", peer=READERS[1]),
        outcome(GOOD),
    ]
    assert list(notes(outcomes)) == [
        "* a case; another; documents: They drop what we keep.",
        "! a case by PyLate → ours, queries: texts (3, 4) are apart",
        "! a case by PyLate → ours, documents; x by ours → ST, documents: OSError: gone",
    ]


def test_readers_have_columns_of_their_own() -> None:
    given = [outcome(GOOD, direction="ours → theirs", peer=reader, role="queries") for reader in READERS]
    header, _, line = table(given).splitlines()
    assert line.count("2.0e-07") == 2
    assert line.index("2.0e-07") == header.index("ours → PyLate")
    assert line.rindex("2.0e-07") == header.index("ours → ST")


def test_every_case_is_a_recipe_of_ours_with_a_name_of_its_own() -> None:
    for case in CASES:
        EncodingRecipe().merge(case.settings)
        assert set(case.recipe) <= set(LIBRARY_DEFAULTS)
        assert case.origins
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_texts_hold_the_difficult_kinds() -> None:
    assert all(len(texts) >= 8 for texts in TEXTS.values())
    for texts in TEXTS.values():
        assert any(len(text) == 1 for text in texts)
        assert any(text and not any(map(str.isalnum, text)) for text in texts)
        assert any(len(text.split()) > LIBRARY_DEFAULTS["query_length"] for text in texts)
        assert any("漢" in text for text in texts)


def test_a_deviation_is_of_one_peer_and_one_role() -> None:
    case = Case(name="x", deviations=(REASON,))
    assert case.deviation("pylate", "documents") is REASON
    assert case.deviation("pylate", "queries") is None
    assert case.deviation("sentence-transformers", "documents") is None


class Echo:
    """A peer that is ours in disguise: its models are the plain encoders, its embeddings ours, moved by a little."""

    def __init__(self, moved: float = 0.0, *, broken: bool = False) -> None:
        self.moved, self.broken = moved, broken

    def ask(self, action: str, **arguments: Any) -> None:
        assert action == "save"
        shutil.copytree(arguments["source"], arguments["folder"])

    def encode(self, texts: Sequence[str], **arguments: Any) -> Embeddings:
        if self.broken:
            raise PeerFailure("cannot read it")
        role = "queries" if arguments["role"] == "query" else "documents"
        assert texts == TEXTS[role]
        made = exchange.encode(exchange.load(arguments["folder"], {}), role)
        return Embeddings(made.tokens + np.float32(self.moved), made.offsets)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return sources(tmp_path_factory.mktemp("sources"))


def test_a_plain_encoder_of_every_source_is_there(plain: Mapping[str, Path]) -> None:
    assert {case.source for case in CASES} <= set(plain)
    assert all((folder / "config.json").exists() for folder in plain.values())


def test_every_maker_and_reader_is_compared_in_its_direction(plain: Mapping[str, Path], tmp_path: Path) -> None:
    echoes = {"pylate": Echo(), "sentence-transformers": Echo(5e-6)}
    case = Case(name="a/b", source="small-bert", layers=(), recipe={"expansion": "none"}, origins=MAKERS)
    outcomes = list(exchange.Exchange(echoes, plain, tmp_path).run(case))  # type: ignore[arg-type]
    made = [(each.origin, each.direction, each.peer, each.good) for each in outcomes if each.role == "queries"]
    ours, theirs = "ours → theirs", "theirs → ours"
    # 5e-6 is within the limit of what we read, and beyond that of what we wrote.
    assert made == [
        ("pylate", theirs, "pylate", True),
        ("pylate", ours, "pylate", True),
        ("pylate", ours, "sentence-transformers", False),
        ("sentence-transformers", theirs, "sentence-transformers", True),
        ("sentence-transformers", ours, "pylate", True),
        ("sentence-transformers", ours, "sentence-transformers", False),
        ("ours", ours, "pylate", True),
        ("ours", ours, "sentence-transformers", False),
    ]
    assert len(outcomes) == 2 * len(made)


def test_a_case_that_fails_is_an_outcome_and_no_end(plain: Mapping[str, Path], tmp_path: Path) -> None:
    running = exchange.Exchange({"pylate": Echo(broken=True)}, plain, tmp_path)  # type: ignore[dict-item]
    reading = list(running.run(Case(name="x", source="small-bert", origins=("pylate",), readers=("pylate",))))
    assert [each.error for each in reading] == ["PeerFailure: cannot read it"] * 4
    (loading,) = running.run(Case(name="y", recipe={"query_length": 1}, origins=("ours",)))
    assert loading.error is not None
    assert loading.error.startswith("InvalidRecipe: query_length = 1")
    assert not loading.good


@pytest.fixture
def handmade(tmp_path: Path) -> Callable[[str], Path]:
    """A folder that looks like an environment in which every package has this version."""

    def make(version: str) -> Path:
        folder = tmp_path / "environment"
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\n[ "$#" = 2 ] && exit 0\necho {folder}\necho {version}\n')
        python.chmod(0o755)
        return folder

    return make


def test_an_environment_made_by_hand_is_taken_as_it_is(tool: ModuleType, handmade: Callable[[str], Path]) -> None:
    folder, peer = handmade("1.2+cpu"), tool.Peer((("some-package[extra]==1.2", "other"),))
    tool.bring_up_to_date(folder, peer)
    assert tool.read_stamp(folder) == tool.stamp_of(folder, peer)
    (folder / "bin" / "python").unlink()
    tool.bring_up_to_date(folder, peer)  # nothing is run any more


@pytest.mark.parametrize("blemish", ["version", "unfinished", "stamp"])
def test_another_version_an_interrupted_and_an_outdated_environment_are_made_anew(
    tool: ModuleType, handmade: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, blemish: str
) -> None:
    folder = handmade("1.1" if blemish == "version" else "1.2")
    if blemish == "unfinished":
        (folder / "unfinished").touch()
    if blemish == "stamp":
        (folder / tool.STAMP).write_text(json.dumps({"steps": [["some-package==1.1"]]}))
    made: list[Path] = []
    monkeypatch.setattr(tool, "install", lambda folder, peer: made.append(folder))
    tool.bring_up_to_date(folder, tool.Peer((("some-package==1.2",),)))
    assert made == [folder]


def test_an_installation_follows_its_steps_and_only_torch_comes_from_its_index(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setenv("TORCH_INDEX", "https://torch.example")
    monkeypatch.setattr(tool.environment, "create", lambda folder: (folder.mkdir(), (folder / "unfinished").touch()))
    monkeypatch.setattr(tool.environment, "run_pip", lambda folder, *arguments: calls.append(arguments))
    folder = tmp_path / "peer"
    tool.bring_up_to_date(folder, tool.PEERS["pylate"])
    assert [call[0] for call in calls] == ["install"] * 4
    assert [call for call in calls if "https://torch.example" in call] == [
        ("install", tool.TORCH, "--extra-index-url", "https://torch.example")
    ]
    assert calls[-1][1:] == ("--no-deps", "pylate==1.6.0", "fast-plaid==1.4.6.2110")
    assert [path.name for path in folder.iterdir()] == [tool.STAMP]


def test_every_peer_that_is_asked_is_installed(tool: ModuleType) -> None:
    assert set(tool.PEERS) == set(process.MODULES)
    assert tool.FOLDER == process.ENVIRONMENTS


def test_missing_peers_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ENVIRONMENTS", tmp_path / ".peers")
    with pytest.raises(PeersNotInstalled, match=r"pylate, sentence-transformers.*maxsim-cpu.*make peers"):
        process.check_installed()
    with pytest.raises(SystemExit, match=r"the peers that this case compares with are not installed.*make peers"):
        encode.run(Bench("encode", encode.FIGURES))


def test_a_smaller_run_is_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCUMENTS", "REPEATS"):
        monkeypatch.delenv(name, raising=False)
    assert encode.Size.chosen() == encode.Size(2_000, 5, False)
    assert encode.Size.chosen().reduced(100_000) == 100_000
    monkeypatch.setenv("DOCUMENTS", "200")
    assert encode.Size.chosen() == encode.Size(200, 5, True)
    assert encode.Size.chosen().reduced(100_000) == 10_000
    monkeypatch.setenv("REPEATS", "2")
    assert encode.Size.chosen().repeats == 2


@pytest.mark.parametrize("trial", [True, False])
def test_a_trial_ends_before_anything_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trial: bool
) -> None:
    for name in dir(encode):  # all that needs the peers, or measures
        if name.startswith(("_measure", "_write", "_check", "_keep", "_contestants", "_sample")):
            monkeypatch.setattr(encode, name, lambda *_: [])
    monkeypatch.setattr(process, "check_installed", lambda _: None)
    monkeypatch.setenv("DOCUMENTS", "200" if trial else "")
    monkeypatch.delenv("REPEATS", raising=False)
    bench = Bench("encode", encode.FIGURES)
    if trial:
        with pytest.raises(SystemExit) as end:
            encode.run(bench)
        assert end.value.code == 0
        assert "nothing is recorded" in capsys.readouterr().out
    else:
        encode.run(bench)
        assert capsys.readouterr().out == ""


def test_figures_have_names_of_their_own() -> None:
    assert len({figure.name for figure in encode.FIGURES}) == len(encode.FIGURES)


def test_a_start_is_timed_to_the_first_line_and_not_to_the_end() -> None:
    slow_to_end = "print('first', flush=True); import time; time.sleep(1.0)"
    slow_to_start = "import time; time.sleep(1.0); print('first')"
    assert fresh.to_first_line([sys.executable, "-c", slow_to_end]) < 1.0
    assert fresh.to_first_line([sys.executable, "-c", slow_to_start]) >= 1.0
    with pytest.raises(PeerFailure, match="ZeroDivisionError"):
        fresh.to_first_line([sys.executable, "-c", "1 / 0"])


def test_cold_starts_are_interleaved_and_the_first_round_is_not_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {
        name: [sys.executable, "-c", f"open({str(log)!r}, 'a').write({name!r}); print(1)"] for name in ("a", "b")
    }
    timings = fresh.cold_starts(commands, 2)
    assert log.read_text() == "ababab"
    assert {name: len(timing.wall) for name, timing in timings.items()} == {"a": 2, "b": 2}
