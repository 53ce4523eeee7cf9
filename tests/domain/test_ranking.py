"""Rankings: one order, and the laws of merging, fusing and cutting them."""

from __future__ import annotations

import math
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.domain.errors import InvalidOption, InvalidRanking
from lateinteraction.domain.ranking import (
    Fusion,
    Hit,
    Ranking,
    check_cutoff,
    fuse_reciprocal_rank,
    fuse_weighted,
    merge,
)
from lateinteraction.testing.strategies import rankings, score_dicts

Scored = dict[str, float]
CUTOFFS = st.integers(1, 12)


def ranked(scored: Scored, k: int | None = None) -> Ranking:
    return Ranking.from_scores(list(scored), list(scored.values()), k)


@given(score_dicts())
def test_hits_fall_by_score_and_ties_rise_by_id(scored: Scored) -> None:
    expected = sorted(scored.items(), key=lambda item: (-np.float32(item[1]), item[0]))
    ranking = ranked(scored)
    assert [(hit.document, hit.score) for hit in ranking] == [(document, score) for document, score in expected]
    assert len(ranking) == len(scored)


@given(score_dicts(), st.randoms(use_true_random=False))
def test_the_order_in_which_documents_are_given_does_not_matter(scored: Scored, random: Any) -> None:
    shuffled = dict(random.sample(sorted(scored.items()), len(scored)))
    assert ranked(shuffled) == ranked(scored)


@given(score_dicts(), CUTOFFS)
def test_k_hits_are_a_prefix_of_k_plus_one(scored: Scored, k: int) -> None:
    few, more, whole = ranked(scored, k), ranked(scored, k + 1), ranked(scored)
    assert few.documents == more.documents[:k] == whole.documents[:k]
    assert few == more.truncate(k) == whole.truncate(k)
    assert len(few) == min(k, len(scored))


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40), CUTOFFS)
def test_ids_decide_which_of_the_last_ties_stay(scores: list[float], k: int) -> None:
    ids = [f"{place:02}" for place in range(len(scores))]
    backwards = Ranking.from_scores(ids[::-1], scores[::-1], k)
    assert backwards == Ranking.from_scores(ids, scores, k)
    last = backwards.scores[-1]
    kept = [document for document, score in zip(ids, scores, strict=True) if score == last]
    assert list(backwards.documents)[-1] in kept
    count = int(np.sum(backwards.scores == last))
    assert list(backwards.documents[-count:]) == kept[:count]


@given(rankings())
def test_a_ranking_is_made_again_of_its_hits(ranking: Ranking) -> None:
    assert Ranking(ranking.documents, ranking.scores) == ranking
    assert Ranking.from_scores(ranking.documents, ranking.scores) == ranking
    hits = list(ranking)
    assert all(isinstance(hit, Hit) and type(hit.score) is float for hit in hits)
    assert Ranking([hit.document for hit in hits], [hit.score for hit in hits]) == ranking


def test_scores_are_kept_as_float32() -> None:
    ranking = ranked({"a": 0.1, "b": 1 / 3})
    assert ranking.scores.dtype == np.float32
    assert [hit.score for hit in ranking] == [float(np.float32(1 / 3)), float(np.float32(0.1))]


def test_scores_that_float32_cannot_tell_apart_are_ties() -> None:
    assert ranked({"b": 0.1 + 1e-9, "a": 0.1}).documents == ("a", "b")


def test_an_empty_document_comes_last() -> None:
    assert ranked({"empty": -math.inf, "worst": -3e38, "also": -math.inf}).documents == ("worst", "also", "empty")


