"""Score, Hit and Ranking: results, and the pure operations on them (merge, fuse, truncate)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NewType

import numpy as np
from attrs import cmp_using, field, frozen
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.errors import InvalidOption, InvalidRanking, shown
from lateinteraction.domain.text import DocumentId

Score = NewType("Score", float)


def check_cutoff(k: int) -> None:
    """Raise `InvalidRanking` unless k is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InvalidRanking(f"k = {k!r}", "a whole number of at least 1", "Ask for one hit or more.")


@frozen
class Hit:
    """One document of a ranking, with its score."""

    document: DocumentId
    score: Score


def _float32(scores: ArrayLike) -> NDArray[np.float32]:
    """A read-only copy. What float32 cannot hold becomes ±∞ only if it was; everything else out of range is refused."""
    given = np.asarray(scores)
    with np.errstate(over="ignore"):
        copied = given.astype(np.float32)
    if not np.array_equal(np.isinf(copied), np.isinf(given)):
        raise InvalidRanking("a score beyond the range of float32", "scores within ±3.4e38", "Scale the embeddings.")
    copied.flags.writeable = False
    return copied


@frozen
class Ranking:
    """Documents in falling order of score; equal scores in rising order of document id.

    Args:
        documents: distinct ids, best first.
        scores: float32 (k,); no NaN. −∞ (an empty document) is allowed and comes last.

    Raises:
        InvalidRanking: counts differ, an id occurs twice, a score is NaN or +∞, or the order is wrong.
    """

    documents: tuple[DocumentId, ...] = field(converter=tuple)
    scores: NDArray[np.float32] = field(converter=_float32, eq=cmp_using(eq=np.array_equal), hash=False)

    def __attrs_post_init__(self) -> None:
        remedy = "Build rankings with `Ranking.from_scores`."
        if self.scores.shape != (len(self.documents),):
            raise InvalidRanking(
                f"{len(self.documents)} documents and scores of shape {self.scores.shape}", "a score for each", remedy
            )
        _check_hits(self.documents, self.scores)
        rises = self.scores[1:] > self.scores[:-1]
        ties = self.scores[1:] == self.scores[:-1]
        if bool(np.any(rises)) or any(self.documents[i] > self.documents[i + 1] for i in np.flatnonzero(ties)):
            raise InvalidRanking("hits out of order", "falling scores, equal scores by rising id", remedy)

    @classmethod
    def from_scores(cls, documents: Sequence[DocumentId], scores: ArrayLike, k: int | None = None) -> Ranking:
        """The k best of scored documents given in any order (all of them without k)."""
        values = _float32(scores)
        if values.shape != (len(documents),):
            raise InvalidRanking(
                f"{len(documents)} documents and scores of shape {values.shape}",
                "a score for each",
                "Check the scorer.",
            )
        if k is not None:
            check_cutoff(k)
        _check_hits(documents, values)  # before k can cut off what is wrong
        rows = np.arange(len(values))
        if k is not None and k < len(values):
            # Everything that ties with the k-th best stays in play until ids decide.
            rows = np.flatnonzero(~(values < np.partition(values, len(values) - k)[len(values) - k]))
        ordered = sorted(map(int, rows), key=lambda row: (-values[row], documents[row]))[:k]
        return cls(tuple(documents[row] for row in ordered), values[ordered])

    def __reduce__(self) -> tuple[type[Ranking], tuple[tuple[DocumentId, ...], NDArray[np.float32]]]:
        """Made anew when copied or unpickled, since arrays come back writeable."""
        return Ranking, (self.documents, self.scores)

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[Hit]:
        for document, score in zip(self.documents, map(float, self.scores), strict=True):
            yield Hit(document, Score(score))

    def truncate(self, k: int) -> Ranking:
        """The k best hits."""
        check_cutoff(k)
        return Ranking(self.documents[:k], self.scores[:k])


def _check_hits(documents: Sequence[DocumentId], scores: NDArray[np.float32]) -> None:
    if not all(isinstance(document, str) and document for document in documents):
        raise InvalidRanking("an id that is no str, or empty", "document ids", "Rank documents by their ids.")
    if len(set(documents)) != len(documents):
        raise InvalidRanking("a document that is ranked twice", "distinct documents", "Merge disjoint parts only.")
    if bool(np.any(np.isnan(scores))) or bool(np.any(scores == np.inf)):
        raise InvalidRanking("a score of NaN or +∞", "finite scores or −∞", "Check the embeddings for NaN.")


def merge(rankings: Sequence[Ranking], k: int) -> Ranking:
    """The k best of rankings over disjoint parts of a corpus, scored on one scale (shards, segments)."""
    documents = [document for ranking in rankings for document in ranking.documents]
    scores = np.concatenate([ranking.scores for ranking in rankings] or [np.empty(0, np.float32)])
    return Ranking.from_scores(documents, scores, k)


