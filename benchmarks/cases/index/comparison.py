"""Ours against the peers at equal recall: of each corpus one index of ours for each codec, one of each peer.

One query at a time, one thread: every point of a peer's grid is asked three queries, those near its frontier as many as
there are rounds, in turn with ours, three queries of everybody at a time. What a level of recall costs a peer is read
off its curve (`curves`); of ours the quickest configuration that reaches the level counts, which is named. A batch is
all queries at once on all cores, PLAID at the first point of its frontier that reaches the level, or the most exact.

CPU time is what a row holds beside the wall time; ratios are of wall times, taken within one run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from attrs import evolve, frozen

from benchmarks.cases.index.contestants import (
    BRUTE_FORCE,
    CONFIGURATIONS,
    EXACT,
    KEPT,
    RESIDUAL2,
    RESIDUAL4,
    Configuration,
    Contestant,
    build_ours,
    opened,
    own_worker,
)
from benchmarks.cases.index.curves import LEVELS, Point, cost_of, frontier, near_frontier, plot, said
from benchmarks.cases.index.prepared import JUDGED, Prepared
from benchmarks.cases.index.sizes import Sizes
from benchmarks.harness import Bench, Figure, Seconds, Timing
from benchmarks.peers.indexes import NAMES, Built, IndexPeer, Parameters
from benchmarks.peers.process import THREADS, Peer

PICTURES = Path(__file__).resolve().parents[3] / "docs" / "img"
MAIN, LATENCY = "synthetic-20000", "20,000 documents: p50 at"
CORPORA: Mapping[str, tuple[Configuration, ...]] = {
    MAIN: CONFIGURATIONS,
    "cranfield": CONFIGURATIONS,
    "vaswani": (RESIDUAL4, KEPT, RESIDUAL2),
    "debian-descriptions": (RESIDUAL4, KEPT),
    "synthetic-100000": (RESIDUAL4, KEPT),
}
PLAID, RUSTS = "plaid", ("fast-plaid", "xtr-warp")
PLAID_CORPORA = (MAIN, "cranfield", "vaswani")
TARGET_LEVELS = (0.95, 0.99)
PROBES = 3
TURN = 3
"""Queries in a row: the first of them finds the caches as the contestant before left them."""
SLACK = 1.3
"""Points that three queries see within this factor of the frontier are measured in full."""
BATCH, BATCHES = 40, 3


def plaid_figure(corpus: str, level: float) -> str:
    """The ratio to PLAID at this recall."""
    return f"{corpus}: p50 at {level:.2f} against PyLate PLAID"


def rust_figure(corpus: str, level: float) -> str:
    """The ratio to the better of the two others at this recall."""
    return f"{corpus}: p50 at {level:.2f} against the best of fast-plaid and xtr-warp-rs"


def default_figure(corpus: str) -> str:
    """The ratio to PLAID as its makers set it, whatever recall that has."""
    return f"{corpus}: p50 against PyLate PLAID as it comes"


def batch_figure(corpus: str) -> str:
    """The ratio of queries a second to PLAID's."""
    return f"{corpus}: batch QPS at 0.95 against PyLate PLAID"


def own_figure(corpus: str, configuration: Configuration, what: str) -> str:
    """A value of one of our indexes."""
    return f"{corpus}: {configuration.name}, {what}"


FIGURES = (
    *(Figure(plaid_figure(corpus, level), "×", ">=", 20.0) for corpus in PLAID_CORPORA for level in TARGET_LEVELS),
    *(Figure(default_figure(corpus), "×") for corpus in PLAID_CORPORA),
    *(Figure(rust_figure(corpus, level), "×", ">=", 3.0) for corpus in CORPORA for level in TARGET_LEVELS),
    *(Figure(batch_figure(corpus), "×", ">=", 20.0) for corpus in PLAID_CORPORA),
    *(Figure(f"{LATENCY} {level:.2f}, one thread", "ms", "<=", 10.0) for level in TARGET_LEVELS),
    *(
        Figure(own_figure(corpus, configuration, what), unit)
        for corpus, configurations in CORPORA.items()
        for configuration in configurations
        for what, unit in (("recall@10", ""), ("p50", "ms"))
    ),
)


