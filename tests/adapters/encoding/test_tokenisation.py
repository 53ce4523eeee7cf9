"""Texts become the tokens that the recipe says, in every kind of tokenizer."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lateinteraction.adapters.encoding import tokenisation
from lateinteraction.adapters.encoding.tokenisation import (
    TEXTS_AT_ONCE,
    RecipeTokeniser,
    SpecialTokens,
    TokenisedTexts,
    resolve_skiplist,
)
from lateinteraction.adapters.huggingface.encoder import tokeniser_of
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe
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


# ── what the tokenizer's own framing gives ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_tokenizer_itself_with_truncation(tokenizers: Tokenizers, family: str) -> None:
    tokenised = tokeniser_of(tokenizers[family], recipe()).documents(AWKWARD)
    for text, ids in zip(AWKWARD, items(tokenised), strict=True):
        framed = tokenizers[family](text, truncation=True, max_length=24)["input_ids"]
        assert ids == (framed if content_of(tokenizers[family], text) else [])


@given(texts=st.lists(strategies.texts(), max_size=4), family=st.sampled_from(FAMILIES), marked=st.booleans())
def test_a_query_is_before_marker_text_after_and_masks(
    tokenizers: Tokenizers, texts: list[str], family: str, marked: bool
) -> None:
    tokenizer = tokenizers[family]
    marker = tokenizer.convert_ids_to_tokens(5)
    expansion = "none" if tokenizer.mask_token is None else "fixed"
    settings = recipe(query_prefix=marker if marked else None, expansion=expansion, query_prompt="find: ")
    tokenised = tokeniser_of(tokenizer, settings).queries(texts)
    framed = tokenizer("a")["input_ids"]
    own = tokenizer("a", add_special_tokens=False)["input_ids"]
    before, after = ([], []) if framed == own else (framed[:1], framed[-1:])
    before = before + [5] * marked
    for text, ids, attended in zip(texts, items(tokenised), tokenised.attended, strict=True):
        content = content_of(tokenizer, text, "find: ")
        expected = before + content[: 12 - len(before) - len(after)] + after if content else []
        assert attended == len(expected)
        if expansion == "fixed" and content:
            expected += [tokenizer.mask_token_id] * (12 - len(expected))
        assert ids == expected


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "tokenisation.json").read_text()).items(), ids=lambda case: case[0]
)
def test_tokens_are_those_of_pylate(case: tuple[str, dict[str, Any]]) -> None:
    name, golden = case
    tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN)
    settings = EncodingRecipe(
        query_length=8 if name.endswith("len8") else 16,
        document_length=12 if name.endswith("len12") else 40,
        query_prefix="[Q] ",
        document_prefix="[D] ",
        expansion="none" if name.endswith("no_expansion") else "fixed",
        attend_to_expansion=name.endswith("attend_expansion"),
        skiplist=("the", "a") if name.endswith("the_a") else tuple(string.punctuation),
    )
    tokeniser = tokeniser_of(tokenizer, settings)
    tokenised = (tokeniser.queries if name.startswith("queries") else tokeniser.documents)(golden["texts"])
    assert items(tokenised) == golden["token_ids"]
    assert tokenised.attended.tolist() == golden["attended"]
    assert np.diff(tokenised.kept_offsets).tolist() == golden["kept"]


# ── cutting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_texts_beyond_the_limit_are_reported_cut(tokenizers: Tokenizers, family: str) -> None:
    tokenizer = tokenizers[family]
    texts = ["x " * count for count in range(1, 40)]
    tokenised = tokeniser_of(tokenizer, recipe()).documents(texts)
    whole = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert tokenised.long.tolist() == [row for row, length in enumerate(whole) if length > 24]
    assert np.diff(tokenised.offsets).tolist() == [min(length, 24) for length in whole]


def test_a_marker_takes_a_place_from_the_text(tokenizers: Tokenizers) -> None:
    text = " ".join("abcdefghij")
    plain = tokeniser_of(tokenizers["bert"], recipe()).queries([text])
    marked = tokeniser_of(tokenizers["bert"], recipe(query_prefix="[unused0]")).queries([text])
    assert plain.long.tolist() == []
    assert marked.long.tolist() == [0]
    assert len(plain.token_ids) == len(marked.token_ids) == 12


def test_cuts_are_counted_over_all_chunks(tokenizers: Tokenizers) -> None:
    texts = ["fox"] * (TEXTS_AT_ONCE + 3)
    texts[1] = texts[TEXTS_AT_ONCE] = "fox " * 40
    tokenised = tokeniser_of(tokenizers["bert"], recipe()).documents(texts)
    assert tokenised.long.tolist() == [1, TEXTS_AT_ONCE]
    assert items(tokenised)[-1] == items(tokenised)[0]
    assert len(items(tokenised)) == len(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_of_a_megabyte_is_cut_like_any_other(tokenizers: Tokenizers, family: str) -> None:
    tokenised = tokeniser_of(tokenizers[family], recipe()).documents(["the fox " * 131_072, "x" * 1_048_576])
    assert tokenised.long[0] == 0
    assert items(tokenised)[0] == tokenizers[family]("the fox " * 40, truncation=True, max_length=24)["input_ids"]


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def kept_ids(tokenised: TokenisedTexts) -> list[int]:
    return tokenised.token_ids[tokenised.kept].tolist()


def test_every_token_is_kept_by_default(tokenizers: Tokenizers) -> None:
    tokeniser = tokeniser_of(tokenizers["bert"], EncodingRecipe())
    assert tokeniser.documents(AWKWARD).kept.all()
    assert tokeniser.queries(AWKWARD).kept.all()


def test_without_special_tokens_text_and_expansion_stay(tokenizers: Tokenizers) -> None:
    settings = recipe(
        keep_special_tokens=False, query_prefix="[unused0]", document_prefix="[unused1]", expansion="fixed"
    )
    tokeniser = tokeniser_of(tokenizers["bert"], settings)
    fox = tokenizers["bert"]("fox", add_special_tokens=False)["input_ids"]
    assert kept_ids(tokeniser.documents(["fox"])) == fox
    assert kept_ids(tokeniser.queries(["fox"])) == fox + [4] * (12 - len(fox) - 3)


def test_a_special_token_that_the_text_spells_is_text(tokenizers: Tokenizers) -> None:
    tokeniser = tokeniser_of(tokenizers["bert"], recipe(keep_special_tokens=False))
    assert kept_ids(tokeniser.documents(["[SEP] [CLS]"])) == [3, 2]


def test_skipped_words_go_from_documents_and_stay_in_queries(tokenizers: Tokenizers) -> None:
    tokeniser = tokeniser_of(tokenizers["bert"], recipe(skiplist=["the", ","]))
    plain = tokeniser_of(tokenizers["bert"], recipe())
    text = "the fox, the dog"
    the, comma = (tokenizers["bert"].convert_tokens_to_ids(word) for word in ("the", ","))
    assert kept_ids(tokeniser.documents([text])) == [
        token for token in kept_ids(plain.documents([text])) if token not in (the, comma)
    ]
    assert kept_ids(tokeniser.queries([text])) == kept_ids(plain.queries([text]))
    assert tokeniser.documents([text]).token_ids.tolist() == plain.documents([text]).token_ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["fox,", "fox , fox", ",", "(fox)", ", ,", "fox!,(", "the fox", "fox the"])
def test_a_skipped_word_is_gone_wherever_it_stands(tokenizers: Tokenizers, family: str, text: str) -> None:
    words = ("the", ",", "(", ")", "!")
    tokeniser = tokeniser_of(tokenizers[family], recipe(skiplist=words, keep_special_tokens=False))
    kept = tokenizers[family].convert_ids_to_tokens(kept_ids(tokeniser.documents([text])))
    assert not {piece.strip("▁Ġ") for piece in kept} & set(words)


def test_byte_level_words_are_skipped_with_and_without_their_space(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["roberta"]
    found = resolve_skiplist(tokenizer.backend_tokenizer, [","], tokenizer.unk_token_id)
    assert tokenizer.convert_tokens_to_ids(",") in found
    spaced = resolve_skiplist(tokenizer.backend_tokenizer, ["the"], tokenizer.unk_token_id)
    assert tokenizer.convert_tokens_to_ids("Ġthe") in spaced


def test_a_continuation_of_a_word_is_no_word(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["bert"]
    found = resolve_skiplist(tokenizer.backend_tokenizer, ["s", "a", "Fox"], tokenizer.unk_token_id)
    assert sorted(tokenizer.convert_ids_to_tokens(found)) == ["a", "fox", "s"]


@pytest.mark.parametrize(("family", "word"), [("bert", "漢漢"), ("bert", "Ж"), ("roberta", "🦊"), ("roberta", "zebra")])
def test_a_word_without_a_token_of_its_own_is_refused_by_name(tokenizers: Tokenizers, family: str, word: str) -> None:
    with pytest.raises(InvalidRecipe, match=word):
        tokeniser_of(tokenizers[family], recipe(skiplist=[",", word]))


# ── markers and expansion ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_marker_follows_the_first_special_token_or_comes_first(tokenizers: Tokenizers) -> None:
    a = content_of(tokenizers["bert"], "a")
    framed = tokeniser_of(tokenizers["bert"], recipe(document_prefix="[unused1]")).documents(["a"])
    assert framed.token_ids.tolist() == [2, 6, *a, 3]
    bare = tokeniser_of(tokenizers["qwen2"], recipe(document_prefix="<|mark|>")).documents(["a"])
    assert tokenizers["qwen2"].convert_ids_to_tokens(bare.token_ids) == ["<|mark|>", "a"]


def test_attended_expansion_is_attended(tokenizers: Tokenizers) -> None:
    settings = recipe(expansion="fixed", attend_to_expansion=True)
    assert tokeniser_of(tokenizers["bert"], settings).queries(["fox", "a"]).attended.tolist() == [12, 12]


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("empty", ["", " ", "\t \n\u3000"])
def test_a_text_without_a_token_of_its_own_gets_none_from_the_recipe(
    tokenizers: Tokenizers, empty: str, attend: bool
) -> None:
    settings = recipe(
        query_prefix="[unused0]",
        document_prefix="[unused1]",
        query_prompt="query: ",
        document_prompt="document: ",
        expansion="fixed",
        attend_to_expansion=attend,
    )
    tokeniser = tokeniser_of(tokenizers["bert"], settings)
    for tokenised in (tokeniser.queries([empty, "fox", empty]), tokeniser.documents([empty, "fox", empty])):
        first, fox, last = items(tokenised)
        assert first == last == []
        assert fox
        assert tokenised.attended[0] == tokenised.attended[2] == 0
    assert tokeniser.trace_queries([empty, "fox"]).offsets.tolist() == [0, 0, 12]


def test_a_text_that_normalises_to_nothing_is_empty(tokenizers: Tokenizers) -> None:
    tokenised = tokeniser_of(tokenizers["bert"], recipe()).documents(["\x00", "\u200b", "a"])
    assert np.diff(tokenised.offsets).tolist() == [0, 0, 3]


def unframed() -> PreTrainedTokenizerFast:
    """A tokenizer that has a mask token and frames texts with nothing."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]")


