"""Training, assigning, growing and storing a codebook."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.adapters.index import codebook as module
from lateinteraction.adapters.index.arrays import InMemory
from lateinteraction.adapters.index.codebook import (
    FLAT,
    MOST_CENTROIDS,
    MOST_SAMPLED,
    Codebook,
    centroid_count,
    codebook_for,
    quantiser,
    sample_size,
    train,
)
from lateinteraction.domain.errors import CorruptIndex, InvalidEmbeddings, InvalidOption

seeds = st.integers(0, 2**32 - 1)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def clustered(tokens: int, clusters: int, noise: float = 0.3, seed: int = 0, width: int = 16) -> Tensor:
    """Tokens around random directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit(torch.randn(clusters, width, generator=generator))
    own = torch.randint(clusters, (tokens,), generator=generator)
    return unit(centres[own] + noise * torch.randn(tokens, width, generator=generator) / width**0.5)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return clustered(12_000, 500)


@pytest.fixture(scope="module")
def codebook(tokens: Tensor) -> Codebook:
    """In cells: more centroids than are looked at all at once."""
    return train(tokens, 400, 4)


def residual(tokens: Tensor, centroids: Tensor, codes: Tensor) -> float:
    return float((tokens - centroids[codes]).norm(dim=1).mean())


# ── Training ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_seeds_give_equal_codebooks_and_others_do_not(tokens: Tensor, codebook: Codebook) -> None:
    again, other = train(tokens, 400, 4), train(tokens, 400, 4, seed=1)
    for name, array in codebook.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert not torch.equal(other.centroids, codebook.centroids)


def test_a_codebook_does_not_depend_on_how_many_threads_there_are(tokens: Tensor) -> None:
    before = torch.get_num_threads()
    books: list[Codebook] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            books.append(train(tokens, 400, 2))
    finally:
        torch.set_num_threads(before)
    for name, array in books[0].arrays().items():
        np.testing.assert_array_equal(books[1].arrays()[name], array)


