"""Explainer: a score taken apart into what each query token found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import A, TokenEmbeddings
from lateinteraction.domain.errors import InvalidExplanation
from lateinteraction.domain.explanation import Explanation, TokenMatch, TokenMatcher, TokenTracer
from lateinteraction.domain.ports import Encoder, Scorer
from lateinteraction.domain.ranking import Score
from lateinteraction.domain.text import Document, Query


@frozen
class Explainer(Generic[A]):
    """Explains with the encoder and scorer that scored.

    Args:
        tracer: usually the encoder itself.
        matcher: usually the scorer itself.
        to_host: brings scores to a NumPy array.
    """

    encoder: Encoder[A]
    tracer: TokenTracer
    scorer: Scorer[A]
    matcher: TokenMatcher[A]
    to_host: Callable[[A], NDArray[np.float32]]

    def explain(self, query: Query, document: Document, stored: TokenEmbeddings[A] | None = None) -> Explanation:
        """Score one document with one query and say which token gave what.

        Args:
            query: what is asked.
            document: with its text, which is encoded.
            stored: what an index keeps of the document, one item: to be explained beside it.

        Raises:
            InvalidExplanation: the index keeps another number of tokens than the text has now.
        """
        queries, documents = self.encoder.encode_queries([query]), self.encoder.encode_documents([document])
        exact = self._explained(query, document, queries, documents)
        if stored is None:
            return exact
        if int(stored.offsets[-1]) != int(documents.offsets[-1]):
            raise InvalidExplanation(
                f"{stored.offsets[-1]} stored tokens for a text of {documents.offsets[-1]}",
                "those of one text and one recipe",
                "Explain with the model that filled the index.",
            )
        return evolve(exact, stored=self._explained(query, document, queries, stored))

    def _explained(
        self, query: Query, document: Document, queries: TokenEmbeddings[A], documents: TokenEmbeddings[A]
    ) -> Explanation:
        query_trace, document_trace = self.tracer.trace_queries([query]), self.tracer.trace_documents([document])
        contributions, winners = self.matcher.winners(queries, documents)
        matches = [
            TokenMatch(
                query_token=token,
                document_token=int(winner),
                query_span=query_trace.characters(token),
                document_span=document_trace.characters(int(winner)) if winner >= 0 else (0, 0),
                contribution=float(contribution),
            )
            for token, (contribution, winner) in enumerate(zip(contributions, winners, strict=True))
        ]
        score = float(self.to_host(self.scorer.matrix(queries, documents))[0, 0])
        return Explanation(query, document, Score(score), matches)
