"""An index beside a plain dictionary: whatever is done to both, they answer alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import DuplicateDocument, InvalidEmbeddings, UnknownDocument
from lateinteraction.domain.filters import Comparison, Filter, Not, matches
from lateinteraction.domain.ports import AddReport, DocumentStore, Index, OnDuplicate
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.contracts.checks import Embeddings, packed

_WIDTH = 2
_ALL = 100
_ids = st.sampled_from([DocumentId(letter) for letter in "abcdefgh"])
_some_ids = st.lists(_ids, min_size=1, max_size=4, unique=True)
_seeds = st.integers(0, 2**16 - 1)
_policies = st.sampled_from(["error", "skip", "replace"])
_languages = st.sampled_from(["en", "de", "fr"])
_filters = st.one_of(
    st.builds(Comparison, st.just("language"), st.just("=="), _languages),
    st.builds(Comparison, st.just("turn"), st.sampled_from(["<", ">="]), st.integers(0, 12)),
    st.builds(lambda language: Not([Comparison("language", "==", language)]), _languages),
)


class IndexHistory(RuleBasedStateMachine):
    """Additions, removals, searches and refusals in any order. All values are multiples of 1/8, so scores are exact."""

    def __init__(
        self,
        index: Index[Any],
        given: Callable[[Embeddings], TokenEmbeddings[Any]],
        document_store: Callable[[Index[Any]], DocumentStore | None],
    ) -> None:
        super().__init__()
        self.index = index
        self.given = given
        self.store = document_store(index)
        self.model: dict[DocumentId, tuple[Document, NDArray[np.float32]]] = {}
        self.turn = 0

    @initialize(seed=_seeds)
    def begin(self, seed: int) -> None:
        self.add([DocumentId(letter) for letter in "adgh"], "error", "de", seed)

    @rule(ids=_some_ids, policy=_policies, language=_languages, seed=_seeds)
    def add(self, ids: list[DocumentId], policy: OnDuplicate, language: str, seed: int) -> None:
        if policy == "error":
            ids = [identifier for identifier in ids if identifier not in self.model]
        documents, embeddings = self._documents(ids, language), self._embeddings(len(ids), seed)
        report = self.index.add(documents, self.given(embeddings), on_duplicate=policy)
        known = [identifier for identifier in ids if identifier in self.model]
        skipped = known if policy == "skip" else []
        taken = {
            document.id: (document, tokens)
            for document, tokens in zip(documents, embeddings, strict=True)
            if document.id not in skipped
        }
        self.model.update(taken)
        assert report == AddReport(
            added=[identifier for identifier in ids if identifier not in known],
            skipped=skipped,
            replaced=known if policy == "replace" else [],
            empty=[identifier for identifier, (_, tokens) in taken.items() if not len(tokens)],
        )

    @rule(ids=_some_ids, policy=_policies, fault=st.sampled_from(["nan", "twice", "count", "known"]), seed=_seeds)
    def add_in_vain(self, ids: list[DocumentId], policy: OnDuplicate, fault: str, seed: int) -> None:
        if fault == "known" and self.model:
            ids, policy = [*dict.fromkeys([*ids, next(iter(self.model))])], "error"
        documents, embeddings = self._documents(ids, "en"), self._embeddings(len(ids), seed)
        if fault == "nan":
            tokens = np.concatenate([embeddings.tokens, np.full((1, _WIDTH), np.nan, np.float32)])
            embeddings = TokenEmbeddings(tokens, offsets_of([*embeddings.lengths[:-1], embeddings.lengths[-1] + 1]))
        elif fault == "twice":
            documents, embeddings = documents + documents[:1], self._embeddings(len(ids) + 1, seed)
        elif fault == "count" or not self.model:
            documents = documents[1:]
        with pytest.raises((InvalidEmbeddings, DuplicateDocument)):  # which of two faults is named, the index chooses
            self.index.add(documents, self.given(embeddings), on_duplicate=policy)

    @rule(ids=_some_ids)
    def remove(self, ids: list[DocumentId]) -> None:
        ids = [identifier for identifier in ids if identifier in self.model]
        assert self.index.remove(ids) == len(ids)
        for identifier in ids:
            del self.model[identifier]

    @rule(ids=_some_ids, place=st.integers(0, 4))
    def remove_in_vain(self, ids: list[DocumentId], place: int) -> None:
        ids = [identifier for identifier in ids if identifier in self.model]
        with pytest.raises(UnknownDocument):
            self.index.remove([*ids[:place], DocumentId("nobody"), *ids[place:]])

    @rule(which=_filters)
    def remove_by_filter(self, which: Filter) -> None:
        gone = [identifier for identifier, (document, _) in self.model.items() if matches(which, document.metadata)]
        assert self.index.remove(which) == len(gone)
        for identifier in gone:
            del self.model[identifier]

    @rule(k=st.integers(1, 7), where=st.none() | _filters, candidates=st.none() | _some_ids, seed=_seeds)
    def search(self, k: int, where: Filter | None, candidates: list[DocumentId] | None, seed: int) -> None:
        queries = self._embeddings(2, seed)
        found = self.index.search(self.given(queries), k, where=where, candidates=candidates)
        meant = [
            identifier
            for identifier, (document, _) in self.model.items()
            if (candidates is None or identifier in candidates) and (where is None or matches(where, document.metadata))
        ]
        assert found == self._rankings(queries, meant, k)

    @invariant()
    def holds_the_same_documents(self) -> None:
        assert len(self.index) == len(self.model)
        assert self.index.search(self.given(_PROBES), _ALL) == self._rankings(_PROBES, list(self.model), _ALL)
        if self.store is not None:
            assert self.store.get(list(self.model)) == [document for document, _ in self.model.values()]

    def _rankings(self, queries: Embeddings, ids: Sequence[DocumentId], k: int) -> list[Ranking]:
        return [
            Ranking.from_scores(ids, [_score(query, self.model[identifier][1]) for identifier in ids], k)
            for query in queries
        ]

    def _documents(self, ids: Sequence[DocumentId], language: str) -> list[Document]:
        self.turn += 1
        return [
            Document(identifier, f"{identifier} of turn {self.turn}", {"language": language, "turn": self.turn})
            for identifier in ids
        ]

    def _embeddings(self, items: int, seed: int) -> Embeddings:
        """Items of 0 to 3 tokens, others at each turn. From a seed, since histories are what should shrink."""
        generator = np.random.default_rng([seed, self.turn])
        lengths = generator.integers(0, 4, items)
        eighths = generator.integers(-8, 9, (int(lengths.sum()), _WIDTH))
        return TokenEmbeddings((eighths / 8).astype(np.float32), offsets_of(lengths))


_PROBES = packed([[[1, 0]], [[0.5, -1], [-1, 0.125]]], _WIDTH)


def _score(query: NDArray[np.floating], document: NDArray[np.floating]) -> float:
    """MaxSim, written once more: the reference is on trial here too."""
    return float(sum(max((float(q @ d) for d in document), default=-np.inf) for q in query))
