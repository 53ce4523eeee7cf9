"""The forms under test, and outputs that start as NaN: what a form does not write is seen."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from lateinteraction.kernels.dispatch import load
from lateinteraction.kernels.form import Form

FORMS = ["eager", "cpu", pytest.param("gpu", marks=pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform"
))]  # fmt: skip


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return load(request.param)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
