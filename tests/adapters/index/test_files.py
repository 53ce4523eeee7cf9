"""Data files: what is written is read, bit for bit, lazily verified, and under every fault whole or not at all."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray

from lateinteraction.adapters.index.files import FileRecord, FileWriter, StoredFile
from lateinteraction.adapters.index.layout import ALIGNMENT, BLOCK, DTYPES
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.errors import CorruptIndex, InvalidOption, StorageFailed
from lateinteraction.testing.storage import FaultyStorage, MemoryStorage

Array = NDArray[Any]

dtypes = st.sampled_from(sorted(DTYPES)).map(np.dtype)
shapes = nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
some_arrays = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=6), dtypes.flatmap(lambda dtype: nps.arrays(dtype, shapes)), max_size=5
)
orders = st.sampled_from(["C", "F", "reversed", "big-endian"])


def written(arrays: dict[str, Array], storage: MemoryStorage | None = None) -> tuple[MemoryStorage, FileRecord]:
    """A storage with one file of these arrays."""
    storage = storage or MemoryStorage()
    with FileWriter(storage, "s-1", "segment") as file:
        for name, array in arrays.items():
            file.add(name, array)
        return storage, file.publish()


def stored(arrays: dict[str, Array]) -> StoredFile:
    return StoredFile.open(*written(arrays))


def laid_out(array: Array, order: str) -> Array:
    """The same values, lying in memory otherwise."""
    if order == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    if order == "reversed" and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    return np.asarray(array, order="F" if order == "F" else "C")


def same(found: Array, expected: Array) -> bool:
    """Of one dtype, shape and of the same bytes; NaNs too."""
    alike = found.dtype == expected.dtype and found.shape == expected.shape
    return alike and found.tobytes() == expected.tobytes()


@given(some_arrays, orders)
def test_what_is_written_is_read_whatever_its_order_in_memory(arrays: dict[str, Array], order: str) -> None:
    file = stored({name: laid_out(array, order) for name, array in arrays.items()})
    assert file.names() == tuple(arrays)
    assert file.kind == "segment"
    assert all(same(file.whole(name), array) and same(file.lazily(name), array) for name, array in arrays.items())
    assert file.verify() == []


@given(dtypes.flatmap(lambda dtype: nps.arrays(dtype, st.tuples(st.integers(0, 30), st.just(2)))), st.data())
def test_an_array_written_in_pieces_is_the_same_file(array: Array, data: st.DataObject) -> None:
    whole, record = written({"before": np.ones(3), "rows": array, "after": np.zeros(2)})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=4)))
    storage = MemoryStorage()
    with FileWriter(storage, "s-1", "segment") as file:
        file.add("before", np.ones(3))
        with file.rows("rows", array.dtype, (2,)) as rows:
            for start, stop in zip([0, *cuts], [*cuts, len(array)], strict=True):
                rows.append(array[start:stop])
            assert len(rows) == len(array)
        file.add("after", np.zeros(2))
        assert file.publish() == record
    assert storage.contents() == whole.contents()


def test_large_arrays_come_back_through_a_real_folder(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**63, (3 * BLOCK // 8 + 77, 3), np.int64)
    storage = FolderStorage(tmp_path)
    with FileWriter(storage, "s-1", "segment") as file:
        file.add("small", np.arange(5, dtype=np.uint8))
        with file.rows("values", np.int64, (3,)) as rows:
            for start in range(0, len(values), 1000):
                rows.append(values[start : start + 1000])
        file.add("whole", values)
        record = file.publish()
    assert storage.size("s-1") == record.length
    opened = StoredFile.open(storage, record)
    assert storage.unlink("s-1")
    assert same(opened.whole("values"), values)
    assert same(opened.whole("whole"), values)


def test_arrays_begin_where_vectors_are_fastest(tmp_path: Path) -> None:
    with FileWriter(FolderStorage(tmp_path), "s-1", "segment") as file:
        for number in range(10):
            file.add(f"{number}", np.ones(number, np.uint8))
        record = file.publish()
    opened = StoredFile.open(FolderStorage(tmp_path), record)
    assert [opened.lazily(name).ctypes.data % ALIGNMENT for name in opened.names()] == [0] * 10


def test_a_file_has_a_temporary_name_until_it_is_published() -> None:
    storage = MemoryStorage()
    file = FileWriter(storage, "s-1", "segment")
    file.add("a", np.arange(3))
    record = file.close()
    assert storage.names() == [file.temporary]
    assert file.close() == record
    assert file.publish() == file.publish() == record
    assert storage.names() == ["s-1"]
    file.abandon()
    assert storage.names() == ["s-1"]


def test_a_closed_file_is_on_the_disk_but_for_its_name() -> None:
    storage, record = written({"a": np.arange(9)})
    assert "s-1" not in storage.after_power_cut(0).names()
    storage.sync_folder()
    assert StoredFile.open(storage.after_power_cut(0), record).whole("a")[8] == 8


def test_leaving_the_block_with_an_error_or_without_closing_leaves_nothing() -> None:
    storage = MemoryStorage()
    with FileWriter(storage, "s-1", "segment") as file:
        file.add("a", np.arange(3))
    assert storage.names() == []
    file = FileWriter(storage, "s-1", "segment")
    file.close()
    with pytest.raises(ZeroDivisionError), file:
        _ = 1 / 0
    assert storage.names() == []
    with FileWriter(storage, "s-1", "segment") as file:
        file.close()
    assert storage.names() == [file.temporary]


def test_publishing_replaces_nothing() -> None:
    storage, _ = written({"a": np.arange(3)})
    before = storage.contents()
    with pytest.raises(FileExistsError):
        written({"a": np.arange(4)}, storage)
    assert storage.contents() == before


@pytest.mark.parametrize("fault", ["error", "late", "short", "enospc"])
def test_whatever_fails_the_file_is_whole_or_has_no_name(fault: Any) -> None:
    arrays = {"a": np.arange(BLOCK), "b": np.arange(7, dtype=np.uint8)}
    _, expected = written(arrays)
    for at in range(1, 100):
        storage = MemoryStorage()
        faulty = FaultyStorage(storage, at=at, fault=fault)
        try:
            record = written(arrays, faulty)[1]
        except StorageFailed:
            assert faulty.happened
            record = None
        if record is not None or "s-1" in storage.names():
            assert same(StoredFile.open(storage, expected).whole("a"), arrays["a"])
        if not faulty.happened:
            assert at > 5
            return
    pytest.fail("the fault never ceased to happen")


def test_a_file_of_which_a_write_failed_is_never_closed() -> None:
    faulty = FaultyStorage(MemoryStorage(), at=2, fault="short")
    file = FileWriter(faulty, "s-1", "segment")
    with pytest.raises(StorageFailed):
        file.add("large", np.zeros(BLOCK))
    for finish in (file.close, file.publish, lambda: file.add("other", np.zeros(BLOCK))):
        with pytest.raises(StorageFailed, match="of which a write failed"):
            finish()


def test_a_file_whose_sync_failed_is_never_synced_again() -> None:
    faulty = FaultyStorage(MemoryStorage(), at=3)
    file = FileWriter(faulty, "s-1", "segment")
    file.add("a", np.arange(3))
    with pytest.raises(StorageFailed, match="sync"):
        file.close()
    with pytest.raises(StorageFailed, match="of which a write failed"):
        file.close()
    assert len([each for each in faulty.journal if each.startswith("sync")]) == 1


def test_a_temporary_that_cannot_be_removed_hides_no_other_error() -> None:
    storage = MemoryStorage()
    faulty = FaultyStorage(storage, at=3)
    file = FileWriter(faulty, "s-1", "segment")
    file.add("a", np.arange(3))
    with pytest.raises(ZeroDivisionError), file:
        _ = 1 / 0
    assert faulty.journal[2] == f"unlink {file.temporary}"
    assert storage.names() == [file.temporary]


def test_arrays_have_names_of_their_own() -> None:
    file = FileWriter(MemoryStorage(), "s-1", "segment")
    file.add("a", np.arange(3))
    for name in ("a", ""):
        with pytest.raises(InvalidOption):
            file.add(name, np.arange(3))
    file.close()
    with pytest.raises(InvalidOption, match="after the end"):
        file.add("b", np.arange(3))


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "c8", "M8[s]", "V4", [("a", "i4")], "g"])
def test_a_dtype_that_is_not_of_the_list_is_refused(dtype: Any) -> None:
    file = FileWriter(MemoryStorage(), "s-1", "segment")
    with pytest.raises(InvalidOption):
        file.add("a", np.zeros(3, dtype))
    with pytest.raises(InvalidOption), file.rows("a", dtype):
        pass


@pytest.mark.parametrize(
    "block",
    [np.zeros((2, 3), np.float64), np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.float32(1), np.zeros(2)],
)
def test_rows_of_another_kind_are_refused(block: Array) -> None:
    file = FileWriter(MemoryStorage(), "s-1", "segment")
    with file.rows("a", np.float32, (3,)) as rows:
        with pytest.raises(InvalidOption):
            rows.append(np.asarray(block))
        rows.append(np.zeros((2, 3), ">f4"))
    assert file.close().length > 0


def test_one_array_is_written_at_a_time() -> None:
    file = FileWriter(MemoryStorage(), "s-1", "segment")
    with file.rows("a", np.uint8) as rows:
        for meanwhile in (lambda: file.add("b", np.zeros(3)), file.close, file.publish):
            with pytest.raises(InvalidOption):
                meanwhile()
    with pytest.raises(InvalidOption, match="complete"):
        rows.append(np.zeros(3, np.uint8))


def test_an_array_that_broke_off_is_never_closed() -> None:
    file = FileWriter(MemoryStorage(), "s-1", "segment")
    with pytest.raises(ZeroDivisionError), file.rows("a", np.uint8):
        _ = 1 / 0
    with pytest.raises(InvalidOption):
        file.close()


def test_no_array_can_be_written_through() -> None:
    file = stored({"a": np.arange(3)})
    for view in (file.whole("a"), file.lazily("a")):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 7


def test_an_array_that_is_not_there_is_a_damage() -> None:
    file = stored({"a": np.arange(3)})
    rows = np.array([0])
    for read in (file.whole, file.lazily, file.check_all, lambda name: file.check(name, rows, rows)):
        with pytest.raises(CorruptIndex, match="without an array 'b'"):
            read("b")
    assert "a" in file
    assert "b" not in file
    assert 3 not in file


def test_rows_that_an_array_does_not_have_are_a_damage() -> None:
    file = stored({"a": np.zeros((4, 2)), "none": np.zeros((0, 2)), "one": np.array(7.0), "thin": np.zeros((4, 0))})

    def check(name: str, *ranges: tuple[int, int]) -> None:
        firsts, lasts = np.array(ranges, np.int64).reshape(-1, 2).T
        file.check(name, firsts, lasts)

    check("a", (0, 4), (4, 4), (0, 0), (2, 3))
    check("a")
    check("none", (0, 0))
    check("one", (0, 1))
    check("thin", (0, 4), (4, 4))
    for name, outside in [("a", (0, 5)), ("a", (-1, 2)), ("a", (3, 2)), ("none", (0, 1)), ("one", (0, 2))]:
        with pytest.raises(CorruptIndex, match=f"'{name}' of s-1"):
            check(name, (0, 0), outside)


GOLDEN = {
    "ids.bytes": np.frombuffer("größe".encode(), np.uint8),
    "tokens.offsets": np.array([0, 3, 2**40]),
    "vectors.values": np.array([[0.5, -1], [2, 0.25]], np.float16),
    "flag": np.array(True),
    "nothing": np.zeros((0, 3), np.float32),
}


GOLDEN_DIGEST = "e6b4568cb81e20667854989598c9397f5cf3bb8e335e5ef896654cae8519f75e"


def test_the_same_arrays_are_the_same_file_in_every_version_of_this_library() -> None:
    storage, record = written(GOLDEN)
    assert record == FileRecord("s-1", 701, "91d89b679ccc4546561d750dd58419e5")
    assert hashlib.sha256(storage.read("s-1")).hexdigest() == GOLDEN_DIGEST


def test_the_bytes_are_what_the_format_says() -> None:
    storage, record = written({**GOLDEN, "large": np.arange(BLOCK, dtype=np.uint16)})
    content = storage.read("s-1")
    table_length, footer_length, version, checksum, magic = struct.unpack("<QQII8s", content[-32:])
    closing, data = content[-32 - footer_length - table_length : -32], content[: -32 - footer_length - table_length]
    table, footer = struct.unpack(f"<{table_length // 4}I", closing[:table_length]), closing[table_length:]
    assert (content[:8], magic, version) == (b"LATEIDX1", b"XDIETAL1", 1)
    assert checksum == zlib.crc32(closing + content[-32:-12])
    assert record == FileRecord("s-1", len(content), hashlib.blake2b(closing, digest_size=16).hexdigest())
    assert table == tuple(zlib.crc32(data[start : start + 65536]) for start in range(0, len(data), 65536))
    described = json.loads(footer)
    assert (described["format"], described["kind"]) == (1, "segment")
    offsets = [each["offset"] for each in described["arrays"]]
    assert [each["name"] for each in described["arrays"]] == [*GOLDEN, "large"]
    assert offsets == sorted(offsets)
    assert all(offset % 64 == 0 for offset in offsets)
    for each, array in zip(described["arrays"], GOLDEN.values(), strict=False):
        assert (each["dtype"], each["shape"]) == (array.dtype.str, list(array.shape))
        assert data[each["offset"] : each["offset"] + array.nbytes] == array.tobytes()


def test_reading_a_file_loads_no_torch() -> None:
    program = "import sys, lateinteraction.adapters.index.files as files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