@frozen(eq=False)
class Asked:
    """A contestant with what it is asked, and what is known of that.

    Args:
        contestant: who.
        parameters: of its searches.
        recall: what they give.
        seconds: of queries so far.
    """

    contestant: Contestant
    parameters: Mapping[str, object]
    recall: float
    seconds: tuple[Seconds, ...] = ()

    @property
    def point(self) -> Point:
        """On the curve."""
        return Point(self.recall, median(each.wall for each in self.seconds), words_of(self.parameters))

    def ask(self, *queries: int) -> Asked:
        """The same after other queries."""
        taken = [self.contestant.time(query, self.parameters) for query in queries]
        return evolve(self, seconds=(*self.seconds, *taken))


def measure(bench: Bench, sizes: Sizes, scratch: Path) -> None:
    """All corpora whose embeddings are there or quickly made."""
    for name, configurations in CORPORA.items():
        reason = left_out(name, sizes)
        if reason is None:
            chosen = f"synthetic-{sizes.documents}" if name == MAIN else name
            _measure_corpus(bench, sizes, scratch, (name, Prepared(chosen).prepare()), configurations)
        else:
            own = (f"{name}:", LATENCY) if name == MAIN else (f"{name}:",)
            for figure in FIGURES:
                if figure.name.startswith(own):
                    bench.skip(figure.name, reason)


def left_out(name: str, sizes: Sizes) -> str | None:
    """Why a corpus is not measured: others are chosen, the run is a trial, or nobody has prepared it."""
    chosen = (os.environ.get("CORPORA") or " ".join(CORPORA)).split()
    if name not in chosen:
        return "another corpus is chosen"
    if name == MAIN:
        return None
    if sizes.trial:
        return "a trial"
    if not (Prepared(name).folder / "best.npy").exists():
        return "not prepared: `make peers-index` does that"
    return None


def _measure_corpus(
    bench: Bench, sizes: Sizes, scratch: Path, named: tuple[str, Prepared], configurations: Sequence[Configuration]
) -> None:
    name, corpus = named
    builts = {peer: built for peer in NAMES if (built := usable(peer, corpus)) is not None}
    folders = {configuration: build_ours(corpus, configuration, scratch)[0] for configuration in configurations}
    with ExitStack() as stack:
        ours, peers = _open_all(stack, corpus, folders, builts, threads=1)
        brute = _open_brute_force(stack, corpus, scratch)
        own = {
            configuration: Asked(each, each.parameters, corpus.recall(each.find(min(JUDGED, len(corpus.queries)))[0]))
            for configuration, each in ours.items()
        }
        _check_exact(corpus, brute, own)
        curves, own, exact = _in_turn(sizes, own, peers, builts, Asked(brute, {}, 1.0))
    _record(bench, name, own, curves, exact)
    _report(bench, name, own, curves)
    if not sizes.trial:
        path = PICTURES / f"index-{name}.png" if sizes.recorded else corpus.folder / "curves.png"
        _plot(f"{name}, {len(corpus.documents):,} documents", path, own, curves, exact)
    if PLAID in builts and name in PLAID_CORPORA:
        _measure_batches(bench, (name, corpus), folders, builts, curves[PLAID], own)
    elif name in PLAID_CORPORA:
        bench.skip(batch_figure(name), _absence(PLAID, corpus))


def usable(peer: str, corpus: Prepared) -> Built | None:
    """A peer's index of a corpus that is there and can be asked."""
    known = IndexPeer.read(peer)
    built = Built.find(known, corpus) if known.installed else None
    return built if built is not None and built.failure is None and built.points() else None


def _open_all(
    stack: ExitStack,
    corpus: Prepared,
    folders: Mapping[Configuration, Path],
    builts: Mapping[str, Built],
    threads: int,
) -> tuple[dict[Configuration, Contestant], dict[str, Contestant]]:
    def entered(worker: Peer, folder: Path, parameters: Mapping[str, object]) -> Contestant:
        return opened(stack.enter_context(worker), corpus, folder, threads, parameters)

    ours = {
        configuration: entered(
            own_worker(configuration.name, "our_index_worker", *configuration.stored, threads=threads),
            folder,
            configuration.searched,
        )
        for configuration, folder in folders.items()
    }
    return ours, {peer: entered(built.peer.start(threads), built.folder, {}) for peer, built in builts.items()}


def _open_brute_force(stack: ExitStack, corpus: Prepared, scratch: Path) -> Contestant:
    worker = stack.enter_context(own_worker("NumPy", BRUTE_FORCE, threads=1))
    folder = scratch / f"{corpus.name}-numpy"
    worker.ask("build", corpus=str(corpus.folder), folder=str(folder))
    return opened(worker, corpus, folder, 1, {})


