"""A run that is killed at any moment goes on from a whole checkpoint and ends in the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.training.killed_program import STEPS

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="killed as POSIX does")


def started(model: Path, folder: Path, threads: int) -> subprocess.Popen[str]:
    program = Path(__file__).with_name("killed_program.py")
    return subprocess.Popen(
        [sys.executable, str(program), str(model), str(folder), str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )


def finished(model: Path, folder: Path, threads: int) -> dict[str, torch.Tensor]:
    with started(model, folder, threads) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-2000:]
    return load_file(folder / "done.safetensors")


def killed(model: Path, folder: Path, threads: int, after: int, wait: float) -> int:
    """Kill a run some time after it reported so many more steps; the last step it reported, or 0."""
    last = 0
    with started(model, folder, threads) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout, start=1):
            last = int(line)
            if count >= after:
                break
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
    return last


@posix
def test_a_killed_run_ends_in_the_same_bits(families: Mapping[str, Path], tmp_path: Path) -> None:
    whole = finished(families["bert"], tmp_path / "whole", threads=0)
    draw = random.Random(0)
    killed(families["bert"], tmp_path / "killed", 2, 6, draw.uniform(0, 0.1))
    found = finished(families["bert"], tmp_path / "killed", threads=2)
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []
    left = [each.name for each in (tmp_path / "killed").iterdir()]
    assert sorted(name for name in left if name.startswith("step-")) == [f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"]


@posix
@pytest.mark.deep
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(
    families: Mapping[str, Path], tmp_path: Path
) -> None:
    whole = finished(families["bert"], tmp_path / "whole", threads=0)
    draw = random.Random(1)
    for number in range(12):
        killed(families["bert"], tmp_path / "killed", number % 3, draw.randint(1, 3), draw.uniform(0, 0.08))
    found = finished(families["bert"], tmp_path / "killed", threads=1)
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []
