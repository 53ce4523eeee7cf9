"""`python -m benchmarks NAME`: run one case, append its rows, print its table. STRICT=1: a short figure is an error."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys

from benchmarks import cases
from benchmarks.harness import COLUMNS, Bench


def main() -> int:
    """Run the case that is named; the exit status is 1 when STRICT is set and a figure is short."""
    names = sorted(module.name.replace("index_", "index-") for module in pkgutil.iter_modules(cases.__path__))
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("case", choices=names, metavar=f"{{{','.join(names)}}}")
    parser.add_argument("--dry", action="store_true", help="append no result rows")
    arguments = parser.parse_args()
    module = importlib.import_module(f"benchmarks.cases.{arguments.case.replace('-', '_')}")
    bench = Bench(arguments.case, module.FIGURES, getattr(module, "COLUMNS", COLUMNS))
    module.run(bench)
    table, all_met = bench.closing_table()
    if not arguments.dry:
        print(f"rows appended to {bench.append_results()}")
    print(table)
    if os.environ.get("STRICT", "") not in ("", "0") and not all_met:
        print("a figure is short")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