def _check_exact(corpus: Prepared, brute: Contestant, own: Mapping[Configuration, Asked]) -> None:
    """That what everybody is compared with is what NumPy finds too, and that exact vectors find it.

    Raises:
        AssertionError: they do not, and so there is nothing to compare.
    """
    found, _ = brute.find(PROBES)
    assert corpus.recall(found) > 0.99, "exact search in NumPy finds other documents"
    if EXACT in own:
        assert own[EXACT].recall > 0.99, f"vectors in 16 bits find {own[EXACT].recall} of the best"


def _in_turn(
    sizes: Sizes,
    own: Mapping[Configuration, Asked],
    peers: Mapping[str, Contestant],
    builts: Mapping[str, Built],
    brute: Asked,
) -> tuple[dict[str, list[Asked]], dict[Configuration, Asked], Asked]:
    """Every point of the grids a few times, those near the frontier often, ours and exact search with these."""
    curves = {
        peer: [Asked(contestant, parameters, recall) for parameters, recall in builts[peer].points()]
        for peer, contestant in peers.items()
    }
    for query in range(PROBES):
        curves = {peer: [asked.ask(query) for asked in grid] for peer, grid in curves.items()}
    near = {peer: _near(grid, builts[peer].peer.default) for peer, grid in curves.items()}
    own, brute = {name: asked.ask(0) for name, asked in own.items()}, brute.ask(0)
    own, brute = {name: evolve(asked, seconds=()) for name, asked in own.items()}, evolve(brute, seconds=())
    for first in range(PROBES, PROBES + sizes.repeats, TURN):
        turn = range(first, min(first + TURN, PROBES + sizes.repeats))
        own = {name: asked.ask(*turn) for name, asked in own.items()}
        brute = brute.ask(*turn)
        for peer, grid in curves.items():
            curves[peer] = [asked.ask(*turn) if place in near[peer] else asked for place, asked in enumerate(grid)]
    return curves, own, brute


def _near(grid: Sequence[Asked], default: Parameters) -> set[int]:
    kept = near_frontier([asked.point for asked in grid], SLACK)
    return {place for place, asked in enumerate(grid) if asked.point in kept or asked.parameters == default}


def _record(
    bench: Bench, name: str, own: Mapping[Configuration, Asked], curves: Mapping[str, Sequence[Asked]], exact: Asked
) -> None:
    """A row for each point of each curve."""
    titles = {peer: IndexPeer.read(peer).title for peer in curves}
    rows = [(str(configuration), asked) for configuration, asked in own.items()]
    rows += [(f"{titles[peer]}: {asked.point.parameters}", asked) for peer, grid in curves.items() for asked in grid]
    for title, asked in [*rows, ("exact search in NumPy", exact)]:
        bench.row(f"{name}: {title}", timing=Timing.of(asked.seconds), value=asked.recall, unit="recall@10")
    for configuration, asked in own.items():
        print(f"{name}: {configuration}: recall {asked.recall:.3f}, {asked.point.seconds * 1e3:.2f} ms")
        bench.report(own_figure(name, configuration, "recall@10"), asked.recall, str(configuration))
        beside = f"NumPy, exact: {exact.point.seconds * 1e3:.1f} ms"
        bench.report(own_figure(name, configuration, "p50"), asked.point.seconds * 1e3, beside)


def _report(bench: Bench, name: str, own: Mapping[Configuration, Asked], curves: Mapping[str, Sequence[Asked]]) -> None:
    """The ratios at each level, or that they cannot be had."""
    points = {peer: [asked.point for asked in grid] for peer, grid in curves.items()}
    if name in PLAID_CORPORA:
        _compare_with_default(bench, name, own, curves.get(PLAID, ()))
    for level in LEVELS:
        ours = _quickest(own, level)
        words = "; ".join(f"{peer} {said(grid, level)[1]}" for peer, grid in points.items())
        print(f"{name}, recall {level:.2f}: {words}")
        if level in TARGET_LEVELS:
            wanted = {plaid_figure(name, level): [PLAID], rust_figure(name, level): list(RUSTS)}
            for figure, rivals in wanted.items():
                if any(each.name == figure for each in FIGURES):
                    _compare(bench, figure, ours, {peer: points[peer] for peer in rivals if peer in points}, level)
            if name == MAIN:
                own_cost = math.inf if ours is None else 1e3 * ours[1].point.seconds
                beside = "no configuration reaches it" if ours is None else str(ours[0])
                bench.report(f"{LATENCY} {level:.2f}, one thread", own_cost, beside)