def _weights(rankings: Sequence[Ranking], weights: Sequence[float] | None) -> Sequence[float]:
    given = [1.0] * len(rankings) if weights is None else weights
    if len(given) != len(rankings) or not np.all(np.isfinite(given)) or min(given, default=0.0) < 0:
        raise InvalidRanking(
            f"weights {given!r} for {len(rankings)} rankings", "a finite weight ≥ 0 for each ranking", "Give one each."
        )
    return given


def fuse_reciprocal_rank(
    rankings: Sequence[Ranking], k: int, *, weights: Sequence[float] | None = None, constant: float = 60.0
) -> Ranking:
    """Σᵢ wᵢ / (constant + rankᵢ(d)), ranks from 1; a ranking without d, or with −∞ for it, adds nothing.

    Cormack, Clarke and Büttcher, SIGIR 2009, which is also the source of the constant 60. A document that no ranking
    gave a finite score (an empty one) stays at −∞, behind all others.
    """
    if not constant > 0:
        raise InvalidRanking(f"constant {constant!r}", "a number above 0", "60 is the published value.")
    fused: dict[DocumentId, float] = {}
    for ranking, weight in zip(rankings, _weights(rankings, weights), strict=True):
        for rank, hit in enumerate(ranking, start=1):
            gained = weight / (constant + rank) if np.isfinite(hit.score) else -np.inf
            fused[hit.document] = _gained(fused.get(hit.document, -np.inf), gained)
    return Ranking.from_scores(list(fused), list(fused.values()), k)


def fuse_weighted(
    rankings: Sequence[Ranking],
    k: int,
    *,
    weights: Sequence[float] | None = None,
    normalise: Literal["minmax", "none"] = "minmax",
) -> Ranking:
    """Σᵢ wᵢ · nᵢ(scoreᵢ(d)); a ranking without d, or with −∞ for it, adds nothing.

    `minmax` maps the finite scores of each ranking to [0, 1]; where they are all equal, to 1. A document that no
    ranking gave a finite score (an empty one) stays at −∞, behind all others.
    """
    if normalise not in ("minmax", "none"):
        raise InvalidRanking(f"normalise = {normalise!r}", "'minmax' or 'none'", "Choose one of the two.")
    fused: dict[DocumentId, float] = {}
    for ranking, weight in zip(rankings, _weights(rankings, weights), strict=True):
        values = ranking.scores.astype(np.float64)
        finite = np.isfinite(values)
        if normalise == "minmax" and finite.any():
            low, high = values[finite].min(), values[finite].max()
            values = (values - low) / (high - low) if high > low else np.ones_like(values)
        for document, value in zip(ranking.documents, map(float, values), strict=True):
            gained = weight * value if np.isfinite(value) else -np.inf
            fused[document] = _gained(fused.get(document, -np.inf), gained)
    return Ranking.from_scores(list(fused), list(fused.values()), k)


def _gained(before: float, gained: float) -> float:
    """The sum of what is finite; −∞ where nothing is."""
    return gained + before if np.isfinite(gained) and np.isfinite(before) else max(gained, before)


@frozen
class Fusion:
    """How a ranking by embeddings and one by words become one.

    Args:
        by: "ranks": sums of reciprocal ranks, which need no common scale; "scores": weighted sums of scores, those of
            each ranking mapped to [0, 1].
        embeddings: weight of the ranking by embeddings.
        words: weight of the ranking by words.
        depth: how many hits of each are fused, and at least as many as are asked for.

    Raises:
        InvalidOption: another way, a weight below 0 or not finite, both 0, or no depth.
    """

    by: Literal["ranks", "scores"] = "ranks"
    embeddings: float = 1.0
    words: float = 1.0
    depth: int = 100

    def __attrs_post_init__(self) -> None:
        if self.by not in ("ranks", "scores"):
            raise InvalidOption(f"by = {shown(self.by)}", "'ranks' or 'scores'", "Choose one of the two.")
        weights = (self.embeddings, self.words)
        if not all(np.isfinite(weights)) or min(weights) < 0 or not any(weights):
            raise InvalidOption(f"weights {weights}", "finite ones of at least 0, and one above", "1 and 1 are usual.")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise InvalidOption(f"depth = {shown(self.depth)}", "a whole number of at least 1", "100 is usual.")

    def fuse(self, embeddings: Ranking, words: Ranking, k: int) -> Ranking:
        """The k best of both."""
        fuse = fuse_reciprocal_rank if self.by == "ranks" else fuse_weighted
        return fuse([embeddings, words], k, weights=[self.embeddings, self.words])
