"""Adds number after number to the index in a folder, merges and collects, and says what is acknowledged. Never ends.

Usage: python writing_program.py FOLDER [SEED]
"""

from __future__ import annotations

import random
import sys

from ledger import Ledger, read

from lateinteraction.adapters.index.storage import FolderStorage


def main(folder: str, seed: int) -> None:
    draw = random.Random(seed)
    storage = FolderStorage(folder)
    book = Ledger(storage, acknowledged=read(storage))
    book.open()
    say("open", book)
    number = max(book.acknowledged or {0})
    while True:
        number += 1
        there = sorted(book.acknowledged or ())
        sys.stdout.write(f"try {number}\n")
        sys.stdout.flush()
        step = draw.choice("aarrm" if there else "a")
        if step == "a":
            book.add(number)
        elif step == "r":
            book.replace(draw.choice(there), number)
        else:
            book.merge()
        say("done", book)
        book.collect()


def say(what: str, book: Ledger) -> None:
    sys.stdout.write(f"{what} {' '.join(map(str, sorted(book.acknowledged or ())))}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
