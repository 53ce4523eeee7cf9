"""`doctor`: what is installed, what computes, and why. Reports what is wrong instead of failing over it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from lateinteraction import wiring
from lateinteraction.entrypoints.cli.display import emit_json, output, visible


def run(*, as_json: bool) -> None:
    """Diagnose and show."""
    diagnosis = _diagnosis()
    if as_json:
        emit_json(diagnosis)
        return
    console = output()
    for topic, finding in diagnosis.items():
        rows = finding.items() if isinstance(finding, Mapping) else [("", finding)]
        for row, (name, value) in enumerate(rows):
            label = "" if row else topic.replace("_", " ")
            console.print(Text.assemble((f"{label:15} ", "bold"), f"{name.replace('_', ' '):16} ", _said(value)))


def _diagnosis() -> dict[str, Any]:
    system = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
    }
    try:
        return {**system, **wiring.diagnose()}
    except (ImportError, OSError, RuntimeError) as error:  # a broken installation is what one asks a doctor about
        return {**system, "problem": f"{type(error).__name__}: {error}"}


def _said(value: object) -> str:
    if value is None:
        return "not installed"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return visible(str(value))
