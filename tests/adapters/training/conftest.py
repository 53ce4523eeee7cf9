"""A tiny model that can be trained, and a task that it can learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner, LearnerOptions
from lateinteraction.adapters.huggingface.projection import RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.text import Document, Query
from lateinteraction.domain.training import TrainingExample
from lateinteraction.testing.sources import ListedExamples

MakeLearner = Callable[..., HuggingFaceLearner]


def learner_of(folder: Path, options: LearnerOptions, *, dtype: torch.dtype = torch.float32) -> HuggingFaceLearner:
    """A learner of a plain model, with a projection that is always the same."""
    reading = CheckpointOptions(projection=RandomProjection(16, 1), dtype="float32", device="cpu")
    checkpoint = read_checkpoint(folder, options=reading)
    checkpoint.transformer.to(dtype)
    checkpoint.projection.to(dtype)
    return HuggingFaceLearner(checkpoint, options)


@pytest.fixture
def make_learner(families: Mapping[str, Path]) -> MakeLearner:
    """A new learner of the tiny BERT, always with the same weights."""

    def make(options: LearnerOptions | None = None, *, dtype: torch.dtype = torch.float32) -> HuggingFaceLearner:
        return learner_of(families["bert"], options or LearnerOptions(), dtype=dtype)

    return make


def pairs(count: int, *, negatives: int = 1, seed: int = 0, name: str = "pairs") -> ListedExamples:
    """Queries of two words, and documents that hold them among others."""
    words = [f"{a}{b}" for a in "bcdfgklm" for b in "aeio"]
    generator = np.random.default_rng(seed)

    def text(*inside: str) -> str:
        more = [words[each] for each in generator.integers(0, len(words), generator.integers(1, 5))]
        return " ".join([*more, *inside])

    examples = []
    for row in range(count):
        asked = [words[each] for each in generator.integers(0, len(words), 2)]
        documents = [Document(f"{name}-{row}+", text(*asked))]
        documents += [Document(f"{name}-{row}-{each}", text()) for each in range(negatives)]
        teacher = [1.0, *generator.random(negatives)]
        examples.append(TrainingExample(Query(" ".join(asked)), documents, teacher))
    return ListedExamples(name, examples)
