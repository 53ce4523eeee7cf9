"""Tries to make an index lie: kills its writers, damages its files, fails its storage. `python tools/torture.py`

    --kills 500        writing processes killed with SIGKILL, half of them at an operation of the storage
    --damages 10000    files flipped, overwritten, cut, extended, exchanged, removed, one at a time
    --stride 1         of the points where the storage can fail, every so many
    --seconds S        stop after about so long, whatever is left
    --seed 0           of documents, calls, moments and damages
    --folder F         where indexes are made; in memory where the system offers it, since no kill takes what the
                       system has, so that nothing waits for a disk

Prints what was tried and what was wrong; exits with 1 where anything was.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch: children are forked of this process

import torch
import torture_damages
import torture_faults
import torture_kills
from torture_figures import Figures

MEMORY = "/dev/shm"  # noqa: S108  (folders of random names are made in it)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500, help="writing processes to kill (default: %(default)s)")
    parser.add_argument("--damages", type=int, default=10_000, help="files to damage (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="try every so many fault points (default: all)")
    parser.add_argument("--seconds", type=float, help="stop after about so long (default: when all is done)")
    parser.add_argument("--seed", type=int, default=0, help="of documents, calls, moments and damages")
    parser.add_argument("--folder", default=MEMORY if os.path.isdir(MEMORY) else None, help="where indexes are made")
    options = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        parser.error("processes are forked and killed as POSIX does, which this system does not")
    tempfile.tempdir = options.folder
    torch.set_num_threads(1)
    logging.getLogger("lateinteraction").setLevel(logging.ERROR)  # each fault that is survived is a warning
    figures = Figures(options.seconds)
    torture_faults.torture(figures, options.seed, share=0.3, stride=options.stride)
    torture_kills.torture(figures, options.seed, options.kills, share=0.6)
    torture_damages.torture(figures, options.seed, options.damages)
    print(figures.table())
    return int(not figures.good)


if __name__ == "__main__":
    sys.exit(main())
