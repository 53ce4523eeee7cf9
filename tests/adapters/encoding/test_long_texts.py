"""A text beyond the recipe's length is cut, split or refused, and what became of it is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.encoding.tokenisation import (
    TokenisedTexts,
)
from lateinteraction.adapters.huggingface.encoder import tokeniser_of
from lateinteraction.domain.errors import InvalidRecipe, TextTooLong
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.testing import strategies

Tokenizers = Mapping[str, PreTrainedTokenizerFast]
FAMILIES = ("bert", "roberta", "xlm-roberta", "qwen2")
AWKWARD = (
    "",
    " ",
    "a",
    "The fox, again!",
    "nul \x00 in the middle",
    "😀👩‍👩‍👧‍👦 e\u0301",
    "שלום עולם مرحبا",
    "漢字 kanji",
    "[SEP] </s> [MASK] <mask> <|endoftext|>",
    "the quick brown fox " * 20,
)
GOLDEN = Path(__file__).parents[2] / "conformance" / "tiny-colbert"


def items(tokenised: TokenisedTexts) -> list[list[int]]:
    return [tokenised.token_ids[a:b].tolist() for a, b in zip(tokenised.offsets, tokenised.offsets[1:], strict=False)]


def content_of(tokenizer: PreTrainedTokenizerFast, text: str, prompt: str = "") -> list[int]:
    """The ids of a text's own characters; a text of spaces has none, and no prompt either."""
    own = tokenizer(text, add_special_tokens=False)["input_ids"] if text.strip() else []
    return tokenizer(prompt + text, add_special_tokens=False)["input_ids"] if own else []


def recipe(**settings: Any) -> EncodingRecipe:
    return EncodingRecipe(**{"query_length": 12, "document_length": 24, **settings})


@pytest.mark.parametrize("family", FAMILIES)
@given(texts=st.lists(strategies.texts(), max_size=4), prompted=st.booleans(), length=st.integers(12, 30))
def test_splitting_loses_and_repeats_no_token_of_a_text(
    tokenizers: Tokenizers, family: str, texts: list[str], prompted: bool, length: int
) -> None:
    prompt = "find: " if prompted else ""
    settings = recipe(document_length=length, document_prompt=prompt, keep_special_tokens=False)
    split = tokeniser_of(tokenizers[family], settings, EncodingOptions(on_too_long="split"))
    texts = [*texts, "the quick brown fox, again and again; " * 5]
    tokenised, trace = split.documents(texts), split.trace_documents(texts)
    assert np.diff(tokenised.offsets).max() <= length
    assert np.array_equal(trace.offsets, tokenised.kept_offsets)
    for item, text in enumerate(texts):
        own = slice(int(trace.offsets[item]), int(trace.offsets[item + 1]))
        whole = content_of(tokenizers[family], text, prompt)
        behind_prompt = trace.ends[own] > 0
        assert trace.token_ids[own][behind_prompt].tolist() == [
            token
            for token, (_, end) in zip(whole, spans_of(tokenizers[family], text, prompt), strict=True)
            if end > len(prompt)
        ]
    assert len(texts) - 1 in tokenised.long
    assert not tokenised.lost.any()


def spans_of(tokenizer: PreTrainedTokenizerFast, text: str, prompt: str) -> list[tuple[int, int]]:
    if not content_of(tokenizer, text):
        return []
    return tokenizer(prompt + text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def test_every_sequence_of_a_split_text_begins_as_a_document_does(tokenizers: Tokenizers) -> None:
    settings = recipe(document_prompt="find: ", document_prefix="[unused1]")
    split = tokeniser_of(tokenizers["bert"], settings, EncodingOptions(on_too_long="split"))
    tokenised = split.documents(["a", "fox " * 60, ""])
    heads = {tuple(ids[:4]) for ids in items(tokenised) if ids}
    assert len(heads) == 1
    assert tokenised.items.tolist() == [
        0,
        1,
        1 + np.count_nonzero(np.diff(tokenised.offsets)) - 1,
        len(tokenised.offsets) - 1,
    ]


def test_a_text_that_fits_is_not_split(tokenizers: Tokenizers) -> None:
    long, options = recipe(document_length=60), EncodingOptions(on_too_long="split")
    plain = tokeniser_of(tokenizers["bert"], long).documents(AWKWARD[:-1])
    split = tokeniser_of(tokenizers["bert"], long, options).documents(AWKWARD[:-1])
    assert items(plain) == items(split)
    assert len(split.long) == 0


def test_a_prompt_that_fills_the_length_is_refused(tokenizers: Tokenizers) -> None:
    settings = recipe(document_prompt="the fox " * 11)
    for way in ("split", "truncate", "error"):
        with pytest.raises(InvalidRecipe, match="22 of the document_prompt and at least one"):
            tokeniser_of(tokenizers["bert"], settings, EncodingOptions(on_too_long=way))
    tokeniser_of(tokenizers["bert"], recipe(document_prompt="the fox " * 10)).documents(["the dog"])


def test_what_was_cut_is_counted(tokenizers: Tokenizers) -> None:
    tokenised = tokeniser_of(tokenizers["bert"], recipe()).documents(["fox", "fox " * 22, "fox " * 30])
    assert (tokenised.long.tolist(), tokenised.lost.tolist()) == ([2], [8])


@pytest.mark.parametrize("read", ["documents", "trace_documents", "queries"])
def test_a_text_that_is_too_long_is_an_error_where_that_was_asked_for(tokenizers: Tokenizers, read: str) -> None:
    strict = tokeniser_of(tokenizers["bert"], recipe(), EncodingOptions(on_too_long="error"))
    getattr(strict, read)(["fox " * 10])
    with pytest.raises(TextTooLong, match=r"1 texts .* 'fox fox .* by (3|15) tokens"):
        getattr(strict, read)(["fox", "fox " * 25])
