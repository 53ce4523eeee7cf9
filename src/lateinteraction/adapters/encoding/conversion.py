"""Converted: an encoder whose embeddings come out as another kind of array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from attrs import frozen

from lateinteraction.adapters.encoding.encoder import (
    DOCUMENTS_PER_PIECE,
    EncodedDocuments,
    EncodingReport,
    WorkingEncoder,
)
from lateinteraction.domain.embeddings import A, Array, TokenEmbeddings, TokenTrace
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, Query

B = TypeVar("B", bound=Array)


@frozen(eq=False)
class Converted(Generic[A, B]):
    """The encoder of `source`, with embeddings that `convert` has made of its own."""

    source: WorkingEncoder[A]
    convert: Callable[[TokenEmbeddings[A]], TokenEmbeddings[B]]

    @property
    def recipe(self) -> EncodingRecipe:
        return self.source.recipe

    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[B]:
        return self.convert(self.source.encode_queries(queries))

    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[B]:
        return self.convert(self.source.encode_documents(documents))

    def encode_queries_with_report(self, queries: Sequence[Query]) -> tuple[TokenEmbeddings[B], EncodingReport]:
        embeddings, report = self.source.encode_queries_with_report(queries)
        return self.convert(embeddings), report

    def encode_documents_with_report(self, documents: Sequence[Document]) -> tuple[TokenEmbeddings[B], EncodingReport]:
        embeddings, report = self.source.encode_documents_with_report(documents)
        return self.convert(embeddings), report

    def stream_documents(
        self, documents: Iterable[Document], *, documents_per_piece: int = DOCUMENTS_PER_PIECE
    ) -> Iterator[EncodedDocuments[B]]:
        pieces = self.source.stream_documents(documents, documents_per_piece=documents_per_piece)
        return (EncodedDocuments(piece.documents, self.convert(piece.embeddings), piece.report) for piece in pieces)

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace:
        return self.source.trace_queries(queries)

    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace:
        return self.source.trace_documents(documents)
