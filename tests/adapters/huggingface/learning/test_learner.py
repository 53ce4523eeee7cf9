"""A model in training is the model that is searched with, and what is said to be frozen is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.encoding.batches import make_batch, plan_batches
from lateinteraction.adapters.encoding.learning import Sheet, sheet_of
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner, LearnerOptions, layers_of
from lateinteraction.adapters.huggingface.learning.low_rank import LowRank, LowRankLinear
from lateinteraction.adapters.huggingface.projection import RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel, InvalidOption
from lateinteraction.domain.text import Document

TEXTS = ["late interaction compares tokens", "one", "a longer text, with a comma and more words than the others have"]
FAMILIES = ["bert", "distilbert", "modernbert", "roberta"]


def checkpoint_of(folder: Path, *, dropout: bool = False, dtype: torch.dtype = torch.float64) -> Checkpoint:
    read = read_checkpoint(
        folder, options=CheckpointOptions(projection=RandomProjection(8, 1), dtype="float32", device="cpu")
    )
    read.transformer.to(dtype)
    read.projection.to(dtype)
    if not dropout:
        for module in read.transformer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return read


@pytest.fixture
def model(families: Mapping[str, Path]) -> Checkpoint:
    return checkpoint_of(families["bert"])


def sheets_of(
    tokeniser: RecipeTokeniser, texts: list[str] = TEXTS, budget: int = 10**6
) -> tuple[list[Sheet], np.ndarray]:
    """The texts' rectangles, and the order that puts their rows in the order of the texts."""
    tokens = tokeniser.documents(texts)
    places = np.cumsum(tokens.kept) - 1
    batches = [
        make_batch(tokens, places, rows, tokeniser.padding_id) for rows in plan_batches(np.diff(tokens.offsets), budget)
    ]
    destinations = np.concatenate([batch.sheet[len(batch.sheet) - batch.parts[3] :] for batch in batches])
    return [sheet_of(batch, torch.device("cpu")) for batch in batches], np.argsort(destinations)


def rows_of(learner: HuggingFaceLearner, texts: list[str] = TEXTS, budget: int = 10**6) -> Tensor:
    sheets, order = sheets_of(learner.tokeniser, texts, budget)
    return learner.network(sheets)[torch.tensor(order)]


def gradients(learner: HuggingFaceLearner, texts: list[str] = TEXTS) -> dict[str, Tensor]:
    rows = rows_of(learner, texts)
    weights = torch.arange(rows.numel(), dtype=rows.dtype).sin().view_as(rows)
    learner.network.zero_grad()
    (rows * weights).sum().backward()
    return {name: each.grad.clone() for name, each in learner.network.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_training_are_the_embeddings_of_the_encoder(families: Mapping[str, Path], family: str) -> None:
    learner = HuggingFaceLearner(checkpoint_of(families[family]))
    expected = learner.encoder.encode_documents([Document(str(n), text) for n, text in enumerate(TEXTS)])
    assert learner.network.training
    found = rows_of(learner)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.detach().float(), expected.tokens, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_is_trained_has_a_gradient(families: Mapping[str, Path], family: str) -> None:
    learner = HuggingFaceLearner(checkpoint_of(families[family]))
    found = gradients(learner)
    trained = {name for name, each in learner.network.named_parameters() if each.requires_grad}
    assert found.keys() == trained
    assert not any("pooler" in name for name in trained)
    assert sum(len(group) for group in learner.groups.values()) == len(trained)


def test_padding_changes_neither_rows_nor_gradients(model: Checkpoint) -> None:
    learner = HuggingFaceLearner(model)
    together = rows_of(learner)
    apart = rows_of(learner, budget=1)
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-12)
    (whole, *_) = torch.autograd.grad(together.sin().sum(), learner.groups["projection"])
    (parts, *_) = torch.autograd.grad(apart.sin().sum(), learner.groups["projection"])
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11)


