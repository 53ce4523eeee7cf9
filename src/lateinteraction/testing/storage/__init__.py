"""Folders that misbehave as real ones do: in memory and losing power, failing at the nth operation, refusing to unlink.

They pass the contract of `lateinteraction.adapters.index.storage.Storage`, which they meet by structure.
"""

from lateinteraction.testing.storage.faults import FaultyStorage, Killed, RefusingStorage
from lateinteraction.testing.storage.memory import MemoryStorage

__all__ = ["FaultyStorage", "Killed", "MemoryStorage", "RefusingStorage"]
