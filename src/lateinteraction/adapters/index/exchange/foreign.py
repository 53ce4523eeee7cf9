"""Files that others wrote: JSON and NumPy arrays, mapped and checked; what they are not is `UnreadableFile`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.errors import LateInteractionError, UnreadableFile, shown

_OF_HEADERS = (TokenError, SyntaxError, TypeError)
"""What NumPy lets through where the header of a .npy file is damaged."""

_LARGEST = 65_504
"""That float16 holds, in which these tools compute."""

REMEDY = "Look whether the folder is whole; make it again with the tool that wrote it."


def unreadable(path: Path, given: str, expected: str) -> UnreadableFile:
    """The error for a file that is not what its name says."""
    return UnreadableFile(f"{path}, {given}", expected, REMEDY)


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """A block that reads a file: what goes wrong there is `UnreadableFile`."""
    try:
        yield
    except LateInteractionError:
        raise
    except FileNotFoundError as error:
        raise unreadable(path, "which is not there", expected) from error
    except (OSError, ValueError, EOFError, RecursionError, OverflowError, MemoryError) as error:
        raise unreadable(
            path, f"which cannot be read ({str(error)[:120] or type(error).__name__})", expected
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    with reading(path, "JSON"):
        return json.loads(path.read_bytes())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise unreadable(path, f"which holds {shown(content)}", "a JSON object")
    return cast("dict[str, Any]", content)


def whole_number(path: Path, content: dict[str, Any], name: str, least: int = 0) -> int:
    """A number of a JSON object."""
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise unreadable(path, f"in which {name} is {shown(value)}", f"a whole number of at least {least}")
    return value


def read_lengths(path: Path) -> NDArray[np.int64]:
    """The list of a JSON file: tokens of each document."""
    content = read_json(path)
    numbers = cast("list[object]", content) if isinstance(content, list) else [None]
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**40 for each in numbers):
        raise unreadable(path, "which is no list of lengths", "a JSON list of whole numbers of at least 0")
    return np.array(numbers, dtype=np.int64)


def read_array(path: Path, kinds: str, dimensions: int) -> NDArray[Any]:
    """The array of a .npy file, mapped. Objects, which are pickles, are not read.

    Args:
        path: of the file.
        kinds: of NumPy dtypes that are allowed, such as "f" or "iu".
        dimensions: how many axes it has.
    """
    expected = f"an array of {dimensions} dimensions in a .npy file"
    with reading(path, expected):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except _OF_HEADERS as error:
            raise unreadable(path, "whose header is damaged", expected) from error
    if not isinstance(array, np.ndarray):  # an archive of several
        raise unreadable(path, "which holds several arrays", expected)
    check_array(path, array, kinds, dimensions)
    return array


def check_array(path: Path, array: NDArray[Any], kinds: str, dimensions: int) -> None:
    """Raise `UnreadableFile` for an array of another kind."""
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        raise unreadable(
            path,
            f"which holds {array.dtype} of shape {array.shape}",
            f"{dimensions} dimensions and a dtype of {kinds!r}",
        )


def finite(path: Path, array: NDArray[Any]) -> NDArray[np.float32]:
    """The values in float32, where all of them are finite and float16 could hold them."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not (np.abs(values) <= _LARGEST).all():
        raise unreadable(path, "which holds NaN, infinity or what float16 does not hold", "finite values")
    return values