def test_queries_without_special_tokens_are_expanded_too() -> None:
    queries = tokeniser_of(unframed(), recipe(expansion="fixed", query_length=3)).queries(["", "a b", "b"])
    assert items(queries) == [[], [2, 3, 1], [3, 1, 1]]
    assert queries.attended.tolist() == [0, 2, 1]


# ── characters ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    texts=st.lists(strategies.texts(), max_size=4),
    family=st.sampled_from(FAMILIES),
    prompt=st.sampled_from(["", "q: "]),
)
def test_a_trace_has_exactly_the_kept_tokens(
    tokenizers: Tokenizers, texts: list[str], family: str, prompt: str
) -> None:
    settings = recipe(document_prompt=prompt, query_prompt=prompt, skiplist=[",", "a"])
    tokeniser = tokeniser_of(tokenizers[family], settings)
    for tokenised, trace in (
        (tokeniser.documents(texts), tokeniser.trace_documents(texts)),
        (tokeniser.queries(texts), tokeniser.trace_queries(texts)),
    ):
        assert trace.token_ids.tolist() == kept_ids(tokenised)
        assert trace.offsets.tolist() == tokenised.kept_offsets.tolist()
        for row, text in enumerate(texts):
            own = trace.span(row, row + 1)
            assert np.all(own.ends <= len(text))


