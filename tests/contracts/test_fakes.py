"""The fakes keep the contracts of the ports they stand in for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document
from lateinteraction.domain.training import TrainingExample
from lateinteraction.testing import (
    HashEncoder,
    ListCandidateSource,
    ListedExamples,
    ListIndex,
    RecordingTrainer,
    ReferenceLoss,
    ReferenceScorer,
)
from lateinteraction.testing.contracts import (
    CandidateSourceContract,
    DocumentStoreContract,
    EmbeddingStoreContract,
    ExactIndexContract,
    ExampleSourceContract,
    LossContract,
    MaxSimContract,
    TracingEncoderContract,
    TrainerContract,
)

Floats = NDArray[np.floating]


class TestHashEncoder(TracingEncoderContract[Floats]):
    encoder = HashEncoder(width=32)

    def make_encoder(self) -> HashEncoder:
        return self.encoder

    def tracer(self) -> HashEncoder:
        return self.encoder


class TestHashEncoderWithAColbertRecipe(TestHashEncoder):
    encoder = HashEncoder(
        EncodingRecipe(
            query_length=8,
            document_length=40,
            query_prefix="[Q]",
            document_prefix="[D]",
            expansion="fixed",
            skiplist=[".", ",", "—"],
        )
    )


class TestHashEncoderWithPromptsAndFewDimensions(TestHashEncoder):
    encoder = HashEncoder(
        EncodingRecipe(
            query_prompt="query: ", document_prompt="document: ", dimension=16, normalise=False, skiplist=["."]
        )
    )


class TestReferenceScorer(MaxSimContract[Floats]):
    tolerance = 0.0

    def make_scorer(self) -> ReferenceScorer:
        return ReferenceScorer()


class TestListIndex(ExactIndexContract[Floats], EmbeddingStoreContract[Floats], DocumentStoreContract[Floats]):
    tolerance = 0.0

    def make_index(self) -> ListIndex:
        return ListIndex()

    def document_store(self, index: ListIndex) -> ListIndex:
        return index

    def make_embedding_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Floats]) -> ListIndex:
        return self.filled(documents, embeddings)

    def make_document_store(self, documents: Sequence[Document], embeddings: TokenEmbeddings[Floats]) -> ListIndex:
        return self.filled(documents, embeddings)


class TestListCandidateSource(CandidateSourceContract[Floats]):
    def make_candidate_source(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings[Floats]
    ) -> ListCandidateSource:
        return ListCandidateSource([document.id for document in documents], embeddings)


class TestReferenceLoss(LossContract[Floats]):
    def make_loss(self) -> ReferenceLoss:
        return ReferenceLoss(temperature=0.5)


class TestRecordingTrainer(TrainerContract[Floats]):
    def make_trainer(self) -> RecordingTrainer:
        return RecordingTrainer(batch=2)

    def make_model(self) -> HashEncoder:
        return HashEncoder()

    def make_loss(self) -> ReferenceLoss:
        return ReferenceLoss()


class TestListedExamples(ExampleSourceContract):
    def make_source(self, examples: Sequence[TrainingExample]) -> ListedExamples:
        return ListedExamples("listed", examples)
