"""The recipe: settings that fit together, and which tokens they keep."""

from __future__ import annotations

import json
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lateinteraction.domain.errors import InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling

MASKS = st.integers(0, 20).flatmap(lambda count: arrays.arrays(np.bool_, count))


def test_every_default_fits() -> None:
    recipe = EncodingRecipe()
    assert attrs.evolve(recipe) == recipe
    assert recipe.merge({}) == recipe
    assert hash(recipe.merge({})) == hash(recipe)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@pytest.mark.parametrize("name", ["query_length", "document_length"])
@pytest.mark.parametrize("length", [1, 0, -5, 2.0, True, None, "32"])
def test_a_length_is_at_least_two_tokens(name: str, length: Any) -> None:
    with pytest.raises(InvalidRecipe, match=f"{name} = "):
        EncodingRecipe(**{name: length})
    assert getattr(EncodingRecipe(**{name: 2}), name) == 2


@pytest.mark.parametrize("dimension", [0, -1, 1.0, True, "8"])
def test_a_dimension_is_at_least_one_or_none(dimension: Any) -> None:
    with pytest.raises(InvalidRecipe, match="dimension = "):
        EncodingRecipe(dimension=dimension)
    assert EncodingRecipe(dimension=1).dimension == 1
    assert EncodingRecipe(dimension=None).dimension is None


@pytest.mark.parametrize("expansion", ["mask", "", None, True, ["fixed"]])
def test_an_unknown_expansion_is_refused_with_the_known_ones(expansion: Any) -> None:
    with pytest.raises(InvalidRecipe, match="'none' or 'fixed'"):
        EncodingRecipe(expansion=expansion)


def test_there_is_no_attending_to_an_expansion_that_is_off() -> None:
    with pytest.raises(InvalidRecipe, match="without expansion"):
        EncodingRecipe(attend_to_expansion=True)
    assert EncodingRecipe(attend_to_expansion=True, expansion="fixed").attend_to_expansion
    with pytest.raises(InvalidRecipe, match="without expansion"):
        EncodingRecipe(attend_to_expansion=True, expansion="fixed").merge({"expansion": "none"})


