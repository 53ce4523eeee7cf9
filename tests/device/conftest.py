"""The worlds that these tests search are a module beside them, and found where it lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lateinteraction.adapters.index import payloads

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def one_table_of_bytes() -> Iterator[None]:
    """Devices look up bytes, of all centroids always, and so does the host here, that both may be compared to the last
    bit: elsewhere it has other tables for small segments, and for few documents of a large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "IN_BYTES", 0)
        patch.setattr(payloads, "FEW", 0)
        yield
