"""Small random transformers of every family, saved as a hub would hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from lateinteraction.adapters.encoding.encoder import EncodingOptions
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.projection import Projection
from lateinteraction.domain.recipe import EncodingRecipe

RECIPE = EncodingRecipe(query_length=16, document_length=48)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again; why?",
    "Late interaction keeps an embedding for every token of a document!",
    "A score is a sum of maxima (one for each token of the query).",
    "naïve café — 漢字 and שלום, so 😀 it goes.",
]
POSITIONS = 64


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: [CLS] text [SEP], lower case, continuations marked."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: <s> text </s>, bytes, words told apart by the space before them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R's: <s> text </s>, pieces that carry the space before them as ▁."""
    words = {f"▁{word}" for line in CORPUS for word in line.split()} | {"▁the", "▁fox", "▁,", "fox"}
    letters = {chr(code) for code in range(33, 127)} | set("".join(CORPUS)) - {" "}
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    pieces = [(word, -4.0) for word in sorted(words)] + [(letter, -6.0) for letter in sorted(letters | {"▁"})]
    backend = Tokenizer(models.Unigram([*special, *pieces], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([token for token, _ in special])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def bare() -> PreTrainedTokenizerFast:
    """As a decoder's: bytes, nothing before or after the text, padding on the left."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|mark|>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left"
    )


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LOUD = {"initializer_range": 0.4}  # so that a wrong position or mask is seen in the output
FAMILIES: Mapping[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[[int], PreTrainedConfig]]] = (
    MappingProxyType(
        {
            "bert": (
                wordpiece,
                lambda size: BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **SIZES, **LOUD),
            ),
            "distilbert": (
                wordpiece,
                lambda size: DistilBertConfig(
                    vocab_size=size,
                    max_position_embeddings=POSITIONS,
                    dim=32,
                    n_layers=2,
                    n_heads=4,
                    hidden_dim=48,
                    **LOUD,
                ),
            ),
            "roberta": (
                byte_level,
                lambda size: RobertaConfig(
                    vocab_size=size, max_position_embeddings=POSITIONS + 2, pad_token_id=1, **SIZES, **LOUD
                ),
            ),
            "mpnet": (
                byte_level,
                lambda size: MPNetConfig(
                    vocab_size=size, max_position_embeddings=POSITIONS + 2, pad_token_id=1, **SIZES, **LOUD
                ),
            ),
            "xlm-roberta": (
                unigram,
                lambda size: XLMRobertaConfig(
                    vocab_size=size, max_position_embeddings=POSITIONS + 2, pad_token_id=1, **SIZES, **LOUD
                ),
            ),
            "modernbert": (
                wordpiece,
                lambda size: ModernBertConfig(
                    vocab_size=size,
                    max_position_embeddings=POSITIONS,
                    local_attention=8,
                    global_attn_every_n_layers=2,
                    pad_token_id=0,
                    bos_token_id=2,
                    eos_token_id=3,
                    cls_token_id=2,
                    sep_token_id=3,
                    **SIZES,
                    **LOUD,
                ),
            ),
            "qwen2": (
                bare,
                lambda size: Qwen2Config(
                    vocab_size=size, max_position_embeddings=POSITIONS, num_key_value_heads=2, **SIZES, **LOUD
                ),
            ),
        }
    )
)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder of each family: config.json, model.safetensors, tokenizer.json."""
    folders = {}
    for name, (make_tokenizer, make_config) in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        tokenizer = make_tokenizer()
        with torch.random.fork_rng():
            torch.manual_seed(17)
            AutoModel.from_config(make_config(len(tokenizer))).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tokenizers(families: Mapping[str, Path]) -> Mapping[str, PreTrainedTokenizerFast]:
    """The tokenizer of each family, as transformers loads it; for reading, never changed."""
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in families.items()}


@pytest.fixture(scope="session")
def transformers(families: Mapping[str, Path]) -> Mapping[str, PreTrainedModel]:
    """The model of each family, as transformers loads it."""
    return {name: AutoModel.from_pretrained(folder).eval() for name, folder in families.items()}


@pytest.fixture(scope="session")
def over() -> Callable[..., HuggingFaceEncoder]:
    """Makes an encoder of a model in memory; keywords beyond the projection are options."""

    def build(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recipe: EncodingRecipe = RECIPE,
        *,
        projection: Projection | None = None,
        **options: Any,
    ) -> HuggingFaceEncoder:
        own = Projection() if projection is None else projection
        checkpoint = Checkpoint(
            transformer=model, tokenizer=tokenizer, projection=own, recipe=recipe, source="memory", format="plain"
        )
        return HuggingFaceEncoder(checkpoint, EncodingOptions(**options))

    return build


@pytest.fixture(scope="session")
def make(
    over: Callable[..., HuggingFaceEncoder],
    tokenizers: Mapping[str, PreTrainedTokenizerFast],
    transformers: Mapping[str, PreTrainedModel],
) -> Callable[..., HuggingFaceEncoder]:
    """Makes an encoder of a family; keywords are settings of the recipe, or options."""

    def build(family: str = "bert", **settings: Any) -> HuggingFaceEncoder:
        options = ("tokens_per_batch", "progress", "on_too_long", "projection")
        own = {name: settings.pop(name) for name in options if name in settings}
        return over(transformers[family], tokenizers[family], RECIPE.merge(settings), **own)

    return build
