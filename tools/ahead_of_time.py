"""Compiles the Triton kernels for accelerators that are not there, and reads the machine code.

    python tools/ahead_of_time.py                  every row of the configuration table, as a report
    python tools/ahead_of_time.py --first --json   one row per kernel and architecture, one line of JSON each

Exits with 1 where a row does not hold what is asked of all (`faults`) or what it declares itself. Needs no device and
no driver, only Triton, whose wheel brings the assembler and disassembler of NVIDIA; AMD's code is read as assembly.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lateinteraction.kernels.gpu.configurations import Kernel, Row, Specimen

PACKAGE = "lateinteraction.kernels.gpu"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory one program may have. An A100 has 163 KB, but its rows serve 8.6, 8.9 and 12.0 too."""
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05", "mfma")

_MATRIX = {
    "mma.sync": re.compile(r"\bmma\.sync\b"),
    "wgmma": re.compile(r"\bwgmma\.mma_async\b"),
    "tcgen05": re.compile(r"\btcgen05\.mma\b"),
    "mfma": re.compile(r"\bv_s?mfmac?_"),
}
_ROUNDED = re.compile(r"\bkind::tf32\b|\.tf32\b|xf32")
_PTX_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[busf](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.[\w.:]*\s*\[[^]]*\],\s*\[[^]]*\],\s*(0x[0-9a-fA-F]+|\d+)")
_PTX_BULK = re.compile(r"\bcp\.async\.bulk\.tensor\b[\w.:]*global")
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")
_AMD_BYTES = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


class Code(NamedTuple):
    """What a compiled row turned out to be."""

    kernel: str
    architecture: str
    regime: str
    call: str
    shape: str
    registers: int
    stack: int
    spills: int
    shared: int
    matrix: Mapping[str, int]
    wide: int
    narrow: int
    rounded: int
    """Instructions that round float32 to TF32 before they multiply."""
    short_addresses: Sequence[str]


class Finding(NamedTuple):
    """A compiled row and what is wrong with it."""

    code: Code
    faults: Sequence[str]


def faults(code: Code, row: Row) -> list[str]:
    """What breaks the rules: those of all rows first, then what the row declares."""
    found: list[str] = []
    if code.stack or code.spills:
        found.append(f"{code.stack} bytes of stack and {code.spills} spills; none are allowed")
    if code.shared > SHARED_LIMIT[code.architecture]:
        found.append(f"{code.shared} bytes of shared memory; {SHARED_LIMIT[code.architecture]} are there")
    if code.rounded:
        found.append(f"{code.rounded} instructions in TF32; float32 is multiplied as float32")
    if code.short_addresses:
        found.append(f"addresses from products of 32 bits: {'; '.join(code.short_addresses)}")
    for name, count in code.matrix.items():
        if name == row.matrix and not count:
            found.append(f"declares {name}, has none")
        if name != row.matrix and count:
            found.append(f"declares {row.matrix or 'no matrix instruction'}, has {count} {name}")
    if row.wide_loads and (not code.wide or (code.narrow and row.wide_loads != "some")):
        declared = "some wide loads" if row.wide_loads == "some" else "wide loads"
        found.append(f"declares {declared}, has {code.wide} of 16 bytes and {code.narrow} of one or two")
    return found


class Job(NamedTuple):
    """One row, compiled for one call."""

    kernel: Kernel
    row: Row
    specimen: Specimen


def jobs(kernels: Iterable[Kernel], architecture: str, *, first: bool) -> Iterator[Job]:
    """Every row of an architecture with every call of its regime; with `first` one of each kernel.

    Raises:
        ValueError: a row that no specimen stands for, or a kernel without a row for the architecture.
    """
    for kernel in kernels:
        found: list[Job] = []
        for row in kernel.rows:
            calls = [specimen for specimen in kernel.specimens if specimen.regime == row.regime]
            if not calls:
                raise ValueError(f"{kernel.name} has no specimen of {row.regime!r}")
            found += [Job(kernel, row, call) for call in calls if row.architecture == architecture]
        if not found:
            raise ValueError(f"{kernel.name} has no row for {architecture}")
        yield from found[:1] if first else found


