"""MultiVectorEncoder of sentence-transformers 6: what its modules say is what the recipe says, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import read_checkpoint
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling

TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


@pytest.fixture
def spec(checkpoints: Any) -> Callable[..., Any]:
    """Makes the description of a dense layer."""
    return checkpoints.dense


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def recipe_of(folder: Path) -> EncodingRecipe:
    return read_checkpoint(folder).recipe


def test_a_multi_vector_encoder_says_everything_in_its_modules(checkpoints: Any) -> None:
    checkpoint = read_checkpoint(checkpoints.multi_vector())
    assert checkpoint.format == "multi-vector"
    assert checkpoint.dimension == 16
    assert checkpoint.recipe == EncodingRecipe(
        query_prefix="[Q] ",
        document_prefix="[D] ",
        query_length=16,
        document_length=40,
        expansion="fixed",
        skiplist=(",", "."),
    )


@pytest.mark.parametrize(
    ("expansion", "expected"),
    [
        (None, ("none", False, None, 30)),
        ({"strategy": "fixed", "length": 20}, ("fixed", False, None, 20)),
        ({"strategy": "fixed", "length": 20, "attend": True, "token": "fox"}, ("fixed", True, "fox", 20)),
    ],
)
def test_the_expansion_is_that_of_the_transformers_file(checkpoints: Any, expansion: Any, expected: Any) -> None:
    folder = checkpoints.multi_vector(sentence={"query_expansion": expansion, "query_length": 30})
    recipe = recipe_of(folder)
    found = (recipe.expansion, recipe.attend_to_expansion, recipe.expansion_token, recipe.query_length)
    assert found == expected


@pytest.mark.parametrize(("attend", "expected"), [(True, "fixed"), (False, "none")])
def test_expansion_that_no_mask_scores_counts_only_where_it_is_attended(
    checkpoints: Any, spec: Callable[..., Any], attend: bool, expected: str
) -> None:
    expansion = {"strategy": "fixed", "length": 20, "attend": attend}
    modules = [("Dense", spec(more=TOKENS)), ("Normalize", TOKENS)]
    recipe = recipe_of(checkpoints.multi_vector(modules=modules, sentence={"query_expansion": expansion}))
    assert (recipe.expansion, recipe.query_length) == (expected, 20)


@pytest.mark.parametrize(
    ("tasks", "documents", "queries"),
    [
        (["document"], ("fox",), ()),
        ("query", (), ("fox",)),
        (["query", "document"], ("fox",), ("fox",)),
        (None, ("fox",), ()),
        ([], (), ()),
    ],
)
def test_the_mask_skips_words_in_the_roles_it_names(
    checkpoints: Any, tasks: Any, documents: tuple[str, ...], queries: tuple[str, ...]
) -> None:
    recipe = recipe_of(
        checkpoints.multi_vector(modules=[("MultiVectorMask", {"skiplist_words": ["fox"], "skiplist_tasks": tasks})])
    )
    assert (recipe.skiplist, recipe.query_skiplist) == (documents, queries)


@pytest.mark.parametrize(
    ("modules", "normalises"),
    [([("Normalize", TOKENS)], True), ([("Normalize", {})], False), ([("MultiVectorMask", {})], False)],
)
def test_embeddings_are_normalised_where_a_module_does_that_to_tokens(
    checkpoints: Any, modules: Any, normalises: bool
) -> None:
    assert recipe_of(checkpoints.multi_vector(modules=modules)).normalise is normalises


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pool_factor": 1.5, "num_protected_tokens": 2}, TokenPooling(1.5, 2, "pylate")),
        ({"pool_factor": 2, "normalize_embeddings": False}, TokenPooling(2, 1, "pylate")),
        ({"pool_factor": 1.0}, None),
        ({}, None),
    ],
)
def test_pooling_is_that_of_its_module(checkpoints: Any, settings: Any, pooling: TokenPooling | None) -> None:
    modules = [("Normalize", TOKENS), ("HierarchicalTokenPooling", settings)]
    assert recipe_of(checkpoints.multi_vector(modules=modules)).pooling == pooling


def test_pooling_that_ends_in_unit_vectors_is_the_exact_one_and_said_to_differ(checkpoints: Any) -> None:
    modules = [("Normalize", TOKENS), ("HierarchicalTokenPooling", {"pool_factor": 2, "normalize_embeddings": True})]
    with pytest.warns(UserWarning, match="clustered exactly"):
        recipe = recipe_of(checkpoints.multi_vector(modules=modules))
    assert recipe.pooling == TokenPooling(2, 1, "exact")


def test_scores_that_are_means_are_said_to_be_sums_here(checkpoints: Any) -> None:
    with pytest.warns(UserWarning, match="here they are sums"):
        recipe_of(checkpoints.multi_vector(similarity_fn_name="meanmaxsim"))


def test_lengths_that_the_file_does_not_set_are_the_tokenizers_within_the_positions(checkpoints: Any) -> None:
    folder = checkpoints.multi_vector(sentence={"document_length": None, "query_expansion": None})
    edit(folder / "tokenizer_config.json", model_max_length=500)
    recipe = recipe_of(folder)
    assert (recipe.query_length, recipe.document_length) == (64, 64)


def test_a_length_that_the_file_sets_must_fit_the_positions(checkpoints: Any) -> None:
    for folder in (
        checkpoints.multi_vector(sentence={"document_length": 65}),
        checkpoints.pylate(document_length=65),
        checkpoints.stanford(doc_maxlen=65),
    ):
        with pytest.raises(InvalidRecipe, match="document_length = 65; expected at most 64"):
            HuggingFaceEncoder(read_checkpoint(folder))


MULTI_VECTOR_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "expansion by the least": (
        {"sentence": {"query_expansion": {"strategy": "min", "length": 16}}},
        "query_expansion by 'min'",
    ),
    "expansion without a length": ({"sentence": {"query_expansion": {"strategy": "fixed"}}}, "query_length = None"),
    "expansion that is a word": ({"sentence": {"query_expansion": "fixed length"}}, "query_expansion by"),
    "an unknown token to fill with": (
        {"sentence": {"query_expansion": {"strategy": "fixed", "length": 16, "token": "<fill>"}}},
        "expansion_token = '<fill>' is",
    ),
    "only some ids": ({"modules": [("MultiVectorMask", {"keep_only_token_ids": [7]})]}, "keep_only_token_ids"),
    "another task to skip in": ({"modules": [("MultiVectorMask", {"skiplist_tasks": ["image"]})]}, "['image']"),
    "pooled queries": (
        {"modules": [("HierarchicalTokenPooling", {"tasks": ["query", "document"], "pool_factor": 2})]},
        "pooled queries",
    ),
    "a norm after the pooling": (
        {"modules": [("HierarchicalTokenPooling", {"pool_factor": 2}), ("Normalize", TOKENS)]},
        "in the order",
    ),
    "a mask after the pooling": (
        {"modules": [("HierarchicalTokenPooling", {"pool_factor": 2}), ("MultiVectorMask", {})]},
        "in the order",
    ),
    "two masks": ({"modules": [("MultiVectorMask", {}), ("MultiVectorMask", {})]}, "in the order"),
    "pooling of the whole": ({"modules": [("Pooling", {})]}, "modules ['Pooling']"),
}


@pytest.mark.parametrize("damage", MULTI_VECTOR_DAMAGE)
def test_a_multi_vector_encoder_that_no_recipe_can_say_is_refused(checkpoints: Any, damage: str) -> None:
    changes, reason = MULTI_VECTOR_DAMAGE[damage]
    with pytest.raises(InvalidModel) as refused:
        read_checkpoint(checkpoints.multi_vector(**changes))
    assert reason in str(refused.value)


def test_a_prompt_that_begins_with_an_added_token_is_a_marker_and_the_rest(checkpoints: Any) -> None:
    folder = checkpoints.multi_vector("bert", prompts={"query": "[Q] find: ", "document": "[D] "})
    recipe = read_checkpoint(folder).recipe
    assert (recipe.query_prefix, recipe.query_prompt) == ("[Q] ", "find: ")
    assert (recipe.document_prefix, recipe.document_prompt) == ("[D] ", "")


def test_a_prompt_of_plain_text_stays_one(checkpoints: Any) -> None:
    folder = checkpoints.multi_vector("bert", prompts={"query": "find: ", "document": "a [D] "})
    recipe = read_checkpoint(folder).recipe
    assert (recipe.query_prefix, recipe.query_prompt) == (None, "find: ")
    assert (recipe.document_prefix, recipe.document_prompt) == (None, "a [D] ")


def test_a_marker_or_prompt_of_ones_own_takes_the_place_of_the_files(checkpoints: Any) -> None:
    folder = checkpoints.multi_vector("bert")
    assert read_checkpoint(folder, recipe={"query_prefix": None, "query_prompt": "x "}).recipe.query_prompt == "x "
    assert read_checkpoint(folder, recipe={"query_prefix": "[D] "}).recipe.query_prefix == "[D] "
