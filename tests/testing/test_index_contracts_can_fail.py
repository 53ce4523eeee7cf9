"""Every check of the index suites fails on an index with the fault that it is there to find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.filters import Comparison, Filter
from lateinteraction.domain.ports import AddReport
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing import ListIndex
from lateinteraction.testing.contracts import ExactIndexContract, checks_of


class Sound:
    """A `ListIndex` behind a wall, in which the faults below are holes."""

    def __init__(self) -> None:
        self.inner = ListIndex()

    def __len__(self) -> int:
        return len(self.inner)

    def add(self, documents: Sequence[Document], embeddings: Any, *, on_duplicate: Any = "error") -> AddReport:
        return self.inner.add(documents, embeddings, on_duplicate=on_duplicate)

    def remove(self, which: Any) -> int:
        return self.inner.remove(which)

    def search(
        self, queries: Any, k: int, *, where: Filter | None = None, candidates: Sequence[DocumentId] | None = None
    ) -> list[Ranking]:
        return self.inner.search(queries, k, where=where, candidates=candidates)

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        return self.inner.get(ids)

    @property
    def ids(self) -> set[DocumentId]:
        return set(self.inner._entries)

    def cut(self, embeddings: Any) -> Any:
        return TokenEmbeddings(embeddings.tokens[:, : self.inner._width], embeddings.offsets)


class FindsOnlyEarlierCalls(Sound):
    late: tuple[Any, ...] = ()

    def add(self, documents, embeddings, *, on_duplicate="error"):
        if self.late:
            super().add(*self.late)
        self.late = documents, embeddings
        return AddReport(added=[document.id for document in documents])


class ReportsInOrderOfId(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        return evolve(report, added=sorted(report.added))


class ForgetsMetadata(Sound):
    def get(self, ids):
        return [Document(document.id, document.text) for document in super().get(ids)]


class RefusesToAddNothing(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        assert documents
        return super().add(documents, embeddings, on_duplicate=on_duplicate)


class LastOfTwoWins(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        rows = {document.id: row for row, document in enumerate(documents)}
        tokens = [embeddings[row] for row in rows.values()] or [embeddings.tokens]
        last = TokenEmbeddings(np.concatenate(tokens), offsets_of([len(own) for own in tokens] if rows else []))
        return super().add([documents[row] for row in rows.values()], last, on_duplicate=on_duplicate)


class ReplacesUnasked(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        return super().add(documents, embeddings, on_duplicate="replace" if on_duplicate == "error" else on_duplicate)


class SkipReplaces(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        if on_duplicate != "skip":
            return super().add(documents, embeddings, on_duplicate=on_duplicate)
        report = super().add(documents, embeddings, on_duplicate="replace")
        return evolve(report, skipped=report.replaced, replaced=())


class SkipDropsTheCall(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        if on_duplicate == "skip" and any(document.id in self.ids for document in documents):
            return AddReport(skipped=[document.id for document in documents])
        return super().add(documents, embeddings, on_duplicate=on_duplicate)


class ReplaceKeepsTheOld(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        if on_duplicate != "replace":
            return super().add(documents, embeddings, on_duplicate=on_duplicate)
        report = super().add(documents, embeddings, on_duplicate="skip")
        return evolve(report, skipped=(), replaced=report.skipped)


class ReportsAllAsReplaced(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        everything = [document.id for document in documents]
        return AddReport(replaced=everything, empty=report.empty) if on_duplicate == "replace" else report


class CutsToItsWidth(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        return super().add(documents, self.cut(embeddings), on_duplicate=on_duplicate)


class MendsValues(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        finite = TokenEmbeddings(np.nan_to_num(embeddings.tokens, posinf=0, neginf=0), embeddings.offsets)
        return super().add(documents, finite, on_duplicate=on_duplicate)


class TakesAsManyAsFit(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        fitting = min(len(documents), len(embeddings))
        return super().add(documents[:fitting], embeddings.span(0, fitting), on_duplicate=on_duplicate)


class KeepsWhatCameBeforeTheFault(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        reports = [
            self.inner.add([document], embeddings.span(row, row + 1), on_duplicate=on_duplicate)
            for row, document in enumerate(documents)
        ]
        self.inner.add([], embeddings.span(0, len(embeddings) - len(documents)))
        return AddReport(*(sum((getattr(report, name) for report in reports), ()) for name in _REPORTED))


class DoesNotRemove(Sound):
    def remove(self, which):
        return len(which) if isinstance(which, list) else super().remove(which)


class FilterRemovesEverything(Sound):
    def remove(self, which):
        return super().remove(which if isinstance(which, list) else sorted(self.ids))


class RemovesAllForNone(Sound):
    def remove(self, which):
        return super().remove(which or sorted(self.ids))


class PassesOverUnknownIds(Sound):
    def remove(self, which):
        return super().remove([i for i in which if i in self.ids] if isinstance(which, list) else which)


class RemovesUpToTheUnknownId(Sound):
    def remove(self, which):
        return sum(map(self.inner.remove, ([i] for i in which))) if isinstance(which, list) else super().remove(which)


class NeverForgetsARemoval(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.removed: set[DocumentId] = set()

    def remove(self, which):
        before = self.ids
        count = super().remove(which)
        self.removed |= before - self.ids
        return count

    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, k, where=where, candidates=candidates)
        return [_only(ranking, lambda document: document not in self.removed) for ranking in found]


class FailsWhenEmpty(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        assert len(self)
        return super().search(queries, k, where=where, candidates=candidates)


class AlwaysRanksSomething(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k, where=where, candidates=candidates) or [Ranking((), ())]


class RaisesTheCutoff(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, max(1, k), where=where, candidates=candidates)


class MendsQueries(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        finite = TokenEmbeddings(np.nan_to_num(queries.tokens, posinf=0), queries.offsets)
        return super().search(self.cut(finite), k, where=where, candidates=candidates)


class IgnoresTheCutoff(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k and max(k, len(self) + 1), where=where, candidates=candidates)


class IgnoresFilters(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k, candidates=candidates)


class FiltersAfterTheCutoff(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        meant = {i for ranking in super().search(_none(queries), 99, where=where) for i in ranking.documents}
        found = super().search(queries, k, candidates=candidates)
        return [_only(ranking, lambda document: document in meant) for ranking in found]


class MissingKeysMatch(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        if isinstance(where, Comparison) and where.field == "absent":
            where = None
        return super().search(queries, k, where=where, candidates=candidates)


class IgnoresCandidates(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k, where=where, candidates=None if candidates else candidates)


class TakesNoCandidatesForAll(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k, where=where, candidates=candidates or None)


class RefusesUnknownCandidates(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        self.inner.get(candidates or [])
        return super().search(queries, k, where=where, candidates=candidates)


class CountsCandidatesTwice(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        assert candidates is None or len(set(candidates)) == len(candidates)
        return super().search(queries, k, where=where, candidates=candidates)


class CandidatesOverruleFilters(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        return super().search(queries, k, where=where if candidates is None else None, candidates=candidates)


class RanksOtherwiseForEvenCutoffs(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, max(k, 99) if k > 0 else k, where=where, candidates=candidates)
        return [_rescored(ranking, lambda s: -s if k % 2 else s).truncate(k) for ranking in found]


class Rescores(Sound):
    """Scores that depend on what they must not depend on."""

    def rescored(self, ranking: Ranking) -> Ranking:
        raise NotImplementedError

    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, max(k, 99) if k > 0 else k, where=where, candidates=candidates)
        return [self.rescored(ranking).truncate(k) for ranking in found]


class NewerIsBetter(Rescores):
    def rescored(self, ranking):
        age = {document: row for row, document in enumerate(self.inner._entries)}
        return Ranking.from_scores(
            ranking.documents, [hit.score + 0.001 * age[hit.document] for hit in ranking]
        )


class BreaksTiesBackwards(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, max(k, 99) if k > 0 else k, where=where, candidates=candidates)
        return [_kept_backwards(ranking, k) for ranking in found]


class PadsWithZero(Rescores):
    def rescored(self, ranking):
        return Ranking.from_scores(ranking.documents, np.maximum(ranking.scores, 0))


class ScoresRelativeToTheBest(Rescores):
    def rescored(self, ranking):
        return _rescored(ranking, lambda scores: scores - max(scores[np.isfinite(scores)], default=0))


class LosesEmptyDocuments(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        self.inner.remove(list(report.empty))
        return report


class HidesEmptyDocuments(Rescores):
    def rescored(self, ranking):
        return _only(ranking, lambda document: len(self.inner.fetch([document]).tokens) > 0)


class EmptyQueriesFindNothing(Sound):
    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, k, where=where, candidates=candidates)
        return [ranking if length else Ranking((), ()) for ranking, length in zip(found, queries.lengths, strict=True)]


class SearchesTheLastAdditionOnly(Sound):
    last: frozenset[DocumentId] = frozenset()

    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        self.last = frozenset(document.id for document in documents)
        return report

    def search(self, queries, k, *, where=None, candidates=None):
        found = super().search(queries, k, where=where, candidates=candidates)
        return [_only(ranking, lambda document: document in self.last) for ranking in found]


_REPORTED = ("added", "skipped", "replaced", "empty")


def _none(queries: Any) -> Any:
    return TokenEmbeddings(queries.tokens[:0], offsets_of([0]))


def _only(ranking: Ranking, wanted: Callable[[DocumentId], bool]) -> Ranking:
    rows = [row for row, document in enumerate(ranking.documents) if wanted(document)]
    return Ranking([ranking.documents[row] for row in rows], ranking.scores[rows])


def _rescored(ranking: Ranking, change: Callable[[Any], Any]) -> Ranking:
    finite = np.isfinite(ranking.scores)
    scores = np.where(finite, change(np.where(finite, ranking.scores, 0)), ranking.scores)
    return Ranking.from_scores(ranking.documents, scores)


def _kept_backwards(ranking: Ranking, k: int) -> Ranking:
    """The k best, ties decided by falling id; what is kept is listed as a ranking has to be."""
    ordered = sorted(ranking, key=lambda hit: (-hit.score, [-ord(letter) for letter in hit.document]))[:k]
    return Ranking.from_scores([hit.document for hit in ordered], [hit.score for hit in ordered])


FAULTS: dict[type[Sound], list[str]] = {
    FindsOnlyEarlierCalls: ["a_document_is_found_by_the_next_call", "no_queries_give_no_rankings"],
}


def suite_of(index: type[Sound]) -> ExactIndexContract[Any]:
    class Suite(ExactIndexContract[Any]):
        def make_index(self) -> Any:
            return index()

        def document_store(self, made: Any) -> Any:
            return made

    return Suite()
