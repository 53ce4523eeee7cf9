"""Every operation in Triton, for CUDA and ROCm devices; on the host in Triton's interpreter, for tests.

But for `listed_scores`, which is the eager form's: a device looks at all codes sooner than it follows lists.
"""

from __future__ import annotations

from lateinteraction.kernels.eager.lists import listed_scores
from lateinteraction.kernels.gpu.codec import residual_decode, residual_encode
from lateinteraction.kernels.gpu.forward import maxsim_all_pairs, maxsim_all_pairs_winners
from lateinteraction.kernels.gpu.gradients import maxsim_all_pairs_gradients, maxsim_pairs_gradients
from lateinteraction.kernels.gpu.interaction import centroid_interaction
from lateinteraction.kernels.gpu.kmeans import kmeans_assign, kmeans_update
from lateinteraction.kernels.gpu.normalisation import inverse_norms
from lateinteraction.kernels.gpu.pairs import maxsim_pairs, maxsim_pairs_winners
from lateinteraction.kernels.gpu.residual import residual_maxsim
from lateinteraction.kernels.gpu.tables import centroid_scores, probe, quantise_table
from lateinteraction.kernels.gpu.top_k import maxsim_top_k
from lateinteraction.kernels.gpu.xtr import xtr_all_pairs

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
