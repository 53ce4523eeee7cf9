"""The index in a folder from the outside: the façade and the command, with a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lateinteraction as li
from lateinteraction.domain.errors import IndexMismatch, InvalidOption, InvalidText
from lateinteraction.domain.text import DocumentId
from lateinteraction.entrypoints.cli import main

TEXTS = {
    "paris": "Paris is the capital of France, on the river Seine.",
    "cats": "A cat sat on the mat and slept all day.",
    "dates": "parse_date turns a text into a date.",
}


@pytest.fixture(scope="module")
def model() -> li.Model:
    return li.load_model()


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def li_index(capsys: pytest.CaptureFixture[str]) -> Command:
    """`li index …` in this process: exit code and standard output."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["index", *map(str, arguments)])
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_a_folder_is_searched_by_embeddings_by_words_and_by_both(model: li.Model, tmp_path: Path) -> None:
    with li.Index(model, tmp_path / "index") as index:
        index.add(TEXTS)
        assert index.search("What is the capital of France?", 1)[0].id == "paris"
        assert [hit.id for hit in index.search("dates", by="words")] == ["dates"]
        both = index.search("cat mats", 2, by="both")
        assert both[0].id == "cats"
        assert both[0].score > both[1].score
        assert index.update({"cats": {"animal": True}}) == 1
        only = {"field": "animal", "operator": "==", "value": True}
        assert [hit.id for hit in index.search("France", where=only, options=li.SearchOptions("exact"))] == ["cats"]
    again = li.Index(model, tmp_path / "index")
    assert len(again) == 3
    assert again.search("capital of France", 1)[0].text == TEXTS["paris"]
    assert again.explain("capital of France", "paris").document.text == TEXTS["paris"]


def test_the_ways_of_fusing_are_the_callers(model: li.Model, tmp_path: Path) -> None:
    with li.Index(model, tmp_path / "index") as index:
        index.add(TEXTS)
        by_words = index.search("dates", by=li.Fusion(embeddings=0), k=1)
        assert by_words[0].id == "dates"
        by_scores = index.search("cat mats", by=li.Fusion("scores"), k=3)
        assert by_scores[0].id == "cats"
        assert by_scores[0].score == 2.0  # the best of both
        with pytest.raises(InvalidOption, match="'embeddings', 'words', 'both' or a `Fusion`"):
            index.search("x", by="magic")  # type: ignore[call-overload]


def test_a_lone_text_or_document_is_no_stream(model: li.Model, tmp_path: Path) -> None:
    wrong: list[Any] = ["a text", b"a text", li.Document(DocumentId("a"), "a text"), 7]
    with li.Index(model, tmp_path / "index") as index:
        for each in wrong:
            with pytest.raises(InvalidText, match="an iterable of documents"):
                index.add_stream(each)
        assert len(index) == 0


def test_an_interrupted_stream_goes_on_after_its_last_commit(model: li.Model, tmp_path: Path) -> None:
    texts = [f"Text number {number} of a stream." for number in range(7)]

    def failing() -> Iterator[str]:
        yield from texts[:5]
        raise OSError("the source is gone")

    states: list[tuple[str, int, int | None]] = []
    with li.Index(model, tmp_path / "index") as index:
        with pytest.raises(OSError, match="the source is gone"):
            index.add_stream(failing(), documents_per_commit=2)
        assert len(index) == 4
    with li.Index(model, tmp_path / "index") as index:
        done = index.add_stream(
            texts, on_duplicate="skip", documents_per_commit=2, progress=lambda *state: states.append(state)
        )
        assert (done.added, done.skipped) == (3, 4)
        assert {index.search(text, 1)[0].text for text in texts} == set(texts)
        assert index.add(["one more"]).added == ("7",)
    assert states[0] == ("encoding", 0, 7)
    assert states[-1] == ("writing", 7, 7)


