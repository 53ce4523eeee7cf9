"""Reads plain values out of pickles that others wrote, and nothing else: no class is found, no function is called.

Opcodes come from `pickletools`, which only takes them apart. What this small machine does not know is an error,
whatever it might have meant. Names stay names, and what is made of them is the reader's choice (`made`).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast, final

from attrs import frozen

from lateinteraction.adapters.index.exchange.foreign import reading, unreadable

PLAIN = "dictionaries, lists, strings and whole numbers, in a pickle"


@frozen
class Name:
    """Something that a pickle names and that is not looked up."""

    module: str
    name: str


Made = Callable[[Name, tuple[Any, ...]], object]
"""What stands for a call, which does not happen: of a name and its arguments. ValueError for what it does not know."""

Kept = Callable[[tuple[Any, ...]], object]
"""What stands for something that is kept beside the pickle."""


def _refused(*_: object) -> NoReturn:
    raise ValueError("a pickle that holds more than plain values")


def read_plain(path: Path, data: bytes) -> object:
    """The dictionaries, lists, strings and whole numbers that a pickle holds.

    Args:
        path: of the file, for errors.
        data: the pickle.

    Raises:
        UnreadableFile: it is none, or holds anything else.
    """
    with reading(path, PLAIN):
        value = read_pickle(data)
    if not _is_plain(value):
        raise unreadable(path, "which holds more than plain values", PLAIN)
    return value


def read_pickle(data: bytes, made: Made = _refused, kept: Kept = _refused) -> object:
    """What a pickle holds.

    Raises:
        ValueError: it is damaged, or asks for what is not allowed.
    """
    machine = _Machine(made, kept)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        return machine.result()
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("a pickle that is damaged") from error


def _is_plain(value: object) -> bool:
    """Whether it is made of dictionaries, lists, strings and whole numbers, however deep."""
    waiting, seen = [value], set[int]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, (dict, list)):
            if id(cast("object", each)) in seen:
                continue
            seen.add(id(cast("object", each)))
            inner = cast("dict[object, object] | list[object]", each)
            waiting.extend([*inner.keys(), *inner.values()] if isinstance(inner, dict) else inner)
        elif not isinstance(each, (str, int)) or isinstance(each, bool):
            return False
    return True


class _Mark:
    """Where the items of something begin, on the stack."""


_SIMPLE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": _Mark,
}  # fmt: skip
_LITERAL = frozenset({
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT",
})  # fmt: skip
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_STORED = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_FETCHED = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@final
class _Machine:
    """A stack and a memory."""

    def __init__(self, made: Made, kept: Kept) -> None:
        self._made, self._kept = made, kept
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def result(self) -> object:
        """The one value that is left."""
        (value,) = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _LITERAL:
            self._stack.append(argument)
        elif name in _SIMPLE:
            self._stack.append(_SIMPLE[name]())
        elif name in _STORED or name == "MEMOIZE":
            self._memory[len(self._memory) if name == "MEMOIZE" else int(argument)] = self._stack[-1]
        elif name in _FETCHED:
            self._stack.append(self._memory[int(argument)])
        elif name in _TUPLES:
            self._replace(_TUPLES[name], tuple(self._stack[-_TUPLES[name] :]))
        elif name not in _NOTHING:
            self._step(name, argument)

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "TUPLE":
                self._stack.append(tuple(self._since_mark()))
            case "LIST":
                self._stack.append(self._since_mark())
            case "DICT":
                self._stack.append(_dictionary(self._since_mark()))
            case "APPEND" | "APPENDS":
                items = [self._stack.pop()] if name == "APPEND" else self._since_mark()
                _of(self._stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self._stack.pop(-2), self._stack.pop()] if name == "SETITEM" else self._since_mark()
                _of(self._stack[-1], dict).update(_dictionary(items))
            case "GLOBAL":
                module, _, found = str(argument).partition(" ")
                self._stack.append(Name(module, found))
            case "STACK_GLOBAL":
                self._replace(2, Name(*(_of(each, str) for each in self._stack[-2:])))
            case "REDUCE":
                function, arguments = self._stack[-2:]
                self._replace(2, self._made(_of(function, Name), _of(arguments, tuple)))
            case "BINPERSID":
                self._replace(1, self._kept(_of(self._stack[-1], tuple)))
            case _:
                raise ValueError(f"a pickle with {name}")

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):  # IndexError where there is none
            place -= 1
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _replace(self, count: int, value: object) -> None:
        if len(self._stack) < count:
            raise IndexError("too little on the stack")
        self._stack[-count:] = [value]


def _dictionary(items: list[Any]) -> dict[Any, Any]:
    """Of keys and values in turn. Tuples are no keys: a deep one is hashed by recursion, which ends the process."""
    if any(type(key) not in (str, int) for key in items[::2]):
        raise ValueError("a pickle with a key that is no text and no number")
    return dict(zip(items[::2], items[1::2], strict=True))


def _of(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise ValueError("a pickle that is damaged")
    return value
