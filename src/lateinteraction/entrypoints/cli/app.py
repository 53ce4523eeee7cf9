"""The commands and their options. Declarations only: what a command needs is imported when it runs, so that help and
usage errors cost nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from lateinteraction.adapters.index.analysis import Language

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


index = typer.Typer(name="index", help="Keep documents in a folder, and search it.", no_args_is_help=True)
app.add_typer(index)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the index.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="JSON",
        help='Only documents whose metadata match, as {"field": "name", "operator": "==", "value": "main"}.',
    ),
]


@index.command()
def create(
    folder: Folder,
    codec: Annotated[
        Literal["auto", "float16", "int8", "residual4", "residual2", "residual1"],
        typer.Option("--codec", help="How embeddings are stored."),
    ] = "auto",
    keep: Annotated[
        Literal["nothing", "int8", "float16"],
        typer.Option("--keep", help="What of the vectors is kept beside residuals, for more exact scores."),
    ] = "nothing",
    tier: Annotated[
        Literal["auto", "exact", "compressed", "listed"],
        typer.Option("--tier", help="Whether everything is scored, or by centroids first, by inverted lists before."),
    ] = "auto",
    centroids: Annotated[
        int | None, typer.Option("--centroids", help="Of the codebook; by the number of tokens where it is left out.")
    ] = None,
    language: Annotated[
        str, typer.Option("--language", help="What words are stemmed by: english, german, …; none.")
    ] = "english",
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Make an index; it remembers how the model embeds."""
    from lateinteraction import IndexOptions
    from lateinteraction.entrypoints.cli.index import Encoding, create

    create(folder, IndexOptions(codec, cast("Language", language), keep, tier, centroids), Encoding(model, device))


@index.command()
def add(
    folder: Folder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files and folders to add.")],
    on_duplicate: Annotated[
        Literal["error", "skip", "replace"], typer.Option("--on-duplicate", help="What becomes of ids that are there.")
    ] = "error",
    per_commit: Annotated[
        int, typer.Option("--per-commit", min=1, help="Documents that are encoded and committed at a time.")
    ] = 2048,
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Add files. What is committed stays, whatever happens; run it again with --on-duplicate skip to go on."""
    from lateinteraction.entrypoints.cli.index import Encoding, add

    add(folder, paths, on_duplicate, per_commit, Encoding(model, device), as_json=as_json)


@index.command()
def remove(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Documents to remove.")] = None,
    where: Where = None,
) -> None:
    """Remove documents, by ids or by filter."""
    from lateinteraction.entrypoints.cli.index import remove

    remove(folder, ids or [], where)


@index.command(name="search")
def search_index(
    folder: Folder,
    query: QueryText,
    k: Hits = 10,
    where: Where = None,
    by: Annotated[
        Literal["embeddings", "words", "both"], typer.Option("--by", help="What ranks documents; words do by BM25.")
    ] = "embeddings",
    effort: Annotated[
        Literal["fast", "balanced", "exact"] | None,
        typer.Option("--effort", help="How much a search by embeddings may cost; balanced where it is left out."),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Search an index."""
    from lateinteraction.entrypoints.cli.index import Encoding, IndexQuery, search

    search(folder, IndexQuery(query, k, where, by, effort), Encoding(model, device), as_json=as_json)


@index.command()
def info(folder: Folder, as_json: AsJson = False) -> None:
    """Show what an index is made of."""
    from lateinteraction.entrypoints.cli.index import info

    info(folder, as_json=as_json)


@index.command()
def recall(
    folder: Folder,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A sample of queries, one a line.")],
    k: Hits = 10,
    effort: Annotated[
        Literal["fast", "balanced", "exact"], typer.Option("--effort", help="Of the search that is measured.")
    ] = "balanced",
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how much of the exact search a search finds, and how long both take."""
    from lateinteraction.entrypoints.cli.index import Encoding, recall

    recall(folder, source, k, effort, Encoding(model, device), as_json=as_json)


@index.command()
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every byte, and say what is damaged; exit code 1 where anything is."""
    from lateinteraction.entrypoints.cli.index import verify

    if not verify(folder, as_json=as_json):
        raise typer.Exit(1)


@index.command()
def repair(
    folder: Folder,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Lose what cannot be saved.")] = False,
) -> None:
    """Say what making a damaged index whole would lose; do it with --accept-loss."""
    from lateinteraction.entrypoints.cli.index import repair

    if not repair(folder, accept_loss=accept_loss):
        raise typer.Exit(1)


@index.command()
def compact(
    folder: Folder,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train a new codebook on all documents, and encode them anew.")
    ] = False,
) -> None:
    """Rewrite segments into few, free of removed documents."""
    from lateinteraction.entrypoints.cli.index import compact

    compact(folder, retrain=retrain)


@index.command()
def snapshot(
    folder: Folder, target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty folder.")]
) -> None:
    """Copy the present state into another folder, by links where the file system has them."""
    from lateinteraction.entrypoints.cli.index import snapshot

    snapshot(folder, target)


@index.command(name="export")
def export_index(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write an index as files that any tool reads: JSON lines and NumPy arrays."""
    from lateinteraction.entrypoints.cli.index import export

    export(folder, out, overwrite=overwrite)


@index.command(name="import")
def import_index(
    source: Annotated[
        Path, typer.Argument(metavar="FROM", help="An export, or a folder of PyLate, fast-plaid or ColBERT.")
    ],
    folder: Annotated[Path, typer.Option("--index", metavar="FOLDER", help="The folder of the index, new or there.")],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read ids that PyLate keeps in pickles; nothing in them is run.")
    ] = False,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="JSON lines with the id and text of documents.")
    ] = None,
    on_duplicate: Annotated[
        Literal["error", "skip", "replace"], typer.Option("--on-duplicate", help="What becomes of ids that are there.")
    ] = "error",
) -> None:
    """Take in documents with their embeddings; nothing is encoded."""
    from lateinteraction.entrypoints.cli.index import take_in

    take_in(source, folder, trust_pickle=trust_pickle, texts=texts, on_duplicate=on_duplicate)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, kernels and the model."""
    from lateinteraction.entrypoints.cli.doctor import run

    run(as_json=as_json)
