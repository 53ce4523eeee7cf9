"""BatchPlan: which rows are together at which step. A pure function of numbers, so that to resume is to index.

A batch is of one source and holds no positive twice. A source is dealt out into as many batches as that allows; batches
of like length are made within windows of it, and sources take turns as `Mixing` says. Nothing depends on how many
processes there are: each takes its share of the one global batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeVar, final

import numpy as np
from attrs import field, frozen
from attrs.validators import optional
from numpy.typing import NDArray

from lateinteraction.adapters.training.limits import by_name, number, one_of, whole
from lateinteraction.domain.errors import InvalidExample, InvalidOption, shown
from lateinteraction.domain.ports import ExampleSource

Rows = NDArray[np.int64]
Kept = TypeVar("Kept")
Mixing = Literal["proportional", "temperature", "round_robin", "weighted"]

WINDOW = 64
"""Batches among which rows are sorted by length. Enough for lengths to be alike, few enough for batches to be mixed."""
_DEALING, _MIXING, _DRAWING = 0, 1, 2
_EPOCHS_KEPT = 2
"""Of each source: the one in use, and the next, which readers ahead are at."""


def _weights(given: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if given is None else MappingProxyType(dict(given))


@frozen(kw_only=True)
class PlanOptions:
    """What is batched how.

    Args:
        global_batch_size: queries of a step, on all processes together.
        epochs: times that the data is seen; parts of one are allowed.
        steps: how many steps, in place of epochs.
        mixing: how often sources come: `proportional` to their batches, by that to the power of `alpha`
            (`temperature`), in turn (`round_robin`; an epoch is when the longest was seen), or by `weights`
            (`weighted`). Sources that come more often than they have batches begin again, dealt anew.
        alpha: between 0, all alike, and 1, proportional.
        weights: by source, at least 0, not all 0.
        window: batches among which rows of like length are put together; 1 does not.
        seed: of everything that is drawn.

    Raises:
        InvalidOption: one of these out of range.
    """

    global_batch_size: int = field(validator=whole(1))
    epochs: float | None = field(default=None, validator=optional(number(0, above=True)))
    steps: int | None = field(default=None, validator=optional(whole(1)))
    mixing: Mixing = field(
        default="proportional", validator=one_of("proportional", "temperature", "round_robin", "weighted")
    )
    alpha: float = field(default=0.5, validator=number(0, most=1))
    weights: Mapping[str, float] | None = field(default=None, converter=_weights, validator=optional(by_name))
    window: int = field(default=WINDOW, validator=whole(1))
    seed: int = field(default=0, validator=whole(0))

    def __attrs_post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise InvalidOption("epochs and steps", "one of the two", "Leave one out.")
        if (self.mixing == "weighted") != (self.weights is not None):
            raise InvalidOption(
                f"mixing = {self.mixing!r} and weights = {shown(self.weights)}",
                "weights with 'weighted' alone",
                "Give both.",
            )


@frozen(eq=False)
class PlannedBatch:
    """The examples of a step.

    Args:
        step: from 0.
        epoch: of the source, from 0: how often it was seen before.
        source: its number.
        rows: int64 (B,) of the source.
    """

    step: int
    epoch: int
    source: int
    rows: Rows

    def of_rank(self, rank: int, world: int) -> PlannedBatch:
        """The share of one process of `world`: as many rows as any other's.

        Raises:
            InvalidOption: a batch that cannot be shared out.
        """
        if len(self.rows) % world:
            raise InvalidOption(
                f"a global batch of {len(self.rows)} on {world} processes",
                f"a multiple of {world}",
                "Change global_batch_size, or start another number of processes.",
            )
        share = len(self.rows) // world
        return PlannedBatch(self.step, self.epoch, self.source, self.rows[rank * share : (rank + 1) * share])


@final
class BatchPlan:
    """`plan[step]` for each step of a run. Several threads may ask.

    What takes time is done for each source and epoch when first asked for: a million rows take 0.4 s, or 1.0 s where
    they have 300,000 positives; after that, a lookup takes 1.3 µs.

    Args:
        sources: with distinct names.
        options: how they are batched.

    Raises:
        InvalidOption: names twice, weights of unknown sources, or no weight above 0.
        InvalidExample: a source that cannot fill one batch.
    """

    def __init__(self, sources: Sequence[ExampleSource], options: PlanOptions) -> None:
        self.options = options
        self.names = tuple(source.name for source in sources)
        _check_names(self.names, options)
        self._dealers = [_Dealer(number, source, options) for number, source in enumerate(sources)]
        self._quotas = _quotas(np.array([each.batches for each in self._dealers]), self.names, options)
        self._cycle = int(self._quotas.sum())
        self._turns: OrderedDict[int, tuple[Rows, Rows]] = OrderedDict()
        epochs = 1.0 if options.epochs is None else options.epochs
        self._steps = max(1, round(epochs * self._cycle)) if options.steps is None else options.steps

    def __len__(self) -> int:
        """Steps of the run."""
        return self._steps

    @property
    def steps_per_epoch(self) -> int:
        """After so many steps every source has come as often as it does."""
        return self._cycle

    def __getitem__(self, step: int) -> PlannedBatch:
        """The batch of a step, from 0.

        Raises:
            IndexError: a step that the run does not have.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        cycle, place = divmod(step, self._cycle)
        turns, counts = self._turns_of(cycle)
        source = int(turns[place])
        dealer = self._dealers[source]
        epoch, batch = divmod(cycle * int(self._quotas[source]) + int(counts[place]), dealer.batches)
        return PlannedBatch(step, epoch, source, dealer.dealt(epoch)[batch])

    def __iter__(self) -> Iterator[PlannedBatch]:
        return (self[step] for step in range(len(self)))

    def _turns_of(self, cycle: int) -> tuple[Rows, Rows]:
        """Which source comes at each place of a cycle, and how often it has come in it before."""
        if (known := self._turns.get(cycle)) is None:
            turns = _turns(self._quotas, self.options, cycle)
            counts = np.empty(len(turns), np.int64)
            for source in range(len(self._quotas)):
                own = np.flatnonzero(turns == source)
                counts[own] = np.arange(len(own))
            known = turns, counts
            _keep(self._turns, cycle, known)
        return known


