"""A checkpoint goes from its maker to us and from us to every reader; who embeds the same texts differently is seen.

    theirs → ours    a peer makes and saves a model; ours reads it
    ours → theirs    ours saves what it read, or made; each peer reads it

Both times the embeddings of the two are compared row by row, in order; the rows of exactly pooled documents, which each
library orders in its own way, as sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from attrs import asdict, evolve, frozen

import lateinteraction as li
from benchmarks.peers.cases import TEXTS, Case, Deviation, Origin, Role
from benchmarks.peers.process import Embeddings, Peer
from lateinteraction.domain.errors import TruncatedTextWarning

Direction = Literal["theirs → ours", "ours → theirs"]
LIMITS: Mapping[Direction, float] = MappingProxyType({"theirs → ours": 1e-5, "ours → theirs": 1e-6})
ROLES: Mapping[Role, str] = MappingProxyType({"queries": "query", "documents": "document"})
SEED = 3


@frozen
class Difference:
    """How far two lists of embeddings are apart.

    Args:
        largest: absolute, over the texts with equally many rows.
        apart: positions of the texts further apart than the limit, or with another number of rows.
        rest: largest over the other texts.
        texts: how many there are.
    """

    largest: float
    apart: tuple[int, ...]
    rest: float
    texts: int


@frozen
class Outcome:
    """One comparison: of what, in which direction, with whom, and how it came out; an error instead of a difference."""

    case: str
    origin: Origin
    direction: Direction
    peer: str
    role: Role
    difference: Difference | None = None
    error: str | None = None
    deviation: Deviation | None = None

    @property
    def good(self) -> bool:
        """Whether every text is within the limit, or differs on purpose."""
        return self.difference is not None and not self.excess

    @property
    def excess(self) -> tuple[int, ...]:
        """Positions of the texts that should not be apart."""
        expected = self.deviation.texts if self.deviation else ()
        return tuple(text for text in self.difference.apart if text not in expected) if self.difference else ()


def compare(ours: Embeddings, theirs: Embeddings, limit: float, *, ordered: bool = True) -> Difference:
    """The difference of two lists of embeddings; one of another length or width is as far apart as can be.

    Args:
        ours, theirs: the embeddings of the same texts.
        limit: how far apart a text may be.
        ordered: whether row is compared with row, or each row with the nearest of the other text.
    """
    texts = max(len(ours.offsets), len(theirs.offsets)) - 1
    if len(ours.offsets) != len(theirs.offsets) or ours.tokens.shape[1] != theirs.tokens.shape[1]:
        return Difference(float("inf"), tuple(range(texts)), 0.0, texts)
    distance = _distance if ordered else _distance_of_sets
    each = [distance(ours.of(text), theirs.of(text)) for text in range(texts)]
    apart = tuple(text for text, far in enumerate(each) if not far <= limit)  # NaN is apart
    rest = max((far for text, far in enumerate(each) if text not in apart), default=0.0)
    return Difference(max(each, default=0.0), apart, rest, texts)


def _distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max(initial=0.0))


def _distance_of_sets(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    if one.shape != other.shape:
        return float("inf")
    pairs = np.abs(one[:, None] - other[None]).max(axis=2, initial=0.0)
    return float(max(pairs.min(axis=axis, initial=np.inf).max(initial=0.0) for axis in (0, 1)))


@frozen
class Exchange:
    """Runs cases.

    Args:
        peers: running workers by name.
        sources: plain encoders by family.
        folder: where checkpoints go.
    """

    peers: Mapping[str, Peer]
    sources: Mapping[str, Path]
    folder: Path

    def run(self, case: Case) -> Iterator[Outcome]:
        """Every comparison of one case, in both directions."""
        for origin in case.origins:
            place = self.folder / f"{case.name.replace('/', ' ')}, {origin}"
            try:
                yield from self._round(case, origin, place)
            except Exception as error:  # whatever stops one case is its outcome; the others go on
                yield Outcome(case.name, origin, "theirs → ours", origin, "documents", error=_sentence(error))

    def _round(self, case: Case, origin: Origin, place: Path) -> Iterator[Outcome]:
        model = self._made_by_us(case) if origin == "ours" else self._made_by(case, origin, place)
        ours: dict[Role, Embeddings] = {role: encode(model, role) for role in ROLES}
        if origin != "ours":
            yield from self._compare(case, origin, ours, origin, "theirs → ours", place)
        written = place.with_name(f"{place.name}, written by us")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # such as of pooling, which the peers are told by a parameter
            model.save(written)
        for reader in case.readers:
            yield from self._compare(case, origin, ours, reader, "ours → theirs", written)

    def _made_by(self, case: Case, origin: str, place: Path) -> li.Model:
        request = {"source": str(self.sources[case.source]), "folder": str(place), "recipe": case.settings}
        request |= {"layers": [asdict(layer) for layer in case.layers], "seed": SEED}
        told_later = origin == "pylate" or case.pooling is None
        self.peers[origin].ask("save", **request, **({} if told_later else {"pooling": _in_their_words(case)}))
        return load(place, {"pooling": case.pooling} if told_later else {})

    def _made_by_us(self, case: Case) -> li.Model:
        recipe = {**case.settings, "dimension": case.dimension}
        width = case.layers[0].width if case.layers else None
        return load(self.sources[case.source], recipe, width)

    def _compare(
        self, case: Case, origin: Origin, ours: Mapping[Role, Embeddings], peer: str, direction: Direction, place: Path
    ) -> Iterator[Outcome]:
        for role, name in ROLES.items():
            outcome = Outcome(case.name, origin, direction, peer, role, deviation=case.deviation(peer, role))
            request: dict[str, object] = {"folder": str(place), "role": name, "prompt": case.prompt}
            if case.pooling is not None and peer == "pylate":
                request["pooling"] = case.pooling.factor
            ordered = case.pooling is None or case.pooling.flavour == "pylate"
            try:
                theirs = self.peers[peer].encode(TEXTS[role], **request)
            except Exception as error:  # as above
                yield evolve(outcome, error=_sentence(error))
            else:
                yield evolve(outcome, difference=compare(ours[role], theirs, LIMITS[direction], ordered=ordered))


def load(folder: Path, recipe: Mapping[str, object], width: int | None = None) -> li.Model:
    """A model of ours on the CPU, in float32; `width`: with a random layer to so many dimensions."""
    projection = None if width is None else li.RandomProjection(width, seed=SEED)
    options = li.CheckpointOptions(dtype="float32", projection=projection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as of words that a tokenizer does not know
        return li.load_model(folder, device="cpu", recipe=recipe, checkpoint=options)


def encode(model: li.Model, role: Role) -> Embeddings:
    """What ours makes of the texts; that some are cut is part of the exercise."""
    call = model.encode_queries if role == "queries" else model.encode_documents
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        made = call(TEXTS[role], output="numpy")
    return Embeddings(made.tokens, made.offsets)


def _in_their_words(case: Case) -> dict[str, object] | None:
    if case.pooling is None:
        return None
    pooling = case.pooling
    return {
        "pool_factor": pooling.factor,
        "num_protected_tokens": pooling.protected,
        "normalize_embeddings": pooling.flavour == "exact",
    }


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


TITLES: Mapping[str, str] = MappingProxyType({"pylate": "PyLate", "sentence-transformers": "ST", "ours": "ours"})
COLUMNS: Mapping[str, tuple[Direction, str | None]] = MappingProxyType(
    {
        "theirs → ours": ("theirs → ours", None),  # from whoever made it
        "ours → PyLate": ("ours → theirs", "pylate"),
        "ours → ST": ("ours → theirs", "sentence-transformers"),
    }
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Makers in rows; what ours made of theirs, and each reader of ours, in columns."""
    lines = [
        ["", "", *(each for title in COLUMNS for each in (title, ""))],
        ["case", "made by", *(role for _ in COLUMNS for role in ROLES)],
    ]
    for case, origin in dict.fromkeys((each.case, each.origin) for each in outcomes):
        own = {
            (each.direction, None if each.direction == "theirs → ours" else each.peer, each.role): _cell(each)
            for each in outcomes
            if (each.case, each.origin) == (case, origin)
        }
        lines.append(
            [case, TITLES[origin], *(own.get((*each, role), "") for each in COLUMNS.values() for role in ROLES)]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(outcome: Outcome) -> str:
    difference = outcome.difference
    if difference is None:
        return "error !"
    if not difference.apart:
        return f"{difference.largest:.1e}"
    if outcome.excess:
        return f"{difference.largest:.1e} !"
    return f"{difference.rest:.1e}, {len(difference.apart)}/{difference.texts} *"


def notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What the signs of the table stand for: `*` a difference on purpose, `!` an excess or an error."""
    reasons = {
        each.deviation: None
        for each in outcomes
        if each.deviation is not None and each.difference is not None and each.difference.apart
    }
    for deviation in reasons:
        cases = dict.fromkeys(each.case for each in outcomes if each.deviation is deviation)
        yield f"* {'; '.join(cases)}; {deviation.role}: {deviation.reason}"
    failures: dict[str, list[str]] = {}
    for each in outcomes:
        if not each.good:
            reader = "ours" if each.direction == "theirs → ours" else TITLES[each.peer]
            place = f"{each.case} by {TITLES[each.origin]} → {reader}, {each.role}"
            failures.setdefault(each.error or f"texts {each.excess} are apart", []).append(place)
    for reason, places in failures.items():
        yield f"! {'; '.join(places)}: {reason}"
