"""The command line: what it prints where, its exit codes, its errors, and that help costs next to nothing."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lateinteraction.adapters.bm25 import Bm25Ranker
from lateinteraction.adapters.standard_library import standard_library_functions
from lateinteraction.application.evaluation import evaluate
from lateinteraction.entrypoints.cli import main

SCRIPTS = Path(sys.executable).parent
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Outcome:
    """What a run left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


Run = Callable[..., Outcome]


@pytest.fixture
def li(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, so that torch is imported once."""

    def run(*arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


def process(arguments: Sequence[str | Path], given: bytes = b"", **environment: str) -> Outcome:
    """The installed command in a process of its own."""
    done = subprocess.run(
        [SCRIPTS / "li", *arguments], input=given, capture_output=True, env=os.environ | environment, check=False
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "travel.md").write_text(
        "# Travel\n\nParis is the capital of France.\n\n# Food\n\nBreakfast in Sofia is banitsa.\n", encoding="utf-8"
    )
    (tmp_path / "dates.py").write_text(
        "def parse_date(text):\n    return strptime(text)\n\n\ndef add(a, b):\n    return a + b\n", encoding="utf-8"
    )
    (tmp_path / "image.png").write_bytes(b"\0\0")
    return tmp_path


# ── search ──


def test_search_prints_places_to_standard_output_and_the_summary_to_standard_error(
    li: Run, folder: Path, tiny_model: Path
) -> None:
    done = li("search", "capital of France", folder, "-k", "2", "--model", tiny_model)
    assert done.code == 0
    places = re.findall(r"^ +(\d+) +(\S+)  (\S+)$", done.out, re.MULTILINE)
    assert [(rank, place) for rank, _, place in places] == [
        ("1", f"{folder}/travel.md:1"),
        ("2", f"{folder}/travel.md:5"),
    ]
    assert "Paris is the capital of France." in done.out
    assert "4 documents of 2 files" in done.err
    assert "skipped 1: 1 binary" in done.err


def test_search_names_the_definition_it_found(li: Run, folder: Path, tiny_model: Path) -> None:
    done = li("search", "def parse_date(text)", folder / "dates.py", "-k", "1", "--model", tiny_model)
    assert f"{folder}/dates.py:1  parse_date" in done.out
    assert "    return strptime(text)" in done.out


def test_search_in_json_is_one_document_with_texts_that_are_the_lines_of_the_files(
    li: Run, folder: Path, tiny_model: Path
) -> None:
    done = li("search", "capital of France", folder, "--model", tiny_model, "--json")
    found = done.document
    assert found["query"] == "capital of France"
    assert (found["files"], found["documents"], found["searched"], found["skipped"]) == (2, 4, 4, {"binary": 1})
    assert len(found["hits"]) == 4
    for hit in found["hits"]:
        lines = Path(hit["path"]).read_text(encoding="utf-8").split("\n")
        assert hit["text"] == "\n".join(lines[hit["line"] - 1 : hit["last_line"]])
        assert hit["id"] == f"{hit['path']}:{hit['line']}"
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert set(found["timing"]) == {"read_s", "load_s", "encode_s", "search_s", "total_s"}
    assert done.err == ""


def test_search_honours_the_filter_and_ranks_the_rest_as_without_it(li: Run, folder: Path, tiny_model: Path) -> None:
    where = {"field": "path", "operator": "==", "value": str(folder / "travel.md")}
    everything = li("search", "a date", folder, "--model", tiny_model, "--json").document
    some = li("search", "a date", folder, "--model", tiny_model, "--json", "--where", json.dumps(where)).document
    expected = [hit for hit in everything["hits"] if hit["path"] == where["value"]]
    assert [hit["id"] for hit in some["hits"]] == [hit["id"] for hit in expected]
    assert [hit["score"] for hit in some["hits"]] == pytest.approx([hit["score"] for hit in expected], rel=1e-5)
    assert (some["documents"], some["searched"]) == (4, 2)


def test_a_filter_that_nothing_matches_gives_no_hits_and_loads_no_model(li: Run, folder: Path) -> None:
    where = '{"field": "line", "operator": ">", "value": 1000}'
    arguments = ["search", "a", folder, "--where", where, "--model", "/nowhere"]
    assert li(*arguments, "--json").document["hits"] == []
    done = li(*arguments)
    assert (done.code, done.out) == (0, "")
    assert "4 left out by --where" in done.err


def test_a_document_scores_the_same_in_search_and_in_rerank(li: Run, tmp_path: Path, tiny_model: Path) -> None:
    texts = ["Paris is the capital of France.", "Sofia", "x = 1"]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"id": text[0], "text": text}) for text in texts))
    searched = li("search", "French cities", path, "--model", tiny_model, "--json").document["hits"]
    reranked = li("rerank", "French cities", path, "--model", tiny_model, "--json").document["hits"]
    assert [hit["id"] for hit in searched] == [hit["id"] for hit in reranked]
    assert [hit["score"] for hit in searched] == pytest.approx([hit["score"] for hit in reranked], rel=1e-5)


# ── rerank ──


def test_rerank_orders_the_lines_of_standard_input(tiny_model: Path) -> None:
    given = "x = 1\n\nParis is the capital of France.\nçüß\n".encode()
    done = process(["rerank", "capital of France", "--model", tiny_model, "--json"], given)
    assert done.code == 0
    hits = done.document["hits"]
    assert hits[0]["id"] == "3"
    assert {hit["id"]: hit["text"] for hit in hits} == {
        "1": "x = 1",
        "3": "Paris is the capital of France.",
        "4": "çüß",
    }
    assert done.document["documents"] == 3


def test_rerank_keeps_ids_and_fields_of_records_and_shows_as_many_as_wanted(
    li: Run, tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"id": "fr", "text": "Paris is in France", "year": 1}\n{"id": "py", "text": "x = 1"}\n')
    done = li("rerank", "France", path, "--model", tiny_model, "--json", "-k", "1")
    (hit,) = done.document["hits"]
    assert (hit["id"], hit["metadata"]["year"]) == ("fr", 1)
    shown = li("rerank", "France", path, "--model", tiny_model)
    assert re.findall(r"^ +(\d) +\S+  (\S+)$", shown.out, re.MULTILINE) == [("1", "fr"), ("2", "py")]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (b"", "standard input"),
        (b"\n \n", "standard input"),
        (b"ab\xff", "byte 2"),
        (b"a\0b", "binary"),
        (b"{x}", ":1 "),
    ],
)
def test_rerank_refuses_what_is_no_list(
    li: Run, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, given: bytes, named: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    done = li("rerank", "a", "--model", tiny_model)
    assert (done.code, done.out) == (1, "")
    assert named in done.err


# ── doctor ──


def test_doctor_tells_versions_device_kernels_and_model(li: Run) -> None:
    found = li("doctor", "--json").document
    assert {"python", "versions", "device", "devices", "threads", "kernels", "default_model", "extras"} <= set(found)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["torch"]
    assert (found["kernels"]["form"], found["device"]) in {("cpu", "cpu"), ("gpu", "cuda"), ("eager", "mps")}
    assert found["kernels"]["reason"]
    assert "vectors" in found["kernels"].get("processor", "vectors")
    shown = li("doctor")
    assert shown.code == 0
    for name, version in found["versions"].items():
        assert re.search(rf"{name} +{re.escape(version or 'not installed')}", shown.out)


def test_doctor_reports_a_broken_installation_instead_of_failing() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"  # what an absent package looks like to `import`
        "from lateinteraction.entrypoints.cli import main; main(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch" in json.loads(done.stdout)["problem"]


# ── demo ──


def test_demo_in_json_has_examples_measures_and_timing(li: Run, tiny_model: Path) -> None:
    found = li("demo", "--documents", "12", "--model", tiny_model, "--json").document
    collection = standard_library_functions(12, 12)
    ids = {document.id for document in collection.documents}
    assert (found["documents"], found["queries"], len(found["examples"])) == (12, 12, 3)
    for example in found["examples"]:
        assert example["answer"] in ids
        assert len(example["hits"]) == 3
        assert {hit["id"] for hit in example["hits"]} <= ids
    assert set(found["measures"]) == {"late_interaction", "mean_pooled", "bm25"}
    words = evaluate(Bm25Ranker(collection.documents).search, collection, ["nDCG@10", "MRR@10"])
    assert found["measures"]["bm25"] == words.means
    assert 0 < found["timing"]["first_result_s"] < found["timing"]["total_s"]


def test_demo_shows_searches_then_figures(li: Run, tiny_model: Path) -> None:
    done = li("demo", "--documents", "5", "--model", tiny_model)
    assert done.code == 0
    assert done.out.index("query") < done.out.index("nDCG@10")
    assert done.out.count("query ") >= 3
    for name in ("late interaction", "mean-pooled", "BM25"):
        assert re.search(rf"{name}.* [01]\.\d{{3}} +[01]\.\d{{3}}", done.out)
    assert "first result after" in done.out


def test_demo_of_one_document_works(li: Run, tiny_model: Path) -> None:
    found = li("demo", "--documents", "1", "--model", tiny_model, "--json").document
    assert found["measures"]["late_interaction"] == {"nDCG@10": 1.0, "MRR@10": 1.0}


def test_demo_finds_functions_by_their_documentation_with_the_default_model(li: Run) -> None:
    done = li("demo", "--documents", "24", "--json")
    measures = done.document["measures"]
    assert measures["late_interaction"]["nDCG@10"] > 0.7
    assert done.err == "", "nothing is cut, nothing is warned of"


# ── errors, streams, exit codes ──


def check_error(done: Outcome) -> None:
    assert (done.code, done.out) == (1, "")
    assert [line[:9].strip() for line in done.err.splitlines()] == ["error", "expected", "to do"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "a", "/nowhere/at/all"],
        ["search", "a", "{folder}", "--model", "/nowhere"],
        ["search", "a", "{folder}", "--model", "{folder}"],
        ["search", "a", "{folder}", "--where", "{"],
        ["search", "a", "{folder}", "--where", "[" * 100_000],
        ["search", "a", "{folder}", "--where", '{"field": "line"}'],
        ["search", "a", "{folder}/image.png"],
        ["search", "a", "{folder}", "--device", "abacus"],
        ["rerank", "a", "/nowhere/at/all", "--json"],
    ],
)
def test_an_error_is_three_lines_on_standard_error(li: Run, folder: Path, arguments: list[str]) -> None:
    check_error(li(*(argument.replace("{folder}", str(folder)) for argument in arguments)))


def test_a_folder_without_text_is_an_error_that_says_what_was_skipped(li: Run, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\0")
    done = li("search", "a", tmp_path)
    check_error(done)
    assert "skipped 1: 1 binary" in done.err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["search"], ["search", "a"], ["search", "a", ".", "-k", "0"], ["demo", "--documents", "x"], ["-x"]],
)
def test_wrong_usage_ends_with_2(li: Run, arguments: list[str]) -> None:
    done = li(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: " in done.err
    assert "Traceback" not in done.err


class Interrupted(io.BytesIO):
    """A terminal at which somebody types Ctrl-C."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise KeyboardInterrupt


def test_an_interruption_ends_with_130(li: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted()))
    done = li("rerank", "a")
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err


