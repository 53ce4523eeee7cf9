"""Who is compared: four configurations of ours, the peers whose indexes are there, and exact search in NumPy.

Everybody is a process that has one index open, answers with a fixed number of threads and times itself. A
configuration of ours is what an index stores and how it is searched; there is one for each codec, for all corpora.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import field, frozen

from benchmarks.cases.index.prepared import K, Prepared
from benchmarks.harness import Seconds
from benchmarks.peers.indexes import Parameters
from benchmarks.peers.process import THREADS, Peer

OURS, BRUTE_FORCE = "our_index_worker", "brute_force_worker"
SECONDS = 4 * 3600.0


@frozen(eq=False)
class Configuration:
    """An index of ours.

    Args:
        name: what tables call it.
        stored: codec, and what is kept beside it.
        searched: fields of `SearchOptions`.
    """

    name: str
    stored: tuple[str, ...]
    searched: Mapping[str, object] = MappingProxyType({})

    def __str__(self) -> str:
        stored = f"codec {self.stored[0]}" + "".join(f", keep {kept}" for kept in self.stored[1:])
        searched = ", ".join(f"{name} {value}" for name, value in self.searched.items()) or "the defaults"
        return f"{self.name}: {stored}; searched with {searched}"


RESIDUAL4 = Configuration("ours, 4 bits", ("residual4",), MappingProxyType({"candidates": 128, "probe": 12}))
KEPT = Configuration(
    "ours, 4 bits + float16", ("residual4", "float16"), MappingProxyType({"candidates": 256, "probe": 16})
)
RESIDUAL2 = Configuration("ours, 2 bits", ("residual2",))
EXACT = Configuration("ours, float16", ("float16",))
CONFIGURATIONS = (RESIDUAL4, KEPT, RESIDUAL2, EXACT)


@frozen(eq=False)
class Contestant:
    """A process that has an index of a corpus open.

    Args:
        worker: the process.
        parameters: of its searches, unless others are given.
        opening: seconds that opening took.
    """

    worker: Peer
    parameters: Parameters | Mapping[str, object] = field(factory=dict)
    opening: float = 0.0

    def find(self, queries: int, parameters: Mapping[str, object] | None = None) -> tuple[list[list[int]], Seconds]:
        """What it finds for the first so many queries, asked at once, and how long that takes."""
        answer = self.worker.ask("find", parameters=self._chosen(parameters), k=K, queries=queries)
        return answer["found"], Seconds(answer["seconds"], answer["cpu_seconds"])

    def time(self, query: int, parameters: Mapping[str, object] | None = None) -> Seconds:
        """How long one query takes by itself."""
        answer = self.worker.ask("time", parameters=self._chosen(parameters), k=K, query=query)
        return Seconds(answer["seconds"], answer["cpu_seconds"])

    def _chosen(self, parameters: Mapping[str, object] | None) -> dict[str, object]:
        return dict(self.parameters if parameters is None else parameters)


def own_worker(name: str, module: str, *arguments: str, threads: int) -> Peer:
    """A process of ours, which may take hours for an answer."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *arguments]
    return Peer(name, command, threads=threads, seconds=SECONDS)


def build_ours(corpus: Prepared, configuration: Configuration, scratch: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a new index of ours, and what building it took, with as many threads as peers had."""
    folder = scratch / "-".join((corpus.name, *configuration.stored))
    with own_worker(configuration.name, OURS, *configuration.stored, threads=THREADS) as worker:
        warm = folder.with_name(f"{folder.name}-warm")
        answer = worker.ask("build", corpus=str(corpus.folder), folder=str(folder), warm=str(warm))
    return folder, answer


def opened(worker: Peer, corpus: Prepared, folder: Path, threads: int, parameters: Mapping[str, object]) -> Contestant:
    """The contestant that a worker becomes by opening an index."""
    answer = worker.ask("open", corpus=str(corpus.folder), folder=str(folder), threads=threads)
    return Contestant(worker, parameters, answer["seconds"])
