"""The recipe: settings that fit together, and which tokens they keep."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lateinteraction.domain.errors import InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe

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
def test_special_tokens_of_a_query_are_kept_or_not(special: Any) -> None:
    before = special.copy()
    assert EncodingRecipe().keeps_query_tokens(special).all()
    np.testing.assert_array_equal(EncodingRecipe(keep_special_tokens=False).keeps_query_tokens(special), ~special)
    np.testing.assert_array_equal(special, before)


@given(MASKS, st.sets(st.integers(0, 5)), st.booleans(), st.randoms(use_true_random=False))
def test_a_document_token_is_kept_by_its_own_id_alone(special: Any, skipped: set[int], keep: bool, random: Any) -> None:
    token_ids = np.array([random.randint(0, 5) for _ in special], dtype=np.int64)
    recipe = EncodingRecipe(keep_special_tokens=keep)
    kept = recipe.keeps_document_tokens(token_ids, special, np.array(sorted(skipped), dtype=np.int64))
    assert kept.dtype == np.bool_
    expected = [
        identifier not in skipped and (keep or not marker)
        for identifier, marker in zip(map(int, token_ids), map(bool, special), strict=True)
    ]
    assert list(map(bool, kept)) == expected
