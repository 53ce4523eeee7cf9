"""The command line. `app` declares the commands, one module each does the work, `display` writes to the terminal.

This module is where errors end: each becomes one message on standard error and an exit code.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from lateinteraction.domain.errors import InvalidOption, LateInteractionError

FAILED = 1
INTERRUPTED = 130
"""Exit codes, beside 0 and the parser's 2 for wrong usage. 128 + 2 is what shells give a command ended by Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with these arguments, or with those of the process, and end the process.

    Exit codes: 0 done, 1 an error of ours, 2 wrong usage, 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show must not end a search
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        # Of invalid escapes in source that is searched. The process is ours here, unlike in the library.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from typer.main import get_command

            from lateinteraction.entrypoints.cli.app import app

            get_command(app)(None if arguments is None else list(arguments))
        except LateInteractionError as error:
            _show_error(error)
            sys.exit(FAILED)
        except OSError as error:
            _show_error(
                InvalidOption(
                    f"output that cannot be written ({error.strerror or error})",
                    "a standard output with room",
                    "Free some space, or write elsewhere.",
                )
            )
            sys.exit(FAILED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
    raise AssertionError("the parser ends the process")


def _show_error(error: LateInteractionError) -> None:
    """The three parts of an error, one a line."""
    from lateinteraction.entrypoints.cli.display import notes, visible

    console = notes()
    for label, part, style in (
        ("error", error.given, "bold red"),
        ("expected", error.expected, "bold"),
        ("to do", error.remedy, "bold"),
    ):
        console.print(f"{label:9}", style=style, end="")
        console.print(visible(part), soft_wrap=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a sentence: where in the source it was raised tells a person at a terminal nothing."""
    from lateinteraction.entrypoints.cli.display import visible

    print(f"warning  {visible(str(message))}", file=file or sys.stderr)
