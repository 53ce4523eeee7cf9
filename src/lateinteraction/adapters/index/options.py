"""SearchOptions: how much a search may cost, and how similarities become a score."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal, final, get_args

from attrs import frozen

from lateinteraction.domain.errors import InvalidOption

Effort = Literal["fast", "balanced", "exact"]
Interaction = Literal["maxsim", "xtr"]
"""How similarities become a score: `maxsim`, of all tokens; `xtr`, of those alone that a query token retrieves, for
models that are trained for it."""

CANDIDATES = MappingProxyType({"fast": 64, "balanced": 256})
"""Documents that are scored by what the codec stores. Share of the exact best ten among them, Cranfield with a centroid
for 100 tokens: 32 .955, 64 .992, 128 .999, 256 1.000."""
CANDIDATES_PER_ROOT = MappingProxyType({"fast": 0.36, "balanced": 1.45})
"""At least √documents times so much: the more documents, the more of them are about as good. Best ten that are found of
100,000 and 300,000 synthetic documents, of which the codec alone leaves .940 and .935: 256 .918 .783, 512 .940 .850,
1,024 .940 .913."""
CANDIDATES_PER_HIT = MappingProxyType({"fast": 4, "balanced": 8})
"""At least so many for each hit that is asked for."""
PROBE = MappingProxyType({"fast": 8, "balanced": 32})
"""Inverted lists in which each query token looks. Share of the exact best ten of Cranfield among 128 and 256 documents:
4 .984 .994, 8 .994 .999, 16 .999 1.000, 32 .999 1.000; all codes .999 1.000. Best ten of 100,000 synthetic documents
that are found, and ms: 8 .918 6.2, 16 .928 6.3, 32 .935 7.1; all codes .938 18.7."""
TABLED = 2**14
"""Centroids up to which a query is compared with all of them: the table is then there for scoring too."""
ENOUGH, ENOUGH_PER_HIT = 32, 4
"""Documents that lists must reach, and the least of them for each hit."""
FEW_DOCUMENTS = 32
"""Where fewer than one document in so many may be returned, lists reach too few of them to be worth a look."""
TOGETHER = 1_024
"""Documents of several segments that are brought together before they are scored, so that kernels are asked once: of
fifteen segments, the search of 100,000 documents then takes 0.7 of the time."""
LEAST_RETRIEVED, RETRIEVED = 1_000, 8
"""A query token retrieves √(8 T) of T tokens, as WARP does (Scheerer et al., SIGIR 2025), and not fewer than 1,000."""
RESCORED, RESCORED_PER_HIT = 32, 2
"""Documents that are scored again by kept vectors, and the least of them for each hit."""


@final
@frozen
class SearchOptions:
    """How much a search may cost.

    Args:
        effort: "fast" and "balanced" score few documents and more by what the codec stores; "exact" scores all, by kept
            vectors where there are any.
        candidates: how many documents instead of the effort's own number; at least as many as hits are asked for.
        probe: in how many inverted lists each query token looks, where there are lists, instead of the effort's number.
        rescore: whether the best are scored again by kept vectors.
        interaction: how similarities become a score; see `Interaction`.
        retrieved: for `xtr`, how many tokens of all documents each query token retrieves; None: by their number.
    """

    effort: Effort = "balanced"
    candidates: int | None = None
    probe: int | None = None
    rescore: bool = True
    interaction: Interaction = "maxsim"
    retrieved: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise InvalidOption(f"effort = {self.effort!r}", "'fast', 'balanced' or 'exact'", "Choose one.")
        if self.interaction not in get_args(Interaction):
            raise InvalidOption(f"interaction = {self.interaction!r}", "'maxsim' or 'xtr'", "Choose one.")
        if self.retrieved is not None and self.interaction != "xtr":
            raise InvalidOption(
                "`retrieved` with MaxSim", "interaction = 'xtr' with it", "Leave it out, or choose XTR."
            )
        counts = ("candidates", self.candidates), ("probe", self.probe), ("retrieved", self.retrieved)
        for name, count in counts:
            if count is not None and (isinstance(count, bool) or count < 1):
                raise InvalidOption(f"{name} = {count!r}", "at least 1", "Leave it out.")

    def shortlist(self, k: int, documents: int) -> int | None:
        """How many of so many documents are scored by what the codec stores, for k hits; None: all."""
        if self.candidates is not None:
            return max(self.candidates, k)
        if self.effort == "exact":
            return None
        by_size = math.ceil(CANDIDATES_PER_ROOT[self.effort] * math.sqrt(documents))
        return max(CANDIDATES[self.effort], CANDIDATES_PER_HIT[self.effort] * k, by_size)

    def enough(self, k: int, shortlist: int) -> int:
        """How many documents inverted lists are to reach, for a shortlist of so many and k hits."""
        return min(shortlist, max(ENOUGH, ENOUGH_PER_HIT * k))

    def nprobe(self) -> int:
        """In how many inverted lists each query token looks."""
        return self.probe or PROBE["fast" if self.effort == "fast" else "balanced"]

    def retrieved_of(self, tokens: int) -> int:
        """How many tokens each query token retrieves of so many."""
        return self.retrieved or max(LEAST_RETRIEVED, round(math.sqrt(RETRIEVED * tokens)))
