"""Reading files and folders: true places, unique ids, everything skipped is counted, and input that means harm."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lateinteraction.adapters.files import read_passages
from lateinteraction.adapters.files.reading import LARGEST_FILE, LARGEST_IN_FOLDER
from lateinteraction.domain.errors import UnreadableFile
from lateinteraction.domain.text import Document

SUFFIXES = [".txt", ".md", ".go", ".py", ""]
lines = st.sampled_from(
    ["", " ", "# Title", "```", "def f():", "    return 1", "class A:", "}", "word " * 60, "x" * 900, "日本語。" * 300]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=40)
texts = st.lists(lines, max_size=30).map("\n".join)


def check_places(path: Path, documents: tuple[Document, ...]) -> None:
    """Path, lines and column lead back to the document's own characters."""
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for document in documents:
        place = document.metadata
        first, last = place["line"], place["last_line"]
        assert isinstance(first, int)
        assert isinstance(last, int)
        assert place["path"] == str(path)
        if "column" in place:
            column = place["column"]
            assert isinstance(column, int)
            assert first == last
            assert lines[first - 1][column - 1 :].startswith(document.text)
            assert document.id == f"{path}:{first}:{column}"
        else:
            assert document.text == "\n".join(lines[first - 1 : last])
            assert document.id == f"{path}:{first}"


@pytest.mark.filterwarnings("ignore:.*do not parse")
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(text=texts, ends=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans())
def test_places_are_true_and_ids_are_unique(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, text: str, ends: str, mark: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"places{suffix}"
    path.write_bytes((("\ufeff" if mark else "") + text.replace("\n", ends)).encode())
    passages = read_passages([path])
    check_places(path, passages.documents)
    assert len({document.id for document in passages.documents}) == len(passages.documents)
    assert passages.files == bool(passages.documents)
    assert bool(passages.documents) == bool(text.strip())


def test_a_definition_is_named_in_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("class A:\n    def b(self): pass\n")
    names = [document.metadata.get("name") for document in read_passages([path]).documents]
    assert names == ["A", "A.b"]


def test_the_suffix_decides_how_a_file_is_split_whatever_its_case(tmp_path: Path) -> None:
    for name in ("code.py", "CODE2.PY"):
        (tmp_path / name).write_text("def a():\n    pass\ndef b():\n    pass\n")
    (tmp_path / "page.md").write_text("# A\ntext\n# B\ntext\n")
    (tmp_path / "note.txt").write_text("# A\ntext\n# B\ntext\n")
    (tmp_path / "LICENSE").write_text("a\n\nb\n")
    found = [
        (Path(str(one.metadata["path"])).name, one.metadata["line"]) for one in read_passages([tmp_path]).documents
    ]
    assert found == [
        ("CODE2.PY", 1),
        ("CODE2.PY", 3),
        ("LICENSE", 1),
        ("code.py", 1),
        ("code.py", 3),
        ("note.txt", 1),
        ("page.md", 1),
        ("page.md", 3),
    ]


def test_folders_are_walked_in_order_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a/one.txt", "c.txt", ".git/config", "b/__pycache__/x.py", "node_modules/x.js", ".env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "env").mkdir()
    (tmp_path / "env/pyvenv.cfg").write_text("home = x")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "large.txt").write_bytes(b"x" * (LARGEST_IN_FOLDER + 1))
    passages = read_passages([tmp_path])
    found = [str(Path(str(one.metadata["path"])).relative_to(tmp_path)) for one in passages.documents]
    assert found == ["c.txt", "a/one.txt", "b/two.txt"]
    assert passages.files == 3
    assert passages.skipped_by_reason == {
        "hidden": 2,
        "virtual environment": 1,
        "node_modules folder": 1,
        "binary": 1,
        "no text": 1,
        "larger than 1 MB": 1,
        "not UTF-8": 1,
        "__pycache__ folder": 1,
    }
    assert {one.path for one in passages.skipped if one.reason == "hidden"} == {
        str(tmp_path / ".git"),
        str(tmp_path / ".env"),
    }