@final
class _Dealer:
    """Deals a source out into batches, anew for each epoch."""

    def __init__(self, number: int, source: ExampleSource, options: PlanOptions) -> None:
        self._number, self._options = number, options
        self._keys = np.unique(source.positives(), return_inverse=True)[1].astype(np.int64).ravel()
        self._lengths = source.lengths()
        if not len(source) == len(self._keys) == len(self._lengths):
            raise InvalidExample(
                f"source {source.name!r} with {len(source)} rows, {len(self._keys)} positives and {len(self._lengths)} "
                "lengths",
                "as many of each",
                "Mend the source.",
            )
        size = options.global_batch_size
        counts = np.bincount(self._keys)
        self.batches = _most_batches(counts, size)
        if not self.batches:
            raise InvalidExample(
                f"source {source.name!r} with {len(source)} rows and {len(counts)} distinct positives",
                f"at least {size} distinct positives, the global batch",
                "Give it more rows, leave it out, or make batches smaller.",
            )
        self._dealt: OrderedDict[int, Rows] = OrderedDict()

    def dealt(self, epoch: int) -> Rows:
        """Rows (batches, B) of an epoch."""
        if (known := self._dealt.get(epoch)) is None:
            known = self._deal(_generator(self._options.seed, _DEALING, self._number, epoch))
            known.setflags(write=False)
            _keep(self._dealt, epoch, known)
        return known

    def _deal(self, generator: np.random.Generator) -> Rows:
        rows = self._in_hand(generator)
        count, size = self.batches, self._options.global_batch_size
        # Position p goes to batch p mod count: rows of one positive, which follow each other and are at most `count`,
        # never meet.
        batches = rows[: count * size].reshape(size, count).T
        if self._options.window > 1:
            for first in range(0, count, self._options.window):
                window = slice(first, first + self._options.window)
                batches[window] = self._by_length(batches[window])
        return np.ascontiguousarray(batches[generator.permutation(count)])

    def _in_hand(self, generator: np.random.Generator) -> Rows:
        """Rows as they are dealt: positives in random order, and at most as many of one as there are batches."""
        shuffled = generator.permutation(len(self._keys))
        rank = generator.permutation(int(self._keys.max()) + 1)
        order = shuffled[np.argsort(rank[self._keys[shuffled]], kind="stable")]
        keys = self._keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        place = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
        return order[place < self.batches]

    def _by_length(self, batches: Rows) -> Rows:
        """The same rows in batches of like length, no positive twice in one."""
        rows = batches.ravel()[np.argsort(self._lengths[batches.ravel()], kind="stable")]
        sorted_batches = rows.reshape(batches.shape)
        keys = np.sort(self._keys[sorted_batches], axis=1)
        if not np.any(keys[:, 1:] == keys[:, :-1]):
            return sorted_batches
        return _apart(rows, self._keys, batches.shape)