def compile_job(job: Job) -> Code:
    """Compile one row and read what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    architecture = job.row.architecture
    amd = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    given: dict[str, Any] = {**job.specimen.arguments, **job.row.tiles}
    names = list(job.kernel.function.arg_names)
    if set(names) != set(given):
        raise ValueError(f"{job.kernel.name}: row and specimen differ from its parameters in {set(names) ^ set(given)}")
    types = {name: str(given[name]) if isinstance(given[name], str) else "constexpr" for name in names}
    source = ASTSource(
        fn=job.kernel.function,
        signature={name: each.partition(":")[0] for name, each in types.items()},
        constexprs={(place,): given[name] for place, name in enumerate(names) if types[name] == "constexpr"},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if types[name].startswith("*") or types[name].endswith(":16")
        },
    )
    compiled = triton.compile(source, target=target, options={"num_warps": job.row.warps, "num_stages": job.row.stages})
    read = _read_amd if amd else _read_nvidia
    text = compiled.asm["amdgcn" if amd else "ptx"]
    return Code(
        kernel=job.kernel.name,
        architecture=architecture,
        regime=job.row.regime,
        call=_told(job.specimen.arguments),
        shape=" ".join(f"{name}={value}" for name, value in job.row.tiles.items())
        + f" w{job.row.warps} s{job.row.stages}",
        shared=compiled.metadata.shared,
        matrix={name: len(pattern.findall(text)) for name, pattern in _MATRIX.items()},
        rounded=len(_ROUNDED.findall(text)),
        short_addresses=short_addresses(compiled.asm["ttir"]),
        **read(compiled.asm),
    )


def _told(arguments: Mapping[str, Any]) -> str:
    """A call in a few words: the types of its pointers and its constants."""
    pointers = [each.partition(":")[0][1:] for each in arguments.values() if isinstance(each, str) and each[0] == "*"]
    constants = [f"{name}={each}" for name, each in arguments.items() if name.isupper() and not isinstance(each, str)]
    return " ".join([",".join(pointers), *constants])


def _read_nvidia(asm: Mapping[str, Any]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", str(cubin))
        stack = _number(r"\bSTACK:(\d+)", usage) + _number(r"\bLOCAL:(\d+)", usage)
        # Spills live on the stack; the disassembler, which takes longer than all else, only counts them.
        spills = len(re.findall(r"\b(?:LDL|STL)\b", _run("nvdisasm", "-c", str(cubin)))) if stack else 0
    sizes = [int(vector or 1) * int(bits) // 8 for vector, bits in _PTX_LOAD.findall(asm["ptx"])]
    sizes += [int(size, 0) for size in _PTX_COPY.findall(asm["ptx"])] + [16] * len(_PTX_BULK.findall(asm["ptx"]))
    return {
        "registers": _number(r"\bREG:(\d+)", usage),
        "stack": stack,
        "spills": spills,
        "wide": sum(size >= 16 for size in sizes),
        "narrow": sum(size <= 2 for size in sizes),
    }


def _read_amd(asm: Mapping[str, Any]) -> dict[str, int]:
    text = asm["amdgcn"]
    sizes = [_AMD_BYTES.get(kind.split("_")[0], 4) for kind in _AMD_LOAD.findall(text)]
    return {
        "registers": _number(r"\.vgpr_count:\s+(\d+)", text),
        "stack": _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        # Scalar registers spill into lanes of vector registers, which is no memory: those are not counted.
        "spills": _number(r"\.vgpr_spill_count:\s+(\d+)", text),
        "wide": sum(size >= 16 for size in sizes),
        "narrow": sum(size <= 2 for size in sizes),
    }


def _run(tool: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"nothing like {pattern} in what the tool says")
    return int(match[1])


_DEFINITION = re.compile(r"^\s*%(\S+?)(?::\d+)? = \"?([\w.]+)\"? ?(.*)$", re.MULTILINE)
_PRODUCTS = ("arith.muli", "arith.shli")


def short_addresses(ttir: str) -> list[str]:
    """Products of 32-bit numbers, not all known at compile time, that an address in this code depends on.

    A row number times a width overflows 32 bits from 2³¹ elements on, so one of them has to be 64 bits wide by then.
    """
    definitions = {name: (operation, rest) for name, operation, rest in _DEFINITION.findall(ttir)}
    offsets = [_operands(rest)[1] for operation, rest in definitions.values() if operation == "tt.addptr"]
    seen: set[str] = set()
    found: list[str] = []
    while offsets:
        name = offsets.pop()
        operation, rest = definitions.get(name, ("", ""))
        if name in seen or operation == "tt.load":  # what was read from memory is a number of its own
            continue
        seen.add(name)
        if operation in _PRODUCTS and re.search(r"\bi32\b|xi32\b", rest) and not _is_fixed(name, definitions):
            found.append(f"%{name} = {operation} {rest.partition(' loc(')[0]}")
        offsets += _operands(rest)
    return found


def _is_fixed(name: str, definitions: Mapping[str, tuple[str, str]]) -> bool:
    """Whether only constants and ranges go into a value, so that its size is known at compile time."""
    operation, rest = definitions.get(name, ("", ""))
    if operation in ("arith.constant", "tt.make_range"):
        return True
    operands = _operands(rest)
    return bool(operands) and operation != "tt.load" and all(_is_fixed(each, definitions) for each in operands)


def _operands(rest: str) -> list[str]:
    return [each.partition("#")[0] for each in re.findall(r"%([\w#]+)", rest.partition(" : ")[0])]


def kernels_of(modules: Iterable[ModuleType]) -> list[Kernel]:
    """Every kernel that stands in these modules, each once, by name.

    Raises:
        ValueError: two kernels of one name.
    """
    from lateinteraction.kernels.gpu.configurations import Kernel

    found: dict[str, Kernel] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Kernel) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"two kernels are called {value.name}")
    return [found[name] for name in sorted(found)]


def modules(file: str | None) -> list[ModuleType]:
    """The modules of the package that has the kernels, or the one in a file."""
    if file is not None:
        specification = importlib.util.spec_from_file_location("kernels_of_a_file", file)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return [module]
    package = importlib.import_module(PACKAGE)
    return [importlib.import_module(f"{PACKAGE}.{each.name}") for each in pkgutil.iter_modules(package.__path__)]


def work(options: argparse.Namespace) -> None:
    """Compile a share of an architecture's jobs, and write a line of JSON for each."""
    share, shares = options.share
    chosen = list(jobs(kernels_of(modules(options.file)), options.architectures[0], first=options.first))
    for job in chosen[share::shares]:
        if options.only in job.kernel.name:
            code = compile_job(job)
            print(json.dumps({"code": code._asdict(), "faults": faults(code, job.row)}), flush=True)


