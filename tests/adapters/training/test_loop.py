"""A run computes what its configuration says, goes on as if it had not been stopped, and says what goes wrong."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor

from lateinteraction.adapters.huggingface.learning.learner import HuggingFaceLearner, LearnerOptions
from lateinteraction.adapters.neural.losses import (
    Contrastive,
    Distillation,
    LearnableTemperature,
    MaxSim,
    Objective,
    Weighted,
)
from lateinteraction.adapters.training.checkpoints import CheckpointFolder, RunState
from lateinteraction.adapters.training.loop import AccelerateTrainer, RunFolder
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import PlanOptions
from lateinteraction.adapters.training.processes import Processes
from lateinteraction.adapters.training.reports import StepReport
from lateinteraction.domain.errors import InvalidOption, TrainingFailed
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.ports import Encoder
from lateinteraction.domain.text import Document, Query, QueryId
from lateinteraction.domain.training import Targets, TrainingExample, TrainingReport
from lateinteraction.testing.sources import ListedExamples
from tests.adapters.training.conftest import MakeLearner, learner_of, pairs

LOSS = Contrastive(temperature=0.1, interaction=MaxSim(mean=True))
SOURCES = (pairs(40, name="a"), pairs(24, name="b", seed=1, negatives=2))


def trainer(
    plan: dict[str, Any] | None = None, *, keywords: dict[str, Any] | None = None, **options: Any
) -> AccelerateTrainer:
    planned = {"global_batch_size": 8, "steps": 6} | (plan or {})
    usual = {"learning_rate": 1e-3, "log_every": 1}
    return AccelerateTrainer(PlanOptions(**planned), TrainingOptions(**(usual | options)), **(keywords or {}))


def weights_after(
    make_learner: MakeLearner,
    trained: AccelerateTrainer,
    loss: Objective = LOSS,
    *,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> dict[str, Tensor]:
    learner = make_learner(dtype=dtype)
    trained.fit(learner, loss, SOURCES, **more)
    return {name: value.detach().clone() for name, value in learner.network.named_parameters()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def rising() -> Any:
    """A watch whose measure is better each time."""
    values = itertools.count(1)
    return lambda encoder: Report(["MRR@10"], [QueryId("q")], [[next(values) / 1000]])


def test_a_run_says_what_it_did(make_learner: MakeLearner) -> None:
    told: list[StepReport] = []
    report = trainer(keywords={"report": told.append}).fit(make_learner(), LOSS, SOURCES)
    assert (report.steps, report.examples, report.stopped, report.best) == (6, 48, False, None)
    assert [each.step for each in told] == [1, 2, 3, 4, 5, 6]
    assert report.losses == tuple(each.loss for each in told)
    assert all(each.tokens > 0 and 0 <= each.padding < 1 and each.seconds > 0 for each in told)
    assert all(0 <= each.accuracy <= 1 and math.isfinite(each.gap) for each in told)
    assert told[0].rate < told[1].rate or told[0].rate == 1e-3
    assert told[-1].rate < told[0].rate


def test_the_same_configuration_is_the_same_run(make_learner: MakeLearner) -> None:
    one = weights_after(make_learner, trainer())
    assert_equal(one, weights_after(make_learner, trainer()))
    assert not torch.equal(
        *(each["projection._layers.0.weight"] for each in (one, weights_after(make_learner, trainer(seed=1))))
    )


def test_random_numbers_of_whoever_trains_are_left_alone(make_learner: MakeLearner) -> None:
    learner = make_learner()
    before = torch.get_rng_state()
    trainer().fit(learner, LOSS, SOURCES)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", [{"workers": 2}, {"log_every": 5}])
def test_what_only_changes_how_a_run_goes_changes_no_weight(make_learner: MakeLearner, change: dict[str, Any]) -> None:
    assert_equal(weights_after(make_learner, trainer()), weights_after(make_learner, trainer(**change)))


def test_watching_changes_no_weight_of_a_later_step(make_learner: MakeLearner) -> None:
    watched = weights_after(make_learner, trainer(watch_every=2), watch=rising())
    assert_equal(weights_after(make_learner, trainer()), watched)


def test_cached_gradients_make_the_same_run(make_learner: MakeLearner) -> None:
    # In float64: the gradient of a key's bias is nothing but rounding, which AdamW makes as large as any other.
    options = {"tokens_per_rectangle": 60}
    plain = weights_after(make_learner, trainer(**options), dtype=torch.float64)
    twice = weights_after(make_learner, trainer(strategy="cached", **options), dtype=torch.float64)
    for name, value in plain.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-8, atol=1e-10)


# Going on


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "more", [{}, {"averaging": 0.9}, {"strategy": "cached"}, {"accumulation": 2}, {"negatives": 1}]
)
def test_a_run_that_was_stopped_ends_in_the_same_bits(
    make_learner: MakeLearner, tmp_path: Path, workers: int, more: dict[str, Any]
) -> None:
    loss = Contrastive(temperature=LearnableTemperature(0.1), interaction=MaxSim(mean=True))
    whole = weights_after(make_learner, trainer(workers=workers, **more), loss)
    asked = itertools.count(1)
    folder = RunFolder(path=tmp_path / "run")
    first = trainer(keywords={"folder": folder, "stop": lambda: next(asked) == 3}, **more)
    loss = Contrastive(temperature=LearnableTemperature(0.1), interaction=MaxSim(mean=True))
    stopped = first.fit(make_learner(), loss, SOURCES)
    assert (stopped.steps, stopped.stopped) == (3, True)
    loss = Contrastive(temperature=LearnableTemperature(0.1), interaction=MaxSim(mean=True))
    again = trainer(keywords={"folder": folder}, workers=workers, **more)
    assert_equal(whole, weights_after(make_learner, again, loss))


def test_going_on_counts_from_where_it_was(make_learner: MakeLearner, tmp_path: Path) -> None:
    asked = itertools.count(1)
    folder = RunFolder(path=tmp_path)
    trainer(keywords={"folder": folder, "stop": lambda: next(asked) == 4}).fit(make_learner(), LOSS, SOURCES)
    told: list[StepReport] = []
    report = trainer(keywords={"folder": folder, "report": told.append}).fit(make_learner(), LOSS, SOURCES)
    assert [each.step for each in told] == [5, 6]
    assert (report.steps, report.examples, len(report.losses)) == (6, 48, 6)


def test_a_finished_run_is_not_run_again(make_learner: MakeLearner, tmp_path: Path) -> None:
    folder = {"folder": RunFolder(path=tmp_path)}
    done = weights_after(make_learner, trainer(keywords=folder))
    assert_equal(done, weights_after(make_learner, trainer(keywords=folder)))


def test_the_best_that_was_seen_is_what_is_left(make_learner: MakeLearner, tmp_path: Path) -> None:
    values = iter([0.1, 0.9, 0.2])
    seen: list[Tensor] = []
    learner = make_learner()

    def watch(_: Encoder[Tensor]) -> Report:
        seen.append(learner.network.projection.layers[0].weight.detach().clone())
        return Report(["MRR@10"], [QueryId("q")], [[next(values)]])

    folder = RunFolder(path=tmp_path)
    report = trainer(watch_every=2, keep=1, keywords={"folder": folder}).fit(learner, LOSS, SOURCES, watch)
    assert (report.best, report.best_step, report.steps) == (0.9, 4, 6)
    assert torch.equal(learner.network.projection.layers[0].weight, seen[1])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_run_that_ended_early_is_not_gone_on_with(make_learner: MakeLearner, tmp_path: Path) -> None:
    values = iter([0.5, 0.4, 0.3])

    def watch(_: Encoder[Tensor]) -> Report:
        return Report(["MRR@10"], [QueryId("q")], [[next(values)]])

    for _ in range(2):
        trained = trainer(watch_every=1, patience=2, keywords={"folder": RunFolder(path=tmp_path)})
        report = trained.fit(make_learner(), LOSS, SOURCES, watch)
        assert (report.steps, report.best, report.best_step) == (3, 0.5, 1)


def test_the_last_weights_are_watched_too(make_learner: MakeLearner) -> None:
    values = iter([0.1, 0.2])

    def watch(_: Encoder[Tensor]) -> Report:
        return Report(["MRR@10"], [QueryId("q")], [[next(values)]])

    report = trainer(watch_every=4).fit(make_learner(), LOSS, SOURCES, watch)
    assert (report.best, report.best_step) == (0.2, 6)


def test_each_checkpoint_is_written_once(make_learner: MakeLearner, tmp_path: Path, monkeypatch: Any) -> None:
    written: list[int] = []
    write = CheckpointFolder.write

    def counted(self: CheckpointFolder, state: RunState, *more: Any, **named: Any) -> Path:
        written.append(state.step)
        return write(self, state, *more, **named)

    monkeypatch.setattr(CheckpointFolder, "write", counted)
    trained = trainer(watch_every=2, checkpoint_every=2, keywords={"folder": RunFolder(path=tmp_path)})
    trained.fit(make_learner(), LOSS, SOURCES, rising())
    assert written == [2, 4, 6]


def test_a_run_in_half_precision_goes_on_with_its_scale(make_learner: MakeLearner, tmp_path: Path) -> None:
    """Also where gradients were too large for the first scale, which was halved and steps left out."""
    large = Weighted([(30.0, LOSS)])
    whole = weights_after(make_learner, trainer(precision="float16"), large)
    asked = itertools.count(1)
    folder = {"folder": RunFolder(path=tmp_path)}
    stopping = trainer(keywords=folder | {"stop": lambda: next(asked) == 3}, precision="float16")
    stopping.fit(make_learner(), large, SOURCES)
    assert_equal(whole, weights_after(make_learner, trainer(keywords=folder, precision="float16"), large))


def test_to_be_stopped_after_the_last_step_is_to_be_done(make_learner: MakeLearner) -> None:
    asked = itertools.count(1)
    report = trainer(keywords={"stop": lambda: next(asked) == 6}).fit(make_learner(), LOSS, SOURCES)
    assert (report.steps, report.stopped) == (6, False)


def test_a_model_with_other_frozen_weights_is_another_run(make_learner: MakeLearner, tmp_path: Path) -> None:
    folder = {"folder": RunFolder(path=tmp_path)}
    trainer(keywords=folder).fit(make_learner(LearnerOptions(frozen_layers=1)), LOSS, SOURCES)
    other = make_learner(LearnerOptions(frozen_layers=1))
    with torch.no_grad():
        next(other.layers[0].parameters()).add_(1)
    with pytest.raises(InvalidOption, match="another configuration"):
        trainer(keywords=folder).fit(other, LOSS, SOURCES)


def test_trackers_are_told_of_reports(make_learner: MakeLearner) -> None:
    class Kept(GeneralTracker):
        name, requires_logging_directory = "kept", False

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int, dict[str, float]]] = []
            self.finished = False

        @property
        def tracker(self) -> list[tuple[int, dict[str, float]]]:
            return self.rows

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.fingerprint = values["fingerprint"]

        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            self.rows.append((step or 0, values))

        def finish(self) -> None:
            self.finished = True

    kept = Kept()
    trainer(keywords={"trackers": [kept]}, log_every=3).fit(make_learner(), LOSS, SOURCES)
    assert [step for step, _ in kept.rows] == [3, 6]
    assert all(math.isfinite(values["loss"]) for _, values in kept.rows)
    assert kept.finished
    assert len(kept.fingerprint) == 64


def test_a_run_does_not_depend_on_the_precision_of_whoever_starts_it(make_learner: MakeLearner) -> None:
    alone = weights_after(make_learner, trainer())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(alone, weights_after(make_learner, trainer()))


def test_nor_on_casts_of_weights_that_whoever_starts_it_has_made(make_learner: MakeLearner) -> None:
    alone = weights_after(make_learner, trainer(precision="bfloat16"))
    learner = make_learner()
    linears = [module for module in learner.network.modules() if isinstance(module, torch.nn.Linear)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for factor in (2.0, 0.5):
            for module in linears:
                with torch.no_grad():
                    module.weight *= factor
                module(torch.zeros(1, module.in_features))  # the cast of twice the weight is what is kept
        trainer(precision="bfloat16").fit(learner, LOSS, SOURCES)
    assert_equal(alone, dict(learner.network.named_parameters()))


def test_casts_of_weights_are_shared_within_a_pass_and_forgotten_after_it() -> None:
    processes, weight = Processes(torch.device("cpu")), torch.nn.Parameter(torch.ones(4, 4))
    graphs: list[Tensor] = []

    def place_of_the_cast() -> int:
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
            graphs.append(torch.nn.functional.linear(torch.ones(1, 4, requires_grad=True), weight))
        return next(each.data_ptr() for each in saved if each.shape == weight.shape)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with processes.autocast("bfloat16"):
            once, again = place_of_the_cast(), place_of_the_cast()
        later = place_of_the_cast()
    assert once == again != later


def test_a_run_that_gets_no_better_ends_early(make_learner: MakeLearner) -> None:
    values = iter([0.5, 0.4, 0.3, 0.2])

    def watch(_: Encoder[Tensor]) -> Report:
        return Report(["MRR@10"], [QueryId("q")], [[next(values)]])

    report = trainer(watch_every=1, patience=2).fit(make_learner(), LOSS, SOURCES, watch)
    assert (report.steps, report.best_step) == (3, 1)


# What goes wrong


@pytest.mark.parametrize(
    ("change", "more"), [({"seed": 7}, {}), ({}, {"learning_rate": 2e-3}), ({}, {"strategy": "cached"})]
)
def test_a_checkpoint_of_another_configuration_is_refused(
    make_learner: MakeLearner, tmp_path: Path, change: dict[str, Any], more: dict[str, Any]
) -> None:
    folder = {"folder": RunFolder(path=tmp_path)}
    trainer(keywords=folder).fit(make_learner(), LOSS, SOURCES)
    with pytest.raises(InvalidOption, match="another configuration"):
        trainer(change, keywords=folder, **more).fit(make_learner(), LOSS, SOURCES)
    with pytest.raises(InvalidOption, match="another configuration"):
        trainer(keywords=folder).fit(make_learner(), Distillation(), SOURCES)
    with pytest.raises(InvalidOption, match="another configuration"):
        trainer(keywords=folder).fit(make_learner(), LOSS, SOURCES[::-1])


def test_a_folder_with_a_run_is_left_alone_where_it_is_not_to_be_gone_on_with(
    make_learner: MakeLearner, tmp_path: Path
) -> None:
    trainer(keywords={"folder": RunFolder(path=tmp_path)}).fit(make_learner(), LOSS, SOURCES)
    with pytest.raises(InvalidOption, match="holds a run of 6 steps"):
        trainer(keywords={"folder": RunFolder(path=tmp_path, resume=False)}).fit(make_learner(), LOSS, SOURCES)


class Broken:
    """A loss that is not finite from some call on."""

    def __init__(self, good: int) -> None:
        self.good, self.learned, self.settings = good, (), {"loss": "broken"}

    def __call__(self, queries: Any, documents: Any, targets: Targets[Tensor]) -> Tensor:
        self.good -= 1
        return LOSS(queries, documents, targets) * (1 if self.good >= 0 else math.nan)


def test_a_loss_that_is_not_finite_is_named_with_its_rows_and_changes_nothing(make_learner: MakeLearner) -> None:
    learner = make_learner()
    good = weights_after(make_learner, trainer({"steps": 2}, schedule="constant", warmup=0))
    with pytest.raises(TrainingFailed, match=r"step 2: rank 0: loss nan of rows \[\d+(, \d+){7}\] of '[ab]'"):
        trainer(schedule="constant", warmup=0).fit(learner, Broken(2), SOURCES)
    assert_equal(good, dict(learner.network.named_parameters()))


@pytest.mark.parametrize(
    ("plan", "options", "told"),
    [
        ({"global_batch_size": 9}, {"accumulation": 2}, "a multiple of 2"),
        ({}, {"watch_every": 2}, "nothing to watch"),
        ({}, {"rates": {"head": 2.0}}, "'head'"),
        ({}, {"rates": {"projection": -1.0}}, r"rates\['projection'\] = -1.0"),
    ],
)
def test_what_would_fail_later_fails_before_the_first_step(
    make_learner: MakeLearner, plan: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    learner = make_learner()
    before = {name: value.detach().clone() for name, value in learner.network.named_parameters()}
    with pytest.raises(InvalidOption, match=told):
        trainer(plan, **options).fit(learner, LOSS, SOURCES)
    assert_equal(before, dict(learner.network.named_parameters()))


def test_a_row_that_cannot_be_read_is_named(make_learner: MakeLearner) -> None:
    source = pairs(16)

    class Failing:
        name = "torn"
        positives, lengths = source.positives, source.lengths

        def __len__(self) -> int:
            return len(source)

        def example(self, row: int) -> Any:
            raise ValueError(f"row {row} is torn")

    for workers in (0, 2):
        with pytest.raises(ValueError, match="is torn"):
            trainer(workers=workers).fit(make_learner(), LOSS, [Failing()])


# Learning


def recall_of(learner: HuggingFaceLearner, held_out: ListedExamples) -> float:
    """Share of queries whose positive is among the best five."""
    examples = [held_out.example(row) for row in range(len(held_out))]
    queries = learner.encoder.encode_queries([each.query for each in examples])
    documents = learner.encoder.encode_documents([each.documents[0] for each in examples])
    best = MaxSim().matrix(queries, documents).topk(5, dim=1).indices.numpy()
    return float(np.mean((best == np.arange(len(examples))[:, None]).any(axis=1)))


WORDS = (
    *("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket", "kitchen"),
    *("ladder", "mirror", "needle", "orange", "palace", "quarry", "rabbit", "silver", "temple", "umbrella", "valley"),
    *("window", "yellow", "anchor", "basket", "circle", "dragon", "eagle", "feather", "guitar", "hammer"),
)


def translated(count: int, seed: int) -> ListedExamples:
    """Queries of three words, and documents of those that stand seven places on: nothing says so but the examples."""
    generator = np.random.default_rng(seed)
    examples = []
    for row in range(count):
        asked = generator.choice(len(WORDS), 3, replace=False)
        answer = " ".join(WORDS[(each + 7) % len(WORDS)] for each in generator.permutation(asked))
        examples.append(
            TrainingExample(Query(" ".join(WORDS[each] for each in asked)), [Document(f"{seed}-{row}", answer)])
        )
    return ListedExamples("translated", examples)


@pytest.mark.deep
def test_a_model_learns_what_it_is_shown(tiny_model: Path) -> None:
    learner = learner_of(tiny_model, LearnerOptions())
    held_out = translated(100, seed=99)
    before = recall_of(learner, held_out)
    plan = {"global_batch_size": 32, "steps": 250}
    trainer(plan, learning_rate=1e-3, log_every=50, clip=None).fit(learner, LOSS, [translated(3000, seed=5)])
    assert before < 0.2
    assert recall_of(learner, held_out) > 0.9


def test_a_mix_of_losses_is_trained_on_as_well(make_learner: MakeLearner) -> None:
    loss = Weighted([(1, Distillation()), (0.5, Contrastive(own_negatives=False))])
    report: TrainingReport = trainer(teacher_margin=0.1).fit(make_learner(), loss, SOURCES)
    assert all(map(math.isfinite, report.losses))