def _apart(rows: Rows, keys: Rows, shape: tuple[int, ...]) -> Rows:
    """Rows in batches, filled in their order, with no key twice in one.

    Each row goes into the first batch that has room and not its key. Where there is none, a batch b with room has the
    key; some full batch c has not, since a key comes at most once for each batch, and c has a row whose key b lacks,
    since b has fewer: they change places.
    """
    count, size = shape
    batches: list[list[int]] = [[] for _ in range(count)]
    held: list[set[int]] = [set() for _ in range(count)]
    first = 0
    for row in rows:
        key = int(keys[row])
        while len(batches[first]) == size:
            first += 1
        place = next(
            (each for each in range(first, count) if len(batches[each]) < size and key not in held[each]), None
        )
        if place is None:
            room = next(each for each in range(first, count) if len(batches[each]) < size)
            place = max(each for each in range(count) if key not in held[each])
            given = next(each for each in batches[place] if int(keys[each]) not in held[room])
            batches[place].remove(given)
            held[place].remove(int(keys[given]))
            batches[room].append(given)
            held[room].add(int(keys[given]))
        batches[place].append(int(row))
        held[place].add(key)
    return np.array(batches, np.int64)


def drawn_negatives(seed: int, epoch: int, source: int, row: int, *, available: int, wanted: int) -> Rows:
    """Which of a row's negatives are used when it is seen: `wanted` of `available`, or all, in rising order.

    A function of these numbers alone: not of the batch, the process, or how many read ahead.
    """
    if wanted >= available:
        return np.arange(available)
    generator = _generator(seed, _DRAWING, source, epoch, row)
    return np.sort(generator.choice(available, size=wanted, replace=False)).astype(np.int64)


def _most_batches(counts: Rows, size: int) -> int:
    """The largest m with Σ_k min(count_k, m) ≥ m · size: m batches that no key is twice in."""
    low, high = 0, int(counts.sum()) // size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() >= middle * size else (low, middle - 1)
    return low


def _quotas(batches: Rows, names: Sequence[str], options: PlanOptions) -> Rows:
    """How many batches of each source a cycle has."""
    if options.mixing == "proportional":
        return batches
    if options.mixing == "round_robin":
        return np.full(len(batches), batches.max())
    if options.weights is not None:
        weights = np.array([float(options.weights.get(name, 0)) for name in names])
    else:
        weights = batches.astype(np.float64) ** options.alpha
    exact = weights / weights.sum() * batches.sum()
    quotas = np.floor(exact).astype(np.int64)
    rest = int(batches.sum() - quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:rest]] += 1
    return quotas


def _turns(quotas: Rows, options: PlanOptions, cycle: int) -> Rows:
    """The source of each place of a cycle."""
    if options.mixing == "round_robin":
        return np.tile(np.arange(len(quotas)), int(quotas[0]))
    turns = np.repeat(np.arange(len(quotas)), quotas)
    return turns[_generator(options.seed, _MIXING, 0, cycle).permutation(len(turns))]


def _generator(seed: int, purpose: int, source: int, epoch: int, row: int = 0) -> np.random.Generator:
    """Random numbers of their own for each of these, the same on every machine (Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, row, epoch, 4 * source + purpose]))


def _keep(known: OrderedDict[int, Kept], key: int, value: Kept) -> None:
    known[key] = value
    while len(known) > _EPOCHS_KEPT:
        known.popitem(last=False)


def _check_names(names: Sequence[str], options: PlanOptions) -> None:
    if not names:
        raise InvalidOption("no sources", "at least one", "Give the data to train on.")
    if len(set(names)) < len(names):
        raise InvalidOption(f"sources named {', '.join(map(repr, names))}", "distinct names", "Rename one.")
    unknown = set(options.weights or ()) - set(names)
    if unknown:
        raise InvalidOption(
            f"weights of {', '.join(sorted(map(repr, unknown)))}",
            f"of {', '.join(map(repr, names))}",
            "Correct the names.",
        )
    if options.weights is not None and not any(options.weights.get(name, 0) > 0 for name in names):
        raise InvalidOption("weights that are all 0", "one above 0", "Give one.")
