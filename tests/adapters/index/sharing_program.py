"""Readers and a writer of one folder, forked from a process that knows what each generation shows.

Arguments: the folder, how many readers, how many steps. Prints how many generations each reader saw.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.storage import FolderStorage, Storage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.filters import Comparison
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH = 8
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon")
PATIENCE = 60.0


def items(numbers: list[int], seed: int) -> tuple[list[Document], TokenEmbeddings[torch.Tensor]]:
    """Documents of these numbers, drawn from the seed."""
    generator = np.random.default_rng([seed, *numbers])
    documents = [
        Document(DocumentId(f"d{number}"), " ".join(generator.choice(WORDS, 4)), {"n": number, "seed": seed})
        for number in numbers
    ]
    lengths = generator.integers(1, 6, len(numbers))
    tokens = torch.from_numpy(generator.standard_normal((int(lengths.sum()), WIDTH)).astype(np.float32))
    return documents, TokenEmbeddings(torch.nn.functional.normalize(tokens, dim=1), offsets_of(lengths))


def write(index: StoredIndex, step: int) -> None:
    """The same change for the same step, of every kind in turn."""
    first = step * 10
    match step % 8:
        case 0 | 5:
            index.add(*items(list(range(first, first + 20)), step), on_duplicate="skip")
        case 1:
            index.add(*items(list(range(first - 10, first)), step), on_duplicate="replace")
        case 2:
            index.update(
                {DocumentId(f"d{number}"): {"n": number, "step": step} for number in range(first - 20, first - 10)}
            )
        case 3:
            index.remove([DocumentId(f"d{first - 30}"), DocumentId(f"d{first - 29}")])
        case 4:
            index.add(*items([first], step), on_duplicate="skip")
        case 6:
            index.remove(Comparison("seed", "==", step - 6 - 8))
        case _:
            index.compact(retrain=step % 16 == 15)


QUERIES = items([1, 2], 999)[1]
ODD = Comparison("n", ">", 40)


def seen(snapshot: IndexSnapshot) -> Any:
    """All that a reader can ask for."""
    ids = snapshot.ids()
    some = [DocumentId(f"d{number}") for number in range(0, 400, 3)]
    return (
        snapshot.get(ids),
        snapshot.search(QUERIES, 20),
        snapshot.search(QUERIES, 20, where=ODD),
        snapshot.search(QUERIES, 20, candidates=some),
        snapshot.search_text(["alpha gamma", "beta"], 20),
        snapshot.search_text(["alpha gamma"], 20, where=ODD),
        snapshot.fetch(ids[::5]).tokens.sum(dtype=torch.float64).item(),
    )


def made(storage: Storage) -> StoredIndex:
    index = StoredIndex.create(storage, IndexSettings(IndexOptions("residual4", "none", "int8"), dimension=WIDTH))
    index.add(*items(list(range(10)), 0))
    return index


def rehearsed(steps: int) -> dict[int, Any]:
    """What each generation shows."""
    index = made(MemoryStorage())
    shown = {index.snapshot().generation: seen(index.snapshot())}
    for step in range(1, steps + 1):
        write(index, step)
        shown[index.snapshot().generation] = seen(index.snapshot())
    return shown


def read(folder: str, shown: dict[int, Any]) -> int:
    """Follow the writer to its last generation; every state, when it is new and at the end, is what it has to be."""
    index, states, deadline = StoredIndex(FolderStorage(folder)), [], time.monotonic() + PATIENCE
    while not states or states[-1].generation != max(shown):
        snapshot = index.refresh()
        assert not states or snapshot.generation >= states[-1].generation, "an older generation"
        if not states or snapshot is not states[-1]:
            assert seen(snapshot) == shown[snapshot.generation], f"generation {snapshot.generation}"
            states.append(snapshot)
        assert time.monotonic() < deadline, "the writer's last generation was never seen"
    for snapshot in states:
        assert seen(snapshot) == shown[snapshot.generation], f"generation {snapshot.generation}, held until now"
    return len(states)


def work(folder: str, steps: int) -> int:
    with StoredIndex(FolderStorage(folder)) as index:
        for step in range(1, steps + 1):
            write(index, step)
            time.sleep(0.02)
    return steps


def forked(task: Callable[[], int]) -> tuple[int, int]:
    """A child that does it, and a pipe that says what came of it."""
    result, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(told, str(task()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(told)
    return child, result


def main(folder: str, readers: int, steps: int) -> None:
    torch.set_num_threads(1)
    folding.COMPRESS_AT = 150
    shown = rehearsed(steps)
    made(FolderStorage(folder, create=True)).close()
    children = [forked(lambda: read(folder, shown)) for _ in range(readers)]
    children.append(forked(lambda: work(folder, steps)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    assert codes == [0] * len(codes), codes
    print(*(os.read(result, 20).decode() for _, result in children[:-1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
