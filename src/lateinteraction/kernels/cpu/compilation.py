"""Programs: compiled by numba on the day they are first needed, afterwards loaded from a file in milliseconds.

A program is a function of 64-bit whole numbers: counts and addresses. So its machine code stands alone: numba's own
dispatch, and numba itself, are needed to make it and not to run it. (Measured: importing numba 0.27 s and loading one
function from numba's cache 0.69 s, against 0.07 s for llvmlite and 3 ms for a program.)

A stored program is named by everything that it depends on: every source file of this folder, the versions of the
compilers, the processor, what numba was told. What is stored for other sources is never read, and goes when something
newer is stored. Where no folder can be written, programs are compiled anew in each process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from lateinteraction.kernels.cpu.processor import Processor, processor

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_PROGRAMS = f"{__package__}.programs"

MOST_TARGETS = 16
"""Processors (and settings of numba) for which one program is kept at a time, as in a home that machines share."""

_NOT_OF_CODE = "NUMBA_CACHE", "NUMBA_CUDA", "NUMBA_NUM_THREADS", "NUMBA_THREADING"
"""Beginnings of the environment variables of numba that change no machine code. Any other one might."""

_loading = threading.RLock()
if hasattr(os, "register_at_fork"):
    # LLVM has a lock too, which a child would wait for in vain if a thread held it that the child has not got. So no
    # fork happens while a program is being loaded.
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


class Program:
    """A function of `kernels.cpu.programs`, callable with whole numbers. It holds no lock of the interpreter.

    It does no checking and knows no arrays: who calls it keeps alive and large enough what the addresses point to.
    """

    def __init__(self, module: str, function: str, arguments: int) -> None:
        self.module = module
        self.function = function
        self.arguments = arguments
        self._loaded: Loaded | None = None

    def __call__(self, *arguments: int) -> None:
        loaded = self._loaded or self._load()  # held until the call returns, since the code goes with it
        result, error = ctypes.c_int64(), ctypes.c_int64()
        if loaded.function(ctypes.byref(result), ctypes.byref(error), *arguments):
            raise RuntimeError(f"the program {self.module}.{self.function} raised")

    def _load(self) -> Loaded:
        with _loading:
            if self._loaded is None:
                self._loaded = load(self._machine_code(), self.arguments)
            return self._loaded

    def _machine_code(self) -> MachineCode:
        sources = digest_of(_SOURCES)
        store = Store.of(f"{self.module}.{self.function}", processor(), sources)
        machine_code = store.read()
        if machine_code is None:
            machine_code = self._compile()
            if digest_of(_SOURCES) == sources:  # else nobody knows which version was compiled
                store.write(machine_code)
        return machine_code

    def _compile(self) -> MachineCode:
        from lateinteraction.kernels.cpu.programs import compiler

        logger.info("compiling %s.%s for %s", self.module, self.function, processor().name)
        module = importlib.import_module(f"{_PROGRAMS}.{self.module}")
        return MachineCode(*compiler.compiled(getattr(module, self.function), self.arguments))


class MachineCode(NamedTuple):
    """An object file in memory, and the name of its function."""

    symbol: str
    code: bytes


class Store(NamedTuple):
    """Where one program for one processor, made of given sources, is kept; or would be."""

    folders: tuple[Path, ...]
    """In order of preference."""
    stem: str
    """The part of the file's name that later versions of the same program share."""
    version: str
    """A digest of all that the program is made of; "" where the sources cannot be read, and then nothing is kept."""

    @classmethod
    def of(cls, program: str, target: Processor, sources: str) -> Store:
        """The store of a program in the folders of this process."""
        compiled_for = sys.platform, llvm.get_process_triple(), target, *_settings()
        machine = hashlib.sha256(repr(compiled_for).encode()).hexdigest()
        return cls(tuple(_folders()), f"{program}-{machine[:12]}", sources)

    def read(self) -> MachineCode | None:
        """What is stored, if it is there and whole."""
        for path in self._paths():
            with contextlib.suppress(OSError):
                stored = _read_trusted(path)
                if stored is None:
                    logger.warning("%s could have been written by somebody else, and is not used", path)
                    continue
                if (found := _parse(stored)) is not None:
                    return found
                logger.warning("%s is damaged and will be compiled anew", path)
        return None

    def write(self, machine_code: MachineCode) -> Path | None:
        """Store it in the first folder that takes it, in place of what was made of other sources; or nowhere."""
        for path in self._paths():
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                _replace(path, _format(machine_code))
                with contextlib.suppress(OSError):  # another process may be sweeping
                    self._sweep(path)
                return path
        logger.info("no folder takes compiled programs; every process compiles its own")
        return None

    def _sweep(self, kept: Path) -> None:
        """Remove what the program was for other sources; of other processors keep only what was stored last."""
        program = self.stem.rpartition("-")[0]
        others = [path for path in kept.parent.glob(f"{program}-*.program") if path != kept]
        current = [path for path in others if path.stem.endswith(f"-{self.version}")]
        current.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in {*others} - {*current[: MOST_TARGETS - 1]}:
            path.unlink(missing_ok=True)

    def _paths(self) -> Iterator[Path]:
        return (folder / f"{self.stem}-{self.version}.program" for folder in self.folders if self.version)


