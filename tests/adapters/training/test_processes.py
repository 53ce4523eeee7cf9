"""Two processes make the run that one makes: with documents gathered, cached, accumulated, averaged or in shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.training.two_processes import CASES, trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="no processes in this build of torch")


@pytest.fixture(scope="module")
def two(families: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have written."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes.py")), str(families["bert"]), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]
    return out


def results(two: Path, rank: int) -> dict[str, Any]:
    return json.loads((two / f"results-{rank}.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_does(two: Path, families: Mapping[str, Path], name: str) -> None:
    options = CASES[name] | {"sharding": "replicated"}
    alone = trained(families["bert"], options, scope=options.get("scope", "batch"))
    found = load_file(two / f"{name}.safetensors")
    assert found.keys() == alone.keys()
    for parameter, value in alone.items():
        torch.testing.assert_close(
            found[parameter], value, rtol=1e-7, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def test_what_they_compare_makes_a_difference(two: Path) -> None:
    one, other = (load_file(two / f"{name}.safetensors") for name in ("direct", "own"))
    assert not torch.allclose(one["network.projection._layers.0.weight"], other["network.projection._layers.0.weight"])


def test_they_too_go_on_bit_for_bit(two: Path) -> None:
    whole, resumed = (load_file(two / f"{name}.safetensors") for name in ("direct", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_gradients_are_reduced_once_a_step_however_many_rectangles_there_are(two: Path) -> None:
    for rank in range(2):
        few, many = results(two, rank)["reductions"]
        assert few == many == 1


def test_both_are_told_whose_loss_is_not_finite(two: Path) -> None:
    said = [results(two, rank)["failure"] for rank in range(2)]
    assert said[0] == said[1]
    assert "rank 1: loss nan of rows" in said[0]
    assert "rank 0: loss" not in said[0]


def test_a_batch_that_they_cannot_share_is_refused(two: Path) -> None:
    assert "a global batch of 9 on 2 processes" in results(two, 1)["indivisible"]
