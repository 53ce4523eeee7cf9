"""The trainer keeps the promises of its port, with a small model that can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner
from lateinteraction.adapters.huggingface.projection import RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.adapters.neural.losses import Contrastive
from lateinteraction.adapters.training.loop import AccelerateTrainer
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import PlanOptions
from lateinteraction.domain.ports import Encoder
from lateinteraction.testing.contracts import TrainerContract
from tests.contracts.torch_arrays import Tensors


class TestAccelerateTrainer(Tensors, TrainerContract[Tensor]):
    @pytest.fixture(autouse=True)
    def _model(self, tiny_model: Path) -> None:
        self.folder = tiny_model

    def make_trainer(self) -> AccelerateTrainer:
        return AccelerateTrainer(PlanOptions(global_batch_size=1), TrainingOptions(log_every=1))

    def make_model(self) -> HuggingFaceLearner:
        options = CheckpointOptions(projection=RandomProjection(16, 1), dtype="float32", device="cpu")
        return HuggingFaceLearner(read_checkpoint(self.folder, options=options))

    def make_loss(self) -> Contrastive:
        return Contrastive()

    def encoder_of(self, model: HuggingFaceLearner) -> Encoder[Tensor]:
        return model.encoder
