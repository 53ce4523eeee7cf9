"""Inverse norms by Triton."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from lateinteraction.kernels.gpu.normalisation import WIDTHS, inverse_norms, padded, width

pytestmark = pytest.mark.usefixtures("poisoned_memory")
law = settings(
    max_examples=max(8, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The interpreter takes a tenth of a second for an example."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@law
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 9),
    dimensions=st.sampled_from([1, 3, 16, 33, 64, 100, 129, 600, 1024]),
)
def test_a_row_times_its_inverse_norm_has_length_one(seed: int, dtype: torch.dtype, rows: int, dimensions: int) -> None:
    values = torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = inverse_norms(values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), 1 / torch.linalg.vector_norm(values.double(), dim=1), rtol=1e-6, atol=0)


def test_norms_that_are_known_are_exact() -> None:
    values = torch.tensor([[3.0, 4.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [-8.0, 0.0, 0.0]])
    assert inverse_norms(values).tolist() == [pytest.approx(0.2, rel=1e-7), 2.0, 0.0, 0.125]


def test_sixteen_bit_values_are_squared_in_float32() -> None:
    """60,000² is far beyond float16."""
    values = torch.full((1, 4), 60_000.0, dtype=torch.float16)
    assert inverse_norms(values).item() == pytest.approx(1 / 119_968, rel=1e-3)


def test_nan_gives_nan_and_only_where_it_is() -> None:
    values = torch.ones(3, 20)
    values[1, 17] = math.nan
    assert inverse_norms(values).isnan().tolist() == [False, True, False]


def test_rows_may_have_any_strides() -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inverse_norms(values.mT), inverse_norms(values.mT.contiguous()))


@pytest.mark.parametrize("values", [torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 3, dtype=torch.float64)])
def test_dtypes_that_are_no_floats_of_ours_are_refused(values: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="float32, float16 and bfloat16"):
        inverse_norms(values)


def test_rows_wider_than_any_program_holds_are_refused() -> None:
    with pytest.raises(TypeError, match="1024 at most"):
        inverse_norms(torch.ones(2, 1025))


@given(st.integers(1, 1024))
def test_every_width_is_padded_to_a_power_of_two_that_a_row_of_the_table_serves(dimensions: int) -> None:
    assert padded(dimensions) >= max(dimensions, 16)
    assert padded(dimensions) < max(2 * dimensions, 17)
    assert padded(dimensions).bit_count() == 1
    assert padded(dimensions) <= width(dimensions)
    assert width(dimensions) in WIDTHS
