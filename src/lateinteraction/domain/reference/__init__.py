"""Every operation of the library as plain NumPy: the oracle that faster implementations are tested against.

Written to be read: the formula stands in the docstring, loops are welcome, speed is not a goal. Arrays in, arrays
out, in `TokenEmbeddings[NDArray]`; computed in float64, returned as float32 unless float64 came in.
"""

from __future__ import annotations

from lateinteraction.domain.reference.losses import (
    AS_IS,
    PYLATE_STUDENT,
    Softening,
    contrastive,
    distillation,
    margin_mse,
    through_maxsim,
    through_maxsim_grouped,
)
from lateinteraction.domain.reference.maxsim import (
    argmax,
    keep,
    maxsim,
    maxsim_gradients,
    maxsim_grouped,
    maxsim_grouped_gradients,
    maxsim_pairs,
)
from lateinteraction.domain.reference.plaid import (
    CompressedEmbeddings,
    ResidualCodec,
    assign,
    centroid_interaction,
    centroid_scores,
    compress,
    decompress,
    inverse_norms,
    pack,
    probe,
    residual_maxsim,
    round_trip_bound,
    train_codec,
    unpack,
    update_centroids,
)
from lateinteraction.domain.reference.pooling import Merge, pool, ward
from lateinteraction.domain.reference.xtr import xtr_gradients, xtr_rankings, xtr_scores

__all__ = [
    "AS_IS",
    "PYLATE_STUDENT",
    "CompressedEmbeddings",
    "Merge",
    "ResidualCodec",
    "Softening",
    "argmax",
    "assign",
    "centroid_interaction",
    "centroid_scores",
    "compress",
    "contrastive",
    "decompress",
    "distillation",
    "inverse_norms",
    "keep",
    "margin_mse",
    "maxsim",
    "maxsim_gradients",
    "maxsim_grouped",
    "maxsim_grouped_gradients",
    "maxsim_pairs",
    "pack",
    "pool",
    "probe",
    "residual_maxsim",
    "round_trip_bound",
    "through_maxsim",
    "through_maxsim_grouped",
    "train_codec",
    "unpack",
    "update_centroids",
    "ward",
    "xtr_gradients",
    "xtr_rankings",
    "xtr_scores",
]