@pytest.mark.parametrize(
    ("documents", "scores", "said"),
    [
        (["a"], [], "1 documents and scores of shape"),
        ([], [1.0], "0 documents and scores of shape"),
        (["a"], [[1.0]], r"shape \(1, 1\)"),
        (["a"], 1.0, r"shape \(\)"),
        (["a", "a"], [2.0, 1.0], "ranked twice"),
        (["a"], [math.nan], "NaN"),
        (["a", "b"], [1.0, math.nan], "NaN"),
        (["a"], [math.inf], "infinity|∞"),
        (["a", "b"], [1.0, 2.0], "out of order"),
        (["a", "b"], [-math.inf, 0.0], "out of order"),
        (["b", "a"], [1.0, 1.0], "out of order"),
        (["b", "a"], [-math.inf, -math.inf], "out of order"),
        (["a", "c", "b"], [2.0, 1.0, 1.0], "out of order"),
    ],
)
def test_what_is_no_ranking_is_refused(documents: Any, scores: Any, said: str) -> None:
    with pytest.raises(InvalidRanking, match=said):
        Ranking(documents, scores)


@pytest.mark.parametrize(
    ("documents", "scores"),
    [(["a"], []), ([], [1.0]), (["a"], [[1.0]]), (["a", "a"], [1.0, 2.0]), (["a"], [math.nan]), (["a"], [math.inf])],
)
def test_scores_that_make_no_ranking_are_refused(documents: Any, scores: Any) -> None:
    with pytest.raises(InvalidRanking):
        Ranking.from_scores(documents, scores)


@pytest.mark.parametrize("k", [0, -1, True, False, 1.0, 2.5, "1", None, np.float64(1), np.int64(0)])
def test_a_cutoff_is_a_whole_number_of_at_least_one(k: Any) -> None:
    ranking = ranked({"a": 1.0})
    calls = [lambda: check_cutoff(k), lambda: ranking.truncate(k), lambda: ranked({"a": 1.0, "b": 2.0}, k)]
    for call in calls if k is not None else calls[:2]:  # without k, a ranking keeps everything
        with pytest.raises(InvalidRanking, match="k = "):
            call()


@pytest.mark.parametrize("k", [1, np.int64(1), np.uint8(1)])
def test_a_cutoff_may_be_of_numpy(k: Any) -> None:
    check_cutoff(k)
    assert ranked({"a": 1.0, "b": 2.0}, k).documents == ("b",)


