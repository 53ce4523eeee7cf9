"""Postings: for each term of a segment, the documents that have it and how often; for each document, its length.

Terms are sorted by their bytes. The postings of a term are sorted by row. Nothing here knows how texts became terms.
"""

from __future__ import annotations

from array import array as numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from lateinteraction.adapters.index import texts
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.columns import (
    BLOCK,
    Column,
    Entry,
    MergedDictionary,
    Rows,
    blocks_of,
    damaged,
    offsets_into,
    vector,
    vector_of,
)
from lateinteraction.adapters.index.texts import Texts
from lateinteraction.domain.embeddings import offsets_of

TERMS = "lexical.terms"
OFFSETS = "lexical.offsets"
ROWS = "lexical.rows"
COUNTS = "lexical.counts"
LENGTHS = "lexical.lengths"

MOST_COUNTS = 2**16 - 1
"""Of one term in one document. More are counted as this many: BM25 cannot tell them apart."""

GONE = -1
_TERMS_AT_A_TIME = 4096

DocumentRows = NDArray[np.uint32]


class Matches(NamedTuple):
    """The documents of a segment that have a term."""

    rows: DocumentRows
    counts: NDArray[np.uint16]


_NONE = Matches(np.empty(0, np.uint32), np.empty(0, np.uint16))


