"""Cached gradients are the gradients: the same numbers, whatever the loss, the rectangles, dropout and precision."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lateinteraction.adapters.encoding.learning import Sheet
from lateinteraction.adapters.neural.losses import (
    Contrastive,
    Distillation,
    LearnableTemperature,
    MarginMse,
    Matryoshka,
    Objective,
    Pooled,
    Weighted,
    Xtr,
    learned_of,
)
from lateinteraction.adapters.training.batches import MicroBatch
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.strategies import Embeddings, Outcome, Setting, cached, direct
from lateinteraction.domain.embeddings import offsets_of
from lateinteraction.domain.recipe import TokenPooling
from lateinteraction.domain.training import Targets
from tests.adapters.training.stubs import StubNetwork, micro_batch

LOSSES = {
    "contrastive": partial(Contrastive, temperature=0.5),
    "both ways": partial(Contrastive, symmetric=True),
    "learned": lambda: Contrastive(temperature=LearnableTemperature(0.5)),
    "xtr": lambda: Contrastive(interaction=Xtr(k=5)),
    "distillation": Distillation,
    "pylate": Distillation.pylate,
    "margin": MarginMse,
    "mix": lambda: Weighted([(1, Distillation()), (0.5, Contrastive(own_negatives=False))]),
    "matryoshka": lambda: Matryoshka(Contrastive(), (6, 3)),
    "pooled": lambda: Pooled(Contrastive(), TokenPooling(factor=2)),
}
BATCH = partial(micro_batch, [2, 3, 2, 2], 1)
EACH, SOME, ALL = 7, 20, 10**6
"""Tokens of a rectangle: one text, about three, all."""


def gradients(
    strategy: object, loss: Objective, budget: int, **settings: object
) -> tuple[dict[str, Tensor], Outcome, Tensor]:
    """Gradients of all parameters, what came of it, and where random numbers stand afterwards."""
    network = settings.pop("network", StubNetwork)
    module = TrainedModule(network(dtype=settings.pop("dtype", torch.float64)), learned_of(loss))
    batch = BATCH(budget=budget)

    def objective(queries: Embeddings, documents: Embeddings) -> Tensor:
        return loss(queries, documents, Targets(batch.groups, torch.tensor(batch.teacher)))

    torch.manual_seed(5)
    outcome = strategy(Setting(module=module, device=torch.device("cpu"), **settings), batch, objective)
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():  # a learned temperature is the loss's, which others take too
        parameter.grad = None
    return found, outcome, torch.get_rng_state()


@pytest.mark.parametrize("budget", [EACH, SOME, ALL])
@pytest.mark.parametrize("name", LOSSES)
def test_cached_gradients_are_those_of_the_plain_loss(name: str, budget: int) -> None:
    loss = LOSSES[name]()
    plain, one, stands = gradients(direct, loss, budget)
    twice, other, stood = gradients(cached, loss, budget)
    assert float(one.loss) == float(other.loss)
    assert torch.equal(stands, stood)
    assert any(gradient.abs().max() > 0 for gradient in plain.values())
    for parameter, gradient in plain.items():
        ratio = twice[parameter].norm() / gradient.norm() if gradient.norm() else torch.tensor(1.0)
        assert float(ratio) == pytest.approx(1, abs=1e-10)
        torch.testing.assert_close(twice[parameter], gradient, rtol=1e-10, atol=1e-12)


def test_in_float32_they_agree_as_far_as_it_goes() -> None:
    plain, _, _ = gradients(direct, Contrastive(), SOME, dtype=torch.float32)
    twice, _, _ = gradients(cached, Contrastive(), SOME, dtype=torch.float32)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(twice[parameter], gradient, rtol=1e-5, atol=1e-6)


def test_dropout_makes_a_difference_that_replay_must_reproduce() -> None:
    first, _, _ = gradients(direct, Contrastive(), ALL)
    module = TrainedModule(StubNetwork(dropout=0.0))
    batch = BATCH(budget=ALL)
    direct(
        Setting(module=module, device=torch.device("cpu")),
        batch,
        lambda queries, documents: Contrastive()(queries, documents, Targets(batch.groups)),
    )
    assert not torch.allclose(first["network.layer.weight"], module.network.layer.weight.grad)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_both_passes_run_in_the_precision_that_was_asked_for(strategy: object) -> None:
    module = TrainedModule(StubNetwork(dtype=torch.float32))
    batch = BATCH(budget=SOME)
    setting = Setting(
        module=module, device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    outcome = strategy(setting, batch, lambda q, d: Contrastive()(q, d, Targets(batch.groups)))
    assert set(module.network.dtypes) == {torch.bfloat16}
    assert outcome.queries.tokens.dtype == outcome.loss.dtype == torch.float32
    assert module.network.layer.weight.grad.dtype == torch.float32


def test_in_mixed_precision_cached_gradients_are_still_the_same() -> None:
    def mixed() -> object:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    plain, _, _ = gradients(direct, Contrastive(), SOME, dtype=torch.float32, autocast=mixed)
    twice, _, _ = gradients(cached, Contrastive(), SOME, dtype=torch.float32, autocast=mixed)
    for parameter, gradient in plain.items():
        assert float(twice[parameter].norm() / gradient.norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_a_scaled_backward_scales_all_gradients_alike(strategy: object) -> None:
    loss = LOSSES["learned"]()
    plain, _, _ = gradients(strategy, loss, SOME)
    scaled, _, _ = gradients(strategy, loss, SOME, backward=lambda value: (1024 * value).backward())
    for parameter, gradient in plain.items():
        torch.testing.assert_close(scaled[parameter], 1024 * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_micro_batches_that_are_weighed_are_the_mean_over_all_their_queries(strategy: object) -> None:
    sizes, seeds = [2, 3], (3, 4)
    module = TrainedModule(StubNetwork(dropout=0.0))
    setting = Setting(module=module, device=torch.device("cpu"))
    parts = [micro_batch(sizes, seed) for seed in seeds]
    total = torch.tensor(0.0, dtype=torch.float64)
    for part in parts:
        outcome = strategy(
            setting, part, lambda q, d, part=part: MarginMse()(q, d, Targets(part.groups, torch.tensor(part.teacher))),
            weight=0.5,
        )  # fmt: skip
        total += 0.5 * outcome.loss
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    losses = []
    for part in parts:
        outcome = direct(
            setting, part, lambda q, d, part=part: MarginMse()(q, d, Targets(part.groups, torch.tensor(part.teacher)))
        )
        losses.append(outcome.loss)
    assert float(total) == pytest.approx(float(sum(losses)) / 2, rel=1e-12)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("strategy", "last", "synchronised"), [(direct, True, 1), (direct, False, 0), (cached, True, 1), (cached, False, 0)]
)
def test_gradients_are_synchronised_once_and_only_at_the_end_of_a_step(
    strategy: object, last: bool, synchronised: int
) -> None:
    inside = [0]

    @contextmanager
    def unsynchronised():
        inside[0] += 1
        yield
        inside[0] -= 1

    module = TrainedModule(StubNetwork())
    counted: list[bool] = []
    module.network.layer.weight.register_post_accumulate_grad_hook(lambda _: counted.append(inside[0] == 0))
    batch = BATCH(budget=EACH)
    setting = Setting(module=module, device=torch.device("cpu"), unsynchronised=unsynchronised)
    strategy(setting, batch, lambda q, d: Contrastive()(q, d, Targets(batch.groups)), last=last)
    assert sum(counted) == int(last)
    assert counted[-1] is last


def test_what_is_given_back_has_no_graph() -> None:
    for strategy in (direct, cached):
        _, outcome, _ = gradients(strategy, Contrastive(), SOME)
        assert not outcome.loss.requires_grad
        assert not outcome.queries.tokens.requires_grad
        assert not outcome.documents.tokens.requires_grad


class Checkpointed(StubNetwork):
    """Keeps nothing of a rectangle, and makes it again for the backward pass."""

    def rows(self, sheet: Sheet) -> Tensor:
        words = self.words.weight  # checkpoints want a tensor that needs a gradient
        return checkpoint(lambda _: StubNetwork.rows(self, sheet), words, use_reentrant=False)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_a_network_that_computes_again_by_itself_has_the_same_gradients(strategy: object) -> None:
    plain, _, stands = gradients(direct, Contrastive(), SOME)
    again, _, stood = gradients(strategy, Contrastive(), SOME, network=Checkpointed)
    assert torch.equal(stands, stood)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(again[parameter], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_rectangles_that_only_keep_step_with_others_change_nothing(strategy: object) -> None:
    plain, _, _ = gradients(direct, LOSSES["learned"](), SOME)
    more, _, _ = gradients(strategy, LOSSES["learned"](), SOME, passes=lambda count: count + 3)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(more[parameter], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("budget", [EACH, ALL])
@pytest.mark.parametrize("strategy", [direct, cached])
def test_a_negative_without_tokens_is_as_if_it_were_not_there(strategy: object, budget: int) -> None:
    def found(batch: MicroBatch) -> dict[str, Tensor]:
        module = TrainedModule(StubNetwork(dropout=0.0))
        setting = Setting(module=module, device=torch.device("cpu"))
        strategy(setting, batch, lambda q, d: Contrastive()(q, d, Targets(batch.groups)))
        return {name: parameter.grad for name, parameter in module.named_parameters()}

    whole = BATCH(budget=budget)
    offsets = np.insert(whole.documents.offsets, 2, whole.documents.offsets[1])  # after the first of two negatives
    with_empty = evolve(whole, documents=evolve(whole.documents, offsets=offsets), groups=offsets_of([3, 3, 2, 2]))
    plain, more = found(whole), found(with_empty)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(more[parameter], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", [direct, cached])
def test_precision_of_whoever_calls_does_not_lose_gradients_between_the_passes(strategy: object) -> None:
    # The outer block keeps narrow copies of the weights; one made without a graph must not serve the second pass.
    def mixed() -> object:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    plain, _, _ = gradients(direct, Contrastive(), SOME, dtype=torch.float32, autocast=mixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _, _ = gradients(strategy, Contrastive(), SOME, dtype=torch.float32, autocast=mixed)
    for parameter, gradient in plain.items():
        assert float(inside[parameter].norm() / gradient.norm()) == pytest.approx(1, abs=0.05)


class Noisy:
    """A loss that draws random numbers itself."""

    learned, settings = (), {"loss": "noisy"}

    def __call__(self, queries: Embeddings, documents: Embeddings, targets: Targets[Tensor]) -> Tensor:
        return Contrastive()(queries, documents, targets) * (1 + torch.rand((), dtype=torch.float64))


def test_what_a_loss_draws_is_drawn_once() -> None:
    plain, one, stands = gradients(direct, Noisy(), SOME)
    twice, other, stood = gradients(cached, Noisy(), SOME)
    assert float(one.loss) == float(other.loss)
    assert torch.equal(stands, stood)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(twice[parameter], gradient, rtol=1e-10, atol=1e-12)