def test_spans_are_the_words_of_the_text(tokenizers: Tokenizers) -> None:
    text = "The FOX, again — naïve 漢字 😀 fox"
    for family in ("bert", "roberta"):
        tokenizer = tokenizers[family]
        trace = tokeniser_of(tokenizer, EncodingRecipe()).trace_documents([text])
        expected = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        spans = list(zip(trace.starts.tolist(), trace.ends.tolist(), strict=True))
        assert spans[1:-1] == expected[1:-1]
        assert any(text[start:end] == "FOX" for start, end in spans) or family == "roberta"


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_do_not_know_the_prompt(tokenizers: Tokenizers, family: str) -> None:
    text = "the fox, again"
    prompt = "the query: "
    plain = tokeniser_of(tokenizers[family], recipe()).trace_documents([text])
    prompted = tokeniser_of(tokenizers[family], recipe(document_prompt=prompt)).trace_documents([text])
    extra = len(prompted.token_ids) - len(plain.token_ids)
    assert extra > 0
    real = prompted.ends > prompted.starts
    assert "".join(text[a:b] for a, b in zip(prompted.starts[real], prompted.ends[real], strict=True)).replace(
        " ", ""
    ) == text.replace(" ", "")
    assert (prompted.ends - prompted.starts)[:extra].max() <= 1