def test_what_a_person_names_is_read_even_where_a_walk_would_skip_it(tmp_path: Path) -> None:
    hidden = tmp_path / ".notes" / ".private.txt"
    hidden.parent.mkdir()
    hidden.write_text("text")
    assert read_passages([hidden]).files == 1
    (hidden.parent / "open.txt").write_text("text")
    assert read_passages([hidden.parent]).files == 1
    large = tmp_path / "large.txt"
    large.write_bytes(b"word " * (LARGEST_IN_FOLDER // 5 + 1))
    assert read_passages([large]).files == 1


def test_a_file_is_read_once_however_many_ways_lead_to_it(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("text")
    (tmp_path / "link.txt").symlink_to(path)
    passages = read_passages([path, tmp_path, str(path)])
    assert len(passages.documents) == 1
    assert passages.skipped_by_reason == {"read already": 3}


def test_links_to_folders_are_not_followed_so_that_circles_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/one.txt").write_text("text")
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self", target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    passages = read_passages([tmp_path])
    assert len(passages.documents) == 1
    assert sum(passages.skipped_by_reason.values()) == 3
    assert passages.skipped_by_reason["link to a folder"] == 1
    through_link = tmp_path / "entry"
    through_link.symlink_to(tmp_path / "sub", target_is_directory=True)
    assert len(read_passages([through_link]).documents) == 1


def test_walking_twice_gives_the_same(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    assert read_passages([tmp_path]) == read_passages([tmp_path])


def test_folders_nested_deeper_than_python_recurses_are_walked(tmp_path: Path) -> None:
    folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, sys.getrecursionlimit() + 100)]
    for folder in folders:
        os.mkdir(folder)
    file = Path(f"{folders[-1]}/one.txt")
    file.write_text("text")
    try:
        assert len(read_passages([tmp_path]).documents) == 1
    finally:  # what clears temporary folders may recurse
        file.unlink()
        for folder in reversed(folders):
            os.rmdir(folder)


def test_a_folder_that_cannot_be_listed_is_counted_or_refused_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut/one.txt").write_text("text")
    (tmp_path / "shut").chmod(0)
    permitted = os.access(tmp_path / "shut", os.R_OK | os.X_OK)  # the superuser may list anything
    try:
        assert read_passages([tmp_path]).skipped_by_reason == ({} if permitted else {"permission denied": 1})
        if not permitted:
            with pytest.raises(UnreadableFile, match="permission denied"):
                read_passages([tmp_path / "shut"])
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_a_folder_without_text_gives_no_documents_and_no_error(tmp_path: Path) -> None:
    assert read_passages([tmp_path]).documents == ()


def test_no_paths_give_no_documents() -> None:
    assert read_passages([]).documents == ()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a\0b", "binary"),
        ("text".encode("utf-16"), "binary|not UTF-8"),
        (b"\xff\xfe", "not UTF-8"),
        (b"ab\xc3", "byte 2"),
    ],
)
def test_a_named_file_that_is_no_text_is_refused_and_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"file\.txt.*(?:{what})"):
        read_passages([path])


def test_a_named_file_that_is_too_large_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE * 1000)  # sparse: 50 GB that take no room
    started = time.monotonic()
    with pytest.raises(UnreadableFile, match="larger than 50 MB"):
        read_passages([path])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("given_path", ["", "a\0b", "/nowhere/at/all.txt", "x" * 5000])
def test_a_path_that_leads_nowhere_is_refused(given_path: str) -> None:
    with pytest.raises(UnreadableFile):
        read_passages([given_path])


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnreadableFile, match="gone"):
        read_passages([tmp_path / "gone"])


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket may not be long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        assert read_passages([tmp_path]).skipped_by_reason == {"not a regular file": 2}
        with pytest.raises(UnreadableFile, match="not a regular file"):
            read_passages([tmp_path / "pipe"])


def test_a_file_is_read_exactly_if_the_system_permits_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("text")
    path.chmod(0)
    permitted = os.access(path, os.R_OK)  # the superuser may read anything
    passages = read_passages([tmp_path])
    assert (passages.files, passages.skipped_by_reason) == ((1, {}) if permitted else (0, {"permission denied": 1}))
    if not permitted:
        with pytest.raises(UnreadableFile, match="permission denied"):
            read_passages([path])


def test_a_line_of_a_megabyte_is_cut_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"A few words, then more. " * 42_000)
    started = time.monotonic()
    documents = read_passages([path]).documents
    assert time.monotonic() - started < 5
    check_places(path, documents)
    assert len(documents) > 1000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_hundred_thousand_lines_are_split_in_a_moment(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text("value = 1\n" * 100_000)
    started = time.monotonic()
    assert len(read_passages([path]).documents) > 1000
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(max_size=200))
@example(content=b"\x1a\n")
@example(content=b"\x0cdef f(): pass\r\rdef g(): pass")
@example(content=b"# -*- coding: latin-1 -*-\nx = 1\n")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python that does not parse, which has its own test
        try:
            documents = read_passages([path]).documents
        except UnreadableFile as error:
            refusal = str(error)
        else:
            check_places(path, documents)
            return
    assert str(path) in refusal


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(name)).write_text("text")
    document = read_passages([tmp_path]).documents[0]
    assert document.id == f"{tmp_path}/caf\\xe9.txt:1"


def test_python_that_does_not_parse_is_split_at_blank_lines_with_one_warning_for_all(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def broken(:\n    pass\n")
    with pytest.warns(UserWarning, match=r"2 Python file.*a\.py:1") as caught:
        passages = read_passages([tmp_path])
    assert len(caught) == 1
    assert [document.text for document in passages.documents] == ["def broken(:\n    pass"] * 2


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_doubtful_python_is_read_whatever_the_host_does_with_warnings(tmp_path: Path, action: str) -> None:
    """Python's own warnings of such source are the host's to show or not: filters are shared by all threads."""
    path = tmp_path / "a.py"
    path.write_text("x = '\\d'\nassert (x, 'always true')\nif x is 'y': pass\n")
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        warnings.filterwarnings("ignore", message=".*do not parse")
        assert len(read_passages([path]).documents) == 1
