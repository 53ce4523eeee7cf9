"""Where torch's random numbers stand, on the host and on one device: what dropout draws from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RandomState = Mapping[str, Tensor]


def random_state(device: torch.device) -> RandomState:
    """Where they stand now."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def seeded_state(seed: int, device: torch.device) -> RandomState:
    """Where they stand that start from a seed."""
    state = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    on_device = {"device": torch.Generator(device).manual_seed(seed).get_state()} if device.type == "cuda" else {}
    return state | on_device


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go on from there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