@pytest.mark.parametrize("name", ["query_prefix", "document_prefix"])
@pytest.mark.parametrize("prefix", ["", 1, b"[Q]", ["[Q]"]])
def test_a_prefix_is_text_or_none(name: str, prefix: Any) -> None:
    with pytest.raises(InvalidRecipe, match=f"{name} = "):
        EncodingRecipe(**{name: prefix})
    assert getattr(EncodingRecipe(**{name: "[Q] "}), name) == "[Q] "
    assert getattr(EncodingRecipe(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["query_prompt", "document_prompt"])
@pytest.mark.parametrize("prompt", [None, 1, b"query: "])
def test_a_prompt_is_text(name: str, prompt: Any) -> None:
    with pytest.raises(InvalidRecipe, match=f"{name} = "):
        EncodingRecipe(**{name: prompt})
    assert getattr(EncodingRecipe(**{name: ""}), name) == ""


@pytest.mark.parametrize("skiplist", ["abc", "", None, 3, [""], [1], [None], [".", ""]])
def test_a_skiplist_is_words(skiplist: Any) -> None:
    with pytest.raises(InvalidRecipe, match="skiplist = "):
        EncodingRecipe(skiplist=skiplist)


def test_a_skiplist_is_a_copy_that_cannot_be_changed() -> None:
    words = [".", ","]
    recipe = EncodingRecipe(skiplist=words)  # type: ignore[arg-type]
    words.append("!")
    assert recipe.skiplist == (".", ",")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        recipe.skiplist = ()  # type: ignore[misc]


def test_merging_replaces_and_leaves_the_rest() -> None:
    recipe = EncodingRecipe(query_prefix="[Q]", skiplist=(".",))
    merged = recipe.merge({"query_length": 32, "skiplist": ["!"]})
    assert merged == EncodingRecipe(query_prefix="[Q]", skiplist=("!",), query_length=32)
    assert recipe == EncodingRecipe(query_prefix="[Q]", skiplist=(".",))


def test_merging_checks_names_and_values() -> None:
    with pytest.raises(InvalidRecipe, match=r"unknown settings \['max_length', 'query_len'\].*query_length"):
        EncodingRecipe().merge({"query_len": 32, "max_length": 3, "dimension": 4})
    with pytest.raises(InvalidRecipe, match="query_length = 1"):
        EncodingRecipe().merge({"query_length": 1})


@given(MASKS)
def test_special_tokens_are_kept_or_not(special: Any) -> None:
    before = special.copy()
    token_ids, none = np.zeros(len(special), dtype=np.int64), np.zeros(0, dtype=np.int64)
    assert EncodingRecipe().keeps_tokens(token_ids, special, none).all()
    plain = EncodingRecipe(keep_special_tokens=False)
    np.testing.assert_array_equal(plain.keeps_tokens(token_ids, special, none), ~special)
    np.testing.assert_array_equal(special, before)


@given(MASKS, st.sets(st.integers(0, 5)), st.booleans(), st.randoms(use_true_random=False))
def test_a_token_is_kept_by_its_own_id_alone(special: Any, skipped: set[int], keep: bool, random: Any) -> None:
    token_ids = np.array([random.randint(0, 5) for _ in special], dtype=np.int64)
    recipe = EncodingRecipe(keep_special_tokens=keep)
    kept = recipe.keeps_tokens(token_ids, special, np.array(sorted(skipped), dtype=np.int64))
    assert kept.dtype == np.bool_
    expected = [
        identifier not in skipped and (keep or not marker)
        for identifier, marker in zip(map(int, token_ids), map(bool, special), strict=True)
    ]
    assert list(map(bool, kept)) == expected


@pytest.mark.parametrize("factor", [0.99, 0, -2, float("nan"), float("inf"), "2", True, None])
def test_a_pooling_factor_is_a_finite_number_of_at_least_one(factor: Any) -> None:
    with pytest.raises(InvalidRecipe, match="pooling factor"):
        TokenPooling(factor)


def test_pooling_protects_a_number_of_tokens_in_one_of_two_flavours() -> None:
    assert TokenPooling(1).changes_nothing
    assert not TokenPooling(1.01).changes_nothing
    for wrong in (-1, 1.5, "1"):
        with pytest.raises(InvalidRecipe, match="protected"):
            TokenPooling(2, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRecipe, match="flavour"):
        TokenPooling(2, 1, "ward")  # pyright: ignore[reportArgumentType]


def test_pooling_may_be_given_as_json_holds_it() -> None:
    given = {"factor": 2.5, "protected": 0, "flavour": "pylate"}
    assert EncodingRecipe().merge({"pooling": given}).pooling == TokenPooling(2.5, 0, "pylate")
    for wrong in ({}, {"factor": 2, "size": 3}, {"protected": 1}):
        with pytest.raises(InvalidRecipe, match="pooling with settings"):
            EncodingRecipe().merge({"pooling": wrong})
    with pytest.raises(InvalidRecipe, match="pooling = 2"):
        EncodingRecipe().merge({"pooling": 2})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "query_length": st.integers(2, 512),
            "document_prefix": st.sampled_from([None, "[D] "]),
            "query_prompt": st.text(max_size=8),
            "expansion": st.just("fixed"),
            "expansion_token": st.sampled_from([None, "<end>"]),
            "skiplist": st.lists(st.sampled_from(".,;!"), unique=True),
            "query_skiplist": st.lists(st.sampled_from(".,;!"), unique=True),
            "keep_special_tokens": st.booleans(),
            "dimension": st.none() | st.integers(1, 64),
            "pooling": st.none() | st.builds(TokenPooling, st.floats(1, 9), st.integers(0, 3)),
        },
    )
)
def test_settings_written_as_json_read_back_as_the_same_recipe(settings: dict[str, Any]) -> None:
    recipe = EncodingRecipe().merge(settings)
    assert EncodingRecipe().merge(json.loads(json.dumps(recipe.settings()))) == recipe


@pytest.mark.parametrize("name", ["attend_to_expansion", "keep_special_tokens", "normalise"])
@pytest.mark.parametrize("value", ["false", "no", 1, None])
def test_a_switch_is_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(InvalidRecipe, match=f"{name} = "):
        EncodingRecipe(expansion="fixed").merge({name: value})


def test_pooling_wants_unit_vectors() -> None:
    EncodingRecipe(pooling=TokenPooling(1), normalise=False)
    with pytest.raises(InvalidRecipe, match="pooling without normalise"):
        EncodingRecipe(pooling=TokenPooling(2), normalise=False)


def test_a_prompt_is_text_that_can_be_written() -> None:
    EncodingRecipe(query_prompt="finde: 漢字 \n")
    with pytest.raises(InvalidRecipe, match="document_prompt"):
        EncodingRecipe(document_prompt="half \ud800")
