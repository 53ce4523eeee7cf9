"""The commands and their options. Declarations only: what a command needs is imported when it runs, so that help and
usage errors cost nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="lateinteraction",
    help="Late-interaction retrieval: every token of a text keeps its own embedding.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is there in a third of the time that a coloured one takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

QueryText = Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")]
Hits = Annotated[int, typer.Option("-k", "--hits", min=1, help="How many hits to show.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="A folder or hub name; the offline default model if not given."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import lateinteraction

        typer.echo(f"lateinteraction {lateinteraction.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Late-interaction retrieval: every token of a text keeps its own embedding."""


@app.command()
def demo(
    documents: Annotated[int, typer.Option("--documents", min=1, help="How many functions to search.")] = 300,
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Search your Python's own library, and measure it.

    Each function's documentation is a query for the function's code; nothing is downloaded.
    """
    from lateinteraction.entrypoints.cli.demo import run

    run(documents, model=model, device=device, as_json=as_json)


@app.command()
def search(
    query: QueryText,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files and folders to search.")],
    k: Hits = 10,
    model: Model = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="JSON",
            help='Only documents whose metadata match, as {"field": "name", "operator": "==", "value": "main"}.',
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Search files and folders once, keeping no index.

    Reads text, Markdown, source and JSON lines, split at paragraphs and definitions.
    """
    from lateinteraction.entrypoints.cli.search import SearchRequest, run

    run(SearchRequest(query, tuple(paths), k, where), model=model, device=device, as_json=as_json)


@app.command()
def rerank(
    query: QueryText,
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="One document a line, plain or JSON; - is standard input.")
    ] = "-",
    k: Annotated[int | None, typer.Option("-k", "--hits", min=1, help="How many to show; all if not given.")] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Order a list of documents by their answer to a query."""
    from lateinteraction.entrypoints.cli.rerank import run

    run(query, source, k, model=model, device=device, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, kernels and the model."""
    from lateinteraction.entrypoints.cli.doctor import run

    run(as_json=as_json)
