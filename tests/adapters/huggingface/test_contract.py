"""The transformers encoder keeps the contracts of its ports, under recipes as they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import read_checkpoint
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.testing.contracts import TracingEncoderContract


class Loaded(TracingEncoderContract[Tensor]):
    """The trained tiny model under one recipe."""

    encoder: HuggingFaceEncoder
    recipe = EncodingRecipe()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def load(cls, tiny_model: Path) -> None:
        cls.encoder = HuggingFaceEncoder(read_checkpoint(tiny_model, recipe=cls.recipe.settings()))

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.numpy()

    def make_encoder(self) -> HuggingFaceEncoder:
        return self.encoder

    def tracer(self) -> HuggingFaceEncoder:
        return self.encoder


class TestPlain(Loaded):
    pass


class TestColbert(Loaded):
    recipe = EncodingRecipe(
        query_length=32,
        document_length=180,
        query_prefix="[unused0]",
        document_prefix="[unused1]",
        expansion="fixed",
        skiplist=(".", ",", "!", "?"),
    )


class TestPromptedAndCut(Loaded):
    recipe = EncodingRecipe(
        query_length=24,
        document_length=64,
        query_prompt="query: ",
        document_prompt="passage: ",
        keep_special_tokens=False,
        dimension=48,
    )


def test_the_recipes_here_differ() -> None:
    dimensions = {case.recipe.dimension for case in (TestPlain, TestColbert, TestPromptedAndCut)}
    assert dimensions == {None, 48}
    assert np.isclose(TestColbert.recipe.query_length, 32)