def test_markers_and_expansion_stand_for_no_character(tokenizers: Tokenizers) -> None:
    settings = recipe(query_prefix="[unused0]", expansion="fixed")
    trace = tokeniser_of(tokenizers["bert"], settings).trace_queries(["a fox", "x " * 30])
    first, cut = (trace.span(row, row + 1) for row in range(2))
    assert first.starts[:2].tolist() == first.ends[:2].tolist() == [0, 0]
    markers = np.flatnonzero(first.starts == first.ends)
    assert first.ends[markers[2:]].tolist() == [5] * (len(markers) - 2)
    assert cut.starts[-1] == cut.ends[-1] == cut.ends[-2] == 17


@pytest.mark.parametrize("family", FAMILIES)
def test_no_texts_are_no_tokens(tokenizers: Tokenizers, family: str) -> None:
    tokeniser = tokeniser_of(tokenizers[family], recipe())
    assert tokeniser.documents([]).offsets.tolist() == [0]
    assert len(tokeniser.trace_documents([])) == 0


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_marker_that_is_no_token_is_refused(tokenizers: Tokenizers) -> None:
    with pytest.raises(InvalidRecipe, match=r"query_prefix = '\[Q\] '"):
        tokeniser_of(tokenizers["bert"], recipe(query_prefix="[Q] "))
    with pytest.raises(InvalidRecipe, match="document_prefix"):
        tokeniser_of(tokenizers["roberta"], recipe(document_prefix="the fox"))


def test_a_vocabulary_without_a_mask_expands_with_its_end_token(tokenizers: Tokenizers) -> None:
    end = tokenizers["qwen2"].eos_token_id
    expanded = tokeniser_of(tokenizers["qwen2"], recipe(expansion="fixed")).queries(["fox"])
    assert expanded.token_ids[-3:].tolist() == [end] * 3
    assert len(expanded.token_ids) == 12


def test_expansion_uses_the_token_that_is_named(tokenizers: Tokenizers) -> None:
    named = recipe(expansion="fixed", expansion_token="[unused0]")
    expanded = tokeniser_of(tokenizers["bert"], named).queries(["fox"])
    assert expanded.token_ids[-1] == tokenizers["bert"].convert_tokens_to_ids("[unused0]")
    with pytest.raises(InvalidRecipe, match=r"no token '\[none\]'"):
        tokeniser_of(tokenizers["bert"], recipe(expansion="fixed", expansion_token="[none]"))


def test_expansion_without_a_token_to_expand_with_is_refused(tokenizers: Tokenizers) -> None:
    backend = tokenizers["qwen2"].backend_tokenizer
    with pytest.raises(InvalidRecipe, match="no mask and no end token"):
        RecipeTokeniser(backend, SpecialTokens(), recipe(expansion="fixed"))


