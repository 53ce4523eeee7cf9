"""The eager form on an accelerator, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from lateinteraction import kernels
from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.domain import reference
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.testing.strategies import query_document_embeddings

pytestmark = pytest.mark.gpu


@given(pair=query_document_embeddings())
def test_scores_on_the_device_are_those_of_the_reference(pair: Any) -> None:
    queries, documents = pair
    q, d = (torch.from_numpy(np.array(side.tokens)).cuda() for side in pair)
    scores = kernels.maxsim_all_pairs(q, queries.offsets, d, documents.offsets).cpu().numpy()
    np.testing.assert_allclose(scores, reference.maxsim(queries, documents), rtol=1e-5, atol=1e-5)


def test_an_index_on_the_device_ranks_as_one_on_the_host() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=generator).numpy()
    tokens = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), 64, generator=generator), dim=1)
    documents = [Document(DocumentId(str(number)), "") for number in range(200)]
    rankings = []
    for device in ("cpu", "cuda"):
        index = FlatIndex()
        index.add(documents, TokenEmbeddings(tokens.to(device), offsets_of(lengths)))
        rankings.append(index.search(TokenEmbeddings(tokens[:32].to(device), offsets_of([32])), 10)[0])
    assert rankings[0].documents == rankings[1].documents
    np.testing.assert_allclose(rankings[0].scores, rankings[1].scores, rtol=1e-4)
