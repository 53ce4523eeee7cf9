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

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        return self.inner.held(ids)

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


class ReportsInOrderOfId(Sound):
    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        return evolve(report, added=sorted(report.added))


class HoldsWhatItIsAskedFor(Sound):
    def held(self, ids):
        return frozenset(ids)


class ForgetsMetadata(Sound):
    def get(self, ids):
        return [Document(document.id, document.text) for document in super().get(ids)]


class KeepsTheCallersArray(Sound):
    kept: tuple[Any, ...] = ((), None)

    def add(self, documents, embeddings, *, on_duplicate="error"):
        report = super().add(documents, embeddings, on_duplicate=on_duplicate)
        self.kept = (documents, embeddings) if on_duplicate == "error" else ((), None)
        return report

    def search(self, queries, k, *, where=None, candidates=None):
        if self.kept[0] and {document.id for document in self.kept[0]} <= self.ids:
            self.inner.add(*self.kept, on_duplicate="replace")
        return super().search(queries, k, where=where, candidates=candidates)


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
        [everything] = super().search(TokenEmbeddings(queries.tokens[:0], offsets_of([0])), 99, where=where)
        found = super().search(queries, k, candidates=candidates)
        return [_only(ranking, lambda document: document in everything.documents) for ranking in found]


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
        return Ranking.from_scores(ranking.documents, [hit.score + 0.001 * age[hit.document] for hit in ranking])


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
    HoldsWhatItIsAskedFor: ["it_says_which_ids_it_has"],
    KeepsTheCallersArray: ["the_callers_array_can_be_used_again"],
    ReportsInOrderOfId: ["an_addition_is_reported_in_the_order_given", "skip_takes_the_new_documents"],
    ForgetsMetadata: [
        "an_empty_document_can_be_fetched_and_removed",
        "documents_are_given_back_whole",
        "replace_takes_the_new_document",
    ],
    RefusesToAddNothing: ["adding_nothing_changes_nothing", "another_count_of_embeddings_is_refused"],
    LastOfTwoWins: ["an_id_twice_in_one_call_is_refused", "another_count_of_embeddings_is_refused"],
    ReplacesUnasked: ["an_id_that_is_already_there_is_refused"],
    SkipReplaces: ["skip_keeps_the_old_document"],
    SkipDropsTheCall: ["skip_takes_the_new_documents"],
    ReplaceKeepsTheOld: ["replace_reports_new_and_empty_documents_apart", "replace_takes_the_new_document"],
    ReportsAllAsReplaced: ["replace_reports_new_and_empty_documents_apart"],
    CutsToItsWidth: ["embeddings_of_another_width_are_refused"],
    MendsValues: ["values_that_are_not_finite_are_refused"],
    TakesAsManyAsFit: ["another_count_of_embeddings_is_refused"],
    KeepsWhatCameBeforeTheFault: [
        "an_id_that_is_already_there_is_refused",
        "an_id_twice_in_one_call_is_refused",
        "another_count_of_embeddings_is_refused",
        "values_that_are_not_finite_are_refused",
        "any_history_is_that_of_a_dictionary",
    ],
    DoesNotRemove: [
        "it_says_which_ids_it_has",
        "a_removed_document_can_come_back_changed",
        "an_empty_document_can_be_fetched_and_removed",
        "an_unknown_id_is_refused",
        "documents_are_removed_by_id",
    ],
    FilterRemovesEverything: ["documents_are_removed_by_filter"],
    RemovesAllForNone: ["removing_nothing_changes_nothing"],
    PassesOverUnknownIds: ["an_unknown_id_is_refused"],
    RemovesUpToTheUnknownId: ["an_unknown_id_is_refused", "any_history_is_that_of_a_dictionary"],
    NeverForgetsARemoval: [
        "a_removed_document_can_come_back_changed",
        "an_index_can_be_emptied_and_filled_again",
        "any_history_is_that_of_a_dictionary",
    ],
    AlwaysRanksSomething: ["no_queries_give_no_rankings"],
    RaisesTheCutoff: ["a_cutoff_below_one_is_refused"],
    MendsQueries: ["queries_that_cannot_be_compared_are_refused"],
    IgnoresTheCutoff: [
        "a_cutoff_below_one_is_refused",
        "a_removed_document_can_come_back_changed",
        "no_more_than_k_documents_are_found",
        "replace_takes_the_new_document",
    ],
    IgnoresFilters: [
        "a_filter_does_not_use_up_the_cutoff",
        "a_removed_document_can_come_back_changed",
        "candidates_must_match_the_filter_too",
        "only_documents_that_match_the_filter_are_found",
        "replace_takes_the_new_document",
        "skip_keeps_the_old_document",
        "any_filter_means_what_the_domain_says",
    ],
    FiltersAfterTheCutoff: ["a_filter_does_not_use_up_the_cutoff"],
    MissingKeysMatch: ["any_filter_means_what_the_domain_says"],
    IgnoresCandidates: [
        "a_candidate_given_twice_counts_once",
        "an_empty_document_scores_minus_infinity",
        "candidates_must_match_the_filter_too",
        "documents_are_removed_by_id",
        "only_candidates_are_found",
        "unknown_candidates_are_passed_over",
    ],
    TakesNoCandidatesForAll: ["no_candidates_give_no_hits"],
    RefusesUnknownCandidates: [
        "an_empty_index_finds_nothing",
        "documents_are_removed_by_id",
        "unknown_candidates_are_passed_over",
    ],
    CountsCandidatesTwice: ["a_candidate_given_twice_counts_once"],
    CandidatesOverruleFilters: ["candidates_must_match_the_filter_too", "any_history_is_that_of_a_dictionary"],
    RanksOtherwiseForEvenCutoffs: [
        "a_removed_document_can_come_back_changed",
        "replace_takes_the_new_document",
        "k_documents_are_a_prefix_of_k_plus_one",
    ],
    NewerIsBetter: [
        "a_removed_document_can_come_back_changed",
        "an_empty_query_scores_zero_everywhere",
        "negative_similarities_are_not_lost",
        "replace_takes_the_new_document",
        "the_order_of_addition_does_not_matter",
    ],
    BreaksTiesBackwards: ["equal_scores_are_ordered_by_id"],
    PadsWithZero: [
        "an_empty_document_scores_minus_infinity",
        "negative_similarities_are_not_lost",
        "rankings_are_those_of_the_reference",
    ],
    ScoresRelativeToTheBest: [
        "a_removed_document_can_come_back_changed",
        "negative_similarities_are_not_lost",
        "replace_takes_the_new_document",
        "a_split_corpus_merged_is_the_whole_corpus",
        "a_score_does_not_depend_on_its_neighbours",
    ],
    HidesEmptyDocuments: [
        "a_cutoff_beyond_the_size_finds_everything",
        "an_empty_document_scores_minus_infinity",
        "an_empty_query_scores_zero_everywhere",
        "documents_are_removed_by_filter",
        "documents_are_removed_by_id",
        "only_candidates_are_found",
        "only_documents_that_match_the_filter_are_found",
        "skip_takes_the_new_documents",
    ],
    EmptyQueriesFindNothing: ["an_empty_query_scores_zero_everywhere"],
    SearchesTheLastAdditionOnly: [
        "a_document_is_found_by_the_next_call",
        "adding_nothing_changes_nothing",
        "skip_keeps_the_old_document",
        "skip_takes_the_new_documents",
        "many_additions_are_one_addition",
    ],
}


def suite_of(index: type[Sound]) -> ExactIndexContract[Any]:
    class Suite(ExactIndexContract[Any]):
        def make_index(self) -> Any:
            return index()

        def document_store(self, made: Any) -> Any:
            return made

    return Suite()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_by_these_checks_and_no_others(fault: type[Sound], failing: Any) -> None:
    expected = {f"test_{name}" for name in FAULTS[fault]}
    assert failing(suite_of(fault), expected) == expected


def test_every_check_finds_a_fault() -> None:
    checks = {name for name, _ in checks_of(suite_of(Sound))}
    assert {f"test_{name}" for names in FAULTS.values() for name in names} == checks


def test_an_index_without_a_fault_fails_no_check(failing: Any) -> None:
    assert failing(suite_of(Sound), ()) == set()