def test_a_length_without_room_for_text_is_refused(tokenizers: Tokenizers) -> None:
    tokeniser_of(tokenizers["bert"], recipe(query_length=3))
    with pytest.raises(InvalidRecipe, match="query_length = 2"):
        tokeniser_of(tokenizers["bert"], recipe(query_length=2))
    with pytest.raises(InvalidRecipe, match="document_length = 3"):
        tokeniser_of(tokenizers["bert"], recipe(document_length=3, document_prefix="[unused0]"))


def test_a_tokenizer_that_knows_no_words_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InvalidModel, match="special tokens"):
        tokeniser_of(
            PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]"), recipe()
        )


def test_a_tokenizer_that_numbers_segments_is_refused() -> None:
    tokenizer = unframed()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [MASK]:2", pair="$A $B", special_tokens=[("[MASK]", 1)]
    )
    with pytest.raises(InvalidModel, match="segment"):
        tokeniser_of(tokenizer, recipe())


# ── the tokenizer given stays its owner's ───────────────────────────────────────────────────────────────────────────


def test_truncation_and_padding_of_the_given_tokenizer_change_nothing(tokenizers: Tokenizers) -> None:
    expected = items(tokeniser_of(tokenizers["bert"], recipe()).documents(AWKWARD))
    switched = PreTrainedTokenizerFast.from_pretrained(tokenizers["bert"].name_or_path)
    backend = switched.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=30)
    tokeniser = tokeniser_of(switched, recipe())
    assert items(tokeniser.documents(AWKWARD)) == expected
    assert backend.truncation["max_length"] == 3
    assert backend.padding["length"] == 30
    backend.enable_truncation(2)
    assert items(tokeniser.documents(AWKWARD)) == expected


# ── skiplists of both roles ─────────────────────────────────────────────────────────────────────────────────────────


def test_each_role_has_its_own_skiplist(tokenizers: Tokenizers) -> None:
    tokeniser = tokeniser_of(tokenizers["bert"], recipe(skiplist=[","], query_skiplist=["the"], expansion="fixed"))
    ids = {word: tokenizers["bert"].convert_tokens_to_ids(word) for word in (",", "the", "[MASK]")}
    query, document = tokeniser.queries(["the fox, the"]), tokeniser.documents(["the fox, the"])
    assert set(query.token_ids[~query.kept].tolist()) == {ids["the"]}
    assert set(document.token_ids[~document.kept].tolist()) == {ids[","]}
    assert ids["[MASK]"] in query.token_ids[query.kept]


@pytest.mark.parametrize("read", ["documents", "trace_documents"])
def test_a_text_the_tokenizer_makes_nothing_of_is_empty_with_a_prompt_too(tokenizers: Tokenizers, read: str) -> None:
    settings = recipe(document_prompt="the fox ")
    found = getattr(tokeniser_of(tokenizers["bert"], settings), read)(["\x00", "\u200b", "a", ""])
    offsets = found.offsets if read == "trace_documents" else found.kept_offsets
    assert (np.diff(offsets) > 0).tolist() == [False, False, True, False]


def test_texts_tokenised_in_smaller_runs_give_the_same(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    tokeniser = tokeniser_of(tokenizers["bert"], recipe())
    texts = [*AWKWARD, "the fox " * 40, *AWKWARD]
    whole = tokeniser.documents(texts)
    monkeypatch.setattr(tokenisation, "CHARACTERS_AT_ONCE", 30)
    parts = tokeniser.documents(texts)
    assert items(whole) == items(parts)
    assert whole.long.tolist() == parts.long.tolist()


@given(st.lists(st.integers(0, 9), max_size=20))
def test_runs_are_bounded_by_their_characters_and_hold_every_text_once(lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenisation, "CHARACTERS_AT_ONCE", 12)
        patched.setattr(tokenisation, "TEXTS_AT_ONCE", 4)
        runs = list(tokenisation._chunks(["x" * length for length in lengths]))
    assert [position for first, last in runs for position in range(first, last)] == list(range(len(lengths)))
    for first, last in runs:
        assert last - first <= 4
        assert sum(lengths[first:last]) <= 12 or last - first == 1
