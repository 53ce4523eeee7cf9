"""Somebody else's program that embeds this library: it searches from four threads, and compares itself with before.

Run by test_embedding.py with the installed wheel; prints, as JSON, where the library lies, what changed in the process,
and whether all threads found the same. A statement given as argument runs in between, to show that a change is noticed.
"""

from __future__ import annotations

import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def state() -> dict[str, str]:
    """What a library must leave as it finds it."""
    root = logging.getLogger()
    return {
        "signal handlers": repr([signal.getsignal(number) for number in sorted(signal.valid_signals())]),
        "root logger": repr((root.level, root.handlers, root.filters, root.disabled, logging.root.manager.disable)),
        "our loggers": repr(
            [
                (name, logger.level, logger.handlers, logger.propagate)
                for name, logger in sorted(logging.root.manager.loggerDict.items())
                if name.startswith("lateinteraction") and isinstance(logger, logging.Logger)
                and (logger.level or logger.handlers or not logger.propagate)
            ]
        ),
        "environment": repr(sorted(os.environ.items())),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "warning filters": repr(warnings.filters),
        "hooks": repr((sys.excepthook, sys.displayhook, threading.excepthook, sys.meta_path, sys.path_hooks)),
        "streams": repr((sys.stdin, sys.stdout, sys.stderr)),
        "recursion limit": repr(sys.getrecursionlimit()),
        "multiprocessing": repr(multiprocessing.get_start_method(allow_none=True)),
        "random state": repr((hash(random.getstate()), np.random.get_state()[1].sum(), torch.initial_seed())),  # noqa: NPY002
        "numpy errors": repr(np.geterr()),
        "torch threads": repr((torch.get_num_threads(), torch.get_num_interop_threads())),
        "torch defaults": repr(
            (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled())
        ),
        "torch precision": torch.get_float32_matmul_precision(),
    }  # fmt: skip


def search(statement: str) -> tuple[str, bool]:
    """Fill an index, then search it from four threads while a fifth adds to it."""
    import lateinteraction
    from lateinteraction import Document, Query, TokenEmbeddings
    from lateinteraction.adapters.flat import FlatIndex
    from lateinteraction.adapters.neural.transfer import to_device
    from lateinteraction.testing import HashEncoder

    encoder, index = HashEncoder(), FlatIndex()

    def tensors(embeddings):
        return TokenEmbeddings(to_device(embeddings.tokens, torch.device("cpu")), embeddings.offsets)

    def add(first):
        documents = [Document(f"{n}", f"word{n} word{n + 1} and the rest") for n in range(first, first + 20)]
        index.add(documents, tensors(encoder.encode_documents(documents)))

    def found(n):
        return index.search(tensors(encoder.encode_queries([Query(f"word{n} word{n + 1}")])), k=1)[0].documents

    add(0)
    alone = [found(n) for n in range(20)]
    with ThreadPoolExecutor(5) as pool:
        writer = pool.submit(lambda: [add(first) for first in range(1000, 1200, 20)])
        together = [list(pool.map(found, range(20))) for _ in range(4)]
        writer.result()
    exec(statement)
    return lateinteraction.__file__, alone == [(str(n),) for n in range(20)] and together == [alone] * 4


if __name__ == "__main__":
    before = state()
    location, agreed = search(" ".join(sys.argv[1:]))
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    json.dump({"location": location, "agreed": agreed, "changed": changed}, sys.stdout)
