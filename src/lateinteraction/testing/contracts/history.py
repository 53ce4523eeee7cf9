"""An index beside a plain dictionary: whatever is done to both, they answer alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import DuplicateDocument, InvalidEmbeddings, LateInteractionError, UnknownDocument
from lateinteraction.domain.filters import Comparison, Filter, Not, matches
from lateinteraction.domain.ports import DocumentStore, Index, OnDuplicate
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.contracts.checks import Embeddings

_WIDTH = 2
_ids = st.sampled_from([DocumentId(letter) for letter in "abcdef"])
_some_ids = st.lists(_ids, max_size=4, unique=True)
_seeds = st.integers(0, 2**32 - 1)
_policies = st.sampled_from(["error", "skip", "replace"])
_languages = st.sampled_from(["en", "de", "fr"])
_filters = st.one_of(
    st.builds(Comparison, st.just("language"), st.sampled_from(["==", "!="]), _languages),
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

    @rule(ids=_some_ids, policy=_policies, language=_languages, seed=_seeds)
    def add(self, ids: list[DocumentId], policy: OnDuplicate, language: str, seed: int) -> None:
        documents = self._documents(ids, language)
        embeddings = _dyadic(len(ids), seed)
        known = [identifier for identifier in ids if identifier in self.model]
        if known and policy == "error":
            self._refuses(DuplicateDocument, documents, embeddings, policy)
            return
        report = self.index.add(documents, self.given(embeddings), on_duplicate=policy)
        skipped = known if policy == "skip" else []
        for document, tokens in zip(documents, embeddings, strict=True):
            if document.id not in skipped:
                self.model[document.id] = document, tokens
        assert list(report.added) == [identifier for identifier in ids if identifier not in known]
        assert list(report.skipped) == skipped
        assert list(report.replaced) == (known if policy == "replace" else [])

    @rule(ids=_some_ids.filter(bool), policy=_policies, fault=st.sampled_from(["nan", "twice", "count"]), seed=_seeds)
    def add_in_vain(self, ids: list[DocumentId], policy: OnDuplicate, fault: str, seed: int) -> None:
        documents = self._documents(ids, "en")
        embeddings = _dyadic(len(ids), seed)
        either = (InvalidEmbeddings, DuplicateDocument)  # which of two faults is named first is the index's choice
        if fault == "nan":
            tokens = np.concatenate([embeddings.tokens, np.full((1, _WIDTH), np.nan, np.float32)])
            broken = TokenEmbeddings(tokens, offsets_of([*embeddings.lengths[:-1], embeddings.lengths[-1] + 1]))
            self._refuses(either, documents, broken, policy)
        elif fault == "twice":
            self._refuses(DuplicateDocument, documents + documents[:1], _dyadic(len(ids) + 1, seed), policy)
        else:
            self._refuses(either, documents[1:], embeddings, policy)

    @rule(ids=_some_ids)
    def remove(self, ids: list[DocumentId]) -> None:
        if set(ids) <= set(self.model):
            assert self.index.remove(ids) == len(ids)
            for identifier in ids:
                del self.model[identifier]
        else:
            with pytest.raises(UnknownDocument):
                self.index.remove(ids)

    @rule(which=_filters)
    def remove_by_filter(self, which: Filter) -> None:
        gone = [identifier for identifier, (document, _) in self.model.items() if matches(which, document.metadata)]
        assert self.index.remove(which) == len(gone)
        for identifier in gone:
            del self.model[identifier]

    @rule(
        count=st.integers(0, 2),
        k=st.integers(1, 7),
        where=st.none() | _filters,
        candidates=st.none() | _some_ids,
        seed=_seeds,
    )
    def search(
        self, count: int, k: int, where: Filter | None, candidates: Sequence[DocumentId] | None, seed: int
    ) -> None:
        queries = _dyadic(count, seed)
        found = self.index.search(self.given(queries), k, where=where, candidates=candidates)
        meant = [
            identifier
            for identifier, (document, _) in self.model.items()
            if (candidates is None or identifier in candidates) and (where is None or matches(where, document.metadata))
        ]
        assert found == [
            Ranking.from_scores(meant, [_score(query, self.model[identifier][1]) for identifier in meant], k)
            for query in queries
        ]

    @invariant()
    def holds_the_same_documents(self) -> None:
        assert len(self.index) == len(self.model)
        if self.store is not None:
            assert self.store.get(list(self.model)) == [document for document, _ in self.model.values()]

    def _documents(self, ids: Sequence[DocumentId], language: str) -> list[Document]:
        self.turn += 1
        return [
            Document(identifier, f"{identifier} of turn {self.turn}", {"language": language, "turn": self.turn})
            for identifier in ids
        ]

    def _refuses(
        self,
        error: type[LateInteractionError] | tuple[type[LateInteractionError], ...],
        documents: Sequence[Document],
        embeddings: Embeddings,
        policy: OnDuplicate,
    ) -> None:
        with pytest.raises(error):
            self.index.add(documents, self.given(embeddings), on_duplicate=policy)


def _dyadic(items: int, seed: int) -> Embeddings:
    """Items of 0 to 3 tokens; a seed instead of drawn numbers, since histories are what should shrink."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 4, items)
    eighths = generator.integers(-8, 9, (int(lengths.sum()), _WIDTH))
    return TokenEmbeddings((eighths / 8).astype(np.float32), offsets_of(lengths))


def _score(query: NDArray[np.floating], document: NDArray[np.floating]) -> float:
    """MaxSim, written once more: the reference is on trial here too."""
    return float(sum(max((float(q @ d) for d in document), default=-np.inf) for q in query))
