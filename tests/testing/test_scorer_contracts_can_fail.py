"""Every check of the scorer suites fails on a scorer with the fault that it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.reference.maxsim import keep, maxsim_all_pairs, maxsim_grouped, similarities
from lateinteraction.testing.contracts import MaxSimContract, checks_of

Embeddings = TokenEmbeddings[Any]


def suite_of(
    matrix: Callable[[Embeddings, Embeddings], Any] = maxsim_all_pairs,
    grouped: Callable[[Embeddings, Embeddings, Any], Any] | None = None,
) -> MaxSimContract[Any]:
    class Scorer:
        def matrix(self, queries: Embeddings, documents: Embeddings) -> Any:
            return matrix(queries, documents)

        def grouped(self, queries: Embeddings, documents: Embeddings, groups: Any) -> Any:
            if grouped is not None:
                return grouped(queries, documents, groups)
            maxsim_grouped(queries, documents, groups)  # refuses what does not fit
            owners = np.repeat(np.arange(len(queries)), np.diff(groups))
            return matrix(queries, documents)[owners, np.arange(len(documents))]

    class Suite(MaxSimContract[Any]):
        def make_scorer(self) -> Any:
            return Scorer()

    return Suite()


def pads_with_zero(queries: Embeddings, documents: Embeddings) -> Any:
    """Every document has as many tokens as the longest; those that it lacks are zero."""
    longest = max(documents.lengths, default=0)
    padded = [np.pad(tokens, ((0, longest - len(tokens)), (0, 0))) for tokens in documents]
    return maxsim_all_pairs(
        queries, TokenEmbeddings(np.concatenate(padded or [documents.tokens]), offsets_of([longest] * len(padded)))
    )


def pads_queries(queries: Embeddings, documents: Embeddings) -> Any:
    """Every query scores 1/8 more for each token that the longest has besides its own."""
    return (
        maxsim_all_pairs(queries, documents)
        + (max(queries.lengths, default=0) - queries.lengths)[:, None].astype(np.float32) / 8
    )


def sums_over_the_document(queries: Embeddings, documents: Embeddings) -> Any:
    scores = maxsim_all_pairs(queries, documents)
    for i, j in np.argwhere(np.isfinite(scores) & (queries.lengths > 0)[:, None]):
        scores[i, j] = similarities(queries[i], documents[j]).sum()
    return scores


def forgets_the_last_token(queries: Embeddings, documents: Embeddings) -> Any:
    kept = np.ones(len(documents.tokens), bool)
    kept[documents.offsets[1:][documents.lengths > 1] - 1] = False
    return maxsim_all_pairs(queries, keep(documents, kept))


def is_a_little_off(queries: Embeddings, documents: Embeddings) -> Any:
    return maxsim_all_pairs(queries, documents) * np.float32(1 + 1e-5)


def rounds_to_half_precision(queries: Embeddings, documents: Embeddings) -> Any:
    return maxsim_all_pairs(queries, documents).astype(np.float16).astype(np.float32)


def takes_the_narrower_width(queries: Embeddings, documents: Embeddings) -> Any:
    width = min(queries.dimension, documents.dimension)
    return maxsim_all_pairs(*(TokenEmbeddings(each.tokens[:, :width], each.offsets) for each in (queries, documents)))


def takes_the_narrower_width_in_groups(queries: Embeddings, documents: Embeddings, groups: Any) -> Any:
    width = min(queries.dimension, documents.dimension)
    narrow = (TokenEmbeddings(each.tokens[:, :width], each.offsets) for each in (queries, documents))
    return maxsim_grouped(*narrow, groups)


def sorts_columns(queries: Embeddings, documents: Embeddings) -> Any:
    return np.sort(maxsim_all_pairs(queries, documents), axis=1)


def empty_is_zero(queries: Embeddings, documents: Embeddings) -> Any:
    scores = maxsim_all_pairs(queries, documents)
    return np.where(np.isfinite(scores), scores, np.float32(0))


def doubles(queries: Embeddings, documents: Embeddings) -> Any:
    return maxsim_all_pairs(queries, documents).astype(np.float64)


def all_with_the_first_query(queries: Embeddings, documents: Embeddings, groups: Any) -> Any:
    scores = maxsim_grouped(queries, documents, groups)
    return maxsim_all_pairs(queries, documents)[0] if len(queries) else scores


def takes_any_groups(queries: Embeddings, documents: Embeddings, groups: Any) -> Any:
    owners = np.repeat(np.arange(len(groups) - 1), np.diff(groups))[: len(documents)]
    scores = maxsim_all_pairs(queries, documents)
    return scores[np.minimum(owners, len(queries) - 1), np.arange(len(owners))]


def token_order_matters(queries: Embeddings, documents: Embeddings) -> Any:
    scores = maxsim_all_pairs(queries, documents)
    firsts = np.array([float(tokens[0].sum()) if len(tokens) else 0 for tokens in documents], np.float32)
    return scores + firsts * (queries.lengths > 0)[:, None]


SOUND = [suite_of()]

FAULTS: dict[str, tuple[object, list[str]]] = {
    "pads with zero": (
        suite_of(pads_with_zero),
        [
            "a_score_does_not_depend_on_its_neighbours",
            "scores_of_exact_values_are_exact",
            "negative_similarities_are_not_lost",
        ],
    ),
    "pads queries": (suite_of(pads_queries), ["an_empty_query_scores_zero_and_an_empty_document_minus_infinity"]),
    "sums over the document": (
        suite_of(sums_over_the_document),
        ["a_token_given_twice_changes_nothing", "negative_similarities_are_not_lost"],
    ),
    "forgets the last token": (
        suite_of(forgets_the_last_token),
        ["the_order_of_tokens_does_not_matter", "a_token_given_twice_changes_nothing"],
    ),
    "is a little off": (
        suite_of(is_a_little_off),
        ["scores_are_those_of_the_reference", "negative_similarities_are_not_lost"],
    ),
    "rounds to half precision": (
        suite_of(rounds_to_half_precision),
        ["grouped_scores_are_those_of_the_reference", "scores_are_those_of_the_reference"],
    ),
    "takes the narrower width": (
        suite_of(takes_the_narrower_width, takes_the_narrower_width_in_groups),
        ["different_widths_are_refused"],
    ),
    "sorts columns": (
        suite_of(sorts_columns),
        ["permuted_items_have_permuted_scores", "negative_similarities_are_not_lost"],
    ),
    "empty is zero": (
        suite_of(empty_is_zero),
        ["another_token_never_lowers_a_score", "an_empty_query_scores_zero_and_an_empty_document_minus_infinity"],
    ),
    "doubles": (suite_of(doubles), ["there_is_a_float32_score_for_each_pair"]),
    "all with the first query": (
        suite_of(grouped=all_with_the_first_query),
        ["grouped_scores_are_blocks_of_the_matrix"],
    ),
    "takes any groups": (suite_of(grouped=takes_any_groups), ["groups_that_do_not_fit_are_refused"]),
    "the order of tokens matters": (
        suite_of(token_order_matters),
        ["any_tokens_may_be_left_out", "the_order_of_tokens_does_not_matter", "negative_similarities_are_not_lost"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_these_checks_and_no_others(fault: str, failing: Any) -> None:
    suite, names = FAULTS[fault]
    expected = {f"test_{name}" for name in names}
    assert failing(suite, expected) == expected


def test_every_check_finds_a_fault() -> None:
    checks = {name for suite in SOUND for name, _ in checks_of(suite)}
    assert {f"test_{name}" for _, names in FAULTS.values() for name in names} == checks


@pytest.mark.parametrize("suite", SOUND)
def test_an_adapter_without_a_fault_fails_no_check(suite: object, failing: Any) -> None:
    assert failing(suite, ()) == set()
