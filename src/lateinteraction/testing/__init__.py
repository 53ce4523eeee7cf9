"""What we test with, for those who build on us: fakes, hypothesis strategies, and a contract suite per port.

The fakes need nothing but NumPy and are named here. `lateinteraction.testing.strategies` needs hypothesis,
`lateinteraction.testing.contracts` needs hypothesis and pytest: `pip install "lateinteraction[testing]"`.
Neither needs torch: a suite for tensors is told how to make them.
"""

from lateinteraction.testing.fakes import (
    HashEncoder,
    ListCandidateSource,
    ListIndex,
    RecordingProgress,
    RecordingTrainer,
    ReferenceLoss,
    ReferenceScorer,
)
from lateinteraction.testing.sources import ListedExamples

__all__ = [
    "HashEncoder",
    "ListCandidateSource",
    "ListIndex",
    "ListedExamples",
    "RecordingProgress",
    "RecordingTrainer",
    "ReferenceLoss",
    "ReferenceScorer",
]
