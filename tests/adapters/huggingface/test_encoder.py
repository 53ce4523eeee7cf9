"""Embeddings are those of the model alone with each text, however the texts are batched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedModel, PreTrainedTokenizerFast, T5Config

from lateinteraction.adapters.encoding.batches import plan_batches
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import (
    InvalidModel,
    InvalidOption,
    InvalidRecipe,
    TruncatedTextWarning,
)
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Query

Tokenizers = Mapping[str, PreTrainedTokenizerFast]
Models = Mapping[str, PreTrainedModel]
FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "xlm-roberta", "modernbert", "qwen2")
RECIPE = EncodingRecipe(query_length=16, document_length=48)
Over = Callable[..., HuggingFaceEncoder]
Make = Callable[..., HuggingFaceEncoder]
TEXTS = (
    "the fox",
    "",
    "The quick brown fox jumps over the lazy dog, again and again; why?",
    "a",
    "nul \x00 😀👩‍👩‍👧‍👦 שלום 漢字 e\u0301",
    "the fox",
    " ".join(["late interaction keeps an embedding for every token"] * 3)[:120],
    " ",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2,
)


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(DocumentId(f"d{row}"), text) for row, text in enumerate(texts)]


def queries(texts: Sequence[str]) -> list[Query]:
    return [Query(text) for text in texts]


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids transformers gives a text, cut to the documents' length; a text of spaces has none."""
    return tokenizer(text, truncation=True, max_length=48)["input_ids"] if text.strip() else []