class Loaded(NamedTuple):
    """Machine code that can be called, as `programs.compiler.compiled` says."""

    engine: Any
    """Of LLVM: it owns the memory that the code is in."""
    function: Any


def load(machine_code: MachineCode, arguments: int) -> Loaded:
    """Bring machine code into memory, as a function of so many int64."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code.code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * arguments)
    return Loaded(engine, kind(engine.get_function_address(machine_code.symbol)))


def digest_of(folder: Path) -> str:
    """A digest of all sources and compilers, or "" where there are none to read, as in a zip file."""
    digest = hashlib.sha256()
    files = sorted(folder.rglob("*.py"))
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    for compiler in ("numba", "llvmlite"):
        digest.update(importlib.metadata.version(compiler).encode() + b"\0")
    return digest.hexdigest()[:24] if files else ""


def _settings() -> Iterator[tuple[str, str]]:
    """What numba is told beside its defaults, by which its machine code may differ: NUMBA_OPT=0 makes it slow."""
    yield from sorted(
        each for each in os.environ.items() if each[0].startswith("NUMBA_") and not each[0].startswith(_NOT_OF_CODE)
    )
    with contextlib.suppress(OSError):
        yield "file", Path(".numba_config.yaml").read_text(errors="replace")


def _folders() -> Iterator[Path]:
    """Where programs may be kept: numba's folder if it is named, else beside the sources, else the user's cache."""
    own = f"lateinteraction-{hashlib.sha256(str(_SOURCES).encode()).hexdigest()[:12]}"
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named) / own
        return
    yield _SOURCES / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / own


def _format(machine_code: MachineCode) -> bytes:
    body = machine_code.symbol.encode() + b"\0" + machine_code.code
    return hashlib.sha256(body).digest() + body


def _parse(stored: bytes) -> MachineCode | None:
    digest, body = stored[:32], stored[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    symbol, _, code = body.partition(b"\0")
    return MachineCode(symbol.decode(), code)


def _read_trusted(path: Path) -> bytes | None:
    """The file's content, unless somebody could have written it who could not have written the sources.

    What is stored will be executed, and anybody can compute a checksum. So the file belongs to who runs this, to who
    owns the sources or to the administrator, and nobody else may write to it.
    """
    with path.open("rb") as file:
        if os.name == "posix":
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.geteuid(), _SOURCES.stat().st_uid, 0) or status.st_mode & 0o022:
                return None
        return file.read()


def _replace(path: Path, content: bytes) -> None:
    """Write a file that others see whole or not at all, may read, and may not change."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
