"""The ports: what the application asks of the world. Structural, so an adapter need not import them.

Each docstring is the contract; `lateinteraction.testing.contracts` holds the suites that check it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import A, Offsets, TokenEmbeddings
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.filters import Filter
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Query
from lateinteraction.domain.training import Targets, TrainingExample, TrainingReport

M = TypeVar("M", contravariant=True)
L = TypeVar("L", contravariant=True)
OnDuplicate = Literal["error", "skip", "replace"]


@frozen
class AddReport:
    """What an `add` did, by document id in the order given."""

    added: tuple[DocumentId, ...] = field(default=(), converter=tuple)
    skipped: tuple[DocumentId, ...] = field(default=(), converter=tuple)
    replaced: tuple[DocumentId, ...] = field(default=(), converter=tuple)
    empty: tuple[DocumentId, ...] = field(default=(), converter=tuple)
    """Those of the added and replaced that kept no token: they score −∞."""


@frozen
class AddCounts:
    """What the adding of a stream did, in numbers: its ids need not fit in memory."""

    added: int = 0
    skipped: int = 0
    replaced: int = 0
    empty: int = 0

    def after(self, report: AddReport) -> AddCounts:
        """With one more piece."""
        return AddCounts(
            self.added + len(report.added),
            self.skipped + len(report.skipped),
            self.replaced + len(report.replaced),
            self.empty + len(report.empty),
        )

    @property
    def documents(self) -> int:
        """How many were drawn from the stream."""
        return self.added + self.skipped + self.replaced


Stage = Literal["encoding", "training", "writing"]


class StageProgress(Protocol):
    """Told what a long call is at, and how much of it is done of how much; None where nobody knows.

    Documents are counted; while a codebook is trained, steps of that.
    """

    def __call__(self, stage: Stage, done: int, total: int | None) -> None: ...


class Progress(Protocol):
    """Told how far a long call has come; called from the thread that made the call.

    `total` is None where nobody knows: a stream that is still being read.
    """

    def __call__(self, done: int, total: int | None) -> None: ...


class Encoder(Protocol[A]):
    """Texts to token embeddings, one item per text in the order given; an empty sequence gives no items.

    An item does not depend on the others of the call (1e-5 after normalisation). A text without a token of its own,
    such as the empty one, is an empty item, whatever markers or expansion the recipe adds to others.
    """

    @property
    def recipe(self) -> EncodingRecipe: ...
    def encode_queries(self, queries: Sequence[Query]) -> TokenEmbeddings[A]: ...
    def encode_documents(self, documents: Sequence[Document]) -> TokenEmbeddings[A]: ...


class Scorer(Protocol[A]):
    """An interaction: how similarities become scores. Empty query: 0. Empty document: −∞."""

    def matrix(self, queries: TokenEmbeddings[A], documents: TokenEmbeddings[A]) -> A:
        """Scores (Q, N) of every query with every document, float32."""
        ...

    def grouped(self, queries: TokenEmbeddings[A], documents: TokenEmbeddings[A], groups: Offsets) -> A:
        """Scores (N,): documents groups[i] … groups[i+1]−1 with query i."""
        ...


class Index(Protocol[A]):
    """Ranks whole documents. A call that raises has changed nothing."""

    def __len__(self) -> int: ...

    def held(self, ids: Sequence[DocumentId]) -> frozenset[DocumentId]:
        """Those of these ids that it has."""
        ...

    def add(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[A], *, on_duplicate: OnDuplicate = "error"
    ) -> AddReport:
        """Take documents with their embeddings; they are found from the next call on.

        Raises:
            DuplicateDocument: an id twice in the call, or already there and on_duplicate is "error".
            InvalidEmbeddings: another count, another width than the index holds, NaN or infinity.
        """
        ...

    def remove(self, which: Sequence[DocumentId] | Filter) -> int:
        """Forget documents, by id or by filter; how many.

        Raises:
            UnknownDocument: an id that is not there.
        """
        ...

    def search(
        self,
        queries: TokenEmbeddings[A],
        k: int,
        *,
        where: Filter | None = None,
        candidates: Sequence[DocumentId] | None = None,
    ) -> list[Ranking]:
        """The k best for each query, among `candidates` where given (none of them: no hits) that match `where`.

        Candidates that are not in the index are passed over.
        """
        ...


class CandidateSource(Protocol[A]):
    """Proposes documents by their tokens; does not rank."""

    def nearest(self, queries: TokenEmbeddings[A], k: int) -> TokenHits:
        """For each query token, up to k document tokens, most similar first."""
        ...


class EmbeddingStore(Protocol[A]):
    """Gives embeddings back."""

    def fetch(self, ids: Sequence[DocumentId]) -> TokenEmbeddings[A]:
        """Embeddings of these documents, in this order; `UnknownDocument` when one is not there."""
        ...


class DocumentStore(Protocol):
    """Gives documents back."""

    def get(self, ids: Sequence[DocumentId]) -> list[Document]:
        """These documents, in this order; `UnknownDocument` when one is not there."""
        ...


class ModelStore(Protocol[M]):
    """Keeps models: a folder, a hub. All of a model is there when `save` returns, or on an error none of it."""

    def save(self, model: M) -> str:
        """Where it is now, as a reader would name it."""
        ...


class ExampleSource(Protocol):
    """Examples of one kind, by row: what a batch plan draws from. Rows keep their numbers for ever."""

    @property
    def name(self) -> str:
        """For messages, and for what is set by source."""
        ...

    def __len__(self) -> int: ...

    def example(self, row: int) -> TrainingExample:
        """The example of a row, with all of its negatives."""
        ...

    def positives(self) -> NDArray[np.int64]:
        """A key of each row's positive, (len,): equal where two rows have the same one, so that no batch holds both."""
        ...

    def lengths(self) -> NDArray[np.int64]:
        """About how long each row's texts are, (len,), in any unit: rows of like length are batched together."""
        ...


class Loss(Protocol[A]):
    """An objective: embeddings in, a scalar out. Knows no model and no rank."""

    def __call__(self, queries: TokenEmbeddings[A], documents: TokenEmbeddings[A], targets: Targets[A]) -> A: ...


class Trainer(Protocol[M, L, A]):
    """Fits models of one kind by losses of one kind. `watch` is called now and then with an encoder of the model."""

    def fit(
        self,
        model: M,
        loss: L,
        sources: Sequence[ExampleSource],
        watch: Callable[[Encoder[A]], Report] | None = None,
    ) -> TrainingReport: ...
