"""TrainingOptions: everything that decides a run but its data, its loss and its model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from attrs import field, frozen
from attrs.validators import optional

from lateinteraction.adapters.training.limits import by_name, number, one_of, whole

Precision = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["linear", "cosine", "constant"]
Scope = Literal["own", "batch", "gathered"]
StrategyName = Literal["direct", "cached"]
Sharding = Literal["replicated", "sharded"]


def _rates(given: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType(dict(given))


@frozen(kw_only=True)
class TrainingOptions:
    """How a model is fitted.

    What a run computes is decided by all of these but the last group, of which only messages, speed and what is kept
    depend.

    Args:
        learning_rate: of the transformer, at its highest.
        rates: multiples of it by group of parameters: `{"projection": 10}`, `{"loss": 10}`.
        weight_decay: of AdamW; biases and norms have none.
        warmup: share of the steps over which the rate rises from 0.
        schedule: how it falls afterwards: to 0 in a line, along a cosine, or not.
        clip: largest norm of the gradient of a step; None leaves it.
        precision: that products are made in; weights stay as they are. float16 scales losses.
        strategy: `direct` keeps what the model computed of a whole micro-batch; `cached` computes it twice and keeps
            one rectangle's (GradCache, arXiv 2101.06983): the same gradient in less memory.
        scope: what queries are compared with: their own documents, those of the micro-batch, or those of all
            processes. Without effect on losses that compare own documents only.
        accumulation: micro-batches of a step. Losses over the batch see one micro-batch at a time, so that fewer
            documents are compared; to save memory, prefer `cached`.
        tokens_per_rectangle: most tokens that the model sees at once, padding included.
        averaging: decay of an exponential moving average of the weights, which is then what is watched and saved;
            None keeps the last weights.
        teacher_margin: a query's own negative whose teacher score is higher than the positive's less this is no
            negative; None trusts the data.
        negatives: how many negatives of a row are drawn each time it is seen; None takes all.
        sharding: whether every process holds the whole model (DDP) or a part (FSDP2).
        seed: of dropout; the plan has its own.

        log_every: steps between reports.
        watch_every: steps between calls of `watch`, which is called at the end in any case.
        patience: calls of `watch` without a better result after which training ends; None never ends it.
        checkpoint_every: steps between checkpoints; those of the best, of a stop and of the end are written anyway.
        keep: how many checkpoints are kept beside the best.
        workers: threads that read and tokenise ahead; 0 does it in that of the run.

    Raises:
        InvalidOption: one of these out of range.
    """

    learning_rate: float = field(default=3e-5, validator=number(0, above=True))
    rates: Mapping[str, float] = field(factory=dict, converter=_rates, validator=by_name)
    weight_decay: float = field(default=0.01, validator=number(0))
    warmup: float = field(default=0.1, validator=number(0, most=1))
    schedule: Schedule = field(default="linear", validator=one_of("linear", "cosine", "constant"))
    clip: float | None = field(default=1.0, validator=optional(number(0, above=True)))
    precision: Precision = field(default="float32", validator=one_of("float32", "bfloat16", "float16"))
    strategy: StrategyName = field(default="direct", validator=one_of("direct", "cached"))
    scope: Scope = field(default="batch", validator=one_of("own", "batch", "gathered"))
    accumulation: int = field(default=1, validator=whole(1))
    tokens_per_rectangle: int | None = field(default=None, validator=optional(whole(1)))
    averaging: float | None = field(default=None, validator=optional(number(0, above=True, most=1)))
    teacher_margin: float | None = field(default=None, validator=optional(number(0)))
    negatives: int | None = field(default=None, validator=optional(whole(0)))
    sharding: Sharding = field(default="replicated", validator=one_of("replicated", "sharded"))
    seed: int = field(default=0, validator=whole(0))

    log_every: int = field(default=10, validator=whole(1))
    watch_every: int | None = field(default=None, validator=optional(whole(1)))
    patience: int | None = field(default=None, validator=optional(whole(1)))
    checkpoint_every: int | None = field(default=None, validator=optional(whole(1)))
    keep: int = field(default=2, validator=whole(1))
    workers: int = field(default=0, validator=whole(0))
