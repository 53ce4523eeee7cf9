"""Explanation: which document token answered which query token, and how much it gave to the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import A, TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import InvalidExplanation
from lateinteraction.domain.ranking import Score
from lateinteraction.domain.text import Document, Query


@frozen
class TokenMatch:
    """One query token's share of a score.

    Args:
        query_token, document_token: positions among the kept tokens; no document token is −1.
        query_span, document_span: characters (start, end) of the two texts; start = end for markers.
        contribution: the token's addend in the score.
    """

    query_token: int
    document_token: int
    query_span: tuple[int, int]
    document_span: tuple[int, int]
    contribution: float


@frozen
class Explanation:
    """A score taken apart. The contributions sum to it, relative 1e-5 of their absolute sum.

    Args:
        query: what was asked.
        document: what answered.
        score: with the embeddings of both texts as the encoder gives them.
        matches: for each token of the query.
        stored: the same with what an index keeps of the document, where one was asked.

    Raises:
        InvalidExplanation: the sum differs, or a span lies outside its text.
    """

    query: Query
    document: Document
    score: Score
    matches: tuple[TokenMatch, ...] = field(converter=tuple)
    stored: Explanation | None = None

    def __attrs_post_init__(self) -> None:
        contributions = [match.contribution for match in self.matches]
        total = math.fsum(contributions) if all(map(math.isfinite, contributions)) else sum(contributions)
        allowed = 1e-5 * max(1.0, math.fsum(abs(share) for share in contributions if math.isfinite(share)))
        if total != self.score and not abs(total - self.score) <= allowed:
            raise InvalidExplanation(
                f"contributions that sum to {total}", f"the score {self.score}", "Explain with the scorer that scored."
            )
        for match in self.matches:
            for (start, end), text in ((match.query_span, self.query.text), (match.document_span, self.document.text)):
                if not 0 <= start <= end <= len(text):
                    raise InvalidExplanation(
                        f"characters {start} to {end}", f"a span within a text of {len(text)}", "Trace the same text."
                    )


class TokenTracer(Protocol):
    """Tells which characters the embedded tokens stand for; encoders that can do it are one."""

    def trace_queries(self, queries: Sequence[Query]) -> TokenTrace: ...
    def trace_documents(self, documents: Sequence[Document]) -> TokenTrace: ...


class TokenMatcher(Protocol[A]):
    """Tells which document token answered each query token; scorers that can do it are one."""

    def winners(
        self, query: TokenEmbeddings[A], document: TokenEmbeddings[A]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Contributions (S,) to the score of one query with one document, and the winning tokens (S,); −1 for none."""
        ...