def findings(options: argparse.Namespace) -> Iterator[Finding]:
    """Compile in processes of their own, where Triton compiles and does not interpret.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    given = ["--only", options.only, *(["--first"] if options.first else []), *_file(options)]

    def run(architecture: str, share: int) -> str:
        command = [sys.executable, __file__, "--work", "--architectures", architecture, *given]
        shares = [str(share), str(options.processes)]
        done = subprocess.run([*command, "--share", *shares], env=variables, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    tasks = [(architecture, share) for architecture in options.architectures for share in range(options.processes)]
    with ThreadPoolExecutor(options.processes) as pool:
        for lines in pool.map(lambda task: run(*task), tasks):
            for line in lines.splitlines():
                read = json.loads(line)
                yield Finding(Code(**read["code"]), read["faults"])


def _file(options: argparse.Namespace) -> list[str]:
    return [] if options.file is None else ["--file", options.file]


HEADER = [
    *("kernel", "regime", "call", "tiles", "regs", "stack", "spills", "shared"),
    *MATRIX_INSTRUCTIONS,
    *("16 B", "≤ 2 B"),
]


def print_report(found: Sequence[Finding]) -> None:
    """A table for each architecture, and below it what is wrong."""
    for architecture in dict.fromkeys(each.code.architecture for each in found):
        rows = [HEADER, *(_cells(each.code) for each in found if each.code.architecture == architecture)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"\n{architecture}: {SHARED_LIMIT[architecture] // 1024} KB of shared memory")
        for row in rows:
            told = [
                cell.ljust(width) if n < 4 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(told).rstrip())
    for each in found:
        for fault in each.faults:
            print(
                f"error: {each.code.kernel} {each.code.architecture} {each.code.regime!r} ({each.code.call}): {fault}"
            )


def _cells(code: Code) -> list[str]:
    matrix = [code.matrix[name] for name in MATRIX_INSTRUCTIONS]
    numbers = [code.registers, code.stack, code.spills, code.shared, *matrix, code.wide, code.narrow]
    return [code.kernel, code.regime, code.call, code.shape, *("." if not each else str(each) for each in numbers)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--first", action="store_true", help="only the first row of each kernel")
    parser.add_argument("--only", default="", help="only kernels whose name has this in it")
    parser.add_argument("--file", help="a Python file with kernels, instead of the package")
    parser.add_argument("--json", action="store_true", help="lines of JSON instead of tables")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options)
        return 0
    found = list(findings(options))
    if options.json:
        for each in found:
            print(json.dumps({**each.code._asdict(), "faults": each.faults}))
    else:
        print_report(found)
    return int(any(each.faults for each in found))


if __name__ == "__main__":
    sys.exit(main())
