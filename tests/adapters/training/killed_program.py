"""A run that is killed by whoever started it. Usage: python killed_program.py MODEL FOLDER [THREADS]"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from safetensors.torch import save_file

from lateinteraction.adapters.huggingface.learning.learner import LearnerOptions
from lateinteraction.adapters.neural.losses import Contrastive, MaxSim
from lateinteraction.adapters.training.checkpoints import weights_of
from lateinteraction.adapters.training.loop import AccelerateTrainer, RunFolder
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import PlanOptions
from lateinteraction.adapters.training.reports import StepReport
from tests.adapters.training.conftest import learner_of, pairs

STEPS = 30


def say(report: StepReport) -> None:
    sys.stdout.write(f"{report.step}\n")
    sys.stdout.flush()


def main(model: str, folder: str, threads: str = "0") -> None:
    warnings.simplefilter("ignore")
    learner = learner_of(Path(model), LearnerOptions())
    trainer = AccelerateTrainer(
        PlanOptions(global_batch_size=8, steps=STEPS),
        TrainingOptions(learning_rate=1e-3, log_every=1, checkpoint_every=1, workers=int(threads)),
        folder=RunFolder(path=Path(folder)),
        report=say,
    )
    trainer.fit(learner, Contrastive(temperature=0.1, interaction=MaxSim(mean=True)), [pairs(60)])
    save_file(weights_of(learner.network), Path(folder) / "done.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
