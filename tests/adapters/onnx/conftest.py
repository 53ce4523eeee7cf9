"""The trained tiny model, exported once in full precision and once as bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.adapters.onnx.export import export_onnx
from lateinteraction.adapters.onnx.folder import DESCRIPTION, sha256_of


@pytest.fixture(scope="session")
def trained(tiny_model: Path) -> Checkpoint:
    """The tiny model in torch; read-only."""
    return read_checkpoint(tiny_model, options=CheckpointOptions(device="cpu"))


@pytest.fixture(scope="session")
def exported(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder in float32; read-only."""
    folder = tmp_path_factory.mktemp("exported") / "float32"
    export_onnx(trained, folder)
    return folder


@pytest.fixture(scope="session")
def exported_bytes(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder in int8; read-only."""
    folder = tmp_path_factory.mktemp("exported") / "int8"
    export_onnx(trained, folder, weights="int8")
    return folder


Change = Callable[[Path], None]


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the exported folder in which something was done to the files or to what is said of them."""

    def make(change: Change | None = None, *, truthful: bool = False, **fields: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(exported, folder)
        if change is not None:
            change(folder)
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if truthful:
            content["sha256"] = {name: sha256_of(folder / name) for name in content["sha256"]}
        content |= {name: value for name, value in fields.items() if value is not ...}
        for name in (name for name, value in fields.items() if value is ...):
            del content[name]
        (folder / DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make