def test_a_ranking_cannot_be_changed() -> None:
    scores = np.array([2.0, 1.0], dtype=np.float32)
    ranking = Ranking(["a", "b"], scores)
    scores[0] = 0.0
    assert list(ranking.scores) == [2.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        ranking.scores[0] = 0.0
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ranking.documents = ()  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        next(iter(ranking)).score = 1.0  # type: ignore[misc, assignment]


@given(score_dicts(), score_dicts())
def test_rankings_are_equal_when_documents_and_scores_are(left: Scored, right: Scored) -> None:
    equal = {document: np.float32(score) for document, score in left.items()} == {
        document: np.float32(score) for document, score in right.items()
    }
    assert (ranked(left) == ranked(right)) is equal
    assert ranked(left) == ranked(dict(left))
    assert hash(ranked(left)) == hash(ranked(dict(left)))


@given(rankings())
def test_rankings_survive_pickling(ranking: Ranking) -> None:
    again = pickle.loads(pickle.dumps(ranking))
    assert again == ranking
    assert hash(again) == hash(ranking)


@given(score_dicts(most=12), st.randoms(use_true_random=False), CUTOFFS, st.integers(1, 4))
def test_a_split_corpus_is_the_whole_corpus(scored: Scored, random: Any, k: int, parts: int) -> None:
    shards: list[Scored] = [{} for _ in range(parts)]
    for document, score in scored.items():
        random.choice(shards)[document] = score
    assert merge([ranked(shard) for shard in shards], k) == ranked(scored, k)
    assert merge([ranked(shard, k) for shard in shards], k) == ranked(scored, k)


@given(score_dicts(most=9), CUTOFFS)
def test_merging_does_not_depend_on_how_parts_are_grouped(scored: Scored, k: int) -> None:
    first, second, third = (ranked(dict(list(scored.items())[start::3])) for start in range(3))
    assert merge([merge([first, second], k), third], k) == merge([first, merge([second, third], k)], k)
    assert merge([third, first, second], k) == merge([first, second, third], k)


def test_merging_nothing_gives_no_hits() -> None:
    assert merge([], 3) == merge([Ranking([], [])], 3) == Ranking([], [])
    with pytest.raises(InvalidRanking, match="k = 0"):
        merge([], 0)


def test_merging_refuses_parts_that_overlap() -> None:
    with pytest.raises(InvalidRanking, match="twice"):
        merge([ranked({"a": 2.0}), ranked({"a": 1.0})], 2)


FIRST = Ranking(["a", "b", "c"], [9.0, 5.0, 1.0])
SECOND = Ranking(["c", "d"], [0.5, 0.25])


def test_reciprocal_rank_fusion_by_hand() -> None:
    fused = fuse_reciprocal_rank([FIRST, SECOND], 10)
    expected = {"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62}
    assert fused == ranked(expected)
    weighed = fuse_reciprocal_rank([FIRST, SECOND], 2, weights=[1, 3], constant=1)
    assert weighed == ranked({"c": 1 / 4 + 3 / 2, "d": 3 / 3})


def test_a_rank_at_minus_infinity_is_worth_nothing() -> None:
    empty = ranked({"a": 3.0, "empty": -math.inf})
    assert fuse_reciprocal_rank([empty], 5) == ranked({"a": 1 / 61, "empty": -math.inf})
    other = ranked({"empty": 4.0})
    assert fuse_reciprocal_rank([empty, other], 5) == ranked({"a": 1 / 61, "empty": 1 / 61})
    assert fuse_reciprocal_rank([other, empty], 5) == ranked({"a": 1 / 61, "empty": 1 / 61})


def test_a_fusion_fuses_as_it_is_told() -> None:
    by_ranks = Fusion(embeddings=2, words=0.5)
    assert by_ranks.fuse(FIRST, SECOND, 3) == fuse_reciprocal_rank([FIRST, SECOND], 3, weights=[2, 0.5])
    by_scores = Fusion("scores", words=3)
    assert by_scores.fuse(FIRST, SECOND, 3) == fuse_weighted([FIRST, SECOND], 3, weights=[1, 3])


@pytest.mark.parametrize(
    ("options", "given_"),
    [
        ({"by": "votes"}, "by = 'votes'"),
        ({"embeddings": -1}, "weights"),
        ({"words": math.nan}, "weights"),
        ({"embeddings": 0, "words": 0}, "weights"),
        ({"depth": 0}, "depth = 0"),
        ({"depth": 2.5}, "depth = 2.5"),
        ({"depth": True}, "depth = True"),
    ],
)
def test_a_fusion_that_means_nothing_is_refused(options: Any, given_: str) -> None:
    with pytest.raises(InvalidOption, match=given_):
        Fusion(**options)


def test_weighted_fusion_by_hand() -> None:
    assert fuse_weighted([FIRST, SECOND], 10) == ranked({"a": 1.0, "b": 0.5, "c": 1.0, "d": 0.0})
    assert fuse_weighted([FIRST, SECOND], 10, weights=[0.5, 2]) == ranked({"a": 0.5, "b": 0.25, "c": 2.0, "d": 0.0})
    plain = fuse_weighted([FIRST, SECOND], 10, weights=[1, 2], normalise="none")
    assert plain == ranked({"a": 9.0, "b": 5.0, "c": 2.0, "d": 0.5})


def test_equal_scores_are_all_the_best_for_minmax() -> None:
    assert fuse_weighted([ranked({"a": -2.0, "b": -2.0})], 5) == ranked({"a": 1.0, "b": 1.0})


def test_minus_infinity_adds_nothing() -> None:
    empty = ranked({"a": 3.0, "b": 1.0, "empty": -math.inf})
    assert fuse_weighted([empty], 5) == ranked({"a": 1.0, "b": 0.0, "empty": -math.inf})
    other = ranked({"empty": 4.0, "z": 2.0})
    assert fuse_weighted([empty, other], 1) == ranked({"a": 1.0, "empty": 1.0}, 1)
    assert set(fuse_weighted([ranked({"x": -math.inf})], 5).documents) <= {"x"}


FUSIONS = [
    fuse_reciprocal_rank,
    fuse_weighted,
    lambda given_, k, **options: fuse_weighted(given_, k, normalise="none", **options),
]
BOUNDED = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-24, 24).map(lambda count: count / 8)).map(ranked)


@pytest.mark.parametrize("fuse", FUSIONS)
@given(given_=st.lists(BOUNDED, max_size=4), k=CUTOFFS)
def test_fusing_keeps_the_laws_of_rankings(fuse: Any, given_: list[Ranking], k: int) -> None:
    everything = {document for ranking in given_ for document in ranking.documents}
    whole = fuse(given_, 100)
    assert set(whole.documents) == everything
    assert fuse(given_, k) == whole.truncate(k)
    assert fuse(given_, 100, weights=[1] * len(given_)) == whole
    backwards = fuse(given_[::-1], 100)
    assert set(backwards.documents) == everything
    by_document = dict(zip(backwards.documents, backwards.scores, strict=True))
    for document, score in zip(whole.documents, whole.scores, strict=True):
        assert by_document[document] == pytest.approx(score, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("fuse", FUSIONS)
@given(given_=BOUNDED)
def test_a_ranking_of_no_weight_changes_no_score(fuse: Any, given_: Ranking) -> None:
    alone = {hit.document: hit.score for hit in fuse([given_], 100)}
    noise = ranked({"z": 9.0, "a": 1.0})
    together = {hit.document: hit.score for hit in fuse([given_, noise], 100, weights=[1, 0])}
    assert together == {"a": 0.0, "z": 0.0} | alone


@pytest.mark.parametrize("fuse", FUSIONS)
@given(given_=BOUNDED)
def test_fusing_one_ranking_keeps_its_order(fuse: Any, given_: Ranking) -> None:
    fused = {hit.document: hit.score for hit in fuse([given_], 100)}
    assert [fused[document] for document in given_.documents] == sorted(fused.values(), reverse=True)


@pytest.mark.parametrize("fuse", FUSIONS)
def test_fusing_nothing_gives_no_hits(fuse: Any) -> None:
    assert fuse([], 3) == fuse([Ranking([], [])], 3) == Ranking([], [])


@pytest.mark.parametrize("fuse", FUSIONS)
@pytest.mark.parametrize("weights", [[], [1], [1, 2, 3], [1, -1], [1, math.nan], [math.inf, 1]])
def test_each_ranking_has_a_finite_weight_of_at_least_zero(fuse: Any, weights: list[float]) -> None:
    with pytest.raises(InvalidRanking, match="a finite weight ≥ 0 for each ranking"):
        fuse([FIRST, SECOND], 3, weights=weights)


@pytest.mark.parametrize("fuse", FUSIONS)
def test_fusing_asks_for_one_hit_or_more(fuse: Any) -> None:
    with pytest.raises(InvalidRanking, match="k = 0"):
        fuse([FIRST, SECOND], 0)


@pytest.mark.parametrize("constant", [0, -60, math.nan])
def test_the_constant_of_reciprocal_rank_is_above_zero(constant: float) -> None:
    with pytest.raises(InvalidRanking, match="constant"):
        fuse_reciprocal_rank([FIRST], 3, constant=constant)


@pytest.mark.parametrize("normalise", ["max", "", None, True])
def test_an_unknown_normalisation_is_refused_with_the_known_ones(normalise: Any) -> None:
    with pytest.raises(InvalidRanking, match="'minmax' or 'none'"):
        fuse_weighted([FIRST], 3, normalise=normalise)
