"""The error tree is the one its docstring draws, and its errors cross processes whole."""

from __future__ import annotations

import builtins
import copy
import pickle
import re

import pytest

from lateinteraction.domain import errors
from lateinteraction.domain.errors import LateInteractionError, TruncatedTextWarning

CLASSES = [each for each in vars(errors).values() if isinstance(each, type)]
ERRORS = [each for each in CLASSES if issubclass(each, LateInteractionError)]


def drawn() -> dict[str, tuple[str, str | None]]:
    """Name → (parent by indentation, builtin in brackets), read off the docstring."""
    tree: dict[str, tuple[str, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([ │├└─]*)([A-Z]\w+)\s*(?:\((\w+)\))?", line)
        if found is None:
            continue
        above = [(indent, name) for indent, name in above if indent < len(found[1])]
        tree[found[2]] = (above[-1][1] if above else "", found[3])
        above.append((len(found[1]), found[2]))
    return tree


def test_the_tree_is_the_one_that_is_drawn() -> None:
    tree = drawn()
    assert set(tree) == {each.__name__ for each in CLASSES}
    for each in ERRORS:
        parent, builtin = tree[each.__name__]
        assert parent in ("", *(base.__name__ for base in each.__bases__))
        if builtin is not None:
            assert getattr(builtins, builtin) in each.__bases__


def test_the_drawing_is_read_right() -> None:
    tree = drawn()
    assert tree["LateInteractionError"] == ("", None)
    assert tree["DuplicateDocument"] == ("InvalidIdentifier", None)
    assert tree["UnknownDocument"] == ("LateInteractionError", "KeyError")
    assert tree["ModelMismatch"] == ("InvalidModel", None)
    assert tree["TruncatedTextWarning"] == ("", "UserWarning")


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_says_what_was_given_expected_and_to_do(error: type[LateInteractionError]) -> None:
    raised = error("k = 0", "at least 1", "Ask for one hit.")
    assert str(raised) == "k = 0; expected at least 1. Ask for one hit."
    assert (raised.given, raised.expected, raised.remedy) == ("k = 0", "at least 1", "Ask for one hit.")
    with pytest.raises(LateInteractionError):
        raise raised


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda raised: pickle.loads(pickle.dumps(raised))])
def test_an_error_crosses_processes_whole(error: type[LateInteractionError], again: object) -> None:
    raised = again(error("given", "expected", "remedy"))  # type: ignore[operator]
    assert type(raised) is error
    assert str(raised) == "given; expected expected. remedy"
    assert (raised.given, raised.expected, raised.remedy) == ("given", "expected", "remedy")


def test_a_warning_crosses_processes_whole() -> None:
    again = pickle.loads(pickle.dumps(TruncatedTextWarning("2 of 3 texts")))
    assert isinstance(again, UserWarning)
    assert str(again) == "2 of 3 texts"
