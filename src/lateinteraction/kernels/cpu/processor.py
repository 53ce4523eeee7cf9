"""What the processor has, as far as kernels care; settled before anything is compiled.

LLVM ends the process over an instruction that it cannot select, so kernels name one only where `detect` saw it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

import llvmlite.binding as llvm

_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


class Processor(NamedTuple):
    """A processor, by what LLVM calls it, and the shape of the kernels that suits it."""

    name: str
    features: str
    """As LLVM writes them: "+avx2,-avx512f,…"."""
    lanes: int
    """Numbers of 32 bits in a vector."""
    rows: int
    """Rows whose products with two vectors of query tokens are summed at a time: as many as registers hold."""
    fused: bool
    """Whether a product is added without being rounded. Without the instruction LLVM would call a function for it."""
    halves: bool
    """Whether an instruction widens float16."""
    byte_dots: bool
    """Whether an instruction sums four products of bytes for each lane (AVX512-VNNI; AVX-VNNI with 8 lanes)."""

    @property
    def few(self) -> int:
        """Rows in a small block: what is left of a document takes at most this many minus one in vain.

        Four rows by two vectors still hide the latency of a fused multiply-add, 4 cycles at two a cycle.
        """
        return self.rows // 3

    @property
    def panel(self) -> int:
        """Query tokens whose products are summed at a time: two vectors."""
        return 2 * self.lanes


def detect(environment: Mapping[str, str], triple: str, host: tuple[str, Mapping[str, bool]]) -> Processor:
    """The processor that numba compiles for: the host, unless its environment variables say otherwise.

    Args:
        environment: where NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX may be.
        triple: the architecture that LLVM compiles for, "x86_64-…", "aarch64-…".
        host: the name and features of this machine.
    """
    name = environment.get("NUMBA_CPU_NAME", host[0])
    features = environment.get("NUMBA_CPU_FEATURES", "" if name.lower() == "generic" else _written(environment, host))
    present = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if not triple.startswith(("x86_64", "i686", "amd64")):
        # 32 vector registers of 128 bits and a fused multiply-add belong to every 64-bit ARM.
        arm = triple.startswith(("aarch64", "arm64"))
        return Processor(name, features, 4, 12 if arm else 6, fused=arm, halves=False, byte_dots=False)
    wide = "avx2" in present and present >= _AVX512
    lanes = 16 if wide else 8 if "avx2" in present else 4
    return Processor(
        name,
        features,
        lanes,
        rows=12 if wide else 6,  # by two vectors, beside 32 or 16 registers: two of queries, one of a row
        fused=lanes > 4 and "fma" in present,
        halves=lanes > 4 and "f16c" in present,
        byte_dots="avx512vnni" in present if wide else lanes == 8 and "avxvnni" in present,
    )


@functools.cache
def processor() -> Processor:
    """The processor to compile for, the same for as long as the process lives."""
    return detect(os.environ, llvm.get_process_triple(), (llvm.get_host_cpu_name(), llvm.get_host_cpu_features()))


def _written(environment: Mapping[str, str], host: tuple[str, Mapping[str, bool]]) -> str:
    """The features of the host as numba writes them for LLVM."""
    without = "avx" if environment.get("NUMBA_ENABLE_AVX", "1") == "0" else "\0"
    features = llvm.FeatureMap({name: has and not name.startswith(without) for name, has in host[1].items()})
    return features.flatten()
