"""JSON lines and lists of texts: what becomes of each field, and every way a line can be wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lateinteraction.adapters.files import documents_of_lines, read_list, read_passages
from lateinteraction.adapters.files.reading import LARGEST_FILE
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.text import Document


def only_document(path: Path) -> Document:
    (document,) = read_passages([path]).documents
    return document


def records(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_records_keep_their_id_text_and_scalar_fields(tmp_path: Path) -> None:
    path = records(
        tmp_path / "docs.jsonl",
        {"id": "a", "text": "one", "year": 2001, "open": True, "none": None, "score": 0.5, "tags": ["x"], "more": {}},
        "",
        {"_id": 7, "title": "Two", "text": "two", "path": "its own"},
        {"contents": "three", "title": ""},
        {"id": None, "text": "", "title": "Only title"},
    )
    first, second, third, fourth = read_passages([path]).documents
    place = {"path": str(path)}
    assert (first.id, first.text) == ("a", "one")
    assert dict(first.metadata) == place | {
        "line": 1, "last_line": 1, "year": 2001, "open": True, "none": None, "score": 0.5
    }  # fmt: skip
    assert (second.id, second.text) == ("7", "Two\ntwo")
    assert dict(second.metadata) == place | {"line": 3, "last_line": 3}
    assert (third.id, third.text) == (f"{path}:4", "three")
    assert (fourth.id, fourth.text) == (f"{path}:5", "Only title")


BAD_LINES = {
    "no JSON": "not json",
    "cut off": '{"text": "x"',
    "an array": '["text"]',
    "a string": '"text"',
    "no text": '{"id": "1", "body": "x"}',
    "a number as text": '{"text": 3}',
    "null as text": '{"text": null}',
    "a list as title": '{"title": [], "text": "x"}',
    "an empty id": '{"id": "", "text": "x"}',
    "a bool as id": '{"id": true, "text": "x"}',
    "a fraction as id": '{"id": 1.5, "text": "x"}',
    "NaN": '{"text": "x", "value": NaN}',
    "infinity": '{"text": "x", "value": -Infinity}',
    "a lone surrogate": '{"text": "\\ud800"}',
    "a lone surrogate in a field": '{"text": "x", "field": "\\udfff"}',
    "a lone surrogate in an id": '{"text": "x", "id": "\\udfff"}',
    "endless nesting": "[" * 200_000,
    "a number beyond reading": '{"text": "x", "value": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, bad: str) -> None:
    path = records(tmp_path / "docs.jsonl", {"text": "fine"}, "", bad)
    with pytest.raises(UnreadableFile) as caught:
        read_passages([path])
    assert f"{path}:3 " in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_with_a_bad_record_is_skipped_in_a_folder_and_counted(tmp_path: Path) -> None:
    records(tmp_path / "bad.jsonl", {"text": "fine"}, "not json")
    records(tmp_path / "good.jsonl", {"text": "fine"})
    passages = read_passages([tmp_path])
    assert [document.metadata["path"] for document in passages.documents] == [str(tmp_path / "good.jsonl")]
    assert passages.skipped_by_reason == {"JSON lines with a bad line": 1}


def test_an_id_that_was_met_before_is_refused_and_nothing_of_its_file_is_taken(tmp_path: Path) -> None:
    one = records(tmp_path / "1.jsonl", {"id": "a", "text": "one"})
    two = records(tmp_path / "2.jsonl", {"id": "b", "text": "new"}, {"id": "a", "text": "two"})
    with pytest.raises(UnreadableFile, match=r"2\.jsonl.*repeats an id"):
        read_passages([one, two])
    passages = read_passages([tmp_path])
    assert [document.text for document in passages.documents] == ["one"]
    assert passages.skipped_by_reason == {"repeats an id": 1}


def test_an_id_that_is_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    path = records(tmp_path / "1.jsonl", {"id": "a", "text": "one"}, {"id": "a", "text": "two"})
    with pytest.raises(UnreadableFile, match="'a'"):
        read_passages([path])


def test_a_number_too_large_for_a_float_is_left_out_like_any_value_that_is_no_json_scalar(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "x", "value": 1e999}')
    assert "value" not in only_document(path).metadata


def test_a_plain_list_is_one_document_a_line() -> None:
    documents = documents_of_lines("first\n\n  second  \nthird\n", "list")
    assert [(document.id, document.text) for document in documents] == [("1", "first"), ("3", "second"), ("4", "third")]


def test_a_list_of_objects_is_read_as_records() -> None:
    documents = documents_of_lines('\n{"id": "a", "text": "one"}\n{"text": "two"}', "list")
    assert [(document.id, document.text) for document in documents] == [("a", "one"), ("3", "two")]


@pytest.mark.parametrize(
    "text", ['{"text": "one"}\nplain', '{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}', "{x}"]
)
def test_a_list_that_is_half_records_or_repeats_an_id_is_refused(text: str) -> None:
    with pytest.raises(UnreadableFile, match="standard input"):
        documents_of_lines(text, "standard input")


@pytest.mark.parametrize("content", [b"one\r\ntwo\r\n", b"\xef\xbb\xbfone\ntwo", b"one\rtwo"])
def test_a_list_is_read_the_same_from_a_file_and_from_a_stream(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    documents = read_list(path)
    assert [document.text for document in documents] == ["one", "two"]
    assert read_list(io.BytesIO(content)) == documents


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a\0", "binary"),
        (b"ab\xff", "byte 2"),
        (b"x" * (LARGEST_FILE + 1), "larger than 50 MB"),
        (b"{]", ":1 is no JSON"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_wherever_it_comes_from(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"list\.txt.*{what}"):
        read_list(path)
    with pytest.raises(UnreadableFile, match=f"standard input.*{what}"):
        read_list(io.BytesIO(content))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="nowhere"):
        read_list(tmp_path / "nowhere")
