"""The best of each query's own candidates, on every form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.kernels.dispatch import FormName
from lateinteraction.kernels.operands import Tokens
from tests.kernels.conftest import FORMS

LENGTHS = (3, 0, 2, 5, 1, 4)


def items(lengths: tuple[int, ...], generator: np.random.Generator) -> Tokens:
    few = generator.integers(-4, 5, (2, 8)).astype(np.float32) / 8  # so that many documents score the same
    values = few[generator.integers(0, 2, sum(lengths))]
    return kernels.packed(torch.from_numpy(values), torch.tensor([0, *np.cumsum(lengths)]), max(lengths))


def world(seed: int, candidates: int) -> tuple[Tokens, Tokens, Tensor]:
    """Two queries, six documents, and candidates in any order, some of them absent."""
    generator = np.random.default_rng(seed)
    queries, documents = items((2, 3), generator), items(LENGTHS, generator)
    lists = np.stack([generator.permutation(len(LENGTHS))[:candidates] for _ in range(2)])
    lists[generator.random(lists.shape) < 0.3] = -1
    return queries, documents, torch.from_numpy(lists)


@pytest.mark.parametrize("name", FORMS)
@given(seed=st.integers(0, 2**32 - 1), candidates=st.integers(0, 6), k=st.integers(1, 7))
def test_the_best_of_a_list_are_those_of_all_scores(name: FormName, seed: int, candidates: int, k: int) -> None:
    queries, documents, lists = world(seed, candidates)
    with kernels.use(name):
        scores, places = kernels.maxsim_rerank(queries, documents, lists, k)
        table = kernels.maxsim_all_pairs(queries, documents)
    assert scores.shape == places.shape == (2, min(k, candidates))
    for row, own in enumerate(lists.tolist()):
        present = sorted((-float(table[row, place]), place) for place in own if place >= 0)
        found = [(-score, place) for score, place in zip(scores[row].tolist(), places[row].tolist(), strict=True)]
        assert found == [*present, *[(torch.inf, -1)] * own.count(-1)][:k]


@pytest.mark.parametrize("name", FORMS)
def test_candidates_that_score_nan_come_last_and_no_candidate_is_none_of_them(name: FormName) -> None:
    queries, documents, _ = world(0, 6)
    documents.values[0] = torch.nan
    with kernels.use(name):
        scores, places = kernels.maxsim_rerank(queries, documents, torch.tensor([[0, 5, 1]] * 2), 3)
    assert places.tolist() == [[5, 1, 0]] * 2
    assert scores[:, 1].tolist() == [-torch.inf] * 2
    assert scores[:, 2].isnan().all()


@pytest.mark.parametrize("place", [len(LENGTHS), -2])
def test_a_place_that_no_document_has_is_refused(place: int) -> None:
    queries, documents, _ = world(0, 6)
    with pytest.raises(IndexError):
        kernels.maxsim_rerank(queries, documents, torch.tensor([[0, place]] * 2), 1)


@pytest.mark.parametrize("candidates", [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)])
def test_each_query_has_a_list_of_its_own(candidates: Tensor) -> None:
    queries, documents, _ = world(0, 6)
    with pytest.raises(ValueError, match="a list for each of 2 queries"):
        kernels.maxsim_rerank(queries, documents, candidates, 1)


def test_it_compiles_into_one_graph() -> None:
    queries, documents, lists = world(3, 5)

    def best(values: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.maxsim_rerank(queries, documents._replace(values=values), lists, 3)

    traced = torch.compile(best, fullgraph=True, backend="aot_eager")
    for own, other in zip(best(documents.values), traced(documents.values), strict=True):
        assert torch.equal(own, other)
