"""Frozen layers and the rest are the whole network: the same rows, and the same gradients where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lateinteraction.adapters.encoding.batches import make_batch
from lateinteraction.adapters.encoding.learning import Sheet, sheet_of
from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner, LearnerOptions
from lateinteraction.adapters.huggingface.learning.low_rank import LowRank
from lateinteraction.adapters.huggingface.learning.split import SplitNetwork
from lateinteraction.adapters.huggingface.projection import RandomProjection
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel, InvalidOption
from lateinteraction.domain.text import Document, DocumentId

TEXTS = ["late interaction compares tokens", "one", "a longer text, with a comma and more words than the others have"]
SPLIT = ["bert", "distilbert", "modernbert", "roberta", "xlm-roberta"]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def learner_of(folder: Path, options: LearnerOptions | None = None, *, dropout: bool = False) -> HuggingFaceLearner:
    read = read_checkpoint(
        folder, options=CheckpointOptions(projection=RandomProjection(8, 1), dtype="float32", device="cpu")
    )
    read.transformer.double()
    read.projection.double()
    learner = HuggingFaceLearner(read, options or LearnerOptions(frozen_layers=1))
    learner.network.train(dropout)
    return learner


def sheet_for(learner: HuggingFaceLearner, texts: list[str] = TEXTS) -> Sheet:
    tokens = learner.tokeniser.documents(texts)
    order = np.argsort(-np.diff(tokens.offsets), kind="stable")
    batch = make_batch(tokens, np.cumsum(tokens.kept) - 1, order, learner.tokeniser.padding_id)
    return sheet_of(batch, torch.device("cpu"))


def gradients(network: torch.nn.Module, rows: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (rows * torch.arange(rows.numel(), dtype=rows.dtype).sin().view_as(rows)).sum().backward()
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("family", SPLIT)
def test_frozen_layers_and_the_rest_are_the_whole(families: Mapping[str, Path], family: str) -> None:
    learner = learner_of(families[family])
    network, sheet = learner.network, sheet_for(learner)
    assert not sheet.full, "there is padding"
    split = SplitNetwork(network, 1)
    whole = network([sheet])
    parts = split.rest(sheet, split.prefix(sheet))
    assert_close(parts, whole)
    expected, found = gradients(network, whole), gradients(network, parts)
    assert expected.keys() == found.keys() == {name for name, each in network.named_parameters() if each.requires_grad}
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


def test_a_trained_model_is_split_alike(tiny_model: Path) -> None:
    learner = learner_of(tiny_model)
    sheet = sheet_for(learner)
    assert_close(SplitNetwork(learner.network, 1)([sheet, sheet])[: len(sheet.kept)], learner.network([sheet]))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_rest_starts_from_the_hidden_states_it_is_given(families: Mapping[str, Path], family: str) -> None:
    learner = learner_of(families[family])
    split, sheet = SplitNetwork(learner.network, 1), sheet_for(learner)
    hidden = split.prefix(sheet)
    other = split.prefix(Sheet(sheet.ids.flip(0), sheet.attended, sheet.kept, sheet.full))
    assert not torch.allclose(split.rest(sheet, hidden), split.rest(sheet, other)), "ids were read again"


@pytest.mark.parametrize("family", SPLIT)
def test_hidden_states_of_padding_change_neither_rows_nor_gradients(families: Mapping[str, Path], family: str) -> None:
    learner = learner_of(families[family])
    split, sheet = SplitNetwork(learner.network, 1), sheet_for(learner)
    hidden = split.prefix(sheet)
    padding = torch.arange(sheet.ids.shape[1]) >= sheet.attended[:, None]
    other = hidden.masked_fill(padding[..., None], 3.0)
    one, two = split.rest(sheet, hidden), split.rest(sheet, other)
    assert_close(one, two)
    expected, found = gradients(split, one), gradients(split, two)
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


def test_narrow_hidden_states_are_widened_to_the_weights(families: Mapping[str, Path]) -> None:
    learner = learner_of(families["bert"])
    split, sheet = SplitNetwork(learner.network, 1), sheet_for(learner)
    rows = split.rest(sheet, split.prefix(sheet).half())
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows, learner.network([sheet]), rtol=0, atol=0.01)


def test_frozen_layers_have_neither_dropout_nor_graph_and_the_rest_has_both(families: Mapping[str, Path]) -> None:
    learner = learner_of(families["bert"], dropout=True)
    split, sheet = SplitNetwork(learner.network, 1).train(), sheet_for(learner)
    state = torch.get_rng_state()
    hidden = split.prefix(sheet)
    assert torch.equal(hidden, split.prefix(sheet))
    assert torch.equal(state, torch.get_rng_state())
    assert not hidden.requires_grad
    assert not torch.equal(split.rest(sheet, hidden), split.rest(sheet, hidden)), "dropout is off above"
    learner.encoder.encode_documents([Document(DocumentId("a"), TEXTS[0])])
    assert torch.equal(hidden, split.prefix(sheet)), "the encoder has put frozen layers into training"


def test_splitting_leaves_the_network_as_it_was(families: Mapping[str, Path]) -> None:
    learner = learner_of(families["bert"])
    network, sheet = learner.network, sheet_for(learner)
    names = [name for name, _ in network.named_modules()]
    before = network([sheet])
    split = SplitNetwork(network, 1)
    split([sheet]).sum().backward()
    assert names == [name for name, _ in network.named_modules()]
    assert not any(vars(module)["_forward_hooks"] for module in network.modules())
    assert torch.equal(before, network([sheet]))
    assert {id(each) for each in split.parameters()} == {id(each) for each in network.parameters()}


def test_layers_computed_again_above_give_the_same_gradients(families: Mapping[str, Path]) -> None:
    def found(again: bool) -> dict[str, Tensor]:
        options = LearnerOptions(frozen_layers=1, gradient_checkpointing=again)
        learner = learner_of(families["bert"], options, dropout=True)
        split = SplitNetwork(learner.network, 1).train()
        torch.manual_seed(1)
        return gradients(split, split([sheet_for(learner)]))

    kept, again = found(again=False), found(again=True)
    assert kept.keys() == again.keys() != set()
    for name, gradient in kept.items():
        assert_close(again[name], gradient)


def test_what_is_trained_is_not_run_without_gradients(families: Mapping[str, Path]) -> None:
    learner = learner_of(families["bert"], LearnerOptions(frozen_words=True))
    with pytest.raises(InvalidModel, match="frozen_layers=1"):
        SplitNetwork(learner.network, 1)
    adapted = learner_of(families["bert"], LearnerOptions(low_rank=LowRank(rank=2)))
    with pytest.raises(InvalidModel, match="some are trained"):
        SplitNetwork(adapted.network, 1)


@pytest.mark.parametrize("layers", [0, 2, -1, True])
def test_layers_that_leave_no_rest_or_no_prefix_are_refused(families: Mapping[str, Path], layers: int) -> None:
    with pytest.raises(InvalidOption, match="from 1 to 1"):
        SplitNetwork(learner_of(families["bert"]).network, layers)


@pytest.mark.parametrize("family", ["qwen2", "mpnet"])
def test_a_model_that_is_not_known_to_split_is_refused(families: Mapping[str, Path], family: str) -> None:
    with pytest.raises(InvalidModel, match=family):
        SplitNetwork(learner_of(families[family]).network, 1)