def test_training_leaves_torchs_own_generator_alone(tokens: Tensor) -> None:
    state = torch.get_rng_state()
    train(tokens[:500], 10, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_levels_fit_tokens_about_as_well_as_one(tokens: Tensor, codebook: Codebook) -> None:
    held, fitted = clustered(2_000, 500, seed=0), tokens
    flat = unit(fitted[torch.randperm(len(fitted), generator=torch.Generator().manual_seed(1))[:400]])
    for _ in range(5):
        flat = kernels.kmeans_update(fitted, kernels.kmeans_assign(fitted, flat), flat)
    by_one = residual(held, flat, kernels.kmeans_assign(held, flat))
    by_two = residual(held, codebook.centroids, codebook.assign(held))
    assert by_two < 1.05 * by_one


def test_centroids_are_unit_vectors_that_float16_holds_exactly(codebook: Codebook) -> None:
    torch.testing.assert_close(codebook.centroids.norm(dim=1), torch.ones(400), atol=1e-3, rtol=0)
    assert torch.equal(codebook.centroids.half().float(), codebook.centroids)


@given(seed=seeds)
def test_no_more_centroids_come_of_a_sample_than_half_its_tokens(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count, wanted = int(generator.integers(1, 40)), int(generator.integers(1, 30))
    found = train(unit(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))), wanted, 2, seed)
    assert 1 <= len(found) <= max(1, min(wanted, count // 2))
    assert bool((found.assign(found.centroids) < len(found)).all())


def test_tokens_that_are_all_alike_train_a_codebook_too() -> None:
    same = unit(torch.ones(3_000, 8))
    found = train(same, 300, 4)
    assert residual(same, found.centroids, found.assign(same)) < 1e-3


def test_a_sample_in_float16_trains_as_well(tokens: Tensor, codebook: Codebook) -> None:
    found = train(tokens.half(), 400, 4)
    assert residual(tokens, found.centroids, found.assign(tokens)) < 1.02 * residual(
        tokens, codebook.centroids, codebook.assign(tokens)
    )


@pytest.mark.parametrize("centroids", [20, 300])
def test_progress_rises_to_its_total(tokens: Tensor, centroids: int) -> None:
    told: list[tuple[int, int | None]] = []
    train(tokens, centroids, 2, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)}


@pytest.mark.parametrize("bits", [0, 3, 8, "4"])
def test_bits_that_kernels_do_not_read_are_refused(bits: Any) -> None:
    with pytest.raises(InvalidOption):
        train(torch.eye(4), 2, bits)


def test_no_centroids_and_no_tokens_are_refused() -> None:
    with pytest.raises(InvalidOption):
        train(torch.eye(4), 0, 4)
    with pytest.raises(InvalidEmbeddings):
        train(torch.empty(0, 4), 2, 4)


def test_more_tokens_get_more_centroids_up_to_a_limit() -> None:
    counts = [centroid_count(tokens) for tokens in (0, 1, 1_000, 10_000, 1_200_000, 10**9, 10**12)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[4] == 12_000
    assert counts[-1] == counts[-2] == MOST_CENTROIDS
    assert sample_size(100) > 100
    assert sample_size(MOST_CENTROIDS) == MOST_SAMPLED


# ── Assigning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nearly_every_token_finds_its_nearest_centroid(tokens: Tensor, codebook: Codebook) -> None:
    assert len(codebook) > FLAT
    exact = kernels.kmeans_assign(tokens, codebook.centroids)
    shares = [float((codebook.assign(tokens, near) == exact).double().mean()) for near in (1, 2, 4, 8)]
    assert shares == sorted(shares)
    assert shares[2] > 0.95


def test_all_cells_give_the_nearest_centroid(tokens: Tensor, codebook: Codebook) -> None:
    exact = kernels.kmeans_assign(tokens[:1_000], codebook.centroids)
    assert torch.equal(codebook.assign(tokens[:1_000], 10_000), exact)
    cells = int(codebook.cells.max()) + 1
    many = codebook.assign(tokens[:1_000], cells - 1)
    assert float((many == exact).double().mean()) > 0.999


def test_a_code_does_not_depend_on_what_else_is_assigned(
    tokens: Tensor, codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = codebook.assign(tokens)
    assert whole.dtype == torch.int32
    assert torch.equal(torch.cat([codebook.assign(part) for part in tokens.split(997)]), whole)
    monkeypatch.setattr(module, "BLOCK", 1_000)
    assert torch.equal(codebook.assign(tokens), whole)


def test_no_tokens_have_no_codes(codebook: Codebook) -> None:
    assert codebook.assign(torch.empty(0, 16)).shape == (0,)
    assert train(torch.eye(4), 2, 4).assign(torch.empty(0, 4)).shape == (0,)


def test_a_few_centroids_lie_in_one_cell(tokens: Tensor) -> None:
    found = train(tokens, 50, 4)
    assert found.cells.tolist() == [0] * 50
    assert torch.equal(found.assign(tokens), kernels.kmeans_assign(tokens, found.centroids))


def test_every_cell_has_a_centroid(codebook: Codebook) -> None:
    counts = torch.bincount(codebook.cells)
    assert int(counts.min()) >= 1
    assert len(counts) > 10


# ── The quantiser ───────────────────────────────────────────────────────────────────────────────────────────────────


def squared_error(values: NDArray[np.float64], cutoffs: NDArray[Any], weights: NDArray[Any]) -> float:
    return float(np.square(values - weights[np.searchsorted(cutoffs, values)]).mean())


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(seed=seeds)
def test_the_quantiser_errs_less_than_quantiles_do(bits: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_t(8, (200, 10)) * generator.uniform(0.01, 10)
    cutoffs, weights = (each.numpy().astype(np.float64) for each in quantiser(torch.from_numpy(values), bits))
    assert cutoffs.shape == (2**bits - 1,)
    assert weights.shape == (2**bits,)
    assert bool((np.diff(cutoffs) >= 0).all())
    assert bool((np.diff(weights) >= 0).all())
    cuts, middles = np.arange(1, 2**bits) / 2**bits, (np.arange(2**bits) + 0.5) / 2**bits
    by_quantiles = np.quantile(values, cuts), np.quantile(values, middles)
    assert squared_error(values.ravel(), cutoffs, weights) <= 1.001 * squared_error(values.ravel(), *by_quantiles)


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.3634), (2, 0.1175), (4, 0.0095)])
def test_the_quantiser_of_a_normal_distribution_is_the_known_one(bits: int, expected: float) -> None:
    """Max, IRE Transactions on Information Theory 6, 1960, table I."""
    values = np.random.default_rng(0).standard_normal((4_000, 50))
    cutoffs, weights = (each.numpy().astype(np.float64) for each in quantiser(torch.from_numpy(values), bits))
    assert squared_error(values.ravel(), cutoffs, weights) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("values", [torch.zeros(5, 3), torch.ones(1, 1), torch.tensor([[0.0, 1.0]])])
def test_few_distinct_residuals_are_kept_exactly(values: Tensor) -> None:
    cutoffs, weights = (each.numpy().astype(np.float64) for each in quantiser(values, 4))
    assert squared_error(values.double().numpy().ravel(), cutoffs, weights) == 0


def test_the_quantiser_of_a_small_sample_is_fitted_to_all_of_it() -> None:
    """One document: 60 tokens, of which three are held out of its one centroid."""
    document = clustered(60, 20, width=64)
    found = train(document, 1, 4)
    residuals = document - found.centroids
    own, _ = quantiser(residuals, 4)
    torch.testing.assert_close(found.cutoffs, own, atol=1e-3, rtol=0)


# ── Growth ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quarter_of_tokens_like_those_of_training_is_far(codebook: Codebook) -> None:
    others = clustered(4_000, 500, seed=0)
    assert codebook.drift(others, codebook.assign(others)) == pytest.approx(0.25, abs=0.06)
    assert codebook.drift(others[:0], codebook.assign(others[:0])) == 0


def test_growth_brings_new_tokens_near_and_keeps_every_code(tokens: Tensor, codebook: Codebook) -> None:
    strangers = clustered(8_000, 20, seed=5)
    codes = codebook.assign(strangers)
    assert codebook.drift(strangers, codes) > 0.6
    grown = codebook.grown(strangers)
    assert len(grown) > len(codebook)
    assert torch.equal(grown.centroids[: len(codebook)], codebook.centroids)
    assert torch.equal(grown.weights, codebook.weights)
    assert torch.equal(grown.cutoffs, codebook.cutoffs)
    after = grown.assign(strangers)
    assert grown.drift(strangers, after) < 0.5 * codebook.drift(strangers, codes)
    assert bool((after >= len(codebook)).any())
    assert torch.equal(codebook.grown(strangers).centroids, grown.centroids)


def test_growth_without_far_tokens_is_none(codebook: Codebook) -> None:
    assert codebook.grown(codebook.centroids) is codebook
    assert codebook.grown(codebook.centroids[:0]) is codebook


def test_growth_stops_at_the_limit(codebook: Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = clustered(8_000, 20, seed=5)
    monkeypatch.setattr(module, "MOST_CENTROIDS", len(codebook) + 3)
    grown = codebook.grown(strangers)
    assert len(grown) == len(codebook) + 3
    assert grown.grown(strangers) is grown


# ── Growing with the index ──────────────────────────────────────────────────────────────────────────────────────────


def drawn(tokens: Tensor, asked: list[int] | None = None) -> Any:
    """A sample of these, whose sizes are written down."""

    def sample(count: int) -> Tensor:
        if asked is not None:
            asked.append(count)
        generator = torch.Generator().manual_seed(1)
        return tokens[torch.randperm(len(tokens), generator=generator)[:count]]

    return sample


def test_a_denser_codebook_fits_the_same_tokens_better_and_keeps_every_code(tokens: Tensor, codebook: Codebook) -> None:
    denser = codebook.denser(tokens, 1_000)
    assert len(denser) == 1_000
    assert torch.equal(denser.centroids[:400], codebook.centroids)
    assert torch.equal(denser.weights, codebook.weights)
    assert torch.equal(denser.cutoffs, codebook.cutoffs)
    assert torch.equal(denser.centroids.half().float(), denser.centroids)
    assert int(torch.bincount(denser.cells).min()) > 0
    others = clustered(14_000, 500)[12_000:]
    before = residual(others, codebook.centroids, codebook.assign(others))
    fresh = train(tokens, 1_000, 4)
    after = residual(others, denser.centroids, denser.assign(others))
    assert after < 0.95 * before
    assert after < 1.1 * residual(others, fresh.centroids, fresh.assign(others))
    assert denser.drift(others, denser.assign(others)) == pytest.approx(0.25, abs=0.06)


def test_nearly_every_token_finds_its_nearest_centroid_in_a_denser_codebook(tokens: Tensor, codebook: Codebook) -> None:
    denser = codebook.denser(tokens, 1_000)
    exact = (tokens @ denser.centroids.T).argmax(dim=1)
    assert float((denser.assign(tokens) == exact).double().mean()) > 0.95


def test_equal_tokens_and_seeds_make_equal_denser_codebooks(tokens: Tensor, codebook: Codebook) -> None:
    one, same, other = (codebook.denser(tokens, 600, seed) for seed in (3, 3, 4))
    assert torch.equal(one.centroids, same.centroids)
    assert torch.equal(one.cells, same.cells)
    assert not torch.equal(one.centroids, other.centroids)


@pytest.mark.parametrize("count", [0, 10, 400])
def test_a_codebook_that_is_dense_enough_stays_as_it_is(tokens: Tensor, codebook: Codebook, count: int) -> None:
    assert codebook.denser(tokens, count) is codebook
    assert codebook.denser(tokens[:0], 1_000) is codebook
    assert codebook.denser(codebook.centroids, 1_000) is codebook  # nothing lies between


def test_an_index_gets_its_first_codebook_from_all_its_documents(tokens: Tensor) -> None:
    everything: list[int] = []
    made = codebook_for(12_000, 2, None, drawn(tokens, everything), None)
    assert everything == [sample_size(120)]
    assert (len(made), made.bits) == (120, 2)


def test_a_codebook_grows_with_the_index_and_not_before(tokens: Tensor, codebook: Codebook) -> None:
    enough = drawn(tokens)
    assert codebook_for(55_000, 4, codebook, enough, enough) is codebook
    grown = codebook_for(57_000, 4, codebook, enough, enough)
    assert len(grown) == centroid_count(round(1.4 * 57_000))
    assert codebook_for(10**6, 4, codebook, enough, None) is codebook  # nothing is to be encoded


def test_an_index_that_grows_step_by_step_has_about_as_good_centroids_as_one_made_at_once() -> None:
    stream = clustered(60_000, 1_500)
    book = codebook_for(4_000, 4, None, drawn(stream[:4_000]), None)
    for last in range(8_000, 60_001, 4_000):
        book = codebook_for(last, 4, book, drawn(stream[:last]), drawn(stream[last - 4_000 : last]))
        assert centroid_count(last) / 1.45 <= len(book) <= 1.45 * centroid_count(last)
    once, others = train(stream, len(book), 4), clustered(64_000, 1_500)[60_000:]
    assert residual(others, book.centroids, book.assign(others)) < 1.1 * residual(
        others, once.centroids, once.assign(others)
    )


def test_a_forced_number_of_centroids_is_for_any_number_of_tokens(tokens: Tensor, codebook: Codebook) -> None:
    asked: list[int] = []
    for wanted in (1, 90, 700):
        made = codebook_for(12_000, 2, None, drawn(tokens, asked), None, wanted)
        assert len(made) == wanted
        assert asked[-1] == sample_size(wanted)
    strangers = drawn(clustered(8_000, 20, seed=5))
    assert codebook_for(10**6, 4, codebook, drawn(tokens), strangers, 400) is codebook
    assert codebook_for(10**6, 4, codebook, drawn(tokens), strangers, 100) is codebook
    assert len(codebook_for(12_000, 4, codebook, drawn(tokens), drawn(tokens), 430)) == 430
    assert len(codebook_for(600, 4, None, drawn(tokens[:600]), None, 430)) == 600 // 8


def test_whatever_makes_a_codebook_is_told(tokens: Tensor, codebook: Codebook) -> None:
    strangers = drawn(clustered(8_000, 20, seed=5))
    every = drawn(tokens)
    for count, before, new, runs in (
        (12_000, None, None, 1),
        (12_000, codebook, every, 0),
        (57_000, codebook, every, 1),
        (12_000, codebook, strangers, 1),
        (10**5, codebook, strangers, 2),
    ):
        told: list[tuple[int, int | None]] = []
        codebook_for(count, 4, before, every, new, progress=lambda *state, told=told: told.append(state))
        assert told.count((0, None)) == runs
        assert sum(done == total for done, total in told) == runs


def test_strangers_get_centroids_whatever_the_size_of_the_index(tokens: Tensor, codebook: Codebook) -> None:
    strangers = clustered(8_000, 20, seed=5)
    both = torch.cat([tokens, strangers])
    grown = codebook_for(20_000, 4, codebook, drawn(both), drawn(strangers))
    assert torch.equal(grown.centroids, codebook.grown(drawn(strangers)(len(strangers))).centroids)


def test_the_nearest_of_the_first_centroids_are_those_of_the_codebook_before_it_grew(
    tokens: Tensor, codebook: Codebook
) -> None:
    denser = codebook.denser(tokens, 1_000)
    for near in (4, 1_000):
        found, similarities = denser.nearest(denser.around(tokens[:40], near), 8, known=len(codebook))
        assert int(found.max()) < len(codebook)
        exact = (tokens[:40] @ codebook.centroids.T).sort(dim=1, descending=True).values[:, :8]
        missed = float((similarities < exact - 1e-6).double().mean())
        assert missed < (0.2 if near == 4 else 1e-9)
        torch.testing.assert_close(similarities, (tokens[:40] @ denser.centroids.T).gather(1, found), atol=1e-6, rtol=0)


# ── Storing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_codebook_comes_back_to_the_last_bit(tokens: Tensor, codebook: Codebook) -> None:
    for book in (codebook, codebook.grown(clustered(4_000, 20, seed=5))):
        again = Codebook.read(InMemory(book.arrays()))
        for name in ("centroids", "cells", "cutoffs", "weights"):
            assert torch.equal(getattr(again, name), getattr(book, name))
        assert again.far == book.far
        assert again.bits == book.bits == 4
        assert again.dimension == book.dimension == 16
        assert torch.equal(again.assign(tokens), book.assign(tokens))


def test_a_centroid_takes_two_bytes_a_dimension_and_four(codebook: Codebook) -> None:
    stored = codebook.arrays()
    assert stored["codebook.centroids"].nbytes + stored["codebook.cells"].nbytes == 400 * (2 * 16 + 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codebook.centroids", np.zeros((400, 16), np.float32)),
        ("codebook.centroids", np.zeros((0, 16), np.float16)),
        ("codebook.centroids", np.zeros(400, np.float16)),
        ("codebook.cells", np.zeros(399, np.int32)),
        ("codebook.cells", np.full(400, -1, np.int32)),
        ("codebook.cells", np.full(400, 400, np.int32)),
        ("codebook.cells", np.full(400, 1, np.int32)),
        ("codebook.cutoffs", np.zeros(3, np.float32)),
        ("codebook.weights", np.zeros(8, np.float32)),
        ("codebook.far", np.zeros(2)),
    ],
)
def test_arrays_that_make_no_codebook_are_damage(codebook: Codebook, name: str, value: NDArray[Any]) -> None:
    with pytest.raises(CorruptIndex):
        Codebook.read(InMemory({**codebook.arrays(), name: value}))


def test_a_missing_array_is_damage(codebook: Codebook) -> None:
    for name in codebook.arrays():
        with pytest.raises(CorruptIndex):
            Codebook.read(InMemory({key: array for key, array in codebook.arrays().items() if key != name}))
