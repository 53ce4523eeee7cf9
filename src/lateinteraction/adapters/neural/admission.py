"""What every index asks of documents, embeddings and queries before it does anything with them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lateinteraction.adapters.neural.transfer import all_finite
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidEmbeddings, InvalidOption
from lateinteraction.domain.ports import OnDuplicate
from lateinteraction.domain.text import Document, check_distinct


def check_addition(
    documents: Sequence[Document], embeddings: TokenEmbeddings[Tensor], on_duplicate: OnDuplicate
) -> None:
    """Raise unless these documents can be added with these embeddings, as far as the index itself does not matter.

    Raises:
        InvalidOption: another word for `on_duplicate`.
        InvalidEmbeddings: another count, values that are no finite floating-point numbers.
        DuplicateDocument: an id twice.
    """
    if on_duplicate not in ("error", "skip", "replace"):
        raise InvalidOption(f"on_duplicate = {on_duplicate!r}", "'error', 'skip' or 'replace'", "Choose one.")
    if len(documents) != len(embeddings):
        raise InvalidEmbeddings(
            f"{len(documents)} documents and embeddings of {len(embeddings)}",
            "as many of each",
            "Encode them together.",
        )
    check_distinct(document.id for document in documents)
    if not isinstance(embeddings.tokens, Tensor) or not embeddings.tokens.is_floating_point():
        raise InvalidEmbeddings(
            f"embeddings as a {type(embeddings.tokens).__name__} of {embeddings.tokens.dtype}",
            "a torch tensor of floating-point numbers",
            "Convert with `adapters.neural.transfer.to_torch`.",
        )
    if not all_finite(embeddings.tokens):
        item = next(i for i, tokens in enumerate(embeddings) if not all_finite(tokens))
        raise InvalidEmbeddings(
            f"NaN or infinity in the embeddings of document {documents[item].id!r}",
            "finite values",
            "Check the encoder; drop the document.",
        )


def check_width(width: int | None, embeddings: TokenEmbeddings[Tensor]) -> None:
    """Raise `InvalidEmbeddings` where an index has a width and these embeddings have another."""
    if width is not None and width != embeddings.dimension:
        raise InvalidEmbeddings(
            f"embeddings of {embeddings.dimension} dimensions",
            f"{width}, the width of this index",
            "Encode with the model that the index was filled with.",
        )


def check_queries(queries: TokenEmbeddings[Tensor]) -> None:
    """Raise `InvalidEmbeddings` where a query holds NaN or infinity."""
    if not all_finite(queries.tokens):
        raise InvalidEmbeddings("query embeddings with NaN or infinity", "finite values", "Check the encoder.")