def _compare(
    bench: Bench,
    figure: str,
    ours: tuple[Configuration, Asked] | None,
    rivals: Mapping[str, Sequence[Point]],
    level: float,
) -> None:
    """One ratio: to the quickest of the rivals that reach the level, or, where none does, to the most exact one."""
    if not rivals:
        bench.skip(figure, "no index of theirs: `make peers-index` builds them")
        return
    reaching = [peer for peer, points in rivals.items() if cost_of(points, level) is not None]
    if reaching:
        peer = min(reaching, key=lambda each: said(rivals[each], level)[0])
    else:
        peer = max(rivals, key=lambda each: frontier(rivals[each])[-1].recall)
    cost, words = said(rivals[peer], level)
    if ours is None:
        bench.report(figure, 0.0, f"no configuration of ours reaches it; {peer} {words}")
        return
    configuration, asked = ours
    own = asked.point.seconds
    bench.report(figure, cost / own, f"{configuration.name}, {asked.recall:.3f}: {own * 1e3:.2f} ms; {peer} {words}")


def _compare_with_default(bench: Bench, name: str, own: Mapping[Configuration, Asked], plaid: Sequence[Asked]) -> None:
    """Ours where it finds as much as PLAID does with the settings that it comes with."""
    default = IndexPeer.read(PLAID).default
    theirs = next((asked.point for asked in plaid if asked.parameters == default), None)
    ours = None if theirs is None else _quickest(own, theirs.recall)
    if theirs is None or ours is None:
        bench.skip(default_figure(name), "no index of theirs, or none of ours finds as much")
        return
    mine = ours[1].point.seconds
    beside = f"{ours[0].name}: {mine * 1e3:.2f} ms; theirs {theirs.recall:.3f} in {theirs.seconds * 1e3:.1f} ms"
    bench.report(default_figure(name), theirs.seconds / mine, beside)


def _quickest(own: Mapping[Configuration, Asked], level: float) -> tuple[Configuration, Asked] | None:
    reaching = [(configuration, asked) for configuration, asked in own.items() if asked.recall >= level]
    return min(reaching, key=lambda each: each[1].point.seconds, default=None)


def _measure_batches(
    bench: Bench,
    named: tuple[str, Prepared],
    folders: Mapping[Configuration, Path],
    builts: Mapping[str, Built],
    plaid: Sequence[Asked],
    own: Mapping[Configuration, Asked],
) -> None:
    """Queries a second on all cores, ours and PLAID in turn."""
    name, corpus = named
    ours = _quickest(own, 0.95)
    if ours is None:
        bench.report(batch_figure(name), 0.0, "no configuration of ours reaches 0.95")
        return
    configuration = ours[0]
    best = frontier([asked.point for asked in plaid])
    wanted = next((point for point in best if point.recall >= 0.95), best[-1])
    parameters = next(asked.parameters for asked in plaid if asked.point == wanted)
    queries = min(BATCH, len(corpus.queries))
    with ExitStack() as stack:
        both, peers = _open_all(
            stack, corpus, {configuration: folders[configuration]}, {PLAID: builts[PLAID]}, threads=THREADS
        )
        calls: dict[str, Callable[[], Seconds]] = {
            f"{name}: {queries} queries at once, {configuration.name}": lambda: both[configuration].find(queries)[1],
            f"{name}: {queries} queries at once, PyLate PLAID": lambda: peers[PLAID].find(queries, parameters)[1],
        }
        for call in calls.values():
            call()
        mine, theirs = (timing.p50 for timing in bench.in_turn(calls, BATCHES).values())
    rates = f"{queries / mine:.0f} and {queries / theirs:.1f} queries/s"
    beside = f"{rates}, {configuration.name}; theirs at {wanted.recall:.3f}"
    bench.report(batch_figure(name), theirs / mine, beside)


def _plot(
    title: str, path: Path, own: Mapping[Configuration, Asked], curves: Mapping[str, Sequence[Asked]], exact: Asked
) -> None:
    drawn = {IndexPeer.read(peer).title: [asked.point for asked in grid] for peer, grid in curves.items()}
    drawn |= {configuration.name: [asked.point] for configuration, asked in own.items()}
    drawn["NumPy, exact"] = [exact.point]
    print(f"plotted: {path}" if plot(drawn, title, path) else "not plotted: matplotlib is not installed")


def _absence(peer: str, corpus: Prepared) -> str:
    built = Built.find(IndexPeer.read(peer), corpus)
    return "no index of theirs: `make peers-index` builds it" if built is None else f"theirs: {built.failure}"


def words_of(parameters: Parameters | Mapping[str, object]) -> str:
    """Parameters in words."""
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "its own choice"
