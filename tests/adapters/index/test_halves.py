"""Halves: what float16 holds is stored, what it would round away is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lateinteraction.adapters.index.payloads import VECTORS, encode_vectors
from lateinteraction.domain.errors import InvalidEmbeddings


@pytest.mark.parametrize(("length", "held"), [(1.0, True), (1e-4, True), (1e-5, False), (1e-7, False), (1e-30, False)])
def test_vectors_refuse_what_float16_would_round_away(length: float, held: bool) -> None:
    """Up to a hundredth of all is lost, as in eight bits; beyond that somebody has to say so."""
    generator = torch.Generator().manual_seed(0)
    tokens = length * torch.nn.functional.normalize(torch.randn(300, 128, generator=generator), dim=1)
    if not held:
        with pytest.raises(InvalidEmbeddings, match="int8"):
            encode_vectors(tokens)
        return
    stored = torch.from_numpy(encode_vectors(tokens)[VECTORS]).float()
    assert float((stored - tokens).norm()) < 0.01 * float(tokens.norm())


def test_vectors_that_lose_nothing_or_next_to_nothing_of_all_are_taken() -> None:
    """Zeros; what is float16 already; a short token among others."""
    assert not encode_vectors(torch.zeros(3, 8))[VECTORS].any()
    assert len(encode_vectors(torch.empty(0, 8))[VECTORS]) == 0
    tiny = torch.full((3, 8), 3e-7, dtype=torch.float16)
    np.testing.assert_array_equal(encode_vectors(tiny.float())[VECTORS], tiny.numpy())
    mixed = torch.cat([torch.ones(3, 8), torch.full((1, 8), 1e-9)])
    assert len(encode_vectors(mixed)[VECTORS]) == 4