def test_a_stream_tells_when_a_codebook_is_trained(model: li.Model, tmp_path: Path) -> None:
    states: list[tuple[str, int, int | None]] = []
    options = li.IndexOptions("residual2", tier="listed", centroids=4)
    with li.Index(model, tmp_path / "index", options) as index:
        index.add_stream(TEXTS, documents_per_commit=2, progress=lambda *state: states.append(state))
        stats = index.stored.snapshot().stats()
    assert (stats.tier, stats.centroids, len(index)) == ("listed", 4, len(TEXTS))
    assert list(dict.fromkeys(stage for stage, _, _ in states)) == ["encoding", "writing", "training"]
    assert {(done, total) for stage, done, total in states if stage == "training"} == {(0, len(TEXTS))}
    assert states[-1] == ("writing", len(TEXTS), len(TEXTS))
    with pytest.raises(IndexMismatch, match="as it was made with"):
        li.Index(model, tmp_path / "index", li.IndexOptions("residual2"))


def test_a_device_finds_what_the_host_finds(model: li.Model, tmp_path: Path) -> None:
    with li.Index(model, tmp_path / "index") as index:
        index.add(TEXTS)
        expected = [index.search(text, by=by) for text in TEXTS.values() for by in ("embeddings", "words", "both")]
    with li.Index(model, tmp_path / "index", device="cpu") as index:
        found = [index.search(text, by=by) for text in TEXTS.values() for by in ("embeddings", "words", "both")]
        assert found == expected
        index.add({"new": "A word that was not there: heliotrope."})
        assert index.search("heliotrope", 1)[0].id == "new"
    with li.Index(model, tmp_path / "index", device=li.Device("cpu", li.DeviceOptions("streamed"))) as index:
        assert index.search("heliotrope", 1)[0].id == "new"
    with pytest.raises(InvalidOption, match="a device for an index in memory"):
        li.Index(model, device="cpu")


def test_an_explanation_shows_what_the_codec_makes_of_a_score(model: li.Model, tmp_path: Path) -> None:
    with li.Index(model, tmp_path / "index", li.IndexOptions("int8")) as index:
        index.add(TEXTS)
        explanation = index.explain("capital of France", "paris")
        found = index.search("capital of France", 1, options=li.SearchOptions("exact"))[0]
    assert explanation.stored is not None
    assert explanation.stored.score == pytest.approx(found.score, rel=1e-5)
    assert explanation.stored.score != explanation.score
    assert explanation.stored.score == pytest.approx(explanation.score, rel=0.02)


def test_another_model_is_refused(model: li.Model, tmp_path: Path) -> None:
    li.Index(model, tmp_path / "index").close()
    other = li.load_model(recipe={"document_prefix": "[unused0]"})
    with pytest.raises(IndexMismatch, match="the same model and recipe"):
        li.Index(other, tmp_path / "index")
    longer = li.load_model(recipe={"document_length": 300})
    assert len(li.Index(longer, tmp_path / "index")) == 0


def test_other_options_are_refused(model: li.Model, tmp_path: Path) -> None:
    li.Index(model, tmp_path / "index", li.IndexOptions("int8", "german")).close()
    assert li.Index(model, tmp_path / "index").stored.settings.options == li.IndexOptions("int8", "german")
    with pytest.raises(IndexMismatch):
        li.Index(model, tmp_path / "index", li.IndexOptions("float16"))


def test_an_index_in_memory_says_what_it_cannot_do(model: li.Model) -> None:
    index = li.Index(model)
    index.add(TEXTS)
    for call in (
        lambda: index.search("x", by="words"),
        lambda: index.search("x", options=li.SearchOptions("fast")),
        lambda: index.update({"cats": {}}),
        lambda: index.stored,
        lambda: li.Index(model, options=li.IndexOptions()),
    ):
        with pytest.raises(InvalidOption, match="my-index"):
            call()


