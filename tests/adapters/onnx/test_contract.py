"""The ONNX encoder keeps the contracts of its ports, in full precision and as bytes, under recipes as they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from lateinteraction.adapters.onnx.encoder import OnnxEncoder, OnnxOptions
from lateinteraction.testing.contracts import TracingEncoderContract


class Exported(TracingEncoderContract[NDArray[Any]]):
    """The trained tiny model, exported, under one recipe."""

    encoder: OnnxEncoder
    weights = "exported"
    settings: dict[str, Any]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def load(cls, request: pytest.FixtureRequest) -> None:
        folder: Path = request.getfixturevalue(cls.weights)
        cls.encoder = OnnxEncoder(folder, OnnxOptions(recipe=cls.settings))

    def array(self, tensor: NDArray[Any]) -> NDArray[Any]:
        return tensor

    def make_encoder(self) -> OnnxEncoder:
        return self.encoder

    def tracer(self) -> OnnxEncoder:
        return self.encoder


class TestPlain(Exported):
    settings: dict[str, Any] = {}  # noqa: RUF012


class TestColbert(Exported):
    settings: dict[str, Any] = {  # noqa: RUF012
        "query_length": 32,
        "document_length": 180,
        "query_prefix": "[unused0]",
        "document_prefix": "[unused1]",
        "expansion": "fixed",
        "skiplist": (".", ",", "!", "?"),
    }


class TestPromptedAndCut(Exported):
    settings: dict[str, Any] = {  # noqa: RUF012
        "query_length": 24,
        "document_length": 64,
        "query_prompt": "query: ",
        "document_prompt": "passage: ",
        "keep_special_tokens": False,
        "dimension": 48,
    }


class TestBytes(TestColbert):
    weights = "exported_bytes"
