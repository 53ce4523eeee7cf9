"""Recall–latency curves: which points of a grid are worth having, what a recall costs, and the picture of it.

A frontier holds the points that no other beats in both. What a recall costs is read off it: between two neighbours the
logarithm of the time is linear in recall; below the first the cheapest point costs what it costs; beyond the last it is
not reached.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

LEVELS = (0.90, 0.95, 0.99)
LEFT = 0.6
"""Recall at the left end of a picture at least."""


@frozen
class Point:
    """What some parameters give.

    Args:
        recall: share of the exactly best ten that are found.
        seconds: that a query takes.
        parameters: in words.
    """

    recall: float
    seconds: float
    parameters: str = ""


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, by rising recall."""
    kept = [point for point in points if not any(_beats(other, point) for other in points)]
    return sorted(kept, key=lambda point: (point.recall, point.seconds))


def near_frontier(points: Sequence[Point], factor: float) -> list[Point]:
    """Those that would not be beaten if they took so many times less: what is worth a second look."""
    return [
        point
        for point in points
        if not any(other.recall >= point.recall and other.seconds * factor < point.seconds for other in points)
    ]


def _beats(one: Point, other: Point) -> bool:
    better = one.recall > other.recall or one.seconds < other.seconds
    return better and one.recall >= other.recall and one.seconds <= other.seconds


def cost_of(points: Sequence[Point], recall: float) -> float | None:
    """Seconds that this recall takes on the frontier; None where it is not reached."""
    best = frontier(points)
    beyond = next((place for place, point in enumerate(best) if point.recall >= recall), None)
    if beyond is None:
        return None
    after = best[beyond]
    if beyond == 0 or after.recall == recall:
        return after.seconds
    before = best[beyond - 1]
    share = (recall - before.recall) / (after.recall - before.recall)
    return math.exp((1 - share) * math.log(before.seconds) + share * math.log(after.seconds))


def said(points: Sequence[Point], recall: float) -> tuple[float, str]:
    """What this recall takes at least, and in words: where it is not reached, the most exact point stands for it."""
    cost = cost_of(points, recall)
    if cost is not None:
        return cost, f"{cost * 1e3:.1f} ms"
    most = frontier(points)[-1]
    return most.seconds, f"not reached: {most.recall:.3f} at most, in {most.seconds * 1e3:.1f} ms"


def plot(curves: Mapping[str, Sequence[Point]], title: str, path: Path) -> bool:
    """The picture of some curves; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        best = frontier(points)
        style = "o-" if len(best) > 1 else "*"
        (line,) = axes.plot(
            [point.recall for point in best], [1e3 * point.seconds for point in best], style, label=name, markersize=7
        )
        rest = [(point.recall, 1e3 * point.seconds) for point in points if point not in best]
        axes.plot(*zip(*rest, strict=True) if rest else ([], []), ".", color=line.get_color(), alpha=0.35)
    for level in LEVELS:
        axes.axvline(level, color="0.8", linewidth=0.8, zorder=0)
    axes.set(title=title, xlabel="recall@10 against exact search", ylabel="one query, one thread: median ms")
    axes.set_yscale("log")
    axes.set_xlim(left=max(LEFT, axes.get_xlim()[0]), right=1.005)
    axes.grid(axis="y", which="both", alpha=0.2)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True
