"""Interaction kernels: raw tensors in, raw tensors out, one name per operation whatever computes it.

Only eager torch computes them so far, on every device; the dispatch between forms belongs here.
"""

from __future__ import annotations

from lateinteraction.kernels.eager import maxsim_all_pairs, maxsim_grouped, maxsim_listed, maxsim_winners

__all__ = ["form_for", "maxsim_all_pairs", "maxsim_grouped", "maxsim_listed", "maxsim_winners"]


def form_for(device_type: str) -> tuple[str, str]:
    """The form that computes on this kind of device ("cpu", "cuda", "mps"), and why."""
    return "eager", f"torch operations, packed and chunked: the one form there is for {device_type}"
