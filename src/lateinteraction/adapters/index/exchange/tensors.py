"""Tensors in the files of `torch.save`, mapped: a ZIP archive of a pickle that describes them and of their bytes.

The pickle may describe tensors and hold nothing else; see `pickles`. Checksums of the archive are verified.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.exchange.foreign import reading, unreadable
from lateinteraction.adapters.index.exchange.pickles import Name, read_pickle

DTYPES: Mapping[str, str] = {
    "ByteStorage": "<u1", "CharStorage": "<i1", "ShortStorage": "<i2", "IntStorage": "<i4", "LongStorage": "<i8",
    "HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8",
}  # fmt: skip

_PIECE = 1 << 20
_LOCAL_HEADER = 30
_EXPECTED = "tensors that torch.save wrote"


def read_tensors(path: Path) -> tuple[NDArray[Any], ...]:
    """The tensor of a file, or the tensors of a tuple or list in it, mapped and read-only.

    Raises:
        UnreadableFile: it is damaged, or holds something else.
    """
    with reading(path, _EXPECTED):
        try:
            with zipfile.ZipFile(path) as archive:
                content = _content_of(path, archive)
        except (zipfile.BadZipFile, NotImplementedError, KeyError, RuntimeError) as error:
            raise unreadable(path, f"which is no whole archive ({str(error)[:80]})", _EXPECTED) from error
    found = content if isinstance(content, (tuple, list)) else (content,)
    if not all(isinstance(each, np.ndarray) for each in found):
        raise unreadable(path, "which holds something else", _EXPECTED)
    return tuple(found)


def _content_of(path: Path, archive: zipfile.ZipFile) -> Any:
    members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
    if any(each.compress_type != zipfile.ZIP_STORED for each in members.values()):
        raise unreadable(path, "whose tensors are compressed", _EXPECTED)
    if "byteorder" in members and archive.read(members["byteorder"]).strip() != b"little":
        raise unreadable(path, "written on a big-endian machine", "little-endian tensors")
    for member in members.values():
        with archive.open(member) as stored:  # which verifies its checksum at its end
            while stored.read(_PIECE):
                pass
    return read_pickle(archive.read(members["data.pkl"]), _rebuilt, partial(_storage, path, members))


@frozen(eq=False)
class _Storage:
    values: NDArray[Any]


def _storage(path: Path, members: Mapping[str, zipfile.ZipInfo], description: tuple[Any, ...]) -> _Storage:
    """The bytes that one or more tensors lie in, mapped."""
    word, kind, key, _, count = description
    if (
        word != "storage"
        or not isinstance(kind, Name)
        or kind.module != "torch"
        or kind.name not in DTYPES
        or type(key) is not str
    ):
        raise ValueError("a tensor of a kind that is not read")
    dtype, member = np.dtype(DTYPES[kind.name]), members[f"data/{key}"]
    if type(count) is not int or count * dtype.itemsize != member.file_size:
        raise ValueError("a tensor whose bytes are not all there")
    if not count:
        return _Storage(np.empty(0, dtype))
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        names = np.frombuffer(file.read(4), "<u2")
    start = member.header_offset + _LOCAL_HEADER + int(names.sum(dtype=np.int64))
    return _Storage(np.memmap(path, dtype, "r", start, (count,)))


def _rebuilt(name: Name, arguments: tuple[Any, ...]) -> object:
    """A tensor on its storage; also the empty dictionary of its hooks."""
    if name == Name("collections", "OrderedDict") and not arguments:
        return {}
    if name != Name("torch._utils", "_rebuild_tensor_v2"):
        raise ValueError(f"{name.module}.{name.name}, which is no tensor")
    storage, start, shape, strides = arguments[:4]
    numbers = (start, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(strides)
        or not all(type(each) is int and each >= 0 for each in numbers)
    ):
        raise ValueError("a tensor that is damaged")
    last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if not math.prod(shape):
        return np.empty(shape, storage.values.dtype)
    if last >= len(storage.values):
        raise ValueError("a tensor beyond its bytes")
    steps = [stride * storage.values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage.values[start:], shape, steps, writeable=False)