def test_the_life_of_an_index_on_the_command_line(li_index: Command, tmp_path: Path) -> None:
    records = [{"id": name, "text": text, "kind": "test"} for name, text in TEXTS.items()]
    source = tmp_path / "documents.jsonl"
    source.write_text("\n".join(map(json.dumps, records)))
    folder, copy = tmp_path / "index", tmp_path / "copy"

    def done(*arguments: object) -> str:
        code, printed = li_index(*arguments)
        assert code == 0
        return printed

    done("create", folder, "--codec", "float16")
    assert "3 added" in done("add", folder, source)
    assert li_index("add", folder, source)[0] == 1
    assert json.loads(done("add", folder, source, "--on-duplicate", "skip", "--json"))["skipped"] == 3
    for by in ("embeddings", "words", "both"):
        found: Any = json.loads(done("search", folder, "the capital of France", "-k", 1, "--by", by, "--json"))
        assert [hit["id"] for hit in found["hits"]] == ["paris"]
    assert li_index("search", folder, "cat", "--by", "words", "--effort", "exact")[0] == 1
    assert "hits" in done("search", folder, "cat", "--by", "both", "--effort", "exact", "--json")
    queries = tmp_path / "queries.txt"
    queries.write_text("the capital of France\na cat\n")
    measured = json.loads(done("recall", folder, queries, "-k", 2, "--json"))
    assert (measured["queries"], measured["k"], measured["recall"]) == (2, 2, 1.0)
    assert "recall@10 1.0000 of the exact search" in done("recall", folder, queries, "--effort", "fast")
    assert "1 document removed" in done("remove", folder, "cats")
    assert json.loads(done("info", folder, "--json"))["documents"] == 2
    done("compact", folder)
    done("snapshot", folder, copy)
    assert "sound" in done("verify", copy)
    assert "nothing to repair" in done("repair", copy)


def test_how_an_index_is_stored_can_be_forced_on_the_command_line(li_index: Command, tmp_path: Path) -> None:
    source = tmp_path / "documents.jsonl"
    source.write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in TEXTS.items()))
    folder = tmp_path / "index"
    assert li_index("create", folder, "--tier", "listed", "--centroids", 3, "--codec", "residual1")[0] == 0
    assert json.loads(li_index("info", folder, "--json")[1])["tier"] == "listed"
    assert li_index("add", folder, source)[0] == 0
    told = json.loads(li_index("info", folder, "--json")[1])
    assert (told["tier"], told["listed"], told["segments"], told["centroids"]) == ("listed", 1, {"residual": 1}, 3)
    code, printed = li_index("compact", folder, "--retrain")
    assert (code, "tier        listed" in printed) == (0, True)
    assert li_index("create", tmp_path / "other", "--tier", "compressed", "--codec", "int8")[0] == 1
    assert not (tmp_path / "other").exists()


def test_a_damaged_index_is_refused_reported_and_not_searched(li_index: Command, tmp_path: Path) -> None:
    folder, source = tmp_path / "index", tmp_path / "documents.jsonl"
    source.write_text(json.dumps({"id": "paris", "text": TEXTS["paris"]}))
    assert li_index("create", folder)[0] == li_index("add", folder, source)[0] == 0
    (data,) = folder.glob("s-*-00")
    data.write_bytes(data.read_bytes()[:-1])
    code, printed = li_index("verify", folder)
    assert (code, "DAMAGED" in printed) == (1, True)
    assert li_index("search", folder, "France")[0] == 1
    code, printed = li_index("repair", folder)
    assert (code, "pass --accept-loss" in printed) == (1, True)
    assert li_index("repair", folder, "--accept-loss")[0] == 0
    assert "sound" in li_index("verify", folder)[1]


def test_a_folder_that_is_refused_is_let_go_of(model: li.Model, tmp_path: Path) -> None:
    """While the error lives, too, which holds the frames that opened it."""
    folder = tmp_path / "index"
    with li.Index(model, folder) as index:
        index.add(TEXTS)
    with pytest.raises(IndexMismatch) as other_options:
        li.Index(model, folder, li.IndexOptions("int8"))
    assert not list(folder.glob("lease-*"))
    with pytest.raises(InvalidOption) as no_device:
        li.Index(model, folder, device="nonsense")
    assert not list(folder.glob("lease-*"))
    assert other_options.value is not no_device.value


def test_words_need_no_device_and_take_no_options(
    model: li.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with li.Index(model, tmp_path / "index", device="cpu") as index:
        index.add(TEXTS)
        with pytest.raises(InvalidOption, match="words"):
            index.search("dates", by="words", options=li.SearchOptions("exact"))
        placed: list[object] = []
        place = li.Device.place
        monkeypatch.setattr(li.Device, "place", lambda self, state: placed.append(state) or place(self, state))
        assert [hit.id for hit in index.search("dates", by="words")] == ["dates"]
        assert not placed
        assert index.search("dates", 1, by="both")[0].id == "dates"
        assert placed
