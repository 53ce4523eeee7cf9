"""Every check of the store, source, loss and trainer suites fails on an adapter with the fault it is there to find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import UnknownDocument
from lateinteraction.domain.text import Document, Query
from lateinteraction.domain.training import Targets, TrainingExample, TrainingReport
from lateinteraction.testing import (
    HashEncoder,
    ListCandidateSource,
    ListedExamples,
    ListIndex,
    RecordingTrainer,
    ReferenceLoss,
)
from lateinteraction.testing.contracts import (
    CandidateSourceContract,
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExampleSourceContract,
    LossContract,
    TrainerContract,
    checks_of,
)

Embeddings = TokenEmbeddings[Any]


def store(
    fetch: Callable[[ListIndex, Sequence[Any]], Any] = ListIndex.fetch,
    get: Callable[[ListIndex, Sequence[Any]], Any] = ListIndex.get,
) -> object:
    class Store:
        def __init__(self, documents: Sequence[Document], embeddings: Embeddings) -> None:
            self.index = ListIndex()
            self.index.add(documents, embeddings)

        def fetch(self, ids: Sequence[Any]) -> Any:
            return fetch(self.index, ids)

        def get(self, ids: Sequence[Any]) -> Any:
            return get(self.index, ids)

    class Suite(EmbeddingStoreContract[Any], DocumentStoreContract[Any]):
        def make_embedding_store(self, documents: Sequence[Document], embeddings: Embeddings) -> Any:
            return Store(documents, embeddings)

        def make_document_store(self, documents: Sequence[Document], embeddings: Embeddings) -> Any:
            return Store(documents, embeddings)

    return Suite()


def known(index: ListIndex, ids: Sequence[Any]) -> list[Any]:
    def is_known(identifier: Any) -> bool:
        try:
            return bool(index.get([identifier]))
        except UnknownDocument:
            return False

    return [identifier for identifier in ids if is_known(identifier)]


def with_truth_as_a_number(index: ListIndex, ids: Sequence[Any]) -> list[Document]:
    """`True == 1.0` in Python, so only their types tell them apart."""
    found = index.get(ids)
    mended = [{key: float(value) if value is True else value for key, value in each.metadata.items()} for each in found]
    return [evolve(document, metadata=metadata) for document, metadata in zip(found, mended, strict=True)]


def source(nearest: Callable[[ListCandidateSource, Embeddings, int], TokenHits]) -> object:
    class Source:
        def __init__(self, inner: ListCandidateSource) -> None:
            self.inner = inner

        def nearest(self, queries: Embeddings, k: int) -> TokenHits:
            return nearest(self.inner, queries, k)

    class Suite(CandidateSourceContract[Any]):
        def make_candidate_source(self, documents: Sequence[Document], embeddings: Embeddings) -> Any:
            return Source(ListCandidateSource([document.id for document in documents], embeddings))

    return Suite()


def farthest(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    hits = inner.nearest(TokenEmbeddings(-queries.tokens, queries.offsets), k)
    return evolve(hits, similarities=-hits.similarities)


def of_the_first_document(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    hits = inner.nearest(queries, k)
    return evolve(hits, documents=[inner.ids[0]] * len(hits.documents))


def one_query_at_least(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    asked = queries if len(queries) else TokenEmbeddings(np.ones((1, queries.dimension), np.float32), [0, 1])
    return inner.nearest(asked, k)


def empty_queries_dropped(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    return inner.nearest(TokenEmbeddings(queries.tokens, offsets_of(queries.lengths[queries.lengths > 0])), k)


def one_hit_at_least(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    return inner.nearest(queries, max(1, k))


def mended(inner: ListCandidateSource, queries: Embeddings, k: int) -> TokenHits:
    tokens = np.nan_to_num(queries.tokens)[:, : inner.embeddings.dimension]
    return inner.nearest(TokenEmbeddings(tokens, queries.offsets), k)


def loss(value: Callable[[Embeddings, Embeddings, Targets[Any]], Any]) -> LossContract[Any]:
    class Suite(LossContract[Any]):
        def make_loss(self) -> Any:
            return value

    return Suite()


def gathers_no_scalar(queries: Embeddings, documents: Embeddings, targets: Targets[Any]) -> Any:
    return ReferenceLoss()(queries, documents, targets).reshape(1)


def weighs_by_place(queries: Embeddings, documents: Embeddings, targets: Targets[Any]) -> Any:
    return ReferenceLoss()(queries, documents, targets) + queries.tokens[:1].sum()


def rewards_negatives(queries: Embeddings, documents: Embeddings, targets: Targets[Any]) -> Any:
    return -ReferenceLoss()(queries, documents, targets)


def infinite_for_the_empty(queries: Embeddings, documents: Embeddings, targets: Targets[Any]) -> Any:
    if np.any(documents.lengths == 0):
        return np.float32(np.inf)
    return ReferenceLoss()(queries, documents, targets)


def passes_over_empty_positives(queries: Embeddings, documents: Embeddings, targets: Targets[Any]) -> Any:
    if np.any(documents.lengths[targets.positives] == 0):
        return np.float32(0)
    return ReferenceLoss()(queries, documents, targets)


class Encoder:
    """One that a trainer can break."""

    broken = False

    def __init__(self) -> None:
        self.recipe = HashEncoder().recipe

    def encode_queries(self, queries: Sequence[Query]) -> Embeddings:
        return HashEncoder().encode_queries([] if self.broken else queries)

    def encode_documents(self, documents: Sequence[Document]) -> Embeddings:
        return HashEncoder().encode_documents([] if self.broken else documents)


def trainer(fit: Callable[[Encoder, Any, list[ListedExamples], Any], TrainingReport]) -> object:
    class Trainer:
        def fit(self, model: Any, loss: Any, sources: Any, watch: Any = None) -> TrainingReport:
            return fit(model, loss, sources, watch)

    class Suite(TrainerContract[Any]):
        def make_trainer(self) -> Any:
            return Trainer()

        def make_model(self) -> Any:
            return Encoder()

        def make_loss(self) -> Any:
            return ReferenceLoss()

    return Suite()


def fits(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    return RecordingTrainer(batch=2).fit(encoder, loss, sources, watch)


def drops_the_last_batch(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    examples = [source.example(row) for source in sources for row in range(len(source))]
    return fits(encoder, loss, [ListedExamples("whole", examples[: len(examples) // 2 * 2])], watch)


def stops_after_one_source(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    return fits(encoder, loss, sources[:1], watch)


def keeps_no_losses(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    return evolve(fits(encoder, loss, sources, watch), losses=())


def diverges(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    return evolve(fits(encoder, loss, sources, watch), losses=[float("nan")])


def never_watches(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    return fits(encoder, loss, sources, None)


def leaves_the_encoder_broken(encoder: Encoder, loss: Any, sources: Any, watch: Any) -> TrainingReport:
    report = fits(encoder, loss, sources, watch)
    encoder.broken = True
    return report


class Rows:
    """A source that a fault is put into."""

    name = "rows"

    def __init__(self, examples: Sequence[TrainingExample]) -> None:
        self.listed = ListedExamples("rows", examples)

    def __len__(self) -> int:
        return len(self.listed)

    def example(self, row: int) -> TrainingExample:
        return self.listed.example(row)

    def positives(self) -> Any:
        return self.listed.positives()

    def lengths(self) -> Any:
        return self.listed.lengths()


def examples(make: Callable[[Sequence[TrainingExample]], Any]) -> object:
    class Suite(ExampleSourceContract):
        def make_source(self, examples: Sequence[TrainingExample]) -> Any:
            return make(examples)

    return Suite()


class LastRowTwice(Rows):
    def example(self, row: int) -> TrainingExample:
        return self.listed.example(min(row + 1, len(self) - 1))


class KeysByRow(Rows):
    def positives(self) -> Any:
        return np.arange(len(self))


class OneKey(Rows):
    def positives(self) -> Any:
        return np.zeros(len(self), np.int64)


class LengthsAsFloats(Rows):
    def lengths(self) -> Any:
        return self.listed.lengths().astype(float)


SOUND = [store(), source(ListCandidateSource.nearest), loss(ReferenceLoss()), trainer(fits), examples(Rows)]

FAULTS: dict[str, tuple[object, list[str]]] = {
    "sorts what it fetches": (
        store(fetch=lambda index, ids: index.fetch(sorted(ids))),
        ["embeddings_come_back_in_the_order_asked_for"],
    ),
    "sorts what it gets": (
        store(get=lambda index, ids: index.get(sorted(ids))),
        ["documents_come_back_whole_in_the_order_asked_for"],
    ),
    "passes over unknown embeddings": (
        store(fetch=lambda index, ids: index.fetch(known(index, ids))),
        ["an_id_without_embeddings_is_refused"],
    ),
    "passes over unknown documents": (
        store(get=lambda index, ids: index.get(known(index, ids))),
        ["an_id_without_a_document_is_refused"],
    ),
    "changes the type of metadata": (
        store(get=with_truth_as_a_number),
        ["values_of_metadata_keep_their_types"],
    ),
    "farthest": (source(farthest), ["an_empty_query_has_no_hits", "hits_are_the_nearest_tokens"]),
    "all of the first document": (source(of_the_first_document), ["hits_are_the_nearest_tokens"]),
    "one query at least": (source(one_query_at_least), ["hits_are_the_nearest_tokens", "no_queries_have_no_hits"]),
    "empty queries dropped": (
        source(empty_queries_dropped),
        ["an_empty_query_has_no_hits", "hits_are_the_nearest_tokens"],
    ),
    "one hit at least": (source(one_hit_at_least), ["a_cutoff_below_one_is_refused"]),
    "mended": (source(mended), ["queries_that_cannot_be_compared_are_refused"]),
    "no scalar": (
        loss(gathers_no_scalar),
        [
            "a_loss_is_one_finite_number",
            "an_empty_negative_leaves_the_loss_finite",
            "better_embeddings_have_a_lower_loss",
            "the_order_of_the_batch_does_not_matter",
        ],
    ),
    "weighs by place": (loss(weighs_by_place), ["the_order_of_the_batch_does_not_matter"]),
    "rewards negatives": (loss(rewards_negatives), ["better_embeddings_have_a_lower_loss"]),
    "infinite for the empty": (
        loss(infinite_for_the_empty),
        ["an_empty_negative_leaves_the_loss_finite", "an_empty_positive_is_refused"],
    ),
    "passes over empty positives": (loss(passes_over_empty_positives), ["an_empty_positive_is_refused"]),
    "drops the last batch": (
        trainer(drops_the_last_batch),
        ["every_example_is_seen", "examples_of_all_sources_are_seen"],
    ),
    "stops after one source": (trainer(stops_after_one_source), ["examples_of_all_sources_are_seen"]),
    "keeps no losses": (trainer(keeps_no_losses), ["losses_are_reported_and_finite"]),
    "diverges": (trainer(diverges), ["losses_are_reported_and_finite"]),
    "never watches": (trainer(never_watches), ["the_watch_is_given_an_encoder_that_encodes"]),
    "leaves the encoder broken": (trainer(leaves_the_encoder_broken), ["the_model_still_encodes_afterwards"]),
    "the last row twice": (
        examples(LastRowTwice),
        ["rows_are_what_was_given_however_often_they_are_asked_for", "a_plan_is_told_a_key_and_a_length_for_each_row"],
    ),
    "keys by row": (examples(KeysByRow), ["a_plan_is_told_a_key_and_a_length_for_each_row"]),
    "one key": (examples(OneKey), ["a_plan_is_told_a_key_and_a_length_for_each_row"]),
    "lengths as floats": (examples(LengthsAsFloats), ["a_plan_is_told_a_key_and_a_length_for_each_row"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_these_checks_and_no_others(fault: str, failing: Any) -> None:
    suite, names = FAULTS[fault]
    expected = {f"test_{name}" for name in names}
    assert failing(suite, expected) == expected


def test_every_check_finds_a_fault() -> None:
    checks = {name for suite in SOUND for name, _ in checks_of(suite)}
    assert {f"test_{name}" for _, names in FAULTS.values() for name in names} == checks


@pytest.mark.parametrize("suite", SOUND)
def test_an_adapter_without_a_fault_fails_no_check(suite: object, failing: Any) -> None:
    assert failing(suite, ()) == set()
