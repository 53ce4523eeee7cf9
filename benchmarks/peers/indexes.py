"""`python -m benchmarks.peers.indexes`: build each peer's index of each corpus, once.

An index lies in `.peers/indexes/<corpus>/<peer>/`, beside it `<peer>.json`: what building it cost, how long that was
allowed to take, and the rankings that each point of the peer's grid gives. Rankings are found here, because they do not
change; how long they take is measured by `CASE=index`, in turn with ours. Words behind the command choose among corpora
and among peers; MINUTES=25 is the most that one build may take.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from attrs import field, frozen

from benchmarks.cases.index.prepared import JUDGED, K, Prepared
from benchmarks.harness import Bench, Seconds, Timing
from benchmarks.peers import process
from benchmarks.peers.process import Peer, PeerFailure

HERE = Path(__file__).parent
NAMES = ("plaid", "fast-plaid", "xtr-warp", "warp")
MINUTES = 25.0
Parameters = Mapping[str, int | float]


@frozen
class IndexPeer:
    """A library whose indexes ours is compared with, as its `.toml` says.

    Args:
        name: of the file.
        title: what tables call it.
        environment: whose interpreter runs it.
        worker: module of `benchmarks.peers`, and its arguments.
        corpora: of which it builds indexes.
        points: what its searches are given: the points of its curve.
        default: the one of them that its makers chose.
    """

    name: str
    title: str
    environment: str
    worker: Sequence[str]
    corpora: Sequence[str]
    points: Sequence[Parameters] = field(repr=False)
    default: Parameters = field(factory=dict)

    @classmethod
    def read(cls, name: str) -> IndexPeer:
        """The one of this name."""
        given = tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))
        grid: Mapping[str, Sequence[int | float]] = given["grid"]
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        default: Parameters = given["default"]
        if default not in points:
            points.append(dict(default))
        return cls(name, given["title"], given["environment"], given["worker"], given["corpora"], points, default)

    @property
    def installed(self) -> bool:
        """Whether its environment is there."""
        return process.interpreter(self.environment).exists()

    def start(self, threads: int, seconds: float = 1800.0) -> Peer:
        """Its worker."""
        module, *arguments = self.worker
        command = [str(process.interpreter(self.environment)), "-m", f"benchmarks.peers.{module}", *arguments]
        return Peer(self.title, command, threads=threads, seconds=seconds)


@frozen
class Built:
    """An index of a peer, and what is known of it.

    Args:
        peer: whose it is.
        corpus: what it is of.
        about: what building it cost, the rankings that each point gives, or why there is no index.
    """

    peer: IndexPeer
    corpus: Prepared
    about: Mapping[str, Any]

    @classmethod
    def find(cls, peer: IndexPeer, corpus: Prepared) -> Built | None:
        """What lies there; None where nothing was built."""
        place = corpus.folder / f"{peer.name}.json"
        if not place.exists():
            return None
        return cls(peer, corpus, json.loads(place.read_text(encoding="utf-8")))

    @property
    def folder(self) -> Path:
        """Of the index."""
        return self.corpus.folder / self.peer.name

    @property
    def failure(self) -> str | None:
        """Why there is no index."""
        return self.about.get("failure")

    def points(self) -> list[tuple[Parameters, float]]:
        """The points of its grid, and the recall of each."""
        known = {_key(each["parameters"]): each["found"][:JUDGED] for each in self.about.get("points", [])}
        return [(point, self.corpus.recall(known[_key(point)])) for point in self.peer.points if _key(point) in known]

    def write(self) -> None:
        """Keep what is known."""
        place = self.corpus.folder / f"{self.peer.name}.json"
        unfinished = place.with_suffix(".part")
        unfinished.write_text(json.dumps(dict(self.about)), encoding="utf-8")
        unfinished.rename(place)


def main(words: Sequence[str]) -> int:
    """Build what is not there; the exit status. A peer that fails is recorded, and no end."""
    unknown = set(words) - {*NAMES, *corpora()}
    if unknown:
        print(f"error: {', '.join(sorted(unknown))}: neither of {', '.join(NAMES)} nor of {', '.join(corpora())}")
        return 1
    peers = [IndexPeer.read(name) for name in NAMES if name in words or not set(words) & set(NAMES)]
    wanted = [name for name in corpora() if name in words or not set(words) & set(corpora())]
    chosen = [(peer, corpus) for corpus in wanted for peer in peers if corpus in peer.corpora]
    missing = sorted({peer.environment for peer, _ in chosen if not peer.installed})
    if missing:
        print(f"error: not installed below {process.ENVIRONMENTS.name}: {', '.join(missing)}. Type `make peers-index`.")
        return 1
    for peer, name in chosen:
        corpus = Prepared(name).prepare()
        built = Built.find(peer, corpus) or build(peer, corpus)
        if built.failure is None and len(built.points()) < len(peer.points):
            sweep(built)
    return 0


def corpora() -> list[str]:
    """All that a peer has an index of, each once, in the order of the files."""
    return list(dict.fromkeys(corpus for name in NAMES for corpus in IndexPeer.read(name).corpora))


def build(peer: IndexPeer, corpus: Prepared) -> Built:
    """One index, in a process of its own with both cores; a row for it."""
    bench = Bench("index", ())
    seconds = 60 * float(os.environ.get("MINUTES") or MINUTES)
    folder, warm = corpus.folder / peer.name, corpus.folder / f"{peer.name}-warm"
    for each in (folder, warm):
        shutil.rmtree(each, ignore_errors=True)
    print(f"{peer.title}: {corpus.name}, {len(corpus.documents):,} documents", flush=True)
    began = time.monotonic()
    try:
        with peer.start(process.THREADS, seconds) as worker:
            answer = worker.ask("build", corpus=str(corpus.folder), folder=str(folder), warm=str(warm))
        about: dict[str, Any] = {"build": answer, "load": os.getloadavg()[0], "nice": os.nice(0)}
        timing = Timing.of([Seconds(answer["seconds"], answer["cpu_seconds"])])
        beside = f"{answer['growth'] / 1e9:.2f} GB above the inputs, {answer['bytes'] / 1e6:.0f} MB on disk"
        note = f"{beside}; at nice {about['nice']}"
        bench.row(
            f"build, {corpus.name}: {peer.title}", timing=timing, value=answer["growth"] / 1e9, unit="GB", note=note
        )
        print(f"  {answer['seconds']:.0f} s, {answer['cpu_seconds']:.0f} s of CPU time, {beside}", flush=True)
    except PeerFailure as failure:
        ended = time.monotonic() - began
        reason = f"stopped after {seconds / 60:.0f} minutes" if ended >= seconds else str(failure)[-500:]
        about = {"failure": reason}
        bench.row(f"build, {corpus.name}: {peer.title}", note=reason)
        print(f"  {reason}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(warm, ignore_errors=True)
    built = Built(peer, corpus, about)
    built.write()
    bench.append_results()
    return built


def sweep(built: Built) -> Built:
    """The rankings of the queries that recall is judged by, at each point of the grid."""
    points: list[dict[str, Any]] = []
    queries = min(JUDGED, len(built.corpus.queries))
    with built.peer.start(process.THREADS) as worker:
        worker.ask("open", corpus=str(built.corpus.folder), folder=str(built.folder), threads=process.THREADS)
        for point in built.peer.points:
            try:
                answer = worker.ask("find", parameters=point, k=K, queries=queries)
            except PeerFailure as failure:
                print(f"  {dict(point)}: {str(failure)[:200]}")
                points.append({"parameters": point, "found": [[]] * queries})
                continue
            points.append({"parameters": point, "found": answer["found"]})
            print(f"  {dict(point)}: recall {built.corpus.recall(answer['found']):.3f}", flush=True)
    swept = Built(built.peer, built.corpus, {**built.about, "points": points})
    swept.write()
    return swept


def _key(parameters: Parameters) -> str:
    return json.dumps(dict(parameters), sort_keys=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
