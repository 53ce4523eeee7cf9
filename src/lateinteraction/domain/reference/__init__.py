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
    temperature_gradient,
    through_maxsim,
    through_maxsim_grouped,
)
from lateinteraction.domain.reference.maxsim import (
    keep,
    maxsim_all_pairs,
    maxsim_all_pairs_gradients,
    maxsim_grouped,
    maxsim_grouped_gradients,
    maxsim_pairs,
    maxsim_winners,
)
from lateinteraction.domain.reference.plaid import (
    CompressedEmbeddings,
    QuantisedTable,
    ResidualCodec,
    centroid_interaction,
    centroid_scores,
    compress,
    decompress,
    inverse_norms,
    kmeans_assign,
    kmeans_update,
    listed_scores,
    pack,
    probe,
    quantise_table,
    residual_encode,
    residual_maxsim,
    round_trip_bound,
    train_codec,
    unpack,
)
from lateinteraction.domain.reference.pooling import Merge, pool, ward
from lateinteraction.domain.reference.xtr import xtr_all_pairs, xtr_gradients, xtr_rankings

__all__ = [
    "AS_IS",
    "PYLATE_STUDENT",
    "CompressedEmbeddings",
    "Merge",
    "QuantisedTable",
    "ResidualCodec",
    "Softening",
    "centroid_interaction",
    "centroid_scores",
    "compress",
    "contrastive",
    "decompress",
    "distillation",
    "inverse_norms",
    "keep",
    "kmeans_assign",
    "kmeans_update",
    "listed_scores",
    "margin_mse",
    "maxsim_all_pairs",
    "maxsim_all_pairs_gradients",
    "maxsim_grouped",
    "maxsim_grouped_gradients",
    "maxsim_pairs",
    "maxsim_winners",
    "pack",
    "pool",
    "probe",
    "quantise_table",
    "residual_encode",
    "residual_maxsim",
    "round_trip_bound",
    "temperature_gradient",
    "through_maxsim",
    "through_maxsim_grouped",
    "train_codec",
    "unpack",
    "ward",
    "xtr_all_pairs",
    "xtr_gradients",
    "xtr_rankings",
]