@torch.no_grad()
def alone(model: PreTrainedModel, ids: Sequence[int], attended: int | None = None) -> Tensor:
    """The model's rows for one text, with nothing else in the batch."""
    if not ids:
        return torch.zeros(0, model.config.hidden_size)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    if attended is not None:
        mask[:, attended:] = 0
    return model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor | None]]]:
    """The ids and attention mask of every call of the model."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["input_ids"], given["attention_mask"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def truncation_aside() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        yield


# ── the same numbers as the plain loop ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tokens_per_batch", [48, 100, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_gets_what_the_model_gives_it_alone(
    make: Make, tokenizers: Tokenizers, transformers: Models, family: str, tokens_per_batch: int
) -> None:
    with truncation_aside():
        embeddings = make(family, tokens_per_batch=tokens_per_batch).encode_documents(documents(TEXTS))
    assert embeddings.tokens.dtype == torch.float32
    assert len(embeddings) == len(TEXTS)
    for text, item in zip(TEXTS, embeddings, strict=True):
        ids = ids_of(tokenizers[family], text)
        torch.testing.assert_close(item, unit(alone(transformers[family], ids)), rtol=0, atol=1e-5)


def test_a_trained_model_gives_what_a_plain_loop_gives(over: Over, tiny_model: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    texts = [" ".join(["late interaction of tokens", "and more"] * count) for count in range(1, 12)]
    encoder = over(model, tokenizer, EncodingRecipe(), tokens_per_batch=256)
    for text, item in zip(texts, encoder.encode_documents(documents(texts)), strict=True):
        torch.testing.assert_close(item, unit(alone(model, tokenizer(text)["input_ids"])), rtol=0, atol=1e-5)


def test_without_normalising_the_rows_are_the_models_own(
    make: Make, tokenizers: Tokenizers, transformers: Models
) -> None:
    ids = tokenizers["bert"]("the fox")["input_ids"]
    rows = make(normalise=False).encode_documents(documents(["the fox", "a"]))[0]
    torch.testing.assert_close(rows, alone(transformers["bert"], ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet", "modernbert"])
def test_expanded_queries_get_what_the_model_gives_them_alone(
    make: Make, tokenizers: Tokenizers, transformers: Models, family: str, attend: bool
) -> None:
    texts = ["the fox", "", "a", "the quick brown fox jumps"]
    tokenizer = tokenizers[family]
    encoder = make(family, expansion="fixed", attend_to_expansion=attend, tokens_per_batch=48)
    for text, item in zip(texts, encoder.encode_queries(queries(texts)), strict=True):
        ids = ids_of(tokenizer, text)
        filled = ids + [tokenizer.mask_token_id] * (16 - len(ids)) if ids else []
        expected = alone(transformers[family], filled, None if attend else len(ids))
        torch.testing.assert_close(item, unit(expected), rtol=0, atol=1e-5)


def test_attending_to_the_expansion_changes_the_other_tokens(make: Make) -> None:
    ways = [
        make(expansion="fixed", attend_to_expansion=attend).encode_queries(queries(["fox"])) for attend in (False, True)
    ]
    assert (ways[0].tokens[:2] - ways[1].tokens[:2]).abs().max() > 1e-3


def test_the_marker_is_embedded_where_it_was_put(make: Make, tokenizers: Tokenizers, transformers: Models) -> None:
    encoder = make(query_prefix="[unused0]", document_prefix="[unused1]")
    first, *rest = tokenizers["bert"]("the fox")["input_ids"]
    query, document = encoder.encode_queries(queries(["the fox"])), encoder.encode_documents(documents(["the fox"]))
    torch.testing.assert_close(query.tokens, unit(alone(transformers["bert"], [first, 5, *rest])), rtol=0, atol=1e-5)
    torch.testing.assert_close(document.tokens, unit(alone(transformers["bert"], [first, 6, *rest])), rtol=0, atol=1e-5)


def test_a_prompt_is_part_of_what_the_model_reads(make: Make) -> None:
    prompted = make(document_prompt="the quick ").encode_documents(documents(["fox"]))
    written_out = make().encode_documents(documents(["the quick fox"]))
    torch.testing.assert_close(prompted.tokens, written_out.tokens)


# ── neighbours, order, duplicates ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def together(over: Over, tokenizers: Tokenizers, transformers: Models) -> Mapping[str, TokenEmbeddings[Tensor]]:
    """All texts, encoded in one call, by family."""
    with truncation_aside():
        return {
            family: over(transformers[family], tokenizers[family], RECIPE).encode_documents(documents(TEXTS))
            for family in FAMILIES
        }


@given(
    chosen=st.lists(st.integers(0, len(TEXTS) - 1), max_size=8),
    family=st.sampled_from(FAMILIES),
    budget=st.integers(48, 300),
)
def test_an_item_does_not_depend_on_its_batch(
    over: Over,
    tokenizers: Tokenizers,
    transformers: Models,
    together: Mapping[str, TokenEmbeddings[Tensor]],
    chosen: list[int],
    family: str,
    budget: int,
) -> None:
    encoder = over(transformers[family], tokenizers[family], RECIPE, tokens_per_batch=budget)
    with truncation_aside():
        some = encoder.encode_documents(documents([TEXTS[row] for row in chosen]))
    for row, item in zip(chosen, some, strict=True):
        torch.testing.assert_close(item, together[family][row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_texts_give_no_items(make: Make, family: str) -> None:
    for embeddings in (make(family).encode_documents([]), make(family).encode_queries([])):
        assert embeddings.tokens.shape == (0, 32)
        assert len(embeddings) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_texts_are_empty_items_that_the_model_never_sees(make: Make, transformers: Models, family: str) -> None:
    with watched(transformers[family]) as calls:
        embeddings = make(family).encode_documents(documents(["", "fox", " \n"]))
        nothing = make(family).encode_documents(documents(["", " "]))
    assert embeddings.lengths.tolist() == [0, len(embeddings.tokens), 0]
    assert nothing.tokens.shape == (0, 32)
    assert [len(ids) for ids, _ in calls] == [1]


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(lengths=st.lists(st.integers(0, 40), max_size=60), budget=st.integers(40, 200))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    given_lengths = np.array(lengths, dtype=np.int64)
    batches = list(plan_batches(given_lengths, budget))
    assert sorted(row for batch in batches for row in batch) == np.flatnonzero(given_lengths).tolist()
    assert all(len(batch) * given_lengths[batch].max() <= budget for batch in batches)
    order = [int(given_lengths[row]) for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)


def test_the_model_never_sees_more_tokens_than_the_budget(make: Make, transformers: Models) -> None:
    with watched(transformers["bert"]) as calls, truncation_aside():
        make(tokens_per_batch=100).encode_documents(documents(TEXTS * 4))
    assert len(calls) > 4
    assert max(ids.numel() for ids, _ in calls) <= 100


def test_a_mask_is_given_only_where_there_is_padding(make: Make, transformers: Models) -> None:
    with watched(transformers["bert"]) as calls:
        make().encode_documents(documents(["the fox", "the dog"]))
        make().encode_documents(documents(["the fox", "the"]))
    (_, none), (ids, mask) = calls
    assert none is None
    assert mask is not None
    assert mask.reshape(ids.shape).long().tolist() == [[1] * ids.shape[1], [1] * (ids.shape[1] - 1) + [0]]


def test_sorting_by_length_leaves_little_padding(make: Make, transformers: Models) -> None:
    texts = ["a " * int(count) for count in np.random.default_rng(3).integers(1, 46, 200)]
    encoder = make(tokens_per_batch=256)
    with watched(transformers["bert"]) as calls:
        _, report = encoder.encode_documents_with_report(documents(texts))
    assert sum(ids.numel() for ids, _ in calls) == report.tokens + report.padding
    assert report.padding < 0.1 * report.tokens


def test_progress_is_told_of_every_batch_and_of_the_end(make: Make) -> None:
    told: list[tuple[int, int]] = []
    encoder = make(tokens_per_batch=48, progress=lambda done, total: told.append((done, total)))
    with truncation_aside():
        encoder.encode_documents(documents(TEXTS))
        encoder.encode_queries(queries(TEXTS))
    assert told[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) > 2


def test_progress_ends_where_no_text_has_a_token(make: Make) -> None:
    told: list[tuple[int, int]] = []
    encoder = make("qwen2", progress=lambda done, total: told.append((done, total)))
    encoder.encode_documents(documents(["", ""]))
    encoder.encode_documents([])
    assert told == [(2, 2)]


# ── what is kept, cut and normalised ────────────────────────────────────────────────────────────────────────────────


def test_only_kept_tokens_come_back(make: Make, tokenizers: Tokenizers) -> None:
    text = "the fox, the dog"
    whole = make().encode_documents(documents([text, "a, b"]))
    encoder = make(skiplist=["the", ","], keep_special_tokens=False)
    some = encoder.encode_documents(documents([text, "a, b"]))
    ids = tokenizers["bert"](text)["input_ids"]
    skipped = tokenizers["bert"].convert_tokens_to_ids(["the", ",", "[CLS]", "[SEP]"])
    torch.testing.assert_close(some[0], whole[0][[token not in skipped for token in ids]], rtol=0, atol=1e-5)


def test_embeddings_and_trace_have_the_same_tokens(make: Make) -> None:
    encoder = make(skiplist=[","], expansion="fixed", query_prefix="[unused0]")
    with truncation_aside():
        assert np.array_equal(
            encoder.encode_documents(documents(TEXTS)).offsets, encoder.trace_documents(documents(TEXTS)).offsets
        )
        assert np.array_equal(
            encoder.encode_queries(queries(TEXTS)).offsets, encoder.trace_queries(queries(TEXTS)).offsets
        )


def test_dimensions_are_cut_before_normalising(make: Make) -> None:
    raw = make(normalise=False).encode_documents(documents(TEXTS[:4]))
    cut = make(dimension=5).encode_documents(documents(TEXTS[:4]))
    torch.testing.assert_close(cut.tokens, unit(raw.tokens[:, :5]), rtol=0, atol=1e-5)
    assert make(dimension=5).encode_queries([]).tokens.shape == (0, 5)


def test_a_zero_embedding_stays_zero(over: Over, tokenizers: Tokenizers) -> None:
    model = AutoModel.from_config(BertConfig(vocab_size=220, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with torch.no_grad():
        for parameter in model.encoder.layer[0].output.LayerNorm.parameters():
            parameter.zero_()
    encoder = over(model, tokenizers["bert"], EncodingRecipe())
    tokens = encoder.encode_documents(documents(["the fox"])).tokens
    assert len(tokens) > 2
    assert torch.count_nonzero(tokens) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_give_float32_embeddings_of_length_one(
    over: Over, families: Mapping[str, Path], make: Make, dtype: torch.dtype
) -> None:
    model = AutoModel.from_pretrained(families["bert"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(families["bert"])
    tokens = over(model, tokenizer, RECIPE).encode_documents(documents(TEXTS[:4])).tokens
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(len(tokens)))
    exact = make().encode_documents(documents(TEXTS[:4])).tokens
    assert (tokens * exact).sum(-1).min() > 0.98


def test_embeddings_may_take_part_in_a_loss(make: Make) -> None:
    tokens = make().encode_documents(documents(["the fox"])).tokens
    weight = torch.ones(tokens.shape[1], requires_grad=True)
    (tokens * weight).sum().backward()
    torch.testing.assert_close(weight.grad, tokens.sum(0))


def test_a_model_left_in_training_mode_is_put_out_of_it(over: Over, families: Mapping[str, Path], make: Make) -> None:
    model = AutoModel.from_pretrained(families["bert"]).train()
    encoder = over(model, AutoTokenizer.from_pretrained(families["bert"]), RECIPE)
    torch.testing.assert_close(
        encoder.encode_documents(documents(["the fox"])).tokens, make().encode_documents(documents(["the fox"])).tokens
    )


# ── what the caller is told ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_warning_says_how_many_texts_were_cut_to_what(make: Make) -> None:
    with pytest.warns(TruncatedTextWarning, match=r"2 of 9 documents .* document_length = 48") as caught:
        make().encode_documents(documents(["a " * 47, "a " * 200, *TEXTS[:4], "a " * 46, *TEXTS[:2]]))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(TruncatedTextWarning, match=r"1 of 1 queries .* query_length = 16"):
        make().encode_queries(queries(["a " * 17]))


def test_the_report_counts_and_does_not_warn(make: Make) -> None:
    texts = ["a " * 200, "the fox", ""]
    embeddings, report = make(skiplist=["the"]).encode_documents_with_report(documents(texts))
    assert report.texts == 3
    assert report.truncated.tolist() == [0]
    assert report.length == 48
    assert report.tokens == 48 + 4
    assert report.padding == 2 * 48 - report.tokens
    assert report.kept == len(embeddings.tokens) == report.tokens - 1
    _, report = make().encode_queries_with_report(queries(texts))
    assert report.truncated.tolist() == [0]
    assert report.length == 16


def test_another_recipe_shares_the_weights(make: Make) -> None:
    encoder = make()
    raw = encoder.with_recipe(encoder.recipe.merge({"normalise": False}))
    before = encoder.encode_documents(documents(["the fox"])).tokens
    torch.testing.assert_close(unit(raw.encode_documents(documents(["the fox"])).tokens), before, rtol=0, atol=1e-6)
    assert encoder.recipe.normalise
    assert not raw.recipe.normalise


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_may_share_an_encoder(make: Make) -> None:
    encoder = make(expansion="fixed")
    texts = [f"the fox {'again ' * (row % 7)} {row}" for row in range(48)]
    expected = encoder.encode_documents(documents(texts))
    wanted = encoder.encode_queries(queries(texts))

    def both(row: int) -> tuple[TokenEmbeddings[Tensor], TokenEmbeddings[Tensor]]:
        return encoder.encode_documents(documents(texts[row : row + 2])), encoder.encode_queries(queries([texts[row]]))

    with ThreadPoolExecutor(8) as pool:
        for row, (document, query) in enumerate(pool.map(both, range(47))):
            torch.testing.assert_close(document[0], expected[row], rtol=0, atol=1e-5)
            torch.testing.assert_close(document[1], expected[row + 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(query[0], wanted[row], rtol=0, atol=1e-5)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_a_length_beyond_the_models_positions_is_refused(make: Make, family: str) -> None:
    make(family, document_length=64)
    with pytest.raises(InvalidRecipe, match="at most 64"):
        make(family, document_length=65)
    with pytest.raises(InvalidRecipe, match="query_length = 65"):
        make(family, query_length=65)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_position_can_be_used(make: Make, family: str) -> None:
    embeddings = make(family, document_length=64).encode_documents(documents([" ".join("a" * 62)]))
    assert torch.isfinite(embeddings.tokens).all()


def test_more_dimensions_than_the_model_has_are_refused(make: Make) -> None:
    assert make(dimension=32).encode_queries([]).dimension == 32
    with pytest.raises(InvalidRecipe, match="at most 32"):
        make(dimension=33)


def test_a_batch_that_cannot_hold_one_text_is_refused(make: Make) -> None:
    make(tokens_per_batch=48)
    with pytest.raises(InvalidOption, match="48 or more"):
        make(tokens_per_batch=47)
    with pytest.raises(InvalidOption, match="48 or more"):
        make(tokens_per_batch="64")


def test_the_batch_grows_with_the_recipe_where_nobody_set_it(over: Over, tiny_model: Path, make: Make) -> None:
    model, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model.embeddings.position_embeddings = torch.nn.Embedding(2048, 128)
    model.embeddings.position_ids = torch.arange(2048)[None]
    model.embeddings.token_type_ids = torch.zeros(1, 2048, dtype=torch.long)
    encoder = over(model, tokenizer, EncodingRecipe(document_length=2048))
    assert encoder.encode_documents(documents(["a " * 2046])).lengths.tolist() == [2048]
    with pytest.raises(InvalidOption):
        make(tokens_per_batch=48).with_recipe(RECIPE.merge({"document_length": 64}))


def test_a_tokenizer_the_model_does_not_know_is_refused(
    over: Over, tokenizers: Tokenizers, transformers: Models
) -> None:
    with pytest.raises(InvalidModel, match="token embeddings"):
        over(transformers["bert"], tokenizers["roberta"], RECIPE)


def test_a_model_with_a_decoder_is_refused(over: Over, tokenizers: Tokenizers) -> None:
    config = T5Config(vocab_size=220, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(InvalidModel, match="decoder"):
        over(AutoModel.from_config(config), tokenizers["bert"], RECIPE)


def test_attention_that_drops_unattended_tokens_is_refused_with_unattended_expansion(
    over: Over, families: Mapping[str, Path], tokenizers: Tokenizers
) -> None:
    model = AutoModel.from_pretrained(families["bert"])
    model.config._attn_implementation_internal = "flash_attention_2"
    over(model, tokenizers["bert"], RECIPE)
    over(model, tokenizers["bert"], RECIPE.merge({"expansion": "fixed", "attend_to_expansion": True}))
    with pytest.raises(InvalidRecipe, match="flash_attention_2"):
        over(model, tokenizers["bert"], RECIPE.merge({"expansion": "fixed"}))