def test_a_reader_that_stops_listening_is_no_error_to_be_seen(folder: Path, tiny_model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [SCRIPTS / "li", "search", "a", folder, "--model", tiny_model, "--json"]
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(arguments, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.filterwarnings("default")
def test_warnings_are_sentences_on_standard_error_and_json_stays_whole(
    li: Run, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "dense.txt").write_text("1 " * 390)
    done = li("search", "a", tmp_path, "--model", tiny_model, "--json")
    assert len(done.document["hits"]) == 2
    assert [line[:9] for line in done.err.splitlines()] == ["warning  "] * 2
    assert "broken.py:1" in done.err
    assert "cut to document_length" in done.err
    shown = li("search", "a", tmp_path, "--model", tiny_model)
    assert shown.err.count("cut to document_length") == 1, "explaining does not warn a second time"


def test_colours_are_for_terminals_only(
    li: Run, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["search", "capital of France", folder, "--model", tiny_model]
    plain = li(*arguments)
    assert "\x1b" not in plain.out + plain.err
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = li(*arguments)
    assert re.search(r"\x1b\[[0-9;]+m(capital|France)\x1b\[0m", coloured.out)
    assert [line.rstrip() for line in ESCAPE.sub("", coloured.out).splitlines()] == plain.out.splitlines()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", li(*arguments).out)


@pytest.mark.filterwarnings("default")
def test_files_cannot_steer_the_terminal(li: Run, tmp_path: Path, tiny_model: Path) -> None:
    name = "na\x1b[31mme.txt"
    (tmp_path / name).write_text("red \x1b[31m text\x07 and \u202egnihtemos\u202c else")
    done = li("search", "red text", tmp_path / name, "--model", tiny_model)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.out + done.err)
    assert "red \ufffd[31m text" in done.out
    (tmp_path / "bro\x1b[2Jken.py").write_text("def (\n")
    assert "bro\ufffd[2Jken.py" in li("search", "a", tmp_path / "bro\x1b[2Jken.py", "--model", tiny_model).err
    assert "\x1b" not in li("search", "a", tmp_path / "gone\x1b[2J").err


@pytest.mark.parametrize(("option", "expected"), [((), "gr??er"), (("--json",), "gr\\u00f6\\u00dfer")])
def test_output_that_the_terminal_cannot_encode_is_replaced(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "a.txt").write_text("größer ‚日本‘", encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as ended:
        main(["search", "größer", str(tmp_path), "--model", str(tiny_model), *option])
    assert ended.value.code == 0
    assert expected in written.getvalue().decode("ascii")


# ── help and version ──


def test_both_names_of_the_command_are_installed() -> None:
    versions = [subprocess.check_output([SCRIPTS / name, "--version"], text=True) for name in ("li", "lateinteraction")]
    assert versions[0] == versions[1]
    assert re.fullmatch(r"lateinteraction \d+\.\d+\S*\n", versions[0])


@pytest.mark.parametrize("command", ["demo", "search", "rerank", "doctor"])
def test_every_command_explains_itself(li: Run, command: str) -> None:
    done = li(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out
    assert command in li("--help").out


def test_help_loads_nothing_that_takes_time() -> None:
    program = (
        "import sys\nfrom lateinteraction.entrypoints.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "loaded" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "rich", "attrs", "attr"}


def test_help_takes_less_than_four_tenths_of_a_second_of_computing() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    child = subprocess.Popen([SCRIPTS / "li", "--help"], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert used.ru_utime + used.ru_stime < 0.4


def test_a_full_disk_is_one_clear_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        return  # a device of Linux alone
    with full.open("w") as out:
        done = subprocess.run([SCRIPTS / "li", "--version"], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_input_is_one_clear_error() -> None:
    command = f"{SCRIPTS / 'li'} rerank query - <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "standard input, which is closed" in done.stderr
    assert "Traceback" not in done.stderr
