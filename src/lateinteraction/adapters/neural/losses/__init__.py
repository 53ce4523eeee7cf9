"""Losses over torch tensors, as the `Loss` port. What each computes is said, in NumPy, by `domain.reference.losses`.

A loss is a frozen description. What it learns itself, such as a temperature, is a module that it holds; `learned_of`
names those, so that a trainer can put them beside the model.
"""

from lateinteraction.adapters.neural.losses.combined import Matryoshka, PerSource, Pooled, Weighted
from lateinteraction.adapters.neural.losses.contrastive import Contrastive, LearnableTemperature
from lateinteraction.adapters.neural.losses.distillation import Distillation, MarginMse
from lateinteraction.adapters.neural.losses.interactions import Interaction, MaxSim, Xtr
from lateinteraction.adapters.neural.losses.objective import Objective, learned_of

__all__ = [
    "Contrastive",
    "Distillation",
    "Interaction",
    "LearnableTemperature",
    "MarginMse",
    "Matryoshka",
    "MaxSim",
    "Objective",
    "PerSource",
    "Pooled",
    "Weighted",
    "Xtr",
    "learned_of",
]
