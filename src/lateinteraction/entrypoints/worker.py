"""The command of a worker process: `python -m lateinteraction.entrypoints.worker`, spoken to through its pipes."""

from __future__ import annotations

import os
import sys

from lateinteraction import wiring


def main() -> None:
    """Serve one encoder until standard input closes."""
    # What any library prints must not end up between the answers, so it goes to standard error from now on.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        wiring.serve_encoder(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