def test_an_encoder_between_steps_leaves_no_trace(families: Mapping[str, Path]) -> None:
    learner = HuggingFaceLearner(checkpoint_of(families["bert"], dropout=True))
    state = torch.get_rng_state()
    documents = [Document("a", TEXTS[0])]
    one, other = (learner.encoder.encode_documents(documents).tokens for _ in range(2))
    assert torch.equal(one, other), "dropout is on"
    assert learner.network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(rows_of(learner), rows_of(learner)), "dropout is off"
    assert all(parameter.grad is None for parameter in learner.network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_have_no_gradient_and_the_rest_have_theirs(families: Mapping[str, Path], family: str) -> None:
    whole = gradients(HuggingFaceLearner(checkpoint_of(families[family])))
    learner = HuggingFaceLearner(checkpoint_of(families[family]), LearnerOptions(frozen_layers=1))
    found = gradients(learner)
    assert found.keys() < whole.keys()
    assert not any("embed" in name for name in found)
    assert not {id(each) for each in layers_of(learner.network.transformer)[0].parameters()} & {
        id(each) for group in learner.groups.values() for each in group
    }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", [*FAMILIES, "mpnet"])
def test_what_frozen_layers_give_is_the_same_after_a_step_and_nothing_of_it_is_dropped(
    families: Mapping[str, Path], family: str
) -> None:
    """Also where all layers share a bias of positions, which is then frozen with the lowest."""
    learner = HuggingFaceLearner(checkpoint_of(families[family], dropout=True), LearnerOptions(frozen_layers=1))
    given: list[Tensor] = []

    def keep(_: torch.nn.Module, __: object, state: Tensor | tuple[Tensor, ...]) -> None:
        given.append((state[0] if isinstance(state, tuple) else state).detach().clone())

    learner.layers[0].register_forward_hook(keep)
    for _ in range(2):
        learner.network.train()
        found = gradients(learner)
        with torch.no_grad():
            for name, parameter in learner.network.named_parameters():
                if name in found:
                    parameter -= found[name]
        learner.encoder.encode_documents([Document("a", TEXTS[0])])
    rows_of(learner)
    assert torch.equal(given[0], given[2])
    assert torch.equal(given[0], given[-1])


def test_words_may_be_frozen_alone(model: Checkpoint) -> None:
    found = gradients(HuggingFaceLearner(model, LearnerOptions(frozen_words=True)))
    assert not any("word_embeddings" in name for name in found)
    assert any("position_embeddings" in name for name in found)


def test_more_layers_than_there_are_cannot_be_frozen(model: Checkpoint) -> None:
    with pytest.raises(InvalidModel, match="at most 2"):
        HuggingFaceLearner(model, LearnerOptions(frozen_layers=3))


def test_layers_that_are_computed_again_give_the_same_gradients(families: Mapping[str, Path]) -> None:
    def found(again: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = checkpoint_of(families["bert"], dropout=True)
        learner = HuggingFaceLearner(model, LearnerOptions(gradient_checkpointing=again))
        torch.manual_seed(1)
        return gradients(learner)

    kept, again = found(again=False), found(again=True)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-11)


# Low rank


def stirred(learner: HuggingFaceLearner) -> None:
    """As after training: no product is 0 any more."""
    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_of_low_rank_is_nothing_at_first_and_merges_exactly(
    families: Mapping[str, Path], family: str
) -> None:
    plain = rows_of(HuggingFaceLearner(checkpoint_of(families[family])))
    learner = HuggingFaceLearner(checkpoint_of(families[family]), LearnerOptions(low_rank=LowRank(rank=2)))
    torch.testing.assert_close(rows_of(learner), plain, rtol=1e-12, atol=1e-13)
    stirred(learner)
    changed = rows_of(learner)
    assert not torch.allclose(changed, plain)
    merged = learner.checkpoint()
    assert not any(isinstance(module, LowRankLinear) for module in merged.transformer.modules())
    torch.testing.assert_close(rows_of(HuggingFaceLearner(merged)), changed, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(rows_of(learner), changed, rtol=1e-12, atol=1e-13), "merging has changed the learner"


def test_of_a_transformer_with_low_rank_only_that_is_trained(model: Checkpoint) -> None:
    learner = HuggingFaceLearner(model, LearnerOptions(low_rank=LowRank(rank=2, layers=("query", "value"))))
    assert {name.rpartition(".")[2] for name in gradients(learner)} == {"down", "up", "weight"}
    assert all(name.endswith((".up", ".down")) for name in gradients(learner) if "transformer" in name)
    assert len(learner.groups["transformer"]) == 2 * 2 * 2, "two matrices beside two layers of each of two blocks"


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": True}, {"alpha": 0}, {"dropout": 1}])
def test_matrices_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidOption, match=name):
        LowRank(**wrong)


def test_layers_that_are_not_there_are_named(model: Checkpoint) -> None:
    with pytest.raises(InvalidOption, match="'q_lin'"):
        HuggingFaceLearner(model, LearnerOptions(low_rank=LowRank(layers=("q_lin",))))


# What is given back, and what is refused


def test_what_is_given_back_is_a_copy_that_encodes_alike(model: Checkpoint) -> None:
    learner = HuggingFaceLearner(model)
    copied = learner.checkpoint()
    documents = [Document(str(n), text) for n, text in enumerate(TEXTS)]
    before = HuggingFaceEncoder(copied).encode_documents(documents).tokens
    torch.testing.assert_close(before, learner.encoder.encode_documents(documents).tokens)
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter.add_(0.5)
    assert torch.equal(before, HuggingFaceEncoder(copied).encode_documents(documents).tokens)


def test_narrow_weights_are_not_trained(families: Mapping[str, Path]) -> None:
    with pytest.raises(InvalidModel, match="float32 weights"):
        HuggingFaceLearner(checkpoint_of(families["bert"], dtype=torch.bfloat16))


def test_a_recipe_that_pools_is_not_trained(model: Checkpoint) -> None:
    pooling = model.with_recipe(model.recipe.merge({"pooling": {"factor": 2}}))
    with pytest.raises(InvalidOption, match="Pooled"):
        HuggingFaceLearner(pooling)
