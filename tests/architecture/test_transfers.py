"""Data crosses between host and device, or between array kinds, in a few named places and nowhere else."""

from __future__ import annotations

import ast

import pytest

CROSSINGS = {"cpu", "cuda", "numpy", "tolist", "item", "to", "from_numpy"}
ALLOWED = (
    "adapters/neural/transfer.py",
    "kernels/cpu/",
    "adapters/index/payloads.py",
    "adapters/training/checkpoints.py",
    "entrypoints/",
)


def crossings(path: str, tree: ast.Module) -> list[str]:
    """Calls that may copy between devices or array kinds, where the module has no leave to."""
    if path.startswith(ALLOWED):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in CROSSINGS:
                found.append(f"{path}:{node.lineno} .{name}(")
            # Under another name, or handed over as a function.
            case ast.ImportFrom(module="torch", names=names) if any(alias.name == "from_numpy" for alias in names):
                found.append(f"{path}:{node.lineno} from_numpy")
            case ast.Attribute(value=ast.Attribute(attr="Tensor") | ast.Name(id="Tensor"), attr=name) if (
                name in CROSSINGS
            ):
                found.append(f"{path}:{node.lineno} Tensor.{name}")
    return found


def test_nothing_crosses_outside_the_places_that_may(modules: dict[str, ast.Module]) -> None:
    assert [each for path, tree in modules.items() for each in crossings(path, tree)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "scores.cpu()",
        "scores.detach().numpy()",
        "rows = [list(x) for x in array.tolist()]",
        "value = scores.max().item()",
        "tokens = tokens.to('cuda')",
        "tokens = torch.from_numpy(array)",
        "from torch import from_numpy as read",
        "values = map(torch.Tensor.item, scores)",
        "def f():\n    return lambda x: x.cuda()",
    ],
)
def test_a_planted_crossing_is_seen(planted: str) -> None:
    assert len(crossings("adapters/flat.py", ast.parse(planted))) >= 1
    assert crossings("adapters/neural/transfer.py", ast.parse(planted)) == []


@pytest.mark.parametrize("harmless", ["float(x)", "path.item", "to_host(scores)", "import numpy", "x = device.cpu"])
def test_harmless_code_is_left_alone(harmless: str) -> None:
    assert crossings("adapters/flat.py", ast.parse(harmless)) == []
