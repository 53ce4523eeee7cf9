"""Reads the index in a folder, over and over, until a line comes in; then says every generation that it saw.

Usage: python reading_program.py FOLDER
"""

from __future__ import annotations

import select
import sys

from ledger import content_of

from lateinteraction.adapters.index.generations import Generations
from lateinteraction.adapters.index.storage import FolderStorage


def main(folder: str) -> None:
    generations = Generations(FolderStorage(folder), patience=30.0)
    opened = pinned = generations.read()
    seen, kept = {}, content_of(pinned)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        fresh = generations.refresh(opened)
        assert fresh.generation >= opened.generation, "an older state"
        opened = fresh
        seen[opened.generation] = content_of(opened)
        with generations.read() as other:
            assert other.generation >= opened.generation, "an older state"
            seen[other.generation] = content_of(other)
        assert content_of(pinned) == kept, "what was opened has changed"
        if len(seen) % 25 == 0:
            pinned, kept = opened, content_of(opened)
    for generation, content in seen.items():
        sys.stdout.write(f"{generation} {' '.join(map(str, sorted(content)))}\n")


if __name__ == "__main__":
    main(sys.argv[1])
