"""Messages between processes: one line of JSON, then the bytes of the arrays it announces. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@frozen(eq=False)
class Frame:
    """One message: what JSON can hold, and named arrays."""

    message: Mapping[str, Any]
    arrays: Arrays = field(factory=dict)


def write_frame(stream: BinaryIO, frame: Frame) -> None:
    """Write a message and flush it.

    Raises:
        OSError: the other end is gone.
    """
    announced = {name: [array.dtype.str, array.shape] for name, array in frame.arrays.items()}
    line = json.dumps({"message": frame.message, "arrays": announced})
    stream.write(line.encode() + b"\n")
    stream.writelines(
        np.ascontiguousarray(array).data.cast("B") if array.size else b"" for array in frame.arrays.values()
    )
    stream.flush()


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next message; None where the other end has closed, be it in the midst of one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in header["arrays"].items():
        array = np.empty(shape, dtype=np.dtype(dtype))
        if array.size and stream.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
            return None
        arrays[name] = array
    return Frame(header["message"], arrays)
