from __future__ import annotations

import numpy as np
import pytest
import torch

from lateinteraction.adapters.neural.transfer import all_finite, resolve_device, to_device, to_host, to_torch
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import InvalidOption


def test_nothing_is_copied_between_numpy_and_the_cpu() -> None:
    array = np.ones((3, 2), np.float32)
    tensor = to_device(array, "cpu")
    assert tensor.data_ptr() == array.ctypes.data
    assert to_host(tensor).ctypes.data == array.ctypes.data


def test_a_read_only_array_is_copied_rather_than_exposed_to_writes() -> None:
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    tensor = to_device(array, "cpu")
    tensor[0] = 2.0
    assert array[0] == 1.0


def test_bfloat16_reaches_numpy_as_float32() -> None:
    host = to_host(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert host.dtype == np.float32
    assert host.tolist() == [1.5, -2.0]


def test_a_tensor_with_history_reaches_the_host() -> None:
    assert to_host(torch.ones(2, requires_grad=True) * 2).tolist() == [2.0, 2.0]


def test_embeddings_keep_their_offsets() -> None:
    embeddings = to_torch(TokenEmbeddings(np.ones((3, 2), np.float32), offsets_of([1, 2])), "cpu")
    assert isinstance(embeddings.tokens, torch.Tensor)
    assert embeddings.lengths.tolist() == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_seen(value: float) -> None:
    assert all_finite(torch.zeros(3))
    assert all_finite(torch.zeros(0, 4))
    assert not all_finite(torch.tensor([0.0, value]))


def test_auto_is_a_device_of_this_machine() -> None:
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:7"])
def test_a_device_that_is_not_there_is_one_clear_error(name: str) -> None:
    with pytest.raises(InvalidOption, match="device"):
        resolve_device(name)
