"""The form of the host: programs of explicit vector instructions, compiled for the very processor they run on.

Drivers here turn tensors into addresses and share out work among threads; `programs` has what is compiled, and why it
is shaped as it is.
"""

from __future__ import annotations

from lateinteraction.kernels.cpu.gradients import maxsim_all_pairs_gradients, maxsim_pairs_gradients
from lateinteraction.kernels.cpu.interaction import centroid_interaction
from lateinteraction.kernels.cpu.kmeans import kmeans_assign, kmeans_update
from lateinteraction.kernels.cpu.lists import listed_scores
from lateinteraction.kernels.cpu.maxsim import (
    maxsim_all_pairs,
    maxsim_all_pairs_winners,
    maxsim_pairs,
    maxsim_pairs_winners,
)
from lateinteraction.kernels.cpu.norms import inverse_norms
from lateinteraction.kernels.cpu.residual import residual_decode, residual_encode, residual_maxsim
from lateinteraction.kernels.cpu.tables import centroid_scores, probe, quantise_table
from lateinteraction.kernels.cpu.top_k import maxsim_top_k
from lateinteraction.kernels.cpu.xtr import xtr_all_pairs

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
