"""The codebook of an index: centroids in cells, and the quantiser of what they leave over.

Trained once on a sample, then only ever grown: a code keeps its meaning for as long as the codebook lives. Centroids
are found, and tokens assigned, in two levels: √K cells by their centre, then the centroids of the nearest cells.
Everything is drawn from a seed and summed in a fixed order.

Letters: T tokens, D dimensions, K centroids, G cells, b bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

import numpy as np
import torch
from attrs import Factory, evolve, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.adapters.index.arrays import Arrays
from lateinteraction.adapters.index.memory import give_back_freed
from lateinteraction.adapters.index.quantiser import quantiser
from lateinteraction.adapters.index.settings import MOST_CENTROIDS
from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.domain.errors import CorruptIndex, InvalidEmbeddings, InvalidOption
from lateinteraction.domain.ports import Progress
from lateinteraction.kernels.operands import Codec

BITS = (1, 2, 4)
"""Bits per dimension that the kernels read."""

TOKENS_PER_CENTROID = 100
"""A corpus of T tokens gets T / 100 centroids: the best 128 by centroids alone then hold .999 of the exact best ten of
Cranfield and all of those of 20,000 synthetic documents, and the table of 1.2 M tokens stays in the second-level cache
(12,000 × 32 bytes)."""
SAMPLED_PER_CENTROID = 32
"""Tokens of the sample per centroid. Mean norm of what 12,288 centroids leave of other tokens of 20,000 synthetic
documents, and relative time of training: 24 .481 0.7, 32 .479 1.0 (1.8 s), 64 .473 2.0."""
MOST_SAMPLED = 2**21
"""512 MiB of float16 at 128 dimensions: for 65,536 centroids and more, of 6.5 M tokens and more."""
MOST_DRAWN = MOST_SAMPLED // 2
"""Of the sample, by their need, for further centroids: 256 MiB."""
STRIP = 32
"""Dimensions that are moved at a time where a sample is shuffled in place: a line of the cache of float16."""
ROUNDS, REFINEMENTS = 4, 1
"""Steps of k-means for the centres and within each cell, then over all cells together. The same measure with 4,096
centroids: 4 and 0 .595, 4 and 1 .581 in 1.3 times the time, 6 and 2 .578 in 2.1 times."""
SAMPLED_PER_CELL = 256
"""Tokens of the sample per cell that fit its centre."""
FLAT = 256
"""Up to so many centroids there is one cell: all of them are looked at."""
NEAR = 4
"""Cells in which a token looks for its centroid. Share of tokens that find their nearest one, with 4,096 and 12,288
centroids: 1 .857 .938, 2 .932 .972, 4 .974 .989, 8 .993 .996; 1.7 and 2.5 µs a token with 4, where looking at all
takes 4.8 and 14."""
BLOCK = 32_768
"""Tokens that a thread assigns at a time: 16 MB of float32 at 128 dimensions."""
HELD_OUT, MOST_HELD_OUT = 0.05, 50_000
"""Share of the sample that fits the quantiser and no centroid, and the most of it (as ColBERTv2 does)."""
LEAST_FITTED = 256
"""Tokens that fit the quantiser at least, held out or not: a handful would leave out most of what is to come. What is
lost of 500 documents that came one by one to a forced tier: .093 with it, .108 without."""
FAR = 0.75
"""The quantile of residual norms, on tokens that fitted no centroid, beyond which a token counts as far."""
DRIFT, DRIFT_SAMPLE, DRIFTED_SAMPLE = 0.35, 2**15, 2**20
"""The share of tokens that may be far: a quarter is, of those like the ones of training. On how many that is looked at;
and by how many the codebook grows then, at most: 256 MB of float16 at 128 dimensions."""
FEW_TOKENS = 8
"""For each centroid, while an index has fewer tokens than two for each that is asked for: the quantiser, which stays,
would otherwise be fitted to tokens that are all but centroids themselves. Of the same documents, with 64 centroids,
.148 is lost with it, .178 with two tokens for each."""
ROOM = 1.4
"""A codebook grows where so many times its centroids are wanted, to so many times what is wanted: each time to twice
its size, and is never far from the right one."""
NEED = 4
"""Tokens that train further centroids are drawn by this power of their distance from those there are. Mean norm of what
12,000 centroids leave that began as 1,311 and were doubled: all alike .538 (as 6,000 trained at once), 2 .506, 4 .503
(as 9,300); 16,800 of them .471, where 12,000 trained at once leave .484. Without the step in which all tokens choose
between old and new .534."""

_CENTROIDS, _CELLS = "codebook.centroids", "codebook.cells"
_CUTOFFS, _WEIGHTS, _FAR = "codebook.cutoffs", "codebook.weights", "codebook.far"


class Around(NamedTuple):
    """The centroids near some tokens: values (S, D), members int64 (M,), rising, and their similarities (M, S)."""

    values: Tensor
    members: Tensor
    table: Tensor


@final
@frozen(eq=False)
class Codebook:
    """Centroids, their cells, and the quantiser.

    Args:
        centroids: float32 (K, D), unit vectors that float16 holds exactly.
        cells: int32 (K,), which cell each centroid lies in, 0 … G−1.
        cutoffs: float32 (2^b − 1,).
        weights: float32 (2^b,).
        far: a residual norm that a quarter of tokens like those of training exceed.
    """

    centroids: Tensor
    cells: Tensor
    cutoffs: Tensor
    weights: Tensor
    far: float
    _centres: Tensor = field(
        init=False, repr=False, default=Factory(lambda self: _centres_of(self.centroids, self.cells), True)
    )
    _members: Sequence[Tensor] = field(
        init=False, repr=False, default=Factory(lambda self: _members_of(self.cells), True)
    )

    def __len__(self) -> int:
        return self.centroids.shape[0]

    @property
    def bits(self) -> int:
        """b."""
        return self.codec.bits

    @property
    def dimension(self) -> int:
        """D."""
        return self.centroids.shape[1]

    @property
    def codec(self) -> Codec:
        """As kernels take it."""
        return Codec(self.centroids, self.cutoffs, self.weights)

    def assign(self, values: Tensor, near: int = NEAR) -> Tensor:
        """The centroid int32 (T,) of each token (T, D): the most similar one in the `near` nearest cells."""
        if len(self._members) <= near:
            return kernels.kmeans_assign(values, self.centroids)
        parts = list(values.split(BLOCK))
        if len(parts) <= 1:
            return self._assigned(values, near)
        with ThreadPoolExecutor(min(len(parts), torch.get_num_threads())) as pool:
            found = torch.cat(list(pool.map(lambda part: self._assigned_alone(part, near), parts)))
        give_back_freed()  # each thread's own, which no other thread is given
        return found

    def _assigned_alone(self, values: Tensor, near: int) -> Tensor:
        with kernels.at_most(1):
            return self._assigned(values, near)

    def _assigned(self, values: Tensor, near: int) -> Tensor:
        """One block, cell by cell, so that each cell's centroids are read once."""
        nearest = kernels.probe(kernels.centroid_scores(values, self._centres), near)
        order = torch.argsort(nearest.flatten(), stable=True)
        ends = torch.bincount(nearest.flatten(), minlength=len(self._members)).cumsum(0)
        similarities, codes = self.centroids.new_empty(len(order)), self.cells.new_empty(len(order))
        start = 0
        for members, end in zip(self._members, map(int, ends), strict=True):
            places, start = order[start:end], end
            rows = values.index_select(0, places // near).type(torch.float32)
            own = self.centroids.index_select(0, members)
            found = kernels.kmeans_assign(rows, own)
            similarities[places] = torch.linalg.vecdot(rows, own.index_select(0, found))
            codes[places] = members.index_select(0, found)
        best = similarities.view(-1, near).argmax(dim=1, keepdim=True)
        return codes.view(-1, near).gather(1, best)[:, 0]

    def around(self, values: Tensor, near: int) -> Around:
        """The centroids in all cells that are among so many nearest of one of these tokens (S, D)."""
        if near >= len(self._members):
            return Around(
                values, torch.arange(len(self), device="cpu"), kernels.centroid_scores(values, self.centroids)
            )
        inside = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        for cell in torch.unique(kernels.probe(kernels.centroid_scores(values, self._centres), near)):
            inside[self._members[int(cell)]] = True
        members = inside.nonzero()[:, 0]
        return Around(values, members, kernels.centroid_scores(values, self.centroids.index_select(0, members)))

    def nearest(self, around: Around, count: int, known: int | None = None) -> tuple[Tensor, Tensor]:
        """The most similar centroids int64 (S, ≤ count) of each token, best first, and their similarities.

        Args:
            around: where they are looked for; everywhere, where too few of them are there.
            count: how many for each.
            known: only the first so many centroids; None: all. What was encoded before the codebook grew names no later
                ones.
        """
        known = len(self) if known is None else min(known, len(self))
        inside = int(torch.searchsorted(around.members, known))
        members, table = around.members[:inside], around.table[:inside]
        if inside < min(count, known):
            members = torch.arange(known, device="cpu")
            table = kernels.centroid_scores(around.values, self.centroids[:known])
        found = kernels.probe(table, count)
        return members[found], table.mT.gather(1, found)

    def residual_norms(self, values: Tensor, codes: Tensor) -> Tensor:
        """How far unit vectors (T, D) are from the centroids of their codes, float32 (T,)."""
        return torch.linalg.vector_norm(values.type(torch.float32) - self.centroids.index_select(0, codes), dim=1)

    def drift(self, values: Tensor, codes: Tensor) -> float:
        """The share of unit vectors (T, D) that are far from their centroids; ¼ for those like the ones of training."""
        return float((self.residual_norms(values, codes) > self.far).double().mean()) if len(values) else 0.0

    def grown(self, values: Tensor, seed: int = 0, progress: Progress | None = None) -> Codebook:
        """With more centroids, behind the others, for those unit vectors (T, D) that are far; itself without any.

        Codes and everything that was encoded keep their meaning. `progress` is told as `train` does it.
        """
        far = values[self._distances(values) > self.far] if len(values) else values
        generator = torch.Generator().manual_seed(seed)
        wanted = min(MOST_CENTROIDS - len(self), centroid_count(len(far)) if len(far) else 0)
        if wanted < 1:
            return self
        more, _ = _trained(_shuffled(far, generator), wanted, generator, progress or _silent)
        cells = torch.cat([self.cells, kernels.kmeans_assign(more, self._centres)])
        return evolve(self, centroids=torch.cat([self.centroids, more]), cells=cells)

    def denser(
        self, values: Tensor, count: int, seed: int = 0, progress: Progress | None = None, *, in_place: bool = False
    ) -> Codebook:
        """With up to `count` centroids in all, the new ones behind the others, for an index that has become larger.

        Codes and everything that was encoded keep their meaning. Cells are made anew, and what is far is judged anew.

        Args:
            values: (T, D), unit vectors drawn from all tokens, in any order; float16 will do.
            count: fewer come of less than two tokens for each new one.
            seed: of everything that is drawn.
            progress: told of steps of k-means, done and in all.
            in_place: whether the values may be left in another order, which takes half the memory.
        """
        generator = torch.Generator().manual_seed(seed)
        held = min(MOST_HELD_OUT, math.ceil(HELD_OUT * len(values)))
        shuffled = _in_any_order(values, generator, in_place=in_place)
        judging, fitting = shuffled[:held], shuffled[held:]
        wanted = min(count, MOST_CENTROIDS) - len(self)
        need = self._distances(fitting).double() ** NEED if len(fitting) else torch.empty(0)
        wanted = min(wanted, int(need.count_nonzero()) // 2)
        if wanted < 1:
            return self
        drawn = min(len(fitting), SAMPLED_PER_CENTROID * wanted, MOST_DRAWN)
        chosen = fitting.index_select(0, torch.multinomial(need, drawn, replacement=True, generator=generator))
        more, _ = _trained(chosen, wanted, generator, progress or _silent)
        del chosen, need  # half as much as the sample
        draft = self._with(torch.cat([self.centroids, more]), generator)
        moved = kernels.kmeans_update(fitting, draft.assign(fitting), draft.centroids)
        moved[: len(self)], moved[len(self) :] = self.centroids, _as_halves(moved[len(self) :])
        del draft, more
        grown = self._with(moved, generator)
        return evolve(grown, far=float(np.quantile(to_host(grown._distances(judging)), FAR)))

    def _with(self, centroids: Tensor, generator: torch.Generator) -> Codebook:
        """These centroids, in √K cells of their own."""
        groups = 1 if len(centroids) <= FLAT else round(math.sqrt(len(centroids)))
        centres = _settled(centroids, _drawn(centroids, groups, generator))
        return evolve(self, centroids=centroids, cells=_occupied(kernels.kmeans_assign(centroids, centres)))

    def _distances(self, values: Tensor) -> Tensor:
        """How far each unit vector (T, D) is from its centroid; some are looked at at a time."""
        return torch.cat([self.residual_norms(block, self.assign(block)) for block in values.split(DRIFT_SAMPLE)])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored: 2 D + 4 bytes for each centroid."""
        return {
            _CENTROIDS: to_host(self.centroids).astype(np.float16),
            _CELLS: to_host(self.cells),
            _CUTOFFS: to_host(self.cutoffs),
            _WEIGHTS: to_host(self.weights),
            _FAR: np.array([self.far], np.float64),
        }

    @classmethod
    def read(cls, arrays: Arrays) -> Codebook:
        """A codebook that was stored, the same to the last bit.

        Raises:
            CorruptIndex: arrays that do not fit together.
        """
        names = (_CENTROIDS, _CELLS, _CUTOFFS, _WEIGHTS, _FAR)
        centroids, cells, cutoffs, weights, far = found = [arrays.whole(name) for name in names]
        dtypes = np.float16, np.int32, np.float32, np.float32, np.float64
        sound = all(array.dtype == dtype for array, dtype in zip(found, dtypes, strict=True)) and centroids.ndim == 2
        count = len(centroids)
        sound = sound and cells.shape == (count,) and len(weights) in (2, 4, 16) and len(cutoffs) == len(weights) - 1
        sound = sound and count > 0 and far.shape == (1,) and int(cells.min()) >= 0 and int(cells.max()) < count
        if not sound or int(np.bincount(cells).min()) == 0:
            raise CorruptIndex("a codebook whose arrays do not fit together", "those of one codebook", "Run `verify`.")
        tensors = (to_device(each.astype(np.float32), "cpu") for each in (centroids, cutoffs, weights))
        wide, cuts, values = tensors
        return cls(wide, to_device(cells.copy(), "cpu"), cuts, values, float(far[0]))


def centroid_count(tokens: int) -> int:
    """How many centroids a corpus of so many tokens gets."""
    return max(1, min(MOST_CENTROIDS, round(tokens / TOKENS_PER_CENTROID)))


def sample_size(centroids: int) -> int:
    """How many tokens train so many centroids and the quantiser; all there are, where there are fewer."""
    return min(MOST_SAMPLED, math.ceil(SAMPLED_PER_CENTROID * centroids / (1 - HELD_OUT)))


Sample = Callable[[int], Tensor]
"""About so many unit vectors (T, D), drawn from some documents; float16 will do. Who asks may change what it gets."""


def codebook_for(
    tokens: int,
    bits: int,
    before: Codebook | None,
    everything: Sample,
    new: Sample | None,
    centroids: int | None = None,
    progress: Progress | None = None,
) -> Codebook:
    """What an index should be encoded with: the codebook it has, one that has grown out of it, or its first.

    Where too many of the new tokens are far from every centroid, they get some of their own. Where the index has
    become too large for its codebook, centroids are added for all that it holds. Codes keep their meaning.

    Args:
        tokens: of all documents, with the new ones.
        bits: per dimension, of a first codebook.
        before: the one it has.
        everything: draws from all documents, with the new ones; as they are stored is good enough.
        new: draws from those that are about to be encoded; None where nothing is.
        centroids: how many, whatever the number of tokens, as soon as there are two for each; never more.
        progress: told as `train` does it, and before that of nothing done of nobody knows how much.

    Raises:
        InvalidEmbeddings: a first codebook is to be made without a token.
    """
    told = progress or _silent
    wanted = _wanted(tokens, centroids)
    if before is None:
        told(0, None)
        return train(everything(sample_size(wanted)), wanted, bits, progress=told, in_place=True)
    if new is None:
        return before
    found = before
    if centroids is None and _drifted(before, new):
        told(0, None)
        found = before.grown(new(DRIFTED_SAMPLE), progress=told)
    if wanted > (1.0 if wanted == centroids else ROOM) * len(found):
        told(0, None)
        count = _wanted(round(ROOM * tokens), centroids)
        found = found.denser(everything(sample_size(count)), count, progress=told, in_place=True)
    return found


def _wanted(tokens: int, forced: int | None) -> int:
    if forced is None:
        return centroid_count(tokens)
    return forced if tokens >= 2 * forced else max(1, tokens // FEW_TOKENS)


def _drifted(before: Codebook, new: Sample) -> bool:
    looked_at = new(DRIFT_SAMPLE)
    return before.drift(looked_at, before.assign(looked_at)) > DRIFT


def train(
    sample: Tensor,
    centroids: int,
    bits: int,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    in_place: bool = False,
) -> Codebook:
    """A codebook for tokens like these.

    Args:
        sample: (T, D), unit vectors drawn from all tokens, in any order; float16 will do.
        centroids: how many are wanted; fewer come of a sample that has fewer tokens than twice as many.
        bits: per dimension.
        seed: of everything that is drawn.
        progress: told of steps of k-means, done and in all.
        in_place: whether the sample may be left in another order, which takes half the memory.

    Raises:
        InvalidOption: bits other than 1, 2 or 4; no centroids.
        InvalidEmbeddings: no tokens.
    """
    if bits not in BITS:
        raise InvalidOption(f"bits = {bits!r}", "1, 2 or 4", "4 is the most exact, 1 the smallest.")
    if centroids < 1:
        raise InvalidOption(f"centroids = {centroids!r}", "at least 1", "Leave the number to the index.")
    if not len(sample):
        raise InvalidEmbeddings("no tokens to train a codebook on", "some", "Add documents first.")
    generator = torch.Generator().manual_seed(seed)
    shuffled = _in_any_order(sample, generator, in_place=in_place)
    held = min(MOST_HELD_OUT, math.ceil(HELD_OUT * len(sample)))
    fitting = shuffled[held:] if len(sample) > held else shuffled
    found, cells = _trained(fitting, min(centroids, max(1, len(fitting) // 2)), generator, progress or _silent)
    draft = Codebook(found, cells, torch.zeros(2**bits - 1), torch.zeros(2**bits), 0.0)
    judging = shuffled[: max(held, LEAST_FITTED)]
    residuals = judging.type(torch.float32) - found.index_select(0, draft.assign(judging))
    cutoffs, weights = quantiser(residuals, bits)
    far = float(np.quantile(to_host(residuals[:held].norm(dim=1)), FAR))
    return evolve(draft, cutoffs=cutoffs, weights=weights, far=far)


def _trained(values: Tensor, count: int, generator: torch.Generator, progress: Progress) -> tuple[Tensor, Tensor]:
    """Centroids (≤ count, D) and their cells, of tokens in random order."""
    groups = 1 if count <= FLAT else round(math.sqrt(count))
    refinements = REFINEMENTS if groups > 1 else 0
    steps = groups + refinements
    centres = _settled(values[: groups * SAMPLED_PER_CELL], _drawn(values, groups, generator))
    owners = kernels.kmeans_assign(values, centres)
    sizes = torch.bincount(owners, minlength=groups)
    order = torch.argsort(owners, stable=True).split([int(size) for size in sizes])
    parts: list[Tensor] = []
    for cell, (rows, wanted) in enumerate(zip(order, _shared_out(count, to_host(sizes)), strict=True)):
        own = values.index_select(0, rows)
        parts.append(_settled(own, _drawn(own, wanted, generator)))
        progress(cell + 1, steps)
    cells = to_device(np.repeat(np.arange(groups), [len(part) for part in parts]), "cpu")
    found = Codebook(torch.cat(parts), _occupied(cells), torch.zeros(1), torch.zeros(2), 0.0)
    for step in range(refinements):
        moved = kernels.kmeans_update(values, found.assign(values), found.centroids)
        found = evolve(found, centroids=moved, cells=_occupied(kernels.kmeans_assign(moved, centres)))
        progress(groups + step + 1, steps)
    return _as_halves(found.centroids), found.cells


def _settled(values: Tensor, centroids: Tensor) -> Tensor:
    """Centroids after some steps of k-means on these tokens."""
    for _ in range(ROUNDS if len(centroids) else 0):
        centroids = kernels.kmeans_update(values, kernels.kmeans_assign(values, centroids), centroids)
    return centroids


def _shuffled(values: Tensor, generator: torch.Generator, count: int | None = None) -> Tensor:
    """So many of the tokens, or all, in random order. (Rows gather far faster by `index_select` than by brackets.)"""
    return values.index_select(0, torch.randperm(len(values), generator=generator, device="cpu")[:count])


def _in_any_order(values: Tensor, generator: torch.Generator, *, in_place: bool) -> Tensor:
    """The tokens in random order, which is the same in place: then some dimensions of all are moved at a time."""
    if not in_place:
        return _shuffled(values, generator)
    order = torch.randperm(len(values), generator=generator, device="cpu")
    for strip in values.split(STRIP, dim=1):
        strip.copy_(strip.index_select(0, order))
    return values


def _drawn(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Tokens to begin with."""
    chosen = _shuffled(values, generator, count)
    return torch.nn.functional.normalize(chosen.type(torch.float32), dim=1)


def _shared_out(count: int, sizes: NDArray[np.int64]) -> list[int]:
    """So many centroids among cells in proportion to their tokens; a token or more for each centroid."""
    exact = count * sizes / sizes.sum()
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(-(exact - shares), kind="stable")[: count - int(shares.sum())]] += 1
    return [int(share) for share in np.minimum(shares, sizes)]


def _occupied(cells: Tensor) -> Tensor:
    """The same cells, numbered without those that hold nothing."""
    return torch.unique(cells, return_inverse=True)[1].type(torch.int32)


def _as_halves(values: Tensor) -> Tensor:
    """Rounded to what float16 holds, so that what is stored is what tokens were measured against."""
    return values.type(torch.float16).type(torch.float32)


def _centres_of(centroids: Tensor, cells: Tensor) -> Tensor:
    """The centres (G, D) of cells: where k-means puts them."""
    nothing = centroids.new_zeros((int(cells.max()) + 1, centroids.shape[1]))
    return kernels.kmeans_update(centroids, cells, nothing)


def _members_of(cells: Tensor) -> Sequence[Tensor]:
    """The centroids of each cell, int32."""
    return torch.argsort(cells, stable=True).type(torch.int32).split([int(size) for size in torch.bincount(cells)])


def _silent(done: int, total: int | None) -> None:
    """Progress that nobody watches."""
