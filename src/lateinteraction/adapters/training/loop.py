"""AccelerateTrainer: the loop. Plan, micro-batches, gradients, steps; watching, checkpoints, and going on from one.

What a run computes follows from its sources, plan, options, loss and model alone, so that a run that was stopped and
one that was not end in the same bits. Messages, progress and what is kept on disk have no part in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from attrs import asdict, define, field, frozen
from torch import Tensor

from lateinteraction.adapters.encoding.learning import Learner
from lateinteraction.adapters.neural.losses import Objective, learned_of
from lateinteraction.adapters.neural.losses.interactions import MAXSIM
from lateinteraction.adapters.neural.transfer import queued_to_device, to_host
from lateinteraction.adapters.training.averaging import WeightAverage
from lateinteraction.adapters.training.batches import MicroBatch
from lateinteraction.adapters.training.checkpoints import (
    CheckpointFolder,
    RunState,
    load_moments,
    load_weights,
    moments_of,
    weights_of,
)
from lateinteraction.adapters.training.feed import Feed, compared_with, tokens_per_rectangle
from lateinteraction.adapters.training.fingerprint import fingerprint_of
from lateinteraction.adapters.training.module import TrainedModule
from lateinteraction.adapters.training.optimising import clipped_norm, optimiser_of
from lateinteraction.adapters.training.options import TrainingOptions
from lateinteraction.adapters.training.plan import BatchPlan, PlanOptions
from lateinteraction.adapters.training.processes import Processes, Tracker
from lateinteraction.adapters.training.randomness import random_state, seeded_state, set_random_state
from lateinteraction.adapters.training.reading import ahead_of
from lateinteraction.adapters.training.reports import Reporter, StepReport, Watchman
from lateinteraction.adapters.training.schedule import rate_at
from lateinteraction.adapters.training.strategies import Embeddings, Outcome, Setting, cached, direct
from lateinteraction.domain.errors import InvalidOption, TrainingFailed
from lateinteraction.domain.evaluation import Report
from lateinteraction.domain.ports import Encoder, ExampleSource
from lateinteraction.domain.training import TrainingReport

if TYPE_CHECKING:
    from lateinteraction.domain.ports import Trainer

Watch = Callable[[Encoder[Tensor]], Report]


@frozen(kw_only=True)
class RunFolder:
    """Where a run keeps itself.

    Args:
        path: of the checkpoints; None keeps none.
        resume: go on from the newest checkpoint there, where there is one; otherwise a folder with some is refused.
    """

    path: Path | None = None
    resume: bool = True


@define
class _Progress:
    """What is counted over a run and kept with it."""

    step: int = 0
    examples: int = 0
    losses: list[float] = field(factory=list)
    best: float | None = None
    best_step: int | None = None
    stale: int = 0


@final
class AccelerateTrainer:
    """A `Trainer` of `Learner`s, for one process or as many as `accelerate launch` starts.

    Args:
        plan: which examples are together.
        options: how the model is fitted.
        folder: where checkpoints go.
        report: told now and then how the run stands, in the first process.
        stop: asked after each step whether to end early; a checkpoint is written before.
        trackers: told of reports; by the names that Accelerate knows, or your own.
    """

    def __init__(
        self,
        plan: PlanOptions,
        options: TrainingOptions | None = None,
        *,
        folder: RunFolder | None = None,
        report: Reporter | None = None,
        stop: Callable[[], bool] = lambda: False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.plan, self.options, self.folder = plan, options or TrainingOptions(), folder or RunFolder()
        self.report, self.stop, self.trackers = report, stop, tuple(trackers)

    def fit(
        self,
        model: Learner,
        loss: Objective,
        sources: Sequence[ExampleSource],
        watch: Watch | None = None,
    ) -> TrainingReport:
        """Fit the network of a learner, in place.

        Afterwards it has the weights of the best `watch` where there is one, otherwise the averaged ones where they are
        averaged, otherwise the last.

        Args:
            model: a learner.
            loss: what to lower.
            sources: of examples, with distinct names.
            watch: measures the encoder as it is; its first measure decides what is best.

        Raises:
            InvalidOption: options that do not fit each other, the data, or a checkpoint that is there.
            InvalidExample: a source that fills no batch, or a row that gives no example.
            TrainingFailed: a loss or gradient that is not finite; names rank and rows. The last checkpoint is good.
        """
        return _Run(self, model, loss, sources, watch).go()


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        trainer: AccelerateTrainer,
        learner: Learner,
        loss: Objective,
        sources: Sequence[ExampleSource],
        watch: Watch | None,
    ) -> None:
        self.trainer, self.learner, self.loss = trainer, learner, loss
        self.sources, self.watch, self.options = list(sources), watch, trainer.options
        self.processes = Processes(next(learner.network.parameters()).device, trainer.trackers)
        self.plan = BatchPlan(self.sources, trainer.plan)
        self._check()
        self.feed = Feed(
            plan=self.plan,
            sources=self.sources,
            tokeniser=learner.tokeniser,
            options=self.options,
            rank=self.processes.rank,
            world=self.processes.world,
            tokens_per_rectangle=self.options.tokens_per_rectangle or tokens_per_rectangle(self.processes.device),
        )
        self.fingerprint = fingerprint_of(trainer.plan, self.options, loss, learner, self.sources)
        self.module = TrainedModule(learner.network, learned_of(loss))
        self.wrapped = self.processes.wrapped(self.module, learner.layers, self.options.sharding)
        self.optimiser, self.rates = optimiser_of(learner, self.module, self.options)
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.options.precision == "float16")
        self.average = None if self.options.averaging is None else WeightAverage(self.module, self.options.averaging)
        self.progress, self.watchman = _Progress(), Watchman()
        self.best: Mapping[str, Tensor] | None = None
        path = trainer.folder.path
        self.folder = None if path is None else CheckpointFolder(path, self.options.keep)

    def go(self) -> TrainingReport:
        device = self.processes.device
        # Dropout draws from torch's own generators, which are put back as they were found; and what precision losses
        # are computed in is not for whoever happens to call under autocast.
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            return self._run()

    def _run(self) -> TrainingReport:
        seed = self.options.seed * self.processes.world + self.processes.rank
        set_random_state(seeded_state(seed, self.processes.device), self.processes.device)
        self._resume()
        self.processes.start_trackers("lateinteraction", {"fingerprint": self.fingerprint})
        steps = range(self.progress.step, self.progress.step if self._is_hopeless() else len(self.plan))
        batches = closing(ahead_of(self.feed, steps, self.options.workers))
        try:
            with batches as read:
                stopped = self._train(zip(steps, read, strict=True))
        finally:
            self.processes.end_trackers()
        if not stopped:
            self._finish()
        return TrainingReport(
            steps=self.progress.step,
            examples=self.progress.examples,
            losses=self.progress.losses,
            best=self.progress.best,
            best_step=self.progress.best_step,
            stopped=stopped,
        )

    def _train(self, batches: Iterable[tuple[int, list[MicroBatch]]]) -> bool:
        """Take steps until there are none left or no more are wanted; whether it was asked to stop."""
        clock, tokens, computed = time.perf_counter(), 0, 0
        for step, batch in batches:
            outcomes, norm = self._step(step, batch)
            tokens += sum(each.tokens for each in batch)
            computed += sum(each.computed for each in batch)
            final = step + 1 == len(self.plan)
            if final or self._is_due(self.options.log_every):
                self._log(outcomes, batch, norm, (tokens, computed, time.perf_counter() - clock))
                clock, tokens, computed = time.perf_counter(), 0, 0
            better = False
            if self.watch is not None and (final or self._is_due(self.options.watch_every)):
                better = self._is_better(self._measured(self.watch))
            ended, stopped = final or self._is_hopeless(), self._asked_to_stop()
            if better or ended or stopped or self._is_due(self.options.checkpoint_every):
                self._keep()
            if ended or stopped:
                return stopped and not final
        return False

    # Steps

    def _step(self, step: int, batches: list[MicroBatch]) -> tuple[list[Outcome], float]:
        """Take a step; what came of its micro-batches, and the norm of the gradient before it was clipped."""
        self.module.train()
        setting = Setting(
            module=self.wrapped,
            device=self.processes.device,
            autocast=partial(self.processes.autocast, self.options.precision),
            unsynchronised=partial(self.processes.unsynchronised, self.wrapped),
            backward=lambda value: self.scaler.scale(value).backward(),
            passes=partial(self.processes.passes, self.wrapped),
        )
        strategy = cached if self.options.strategy == "cached" else direct
        outcomes = [
            strategy(setting, batch, partial(self._loss, batch), weight=1 / len(batches), last=number == len(batches))
            for number, batch in enumerate(batches, start=1)
        ]
        rate = rate_at(step, len(self.plan), warmup=self.options.warmup, schedule=self.options.schedule)
        for group, own in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = own * rate
        self.processes.complete_gradients(self.wrapped, self.module)
        self.scaler.unscale_(self.optimiser)
        norm = clipped_norm(self.module, self.options.clip)
        self._check_finite(step, batches, outcomes, norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)
        self.progress.step = step + 1
        self.progress.examples += self.trainer.plan.global_batch_size
        self.watchman.saw_step(clipped=self.options.clip is not None and norm > self.options.clip)
        return outcomes, norm

    def _loss(self, batch: MicroBatch, queries: Embeddings, documents: Embeddings) -> Tensor:
        compared, targets = compared_with(batch, documents, self.options)
        return self.loss(queries, compared, targets)

    def _check_finite(self, step: int, batches: list[MicroBatch], outcomes: list[Outcome], norm: float) -> None:
        """Raise on all processes where one has what is not finite. With float16, gradients may be for a while."""
        mine = [
            f"rank {self.processes.rank}: loss {float(outcome.loss)} of rows {_listed(batch)} of {batch.source!r}"
            for batch, outcome in zip(batches, outcomes, strict=True)
            if not math.isfinite(float(outcome.loss))
        ]
        if not mine and not math.isfinite(norm) and not self.scaler.is_enabled():
            rows = ", ".join(map(_listed, batches))
            mine = [f"rank {self.processes.rank}: a gradient of norm {norm} after rows {rows} of {batches[0].source!r}"]
        counts = self.processes.sum(torch.tensor([float(len(mine))], device=self.processes.device))
        if float(counts) > 0:
            raise TrainingFailed(
                f"step {step}: {'; '.join(self.processes.told(mine))}",
                "finite losses and gradients",
                "Look at these rows; lower learning_rate, or take precision='bfloat16' for 'float16'.",
            )

    # What is told

    def _log(
        self, outcomes: list[Outcome], batches: list[MicroBatch], norm: float, since: tuple[int, int, float]
    ) -> None:
        tokens, computed, seconds = since
        parts = [_told_apart(outcome, batch) for outcome, batch in zip(outcomes, batches, strict=True)]
        mean = np.mean([[float(each.loss) for each in outcomes], *np.transpose(parts)], axis=1)
        local = torch.tensor([*mean, tokens, computed], dtype=torch.float64, device=self.processes.device)
        loss, accuracy, gap, tokens_of_all, computed_of_all = to_host(self.processes.sum(local))
        world = self.processes.world
        self.progress.losses.append(float(loss / world))
        self.watchman.saw_accuracy(float(accuracy / world))
        report = StepReport(
            step=self.progress.step,
            steps=len(self.plan),
            loss=float(loss / world),
            rate=float(self.optimiser.param_groups[0]["lr"]),
            gradient_norm=norm,
            clipped=self.options.clip is not None and norm > self.options.clip,
            tokens=int(tokens_of_all),
            padding=float(1 - tokens_of_all / max(1, computed_of_all)),
            seconds=seconds,
            accuracy=float(accuracy / world),
            gap=float(gap / world),
        )
        numbers = {name: float(value) for name, value in asdict(report).items() if name not in ("step", "steps")}
        self.processes.track(numbers, report.step)
        if self.trainer.report is not None and self.processes.rank == 0:
            self.trainer.report(report)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.progress.step % every == 0

    def _asked_to_stop(self) -> bool:
        """Whether any process was; all of them end at the same step."""
        asked = torch.tensor([float(self.trainer.stop())], device=self.processes.device)
        return float(self.processes.sum(asked)) > 0

    # What is kept

    def _is_better(self, value: float) -> bool:
        """Whether this is the best measure so far, whose weights are then kept."""
        progress = self.progress
        if progress.best is not None and value <= progress.best:
            progress.stale += 1
            return False
        progress.best, progress.best_step, progress.stale = value, progress.step, 0
        self.best = self._weights_to_keep()
        return True

    def _is_hopeless(self) -> bool:
        """Whether nothing got better for as long as anybody wants to wait."""
        return self.options.patience is not None and self.progress.stale >= self.options.patience

    def _measured(self, watch: Watch) -> float:
        """The first measure. Sharded models need all processes for it; of whole ones, the first has it measured."""
        everyone = self.options.sharding == "sharded"
        value, random = 0.0, random_state(self.processes.device)
        with self._averaged():
            if everyone or self.processes.rank == 0:
                report = watch(self.learner.encoder)
                value = report[report.measures[0]]
        set_random_state(random, self.processes.device)
        return float(self.processes.of_first(value))

    def _averaged(self) -> AbstractContextManager[None]:
        """A block in which the module has the averaged weights, where there are some."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _weights_to_keep(self) -> Mapping[str, Tensor]:
        with self._averaged():
            return weights_of(self.module)

    def _keep(self) -> None:
        """Write a checkpoint, where there is a folder for them."""
        if self.folder is None:
            return
        averages: Mapping[str, Tensor] = {} if self.average is None else self._weights_to_keep()
        state = RunState(
            step=self.progress.step,
            fingerprint=self.fingerprint,
            progress={"counts": asdict(self.progress), "scaler": self.scaler.state_dict()},
            weights=weights_of(self.module),
            optimiser=moments_of(self.module, self.optimiser),
            averages=averages,
            random=random_state(self.processes.device),
        )
        best = [] if self.progress.best_step is None else [self.progress.best_step]
        self.folder.write(state, self.processes.ranks, protected=best)

    def _resume(self) -> None:
        """Go on from the newest checkpoint."""
        steps = [] if self.folder is None else self.folder.steps()
        if self.folder is None or not steps:
            return
        if not self.trainer.folder.resume:
            raise InvalidOption(
                f"{self.folder.path}, which holds a run of {steps[-1]} steps",
                "a folder without one",
                "Pass resume=True.",
            )
        state = self.folder.read(steps[-1], self.fingerprint, self.processes.ranks)
        self.progress = _Progress(**state.progress["counts"])
        self.scaler.load_state_dict(state.progress["scaler"])
        if self.options.averaging is not None:
            load_weights(self.module, state.averages)
            self.average = WeightAverage(self.module, self.options.averaging)
        load_weights(self.module, state.weights)
        load_moments(self.module, self.optimiser, state.optimiser)
        if self.progress.best_step is not None:
            best = self.folder.read(self.progress.best_step, self.fingerprint, self.processes.ranks)
            self.best = best.averages or best.weights
        set_random_state(state.random, self.processes.device)

    def _finish(self) -> None:
        """Leave the model as it shall be."""
        load_weights(self.module, self.best if self.best is not None else self._weights_to_keep())
        self.module.eval()

    def _check(self) -> None:
        """What would fail at some step, before the first."""
        size, parts = self.trainer.plan.global_batch_size, self.processes.world * self.options.accumulation
        if size % parts:
            raise InvalidOption(
                f"a global batch of {size} on {self.processes.world} processes in {self.options.accumulation} parts",
                f"a multiple of {parts}",
                "Change global_batch_size or accumulation, or start another number of processes.",
            )
        if self.watch is None and (self.options.watch_every is not None or self.options.patience is not None):
            raise InvalidOption("watch_every or patience, and nothing to watch", "a watch", "Pass one to fit.")


def _told_apart(outcome: Outcome, batch: MicroBatch) -> tuple[float, float]:
    """How many positives of a micro-batch score highest, and by how much, on this process."""
    scores = MAXSIM.matrix(outcome.queries, outcome.documents)
    positives = queued_to_device(np.ascontiguousarray(batch.groups[:-1]), scores.device)[:, None]
    own = scores.gather(1, positives)[:, 0]
    rest = scores.scatter(1, positives, -math.inf)
    if rest.shape[1] == 1:
        return 1.0, 0.0
    best = rest.amax(dim=1)
    return float((own > best).double().mean()), float((own - best).double().mean())


def _listed(batch: MicroBatch) -> str:
    """Its rows, for messages."""
    return str([int(row) for row in batch.rows])


if TYPE_CHECKING:
    _: type[Trainer[Learner, Objective, Tensor]] = AccelerateTrainer
