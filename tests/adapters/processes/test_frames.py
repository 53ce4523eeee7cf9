"""A message comes out of a pipe as it went in, and half of one is none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lateinteraction.adapters.processes.frames import Frame, read_frame, write_frame

MESSAGES = st.dictionaries(st.text(max_size=5), st.none() | st.integers(-9, 9) | st.text(max_size=9), max_size=3)
ARRAYS = st.dictionaries(
    st.sampled_from("abc"),
    arrays.arrays(st.sampled_from([np.float32, np.int64, np.bool_]), arrays.array_shapes(min_side=0, max_dims=2)),
    max_size=3,
)


@given(st.lists(st.tuples(MESSAGES, ARRAYS), max_size=4))
def test_messages_come_out_as_they_went_in(sent: list[tuple[dict, dict]]) -> None:
    pipe = io.BytesIO()
    for message, own in sent:
        write_frame(pipe, Frame(message, own))
    pipe.seek(0)
    for message, own in sent:
        received = read_frame(pipe)
        assert received is not None
        assert received.message == message
        assert list(received.arrays) == list(own)
        for name, array in own.items():
            assert received.arrays[name].dtype == array.dtype
            assert received.arrays[name].shape == array.shape
            assert received.arrays[name].tobytes() == array.tobytes()
    assert read_frame(pipe) is None


@pytest.mark.parametrize("cut", [1, 20, 60, -1])
def test_half_a_message_is_none(cut: int) -> None:
    pipe = io.BytesIO()
    write_frame(pipe, Frame({"a": 1}, {"tokens": np.arange(100.0)}))
    assert read_frame(io.BytesIO(pipe.getvalue()[:cut])) is None


def test_an_array_that_is_a_view_is_sent_as_it_looks() -> None:
    pipe = io.BytesIO()
    write_frame(pipe, Frame({}, {"a": np.arange(12).reshape(3, 4).T}))
    pipe.seek(0)
    received = read_frame(pipe)
    assert received is not None
    assert received.arrays["a"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
