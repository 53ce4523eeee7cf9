"""Where the case runs: an accelerator, timed by its own events, or the host, so that the whole case can be tested.

A sample is one call. On an accelerator 256 MB are written four times before it, so that no cache holds the documents
and Python has a third of a millisecond to launch the call before the clock starts: what is measured is the work of the
device, and of longer launches (autograd, several kernels) what did not hide behind that.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from importlib import metadata, util
from typing import Any, Protocol

import torch

CACHE_BYTES = 256 * 2**20  # several times any second-level cache
EVICTIONS = 4  # a third of a millisecond at 3 TB/s
PEERS = {"late-interaction-kernels": "late_interaction_kernels", "flash-maxsim": "flash_maxsim"}


class Device(Protocol):
    """What the case needs of the place it runs on."""

    name: str
    side: int
    """Of the square matrices whose product tells the rate."""

    def description(self) -> dict[str, object]:
        """What is written into every row: device and versions."""
        ...

    def free(self) -> int:
        """Bytes that can be allocated."""
        ...

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call, with cold caches where it can be had."""
        ...

    def back_to_back(self, call: Callable[[], object], number: int) -> float:
        """Seconds of one call among many in a row: what Python and the driver add is in it."""
        ...

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes that one call adds to what is allocated, at its peak."""
        ...

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile` of a function, for the shapes of its first call."""
        ...

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]:
        """The same launches without their Python: a CUDA graph."""
        ...

    def release(self) -> None:
        """Give back what nobody uses any more."""
        ...


class Cuda:
    """An accelerator that torch calls "cuda"."""

    name = "cuda"
    side = 8_192

    def __init__(self) -> None:
        self._eviction = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=self.name)

    def description(self) -> dict[str, object]:
        """See `Device`."""
        properties = torch.cuda.get_device_properties(self.name)
        return versions() | {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": f"{properties.total_memory / 1e9:.1f}",
            "runtime": f"cuda {torch.version.cuda}" if torch.version.cuda else f"hip {torch.version.hip}",
        }

    def free(self) -> int:
        """See `Device`."""
        self.release()
        return torch.cuda.mem_get_info()[0]

    def sample(self, call: Callable[[], object]) -> float:
        """See `Device`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(EVICTIONS):
            self._eviction.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def back_to_back(self, call: Callable[[], object], number: int) -> float:
        """See `Device`."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(number):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / number

    def peak(self, call: Callable[[], object]) -> int:
        """See `Device`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Device`."""
        torch.compiler.reset()  # it counts how often one function is compiled, and stops
        return torch.compile(function, fullgraph=True, dynamic=False)

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]:
        """See `Device`."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def release(self) -> None:
        """See `Device`."""
        gc.collect()
        torch.cuda.empty_cache()


class Host:
    """The CPU, with tracing in place of compilation and without a peak: for tests of the case."""

    name = "cpu"
    side = 64

    def __init__(self, free: int = 2**30) -> None:
        self._free = free

    def description(self) -> dict[str, object]:
        """See `Device`."""
        return versions() | {"device": platform.machine(), "capability": "", "memory_gb": "", "runtime": "cpu"}

    def free(self) -> int:
        """As much as it was told."""
        return self._free

    def sample(self, call: Callable[[], object]) -> float:
        """See `Device`."""
        return self.back_to_back(call, 1)

    def back_to_back(self, call: Callable[[], object], number: int) -> float:
        """See `Device`."""
        began = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - began) / number

    def peak(self, call: Callable[[], object]) -> int:
        """Unknown."""
        call()
        return 0

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Traced, and run as it was written."""
        torch.compiler.reset()
        return torch.compile(function, fullgraph=True, dynamic=False, backend="eager")

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]:
        """As it is."""
        return call

    def release(self) -> None:
        """See `Device`."""
        gc.collect()


def versions() -> dict[str, object]:
    """Of Python, torch, Triton and the peers that are installed."""
    found = {name: _version(name) for name in PEERS}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton") or _version("pytorch-triton") or "",
        "peers": " ".join(f"{name}=={version}" for name, version in found.items() if version),
    }


def importable(peer: str) -> bool:
    """Whether a peer is installed."""
    return util.find_spec(PEERS[peer]) is not None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
