"""Every operation in torch operations: any device, any precision, the declared twin of the compiled forms.

Chunks of whole documents, so that no table of similarities outgrows a cache. Spans and pairs are read on the host.
"""

from __future__ import annotations

from lateinteraction.kernels.eager.gradients import maxsim_all_pairs_gradients, maxsim_pairs_gradients
from lateinteraction.kernels.eager.kmeans import kmeans_assign, kmeans_update
from lateinteraction.kernels.eager.lists import listed_scores
from lateinteraction.kernels.eager.maxsim import (
    inverse_norms,
    maxsim_all_pairs,
    maxsim_all_pairs_winners,
    maxsim_pairs,
    maxsim_pairs_winners,
    maxsim_top_k,
)
from lateinteraction.kernels.eager.residual import residual_decode, residual_encode, residual_maxsim
from lateinteraction.kernels.eager.tables import centroid_interaction, centroid_scores, probe, quantise_table
from lateinteraction.kernels.eager.xtr import xtr_all_pairs

__all__ = [
    "centroid_interaction",
    "centroid_scores",
    "inverse_norms",
    "kmeans_assign",
    "kmeans_update",
    "listed_scores",
    "maxsim_all_pairs",
    "maxsim_all_pairs_gradients",
    "maxsim_all_pairs_winners",
    "maxsim_pairs",
    "maxsim_pairs_gradients",
    "maxsim_pairs_winners",
    "maxsim_top_k",
    "probe",
    "quantise_table",
    "residual_decode",
    "residual_encode",
    "residual_maxsim",
    "xtr_all_pairs",
]
