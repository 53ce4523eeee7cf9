"""Plain values come out of pickles as they went in, and nothing in a pickle is ever done."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.exchange.pickles import read_pickle, read_plain
from lateinteraction.domain.errors import UnreadableFile

HERE = Path("ids.pkl")
plain = st.recursive(
    st.integers() | st.text() | st.integers(-(2**600), 2**600),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_they_were_written(value: Any, protocol: int) -> None:
    assert read_plain(HERE, pickle.dumps(value, protocol)) == value


@given(st.lists(st.text(), min_size=1, max_size=3), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_value_that_is_shared_is_read_everywhere(value: list[str], protocol: int) -> None:
    assert read_plain(HERE, pickle.dumps([value, {"a": value}, value], protocol)) == [value, {"a": value}, value]


def test_many_items_are_read() -> None:
    value = {number: f"document {number}" for number in range(3000)}
    assert read_plain(HERE, pickle.dumps(value)) == value


class Calls:
    """What a pickle would run, if anything were run."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


ran: list[str] = []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        Calls(ran.append, "ran"), {"a": Calls(eval, "__import__('os').abort()")}, [Calls(sys.exit, 3)],
        {"a": (1, 2)}, {1.5: "a"}, {"a": None}, {"a": True}, {"a": b"bytes"}, {1, 2}, frozenset("a"), len, Path("x"),
        OrderedDict(a="b"), defaultdict(list, a=[1]), ValueError("a"), Calls, object(),
    ],
)  # fmt: skip
def test_anything_else_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(UnreadableFile):
        read_plain(HERE, pickle.dumps(value, protocol))
    assert ran == []


@pytest.mark.parametrize(
    "written",
    [
        b"", b".", b"\x80\x04", b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n.", b"}u.", b"]e.", b"0.",
        b"a.", b"(.", b"h\x05.", b"s.", b"(K\x01u.", b"}(K\x01u.", b"K\x01K\x02.", b"]K\x01", b"\x8c\xffab.", b"I1x\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", b"\x82\x01.", b"P1\n.", b"K\x01Q.",
        b"}]K\x01s.",
        b"L" + b"9" * 10_000 + b"L\n.", b"\x8b\xff\xff\xff\x7f.", b"(" * 5000 + b".",
    ],
)  # fmt: skip
def test_what_is_no_such_pickle_is_refused(written: bytes) -> None:
    with pytest.raises(UnreadableFile):
        read_plain(HERE, written)


def test_a_list_that_holds_itself_is_read_without_end_to_it() -> None:
    value: list[Any] = []
    value.append(value)
    found = read_plain(HERE, pickle.dumps(value))
    assert isinstance(found, list)
    assert found[0] is found


@given(st.binary(max_size=200), st.integers(0, 200))
def test_noise_is_refused_or_plain(noise: bytes, place: int) -> None:
    written = bytearray(pickle.dumps({"a": ["b", 1], "c": {"d": 2**70}}))
    written[place % len(written) : place % len(written) + 3] = noise[:3]
    for content in (noise, bytes(written)):
        try:
            read_plain(HERE, content)
        except UnreadableFile:
            continue


def test_names_stay_names() -> None:
    seen: list[Any] = []
    written = pickle.dumps(Calls(print, "ran"), 2)
    assert read_pickle(written, lambda name, arguments: seen.append((name, arguments)) or "made") == "made"
    assert [(name.name, arguments) for name, arguments in seen] == [("print", ("ran",))]
    with pytest.raises(ValueError, match="more than plain"):
        read_pickle(written)


DEEP = b"K\x01" + b"\x85" * 10**6
HOSTILE = {
    "a deep tuple as a key": b"\x80\x04}" + DEEP + b"K\x01s.",
    "a doubled tuple as a key": b"\x80\x04}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "one of several keys": b"\x80\x04}(" + DEEP + b"K\x01u.",
    "the key of a new dictionary": b"\x80\x04(" + DEEP + b"K\x01d.",
    "a deep tuple as a name": b"\x80\x04(X\x07\x00\x00\x00storageX\x05\x00\x00\x00torch" + DEEP + b"\x93K\x00NK\x00tQ.",
}
READING = """
import sys, zipfile
from pathlib import Path
from lateinteraction.adapters.index.exchange.pickles import read_plain
from lateinteraction.adapters.index.exchange.tensors import read_tensors
from lateinteraction.domain.errors import UnreadableFile
given = Path(sys.argv[1])
data = given.read_bytes()
with zipfile.ZipFile(given.with_suffix(".pt"), "w") as archive:
    archive.writestr("a/data.pkl", data)
for read in (lambda: read_plain(given, data), lambda: read_tensors(given.with_suffix(".pt"))):
    try:
        read()
    except UnreadableFile:
        print("refused")
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_the_process_down_is_refused(name: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(HOSTILE[name])
    done = subprocess.run(
        [sys.executable, "-c", READING, str(given)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused"]), done.stderr[-500:]