@final
class PostingsBuilder:
    """Collects the terms of documents, in the order of their rows: some eight bytes for each occurrence."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._terms = numbers("I")
        self._lengths = numbers("I")

    def add(self, terms: Sequence[str]) -> None:
        """The next document."""
        known = self._known
        self._terms.extend([known.setdefault(term, len(known)) for term in terms])
        self._lengths.append(len(terms))

    def build(self) -> dict[str, NDArray[Any]]:
        """The arrays of all documents so far."""
        encoded = [term.encode() for term in self._known]
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        lengths = np.array(self._lengths, np.uint32)
        documents = max(len(lengths), 1)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        pairs, counts = np.unique(rank[np.array(self._terms, np.int64)] * documents + rows, return_counts=True)
        return texts.of_bytes([encoded[term] for term in order], TERMS) | {
            OFFSETS: offsets_of(np.bincount(pairs // documents, minlength=len(order))),
            ROWS: (pairs % documents).astype(np.uint32),
            COUNTS: np.minimum(counts, MOST_COUNTS).astype(np.uint16),
            LENGTHS: lengths,
        }


def build(documents: Iterable[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """The arrays for documents whose terms these are, in the order of their rows."""
    builder = PostingsBuilder()
    for terms in documents:
        builder.add(terms)
    return builder.build()


@final
class Postings:
    """The stored postings of a segment. Terms, offsets and lengths are verified at opening, postings when looked up.

    Args:
        arrays: "lexical.terms.bytes" u1 and "lexical.terms.offsets" i8, the V terms; "lexical.offsets" i8 (V+1,) into
            "lexical.rows" u4 and "lexical.counts" u2; "lexical.lengths" u4 (N,), how many terms a document has.
        documents: N.

    Raises:
        CorruptIndex: arrays that are missing, damaged or do not fit.
    """

    def __init__(self, arrays: Arrays, documents: int) -> None:
        self._arrays = arrays
        self.terms = Texts(arrays, TERMS)
        self._content = arrays.whole(f"{TERMS}.bytes").data
        self._term_offsets = self.terms.offsets.data
        self._rows = vector(arrays, ROWS, np.uint32, lazily=True)
        self._counts = vector_of(arrays, COUNTS, np.uint16, len(self._rows), lazily=True)
        self.offsets = offsets_into(arrays, OFFSETS, len(self._rows))
        if len(self.offsets) != len(self.terms) + 1:
            raise damaged(OFFSETS, f"the postings of {len(self.offsets) - 1} terms", f"{len(self.terms)}")
        self.lengths: NDArray[np.uint32] = vector_of(arrays, LENGTHS, np.uint32, documents)

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, terms: Sequence[str]) -> list[Matches]:
        """The documents that have each of these terms."""
        places = [self._place(term.encode()) for term in terms]
        known = np.array([place for place in places if place is not None], np.int64)
        self._check(self.offsets[known], self.offsets[known + 1])
        return [_NONE if place is None else self._between(place, place + 1) for place in places]

    def span(self, first: int, last: int) -> Matches:
        """The postings of the terms first … last−1."""
        self._check(self.offsets[[first]], self.offsets[[last]])
        return self._between(first, last)

    def _place(self, term: bytes) -> int | None:
        content, offsets = self._content, self._term_offsets  # local names: this loop is most of a query
        low, high = 0, len(self.terms)
        while low < high:
            middle = (low + high) // 2
            if content[offsets[middle] : offsets[middle + 1]].tobytes() < term:
                low = middle + 1
            else:
                high = middle
        found = low < len(self.terms) and content[offsets[low] : offsets[low + 1]] == term
        return low if found else None

    def _check(self, starts: Rows, ends: Rows) -> None:
        self._arrays.check(ROWS, starts, ends)
        self._arrays.check(COUNTS, starts, ends)

    def _between(self, first: int, last: int) -> Matches:
        chosen = slice(self.offsets[first], self.offsets[last])
        rows = self._rows[chosen]
        if len(rows) and int(rows.max()) >= len(self):
            raise damaged(ROWS, f"the row {int(rows.max())}", f"rows below {len(self)}")
        return Matches(rows, self._counts[chosen])

    def spans(self) -> Iterator[slice]:
        """All terms, so many at a time that their postings make a block."""
        return blocks_of(np.diff(self.offsets), BLOCK)

    def entries(self, places: Rows) -> Iterator[Entry]:
        """Bytes and place of each of these terms, which rise."""
        for first in range(0, len(places), _TERMS_AT_A_TIME):
            block = places[first : first + _TERMS_AT_A_TIME]
            for content, place in zip(self.terms.encoded(block), block, strict=True):
                yield content, content, int(place)


class _Part:
    """What merged postings take from one segment."""

    def __init__(self, postings: Postings, kept: Rows, before: int) -> None:
        assert bool((kept[1:] > kept[:-1]).all()), "rows of postings rise"
        self._postings = postings
        self._places = np.full(len(postings), GONE, np.int64)
        self._places[kept] = np.arange(before, before + len(kept))
        self.frequencies = np.zeros(len(postings.terms), np.int64)
        """Of each term, how many kept documents have it."""
        for span in postings.spans():
            terms, _ = self.remaining(span.start, span.stop)
            self.frequencies[span] = np.bincount(terms - span.start, minlength=span.stop - span.start)
        self.terms = np.flatnonzero(self.frequencies)
        """Those that some kept document has."""

    def entries(self) -> Iterator[Entry]:
        return self._postings.entries(self.terms)

    def remaining(self, first: int, last: int) -> tuple[Rows, Matches]:
        """The kept postings of the terms first … last−1 with their new rows, and the term of each."""
        matches = self._postings.span(first, last)
        terms = np.repeat(np.arange(first, last), np.diff(self._postings.offsets[first : last + 1]))
        places = self._places[matches.rows]
        kept = places != GONE
        return terms[kept], Matches(places[kept].astype(np.uint32), matches.counts[kept])


def merged(parts: Sequence[tuple[Postings, Rows]]) -> Iterator[Column]:
    """The columns of the kept rows of each part, part after part: what `build` makes of their terms.

    Args:
        parts: postings, and the rows that stay, which rise.
    """
    firsts = offsets_of([len(kept) for _, kept in parts])
    sources = [_Part(*part, int(first)) for part, first in zip(parts, firsts[:-1], strict=True)]
    dictionary = MergedDictionary([each.entries() for each in sources], [len(each.frequencies) for each in sources])
    yield Column(f"{TERMS}.bytes", np.uint8, dictionary.blocks())
    yield Column(f"{TERMS}.offsets", np.int64, (offsets_of(dictionary.lengths),))
    totals = np.zeros(len(dictionary.lengths), np.int64)
    for source, codes in zip(sources, dictionary.codes, strict=True):
        totals[codes[source.terms]] += source.frequencies[source.terms]
    yield Column(OFFSETS, np.int64, (offsets_of(totals),))
    yield Column(ROWS, np.uint32, (matches.rows for matches in _merged_postings(sources, dictionary.codes, totals)))
    yield Column(COUNTS, np.uint16, (matches.counts for matches in _merged_postings(sources, dictionary.codes, totals)))
    yield Column(LENGTHS, np.uint32, [postings.lengths[kept] for postings, kept in parts])


def _merged_postings(
    sources: Sequence[_Part], codes: Sequence[NDArray[np.int32]], totals: NDArray[np.int64]
) -> Iterator[Matches]:
    """The postings of the merged terms, a block of terms at a time.

    A range of merged terms is a range of terms of each source, since all are sorted alike.
    """
    for block in blocks_of(totals, BLOCK):
        terms: list[NDArray[np.int32]] = []
        found: list[Matches] = []
        for source, renumbered in zip(sources, codes, strict=True):
            first, last = np.searchsorted(renumbered[source.terms], [block.start, block.stop])
            if first < last:
                own, matches = source.remaining(int(source.terms[first]), int(source.terms[last - 1]) + 1)
                terms.append(renumbered[own])
                found.append(matches)
        order = np.argsort(np.concatenate(terms), kind="stable")  # rows of a later source are higher
        yield Matches(
            np.concatenate([each.rows for each in found])[order], np.concatenate([each.counts for each in found])[order]
        )
