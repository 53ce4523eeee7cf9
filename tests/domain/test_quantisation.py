"""Eight bits lose at most half a step of a value, one bit keeps its sign, and both keep the items apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.quantisation import (
    BinaryEmbeddings,
    Int8Embeddings,
    quantise_to_bits,
    quantise_to_int8,
)

VALUES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 19)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def packed(tokens: NDArray[np.float32]) -> TokenEmbeddings[NDArray[np.float32]]:
    return TokenEmbeddings(tokens, offsets_of([1] * min(2, len(tokens)) + [max(0, len(tokens) - 2)]))


@given(VALUES)
def test_a_restored_value_is_off_by_at_most_half_a_step(tokens: NDArray[np.float32]) -> None:
    quantised = quantise_to_int8(packed(tokens))
    error = np.abs(quantised.restored().tokens - tokens)
    assert np.all(error <= quantised.scales[:, None] * 0.5001)


@given(VALUES)
def test_the_largest_value_of_a_token_takes_the_largest_code(tokens: NDArray[np.float32]) -> None:
    codes = quantise_to_int8(packed(tokens)).codes.tokens
    assert codes.dtype == np.int8
    largest = np.abs(codes.astype(int)).max(axis=1)
    assert np.array_equal(largest, np.where(np.abs(tokens).max(axis=1) / np.float32(127) > 0, 127, 0))


@given(VALUES)
def test_a_sign_changes_with_its_value(tokens: NDArray[np.float32]) -> None:
    there, back = quantise_to_int8(packed(tokens)), quantise_to_int8(packed(-tokens))
    assert np.array_equal(there.codes.tokens, -back.codes.tokens)


@given(VALUES)
def test_a_bit_is_a_sign(tokens: NDArray[np.float32]) -> None:
    binary = quantise_to_bits(packed(tokens))
    assert binary.bits.tokens.shape == (len(tokens), -(-tokens.shape[1] // 8))
    restored = binary.restored().tokens
    assert np.array_equal(restored > 0, tokens > 0)
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("quantise", [quantise_to_int8, quantise_to_bits])
def test_items_stay_apart(quantise: type[Int8Embeddings]) -> None:
    given = packed(np.ones((5, 4), dtype=np.float32))
    assert quantise(given).restored().offsets.tolist() == given.offsets.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantise", [quantise_to_int8, quantise_to_bits])
def test_what_is_not_finite_is_refused(quantise: type[Int8Embeddings], value: float) -> None:
    with pytest.raises(InvalidEmbeddings, match="NaN or infinite"):
        quantise(packed(np.array([[1.0, value]], dtype=np.float32)))


def test_half_precision_is_quantised_as_the_values_it_holds() -> None:
    half = np.array([[0.5, -0.25]], dtype=np.float16)
    assert quantise_to_int8(packed(half)).codes.tokens.tolist() == [[127, -64]]


def test_parts_that_do_not_fit_are_refused() -> None:
    codes = TokenEmbeddings(np.zeros((2, 9), dtype=np.int8), offsets_of([2]))
    with pytest.raises(InvalidEmbeddings, match="one for each token"):
        Int8Embeddings(codes, np.zeros(3, dtype=np.float32))
    bits = TokenEmbeddings(np.zeros((2, 1), dtype=np.uint8), offsets_of([2]))
    with pytest.raises(InvalidEmbeddings, match="2 bytes"):
        BinaryEmbeddings(bits, 9)
