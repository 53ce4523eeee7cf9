"""Any history of an index in a folder is that of a dictionary, for every reader of every generation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from lateinteraction.adapters.index import folding
from lateinteraction.adapters.index.index import StoredIndex
from lateinteraction.adapters.index.settings import IndexOptions, IndexSettings
from lateinteraction.adapters.index.snapshot import IndexSnapshot
from lateinteraction.adapters.index.storage import FolderStorage
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import DuplicateDocument, UnknownDocument
from lateinteraction.domain.filters import Comparison, Filter, Not, Or, matches
from lateinteraction.domain.ranking import Fusion, Ranking
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.storage import MemoryStorage

WIDTH = 4
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon")
identifiers = st.sampled_from([DocumentId(name) for name in "abcdefghijkl"])
some = st.lists(identifiers, min_size=1, max_size=5, unique=True)
seeds = st.integers(0, 2**16)
filters: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Comparison, st.just("n"), st.sampled_from(["==", "<", ">=", "!="]), st.integers(0, 3)),
    st.just(Not((Comparison("kind", "==", "even"),))),
    st.just(Or((Comparison("kind", "in", ["odd"]), Comparison("n", "==", 0)))),
)


class Kept(NamedTuple):
    """What a dictionary knows of a document."""

    document: Document
    tokens: NDArray[np.float32]


def drawn(identifier: DocumentId, seed: int) -> Kept:
    """A document and its embeddings, of multiples of 1/8: exact in float16, ties included."""
    generator = np.random.default_rng([seed, ord(identifier)])
    text = " ".join(generator.choice(WORDS, int(generator.integers(0, 6))))
    number = int(generator.integers(0, 4))
    metadata = {"n": number, "kind": ("even", "odd")[number % 2]} if generator.random() < 0.8 else {}
    tokens = generator.integers(-4, 5, (int(generator.integers(0, 4)), WIDTH)).astype(np.float32) / 8
    return Kept(Document(identifier, text, metadata), tokens)


def packed(items: list[NDArray[np.float32]]) -> TokenEmbeddings[torch.Tensor]:
    tokens = np.concatenate([np.empty((0, WIDTH), np.float32), *items])
    return TokenEmbeddings(torch.from_numpy(tokens), offsets_of(list(map(len, items))))


QUERY = np.array([[1, 0, -0.5, 0.25], [-0.125, 0.5, 0.5, 1]], np.float32)


def maxsim(tokens: NDArray[np.float32]) -> float:
    return float((QUERY @ tokens.T).max(axis=1, initial=-np.inf).sum()) if len(tokens) else -np.inf


class StoredHistory(RuleBasedStateMachine):
    """An index in a folder beside a dictionary; snapshots that were taken beside what they showed then."""

    options = IndexOptions("float16", "none")
    exact = True  # what comes is what is fetched, bit by bit
    snapshots: Bundle[tuple[IndexSnapshot, dict[DocumentId, Kept], Any]] = Bundle("snapshots")

    @initialize()
    def begin(self) -> None:
        self.storage = MemoryStorage()
        self.index = StoredIndex.create(self.storage, IndexSettings(self.options, dimension=WIDTH))
        self.other = StoredIndex(self.storage)
        self.seen_by_other = seen(self.other.snapshot())
        self.known: dict[DocumentId, Kept] = {}

    @rule(ids=some, seed=seeds, policy=st.sampled_from(["error", "skip", "replace"]))
    def add(self, ids: list[DocumentId], seed: int, policy: Any) -> None:
        given = {identifier: drawn(identifier, seed) for identifier in ids}
        documents, embeddings = (
            [each.document for each in given.values()],
            packed([each.tokens for each in given.values()]),
        )
        taken = [identifier for identifier in ids if identifier in self.known]
        if policy == "error" and taken:
            try:
                self.index.add(documents, embeddings)
            except DuplicateDocument:
                return
            raise AssertionError("an id was taken twice")
        report = self.index.add(documents, embeddings, on_duplicate=policy)
        assert list(report.skipped if policy == "skip" else report.replaced) == taken
        self.known = {**self.known, **given} if policy == "replace" else {**given, **self.known}

    @rule(ids=some)
    def remove(self, ids: list[DocumentId]) -> None:
        if all(identifier in self.known for identifier in ids):
            assert self.index.remove(ids) == len(ids)
            self.known = {name: each for name, each in self.known.items() if name not in ids}
            return
        try:
            self.index.remove(ids)
        except UnknownDocument:
            return
        raise AssertionError("an id that is not there was removed")

    @rule(where=filters)
    def remove_by_filter(self, where: Filter) -> None:
        gone = [name for name, each in self.known.items() if matches(where, each.document.metadata)]
        assert self.index.remove(where) == len(gone)
        self.known = {name: each for name, each in self.known.items() if name not in gone}

    @rule(ids=some, seed=seeds)
    def update(self, ids: list[DocumentId], seed: int) -> None:
        there = [identifier for identifier in ids if identifier in self.known]
        new = {identifier: dict(drawn(identifier, seed).document.metadata) for identifier in there}
        assert self.index.update(new) == len(there)
        for identifier, metadata in new.items():
            before = self.known[identifier]
            document = Document(identifier, before.document.text, metadata)
            self.known = {**self.known, identifier: Kept(document, before.tokens)}

    @rule(retrain=st.booleans())
    def compact(self, retrain: bool) -> None:
        self.index.compact(retrain=retrain and self.index.settings.bits is not None)
        assert self.index.snapshot().stats().removed == 0

    @rule()
    def refresh_another_reader(self) -> None:
        """Which has seen nothing of what was written until now."""
        assert seen(self.other.snapshot()) == self.seen_by_other
        self.seen_by_other = seen(self.other.refresh())
        assert self.seen_by_other == seen(self.index.snapshot())

    @rule()
    def copy(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.index.copy_to(Path(folder) / "copy")
            with StoredIndex(FolderStorage(Path(folder) / "copy")) as copied:
                assert copied.verify().content == self.index.verify().content is not None
                assert seen(copied.snapshot()) == seen(self.index.snapshot())

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = StoredIndex(self.storage)

    @rule(target=snapshots)
    def hold(self) -> tuple[IndexSnapshot, dict[DocumentId, Kept], Any]:
        snapshot = self.index.snapshot()
        return snapshot, self.known, seen(snapshot)

    @rule(held=snapshots)
    def read_what_is_held(self, held: tuple[IndexSnapshot, dict[DocumentId, Kept], Any]) -> None:
        snapshot, known, before = held
        assert set(snapshot.ids()) == set(known)
        assert seen(snapshot) == before

    @rule(where=st.none() | filters, candidates=st.none() | st.lists(identifiers, max_size=5), k=st.integers(1, 6))
    def search(self, where: Filter | None, candidates: list[DocumentId] | None, k: int) -> None:
        eligible = {
            name: each
            for name, each in self.known.items()
            if (where is None or matches(where, each.document.metadata)) and (candidates is None or name in candidates)
        }
        (found,) = self.index.search(packed([QUERY]), k, where=where, candidates=candidates)
        ids = list(eligible)
        scores = [maxsim(tokens.numpy()) for tokens in self.index.fetch(ids)]
        expected = Ranking.from_scores(ids, scores, k)
        if self.exact:
            assert found == expected
        else:
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
            assert {ids.index(each) for each in found.documents} <= set(range(len(ids)))
            own = [scores[ids.index(each)] for each in found.documents]
            np.testing.assert_allclose(own, found.scores, atol=1e-3)

    @rule(where=st.none() | filters, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    def search_words(self, where: Filter | None, words: list[str]) -> None:
        """As an index does that was made at once of the same documents, to the last bit."""
        fresh = StoredIndex.create(MemoryStorage(), IndexSettings(IndexOptions("float16", "none"), dimension=WIDTH))
        fresh.add(
            [each.document for each in self.known.values()], packed([each.tokens for each in self.known.values()])
        )
        text = " ".join(words)
        own, other = (each.snapshot().search_text([text], 20, where=where) for each in (self.index, fresh))
        assert own == other
        having = {
            name
            for name, each in self.known.items()
            if set(words) & set(each.document.text.split())
            and (where is None or matches(where, each.document.metadata))
        }
        assert set(own[0].documents) == having

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        if hasattr(self, "index"):
            ids = list(self.known)
            assert set(self.index.ids()) == set(ids)
            assert len(self.index) == len(ids)
            assert self.index.get(ids) == [each.document for each in self.known.values()]
            for tokens, each in zip(self.index.fetch(ids), self.known.values(), strict=True):
                assert len(tokens) == len(each.tokens)
                if self.exact:
                    np.testing.assert_array_equal(tokens.numpy(), each.tokens)


def seen(snapshot: IndexSnapshot) -> Any:
    """All that a reader can ask for."""
    some = [DocumentId(name) for name in "adgj"]
    (dense,), (lexical,) = snapshot.search(packed([QUERY]), 20), snapshot.search_text(["alpha beta"], 20)
    return (
        snapshot.generation,
        dense,
        snapshot.search(packed([QUERY]), 20, where=Comparison("kind", "==", "odd")),
        snapshot.search(packed([QUERY]), 3, candidates=some),
        lexical,
        Fusion().fuse(dense, lexical, 5),
        snapshot.get(list(snapshot.ids())),
    )


class Compressed(StoredHistory):
    """Every token is a residual, and found by inverted lists."""

    options = IndexOptions("residual4", "none", tier="listed")
    exact = False


class Kept16(StoredHistory):
    """All but a few tokens are residuals, with the vectors that came."""

    options = IndexOptions("residual2", "none", "float16")


@pytest.mark.parametrize("machine", [StoredHistory, Compressed, Kept16])
def test_any_history_is_that_of_a_dictionary(machine: type[StoredHistory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "COMPRESS_AT", 8)
    examples = settings().max_examples // (1 if machine is StoredHistory else 2)
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=25))
