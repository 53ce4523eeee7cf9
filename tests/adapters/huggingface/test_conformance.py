"""The checkpoint that PyLate 1.6.0 saved gives the embeddings, lengths and rankings that PyLate 1.6.0 gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import lateinteraction as li
from lateinteraction.domain.text import Document, DocumentId

FOLDER = Path(__file__).parents[2] / "conformance"
TOLERANCE = 1e-5
CASES: Mapping[str, Mapping[str, object]] = {
    "documents": {},
    "queries": {},
    "documents_pool2": {"pooling": {"factor": 2, "flavour": "pylate"}},
    "documents_pool3_protect0": {"pooling": {"factor": 3, "protected": 0, "flavour": "pylate"}},
    "documents_unnormalized": {"normalise": False},
    "queries_no_expansion": {"expansion": "none"},
    "queries_attend_expansion": {"attend_to_expansion": True},
    "documents_skiplist_the_a": {"skiplist": ["the", "a"]},
    "documents_len12": {"document_length": 12},
    "queries_len8": {"query_length": 8},
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    return load_file(FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return json.loads((FOLDER / "golden.json").read_text())


def model(**settings: object) -> li.Model:
    return li.load_model(FOLDER / "tiny-colbert", device="cpu", recipe=settings)


@pytest.mark.filterwarnings("ignore::lateinteraction.domain.errors.TruncatedTextWarning")
@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_pylates(arrays: dict[str, Tensor], said: dict[str, Any], case: str) -> None:
    name = f"encode/{case}"
    own = model(**CASES[case])
    encode = own.encode_queries if said[name]["args"]["is_query"] else own.encode_documents
    embeddings = encode(said[name]["texts"])
    assert embeddings.lengths.tolist() == said[name]["lens"] == arrays[f"{name}/lens"].tolist()
    torch.testing.assert_close(embeddings.tokens, arrays[f"{name}/emb_flat"], rtol=0, atol=TOLERANCE)


def test_every_case_is_tested(said: dict[str, Any]) -> None:
    assert {f"encode/{case}" for case in CASES} == {name for name in said if name.startswith("encode/")}


@pytest.mark.filterwarnings("ignore::lateinteraction.domain.errors.TruncatedTextWarning")
@pytest.mark.parametrize("case", ["documents", "queries", "queries_no_expansion", "documents_len12", "queries_len8"])
def test_token_ids_are_pylates(arrays: dict[str, Tensor], said: dict[str, Any], case: str) -> None:
    own = model(**{**CASES[case], "skiplist": []})
    traced = own.trace_queries if said[f"encode/{case}"]["args"]["is_query"] else own.trace_documents
    trace = traced(said[f"encode/{case}"]["texts"])
    ids, mask = arrays[f"encode/{case}/input_ids"], arrays[f"encode/{case}/attention_mask"]
    for row, (first, last) in enumerate(zip(trace.offsets, trace.offsets[1:], strict=False)):
        expanded = case in ("queries", "queries_len8")
        expected = ids[row] if expanded else ids[row][mask[row].bool()]
        assert trace.token_ids[first:last].tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore::lateinteraction.domain.errors.TruncatedTextWarning")
def test_reranking_gives_pylates_order_and_scores(said: dict[str, Any]) -> None:
    case, own = said["end_to_end/rerank"], model()
    documents = [Document(DocumentId(str(row)), text) for row, text in enumerate(case["documents"])]
    for query, expected in zip(case["queries"], case["result"], strict=True):
        results = own.rerank(query, documents)
        assert [int(result.id) for result in results] == [hit["id"] for hit in expected]
        np.testing.assert_allclose(
            [result.score for result in results], [hit["score"] for hit in expected], rtol=0, atol=1e-4
        )
