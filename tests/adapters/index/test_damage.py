"""Damaged data files: whatever happened to the bytes, reading gives our error or exactly what was written."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lateinteraction.adapters.index.files import FileRecord, FileWriter, StoredFile
from lateinteraction.adapters.index.layout import ALIGNMENT, BLOCK, OPENING, digest_of, trailer_of
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch
from lateinteraction.testing.storage import MemoryStorage

SMALL = {
    "ids.bytes": np.frombuffer(b"onetwothree", np.uint8),
    "ids.offsets": np.array([0, 3, 6, 11]),
    "vectors.values": np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4),
    "nothing": np.zeros((0, 2), np.float32),
    "flags": np.array([True, False, True]),
}


def file_of(arrays: dict[str, NDArray[Any]]) -> tuple[bytes, FileRecord]:
    """The bytes of a file, and what a manifest says of them."""
    storage = MemoryStorage()
    with FileWriter(storage, "s-1", "segment") as file:
        for name, array in arrays.items():
            file.add(name, array)
        record = file.publish()
    return storage.read("s-1"), record


def outcome(content: bytes, record: FileRecord, arrays: dict[str, NDArray[Any]]) -> str:
    """What opening a file and reading all of it comes to; every other exception is a flaw."""
    try:
        file = StoredFile.open(MemoryStorage({"s-1": content}), record)
        found = {name: file.whole(name) for name in file.names()}
    except CorruptIndex:
        return "corrupt"
    except IndexMismatch:
        return "mismatch"
    alike = list(found) == list(arrays) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in arrays.items()
    )
    return "exact" if alike else "wrong"


def outcomes(damaged: Iterable[bytes], record: FileRecord) -> set[str]:
    """Of files that the record names, and of records that name these files: then the file must tell by itself."""
    return {
        outcome(content, each, SMALL) for content in damaged for each in {record, evolve(record, length=len(content))}
    }


def flipped(content: bytes, masks: Iterable[int]) -> Iterator[bytes]:
    for place in range(len(content)):
        for mask in masks:
            damaged = bytearray(content)
            damaged[place] ^= mask
            yield bytes(damaged)


@pytest.fixture(scope="module")
def small() -> tuple[bytes, FileRecord]:
    return file_of(SMALL)


def test_a_flip_of_any_byte_is_seen(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    assert outcome(content, record, SMALL) == "exact"
    assert outcomes(flipped(content, [0x01, 0x80, 0xFF]), record) == {"corrupt", "mismatch"}


@pytest.mark.deep
def test_a_change_of_any_byte_to_any_other_is_seen(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    assert outcomes(flipped(content, range(1, 256)), record) == {"corrupt", "mismatch"}


def test_a_file_cut_at_any_length_is_seen(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    assert outcomes((content[:length] for length in range(len(content))), record) == {"corrupt"}
    assert outcomes((content[start:] for start in range(1, len(content))), record) == {"corrupt"}


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"XDIETAL1"])
def test_a_file_that_has_grown_is_seen(small: tuple[bytes, FileRecord], filler: bytes) -> None:
    content, record = small
    more = [filler * count for count in range(1, 80)]
    grown = [content + each for each in more] + [each + content for each in more]
    assert outcomes(grown, record) <= {"corrupt", "mismatch"}


def test_parts_that_were_lost_moved_or_zeroed_are_seen(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    step = 16
    places = range(0, len(content) - step, step)
    lost = (content[:place] + content[place + step :] for place in places)
    doubled = (content[:place] + content[max(place - step, 0) :] for place in places if place)
    zeroed = (content[:place] + b"\xa5" * step + content[place + step :] for place in places)
    assert outcomes([*lost, *doubled, *zeroed], record) <= {"corrupt", "mismatch"}


@given(st.binary(max_size=400), st.booleans())
def test_bytes_of_no_meaning_are_no_file(noise: bytes, dressed: bool) -> None:
    content = OPENING + noise + b"XDIETAL1" if dressed else noise
    assert outcome(content, FileRecord("s-1", len(content), "00" * 16), {}) in ("corrupt", "mismatch")


def test_no_damage_makes_us_ask_for_more_memory_than_the_file_has(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    tracemalloc.start()
    try:
        for damaged in flipped(content[-120:], [0x80, 0xFF]):
            outcome(content[:-120] + damaged, record, SMALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(content)


def test_another_file_of_the_same_length_is_not_taken_for_it(small: tuple[bytes, FileRecord]) -> None:
    content, record = small
    other, _ = file_of({**SMALL, "ids.bytes": np.frombuffer(b"onetwosixty", np.uint8)})
    assert len(other) == len(content)
    with pytest.raises(CorruptIndex, match="digest"):
        StoredFile.open(MemoryStorage({"s-1": other}), record)


def test_a_missing_file_is_told_and_why() -> None:
    with pytest.raises(CorruptIndex, match="s-7, which is missing") as told:
        StoredFile.open(MemoryStorage(), FileRecord("s-7", 100, "00" * 16))
    assert isinstance(told.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\0", "", "S", "a.b"])
def test_a_record_that_names_no_file_of_ours_is_damaged(name: str) -> None:
    with pytest.raises(CorruptIndex, match="plain name"):
        StoredFile.open(MemoryStorage(), FileRecord(name, 100, "00" * 16))


# Files whose checksums are right: written by a later version, or by somebody who means harm.


def forged(described: object, data: bytes = bytes(1024), table: bytes | None = None) -> tuple[bytes, FileRecord]:
    """A file with this footer whose checksums and digest all agree."""
    data = OPENING + data[len(OPENING) :]
    footer = described if isinstance(described, bytes) else json.dumps(described).encode()
    table = bytes(4 * math.ceil(len(data) / BLOCK)) if table is None else table
    content = data + table + footer + trailer_of(table, footer)
    return content, FileRecord("s-1", len(content), digest_of(table + footer))


def forged_array(**changes: object) -> tuple[bytes, FileRecord]:
    array = {"name": "a", "dtype": "<f4", "shape": [4], "offset": 64, **changes}
    return forged({"format": 1, "kind": "k", "arrays": [array]})


def test_what_is_forged_rightly_is_read() -> None:
    content, record = forged_array()
    assert StoredFile.open(MemoryStorage({"s-1": content}), record).lazily("a").shape == (4,)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 7}, {"name": None}, {"dtype": "O"}, {"dtype": "|O"}, {"dtype": "<c8"}, {"dtype": ">f4"},
        {"dtype": "f4"}, {"dtype": ["<f4"]}, {"dtype": "V1000000000"}, {"shape": 4}, {"shape": [-1]},
        {"shape": [4.0]}, {"shape": [True]}, {"shape": [2**62]}, {"shape": [2**31, 2**31, 0]}, {"shape": [2**64]},
        {"shape": [1000]}, {"shape": [1] * 65}, {"shape": [[4]]}, {"offset": -64}, {"offset": 63}, {"offset": 0},
        {"offset": 2**63}, {"offset": 1024}, {"offset": 64.0}, {"offset": "64"},
    ],
)  # fmt: skip
def test_an_array_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    content, record = forged_array(**changes)
    with pytest.raises(CorruptIndex, match="a footer of this library"):
        StoredFile.open(MemoryStorage({"s-1": content}), record)


@pytest.mark.parametrize(
    "described",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, {}, {"format": 1},
        {"format": 1, "kind": 7, "arrays": []}, {"format": 1, "kind": "k", "arrays": {}},
        {"format": 1, "kind": "k", "arrays": [None]}, {"format": "1", "kind": "k", "arrays": []},
        {"format": 1, "kind": "k", "arrays": [{"name": "a", "dtype": "<f4", "shape": [1]}]},
        {"format": 1, "kind": "k", "arrays": [{"name": "a", "dtype": "|u1", "shape": [4], "offset": 64}] * 2},
        {"format": 1, "kind": "k", "arrays": [
            {"name": "a", "dtype": "|u1", "shape": [4], "offset": 64},
            {"name": "a", "dtype": "|u1", "shape": [4], "offset": 128},
        ]},
        {"format": 1, "kind": "k", "arrays": [
            {"name": "a", "dtype": "|u1", "shape": [100], "offset": 64},
            {"name": "b", "dtype": "|u1", "shape": [4], "offset": 128},
        ]},
    ],
)  # fmt: skip
def test_a_footer_that_cannot_be_is_refused(described: object) -> None:
    content, record = forged(described)
    with pytest.raises(CorruptIndex, match="a footer of this library"):
        StoredFile.open(MemoryStorage({"s-1": content}), record)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "<f4", "|u1", "k"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "dtype", "shape", "offset", "format", "kind", "arrays"]), inner)
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b"]) | json_values,
        "dtype": st.sampled_from(["|u1", "<f8"]) | json_values,
        "shape": st.lists(st.integers(0, 40), max_size=3) | json_values,
        "offset": st.sampled_from([64, 128, 960]) | json_values,
    }
)


@given(json_values | st.fixed_dictionaries({"format": st.just(1), "kind": st.just("k"), "arrays": st.lists(entries)}))
def test_whatever_a_footer_says_no_array_leaves_its_file(described: object) -> None:
    content, record = forged(described)
    try:
        file = StoredFile.open(MemoryStorage({"s-1": content}), record)
    except CorruptIndex:
        return
    assert sum(file.lazily(name).nbytes for name in file.names()) <= 1024 - ALIGNMENT


def test_a_table_that_does_not_fit_is_refused() -> None:
    for table in (b"", bytes(8), bytes(3)):
        content, record = forged({"format": 1, "kind": "k", "arrays": []}, table=table)
        with pytest.raises(CorruptIndex, match="lengths that fit"):
            StoredFile.open(MemoryStorage({"s-1": content}), record)


@pytest.mark.parametrize("version", [2, 2**32 - 1])
def test_a_later_format_is_another_error_than_damage(small: tuple[bytes, FileRecord], version: int) -> None:
    content, record = small
    later = content[:-16] + version.to_bytes(4, "little") + content[-12:]
    with pytest.raises(IndexMismatch, match=f"of format {version}; expected format 1"):
        StoredFile.open(MemoryStorage({"s-1": later}), record)


# Verification block by block.

ROW, ROWS = 64, 5 * BLOCK // 64
wide: dict[str, NDArray[Any]] = {
    "first": np.arange(ROW, dtype=np.uint8),
    "wide": np.random.default_rng(7).integers(0, 256, (ROWS, ROW), np.uint8),
    "last": np.arange(ROW, dtype=np.uint8),
}
WIDE = file_of(wide)
FIRST_ROW = 2  # "wide" begins at the third multiple of 64 bytes: after the opening and "first"


def with_damage(blocks: Iterable[int]) -> StoredFile:
    """The wide file, with one byte of each of these blocks another; opened all the same, since nothing was read."""
    content, record = WIDE
    damaged = bytearray(content)
    for block in blocks:
        damaged[block * BLOCK + 64 * 100] ^= 0x10
    return StoredFile.open(MemoryStorage({"s-1": bytes(damaged)}), record)


def is_sound(file: StoredFile, firsts: Iterable[int], lasts: Iterable[int]) -> bool:
    try:
        file.check("wide", np.array(list(firsts), np.int64), np.array(list(lasts), np.int64))
    except CorruptIndex:
        return False
    return True


ranges = st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, 2500)), max_size=4).map(
    lambda pairs: [(first, min(first + length, ROWS)) for first, length in pairs]
)


@given(st.sets(st.integers(0, 4)), st.lists(ranges, max_size=5))
def test_rows_are_refused_exactly_where_one_of_their_blocks_is_damaged(
    blocks: set[int], checks: list[list[tuple[int, int]]]
) -> None:
    file = with_damage(blocks)
    for pairs in checks:
        used = {(row + FIRST_ROW) * ROW // BLOCK for first, last in pairs for row in range(first, last)}
        assert is_sound(file, *zip(*pairs, strict=True)) == (not used & blocks) if pairs else is_sound(file, [], [])


def test_damage_is_found_where_it_is_and_nowhere_else() -> None:
    file = with_damage([2])
    assert np.array_equal(file.whole("first"), wide["first"])
    assert np.array_equal(file.whole("last"), wide["last"])
    assert file.lazily("wide").shape == (ROWS, ROW)
    for _ in range(2):
        with pytest.raises(CorruptIndex, match=f"s-1, with checksum [0-9a-f]{{8}} at byte {2 * BLOCK}; expected"):
            file.whole("wide")
        with pytest.raises(CorruptIndex, match="checksum"):
            file.check_all("wide")


def test_verification_names_every_damaged_block_and_what_lies_there() -> None:
    assert with_damage([]).verify() == []
    found = with_damage([0, 3]).verify()
    assert [each.partition(": checksum")[0] for each in found] == [
        f"s-1: bytes 0 … {BLOCK - 1} of first, wide",
        f"s-1: bytes {3 * BLOCK} … {4 * BLOCK - 1} of wide",
    ]


def test_verification_reads_anew_what_was_sound_before() -> None:
    content, record = WIDE
    storage = MemoryStorage({"s-1": content})
    data = np.frombuffer(bytearray(content), np.uint8)
    storage.map = lambda _: data  # a disk that goes bad while it is mapped
    file = StoredFile.open(storage, record)
    file.check_all("wide")
    data[BLOCK] ^= 1
    file.check_all("wide")
    assert len(file.verify()) == 1


def test_nothing_is_verified_by_opening() -> None:
    file = with_damage(range(5))
    assert len(file.verify()) == 5


def test_threads_find_the_same_damage() -> None:
    for seed in range(10):
        file = with_damage([1, 4])
        starts = np.random.default_rng(seed).integers(0, ROWS - 50, 64)

        def sound(start: int, file: StoredFile = file) -> bool:
            return is_sound(file, [start], [start + 50])

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(sound, map(int, starts)))
        expected = [
            not {(start + FIRST_ROW) * ROW // BLOCK, (start + 49 + FIRST_ROW) * ROW // BLOCK} & {1, 4}
            for start in starts
        ]
        assert found == expected
