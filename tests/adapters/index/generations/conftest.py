"""The ledger: a small index of numbers, for tests here and for the programs that they start."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lateinteraction.testing.storage import MemoryStorage


def _load() -> ModuleType:
    spec = spec_from_file_location("ledger", Path(__file__).with_name("ledger.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["ledger"] = module_from_spec(spec)  # by this name the started programs import it too
    spec.loader.exec_module(module)
    return module


_LEDGER = _load()


@pytest.fixture(scope="session")
def ledger() -> ModuleType:
    """The module `ledger.py`."""
    return _LEDGER


@pytest.fixture
def book(ledger: ModuleType) -> Any:
    """A ledger of 1 and 2, each in a segment, its writer open."""
    book = ledger.Ledger(MemoryStorage())
    book.create()
    book.open()
    book.add(1)
    book.add(2)
    return book
