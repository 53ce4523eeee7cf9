"""Makes the environments of the indexes that ours is compared with: `python tools/peers_index.py [folder]`.

Their compiled parts ask for torch 2.11.0 exactly, which PyPI offers for Linux as a CUDA build of 5 GB alone. So there
is one copy of it: `index-t211` holds it, and the other environment, for what contradicts that one, looks there for
whatever it does not hold itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType

import peers
from peers import Peer

TORCH = "torch==2.11.0"
LENDER = "index-t211"
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        LENDER: Peer(
            ((TORCH,), (TORCH, "fast-plaid==1.7.0.2110", "xtr-warp-rs==2.1.0.2110", "numpy==2.4.6")),
        ),
        # What PyLate 1.6.0 asks for, named one by one: its own dependencies would bring torch a second time.
        "pylate-index": Peer(
            (
                (
                    TORCH,
                    "sentence-transformers==5.3.0",
                    "transformers==5.3.0",
                    "datasets",
                    "accelerate",
                    "pandas",
                    "fastkmeans==0.5.0",
                    "ujson==5.12.0",
                    "ninja==1.11.1.4",
                ),
                ("--no-deps", "pylate==1.6.0", "fast-plaid==1.4.6.2110", "xtr-warp-rs==2.0.3.2110"),
            ),
            lender=LENDER,
        ),
    }
)


if __name__ == "__main__":
    sys.exit(peers.main(sys.argv[1:], PEERS))
