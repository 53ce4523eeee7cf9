"""`python -m benchmarks.peers`: exchange checkpoints with the peers; exit status 1 when any difference is too large.

Words behind it choose the cases whose names contain one of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transformers.utils import logging

from benchmarks.peers import process
from benchmarks.peers.cases import CASES, sources
from benchmarks.peers.exchange import LIMITS, Exchange, notes, table

READERS = ("pylate", "sentence-transformers")


def main(words: list[str]) -> int:
    """Run the cases, print the table and what is to be said about it."""
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    logging.disable_progress_bar()
    if not cases:
        print(f"error: no case has any of {words} in its name", file=sys.stderr)
        return 1
    try:
        process.check_installed(READERS)
    except process.PeersNotInstalled as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = {name: stack.enter_context(process.start(name)) for name in READERS}
        with _silent_terminal():
            made = sources(folder)
        exchange = Exchange(peers, made, folder)
        outcomes = [outcome for case in cases for outcome in exchange.run(case)]
    limits = ", ".join(f"{direction} {limit:g}" for direction, limit in LIMITS.items())
    print(f"largest absolute differences of embeddings; limits: {limits}\n")
    print(table(outcomes))
    print("\nx, n/m *: n of m texts differ on purpose, the others by x at most\n")
    for note in notes(outcomes):
        print(note)
    bad = sum(not each.good for each in outcomes)
    print(f"{len(outcomes)} comparisons, {bad} beyond their limit")
    return 1 if bad else 0


@contextmanager
def _silent_terminal() -> Iterator[None]:
    """Training a tokenizer writes empty lines to the terminal, past `sys.stdout`."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
