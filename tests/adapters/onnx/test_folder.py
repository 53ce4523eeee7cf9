"""encoder.json: what is written is read again, and anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.encoding.tokenisation import SpecialTokens
from lateinteraction.adapters.onnx.folder import Description, read_description, write_description
from lateinteraction.domain.errors import InvalidModel
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling

IDS = st.none() | st.integers(0, 300_000)
DIGEST = "0" * 64
RECIPES = st.builds(
    EncodingRecipe,
    query_length=st.integers(2, 512),
    query_prefix=st.none() | st.just("[Q]"),
    document_prompt=st.sampled_from(["", "passage: ", "文書："]),
    expansion=st.sampled_from(["none", "fixed"]),
    skiplist=st.lists(st.sampled_from([".", ",", "—", "“"]), unique=True),
    keep_special_tokens=st.booleans(),
    dimension=st.none() | st.integers(1, 128),
    pooling=st.none() | st.builds(TokenPooling, factor=st.floats(1, 4), protected=st.integers(0, 3)),
)
DESCRIPTIONS = st.builds(
    Description,
    recipe=RECIPES,
    specials=st.builds(SpecialTokens, mask=IDS, end=IDS, padding=IDS, unknown=IDS),
    dimension=st.integers(1, 4096),
    positions=st.none() | st.integers(1, 8192),
    vocabulary=st.integers(1, 300_000),
    weights=st.sampled_from(["float32", "int8"]),
    source=st.text(st.characters(exclude_categories=["Cs"])),
    versions=st.just({"torch": "2.13.0"}),
    sha256=st.just({"model.onnx": DIGEST, "tokenizer.json": DIGEST}),
)


@given(DESCRIPTIONS)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, description: Description) -> None:
    folder = tmp_path_factory.mktemp("description")
    write_description(folder, description)
    assert read_description(folder) == description


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": "other"}, "of format 'other'"),
        ({"version": 2}, "version 2"),
        ({"version": ...}, "version None"),
        ({"recipe": ...}, "nothing as 'recipe'"),
        ({"recipe": []}, "a list as 'recipe'"),
        ({"recipe": {"query_length": 1}}, "query_length = 1"),
        ({"recipe": {"colour": "blue"}}, "colour"),
        ({"specials": {"mask": 1}}, "'specials'"),
        ({"specials": {"mask": -1, "end": None, "padding": None, "unknown": None}}, "'specials'"),
        ({"dimension": 0}, "0 as 'dimension'"),
        ({"dimension": True}, "True as 'dimension'"),
        ({"positions": "512"}, "'512' as 'positions'"),
        ({"vocabulary": None}, "None as 'vocabulary'"),
        ({"weights": "int4"}, "'int4' as 'weights'"),
        ({"weights": []}, "a list as 'weights'"),
        ({"source": 3}, "3 as 'source'"),
        ({"versions": {"torch": 2}}, "a dict as 'versions'"),
        ({"sha256": {"model.onnx": DIGEST}}, "'sha256'"),
        ({"sha256": {"model.onnx": DIGEST, "tokenizer.json": DIGEST, "../secret": DIGEST}}, "'sha256'"),
    ],
)
def test_fields_that_are_none_are_named(fields: dict[str, Any], reason: str, changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidModel) as caught:
        read_description(changed(**fields))
    assert reason in caught.value.given
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '"text"', "[" * 100_000, b"\xff\xfe".decode("latin-1")]
)
def test_a_file_that_is_no_object_is_refused(content: str, changed: Callable[..., Path]) -> None:
    folder = changed()
    (folder / "encoder.json").write_text(content, encoding="latin-1")
    with pytest.raises(InvalidModel, match="object"):
        read_description(folder)


def test_it_is_json_that_people_can_read(exported: Path) -> None:
    text = (exported / "encoder.json").read_text(encoding="utf-8")
    assert json.loads(text)["format"] == "lateinteraction-onnx"
    assert text.endswith("}\n")
    assert text.count("\n") > 20
