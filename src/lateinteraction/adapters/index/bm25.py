"""BM25 over the postings of many segments, as if they were one: the same scores, to the last bit.

Statistics are those of the live documents of all segments; whole numbers, so that no order of summation shows. The
score of a document is summed over the terms in their sorted order, wherever the document lies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from attrs import Attribute, field, frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.adapters.index.columns import Rows
from lateinteraction.adapters.index.postings import Matches, Postings
from lateinteraction.domain.errors import InvalidOption
from lateinteraction.domain.ranking import check_cutoff

K1 = 1.2
B = 0.6
"""Chosen among k1 0.7 to 1.5 and b 0.3 to 0.75 by the mean nDCG@10 on Cranfield, Vaswani, CoSQA, CACM, descriptions of
Debian's packages and XQuAD's German part: 0.564, against 0.554 with 0.9 and 0.4, which the literature tuned for long
news, and 0.562 with Lucene's 1.2 and 0.75.
"""

Mask = NDArray[np.bool_]


def _is_k1(_: object, __: Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise InvalidOption(f"k1 = {value!r}", "a finite number of at least 0", f"{K1} is the default.")


def _is_b(_: object, __: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidOption(f"b = {value!r}", "a number from 0 to 1", f"{B} is the default.")


@frozen
class Bm25Options:
    """The two constants of BM25.

    Args:
        k1: how slowly more occurrences of a term count less.
        b: how far long documents are held back.

    Raises:
        InvalidOption: a constant out of its range.
    """

    k1: float = field(default=K1, validator=_is_k1)
    b: float = field(default=B, validator=_is_b)


class LexicalSegment(NamedTuple):
    """The postings of a segment, and which of its rows are still documents."""

    postings: Postings
    live: Mask


class Found(NamedTuple):
    """Documents in falling order of score, equal scores in order of segment and row."""

    segments: Rows
    rows: Rows
    scores: NDArray[np.float32]


@final
class Bm25:
    """The live documents of a generation, ranked by the terms they share with a query.

    Σ_t qₜ · idfₜ · fₜ / (fₜ + k1 · (1 − b + b · |d| / average)) with idfₜ = ln(1 + (N − nₜ + ½) / (nₜ + ½)), where the
    query has the term qₜ times, the document fₜ times, and nₜ of N documents have it at all: Lucene's form (Kamphuis et
    al., ECIR 2020, "Lucene (accurate)").

    Args:
        segments: of one generation, in an order that stays.
        analyser: the one that made the postings.
        options: the constants.
    """

    def __init__(
        self, segments: Sequence[LexicalSegment], analyser: Analyser, options: Bm25Options | None = None
    ) -> None:
        self._segments = tuple(segments)
        self._whole = [bool(live.all()) for _, live in segments]
        self._analyser = analyser
        options = options or Bm25Options()
        self._documents = sum(int(np.count_nonzero(live)) for _, live in segments)
        terms = sum(int(postings.lengths.sum(where=live, dtype=np.int64)) for postings, live in segments)
        self._flat = options.k1 * (1 - options.b)
        self._per_term = options.k1 * options.b * self._documents / terms if terms else 0.0

    def search(self, text: str, k: int, eligible: Sequence[Mask] | None = None) -> Found:
        """The k best documents that share a term with the text, and all that tie with the last of them.

        Scores are summed in float64, and compared and returned in float32, as rankings hold them.

        Args:
            text: a query.
            k: how many.
            eligible: for each segment, bool (N,): the rows that may be found. They do not change the statistics.

        Raises:
            InvalidRanking: k < 1.
        """
        check_cutoff(k)
        asked = sorted(Counter(self._analyser.terms(text)).items())
        matches = [self._matches(number, [term for term, _ in asked]) for number in range(len(self._segments))]
        weights = [
            self._weight(times, sum(len(found[number].rows) for found in matches))
            for number, (_, times) in enumerate(asked)
        ]
        best: list[Found] = []
        for number, (segment, found) in enumerate(zip(self._segments, matches, strict=True)):
            scores = self._scores(segment.postings, weights, found)
            if eligible is not None:
                scores[~eligible[number]] = 0
            rows = np.flatnonzero(scores)
            if len(rows):
                best.append(_best(Found(np.full(len(rows), number), rows, scores[rows].astype(np.float32)), k))
        return _best(_joined(best), k)

    def _scores(self, postings: Postings, weights: Sequence[float], matches: Sequence[Matches]) -> NDArray[np.float64]:
        """The score of every row of a segment; 0 where it shares no term."""
        scores = np.zeros(len(postings), np.float64)
        for weight, (rows, counts) in zip(weights, matches, strict=True):
            if len(rows):
                held_back = self._flat + self._per_term * postings.lengths[rows]
                scores[rows] += weight * counts / (counts + held_back)
        return scores

    def _matches(self, number: int, terms: Sequence[str]) -> list[Matches]:
        """For each term, the live documents of the segment that have it."""
        postings, live = self._segments[number]
        found = postings.of(terms)
        return found if self._whole[number] else [_among(matches, live) for matches in found]

    def _weight(self, times: int, documents: int) -> float:
        """What a term counts that the query has so often, and so many documents."""
        return times * math.log1p((self._documents - documents + 0.5) / (documents + 0.5))


def _among(matches: Matches, live: Mask) -> Matches:
    chosen = live[matches.rows]
    return Matches(matches.rows[chosen], matches.counts[chosen])


def _joined(found: Sequence[Found]) -> Found:
    if not found:
        return Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Found(*map(np.concatenate, zip(*found, strict=True)))


def _best(found: Found, k: int) -> Found:
    scores = found.scores
    chosen = np.arange(len(scores))
    if k < len(scores):
        chosen = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    return Found(found.segments[chosen], found.rows[chosen], scores[chosen])
