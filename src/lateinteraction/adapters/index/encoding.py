"""Encoding: the tokens of many parts written into the files of one segment, some at a time.

What is stored in the wanted way is copied; everything else is encoded from what is most exactly known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.adapters.index import ids, postings, texts, updates
from lateinteraction.adapters.index.columns import Column, blocks_of
from lateinteraction.adapters.index.files import FileWriter, Rows
from lateinteraction.adapters.index.memory import give_back_freed
from lateinteraction.adapters.index.parts import Part
from lateinteraction.adapters.index.segments import PAYLOADS, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.index.codebook import Codebook

TOKENS_AT_A_TIME = 2**17
"""Tokens that are decoded, encoded or copied at a time: 64 MB of float32 at 128 dimensions."""

FEW_DOCUMENTS = 256
"""Where fewer documents than these would make a sample, it is drawn from the tokens of all."""

_WIDEST: Mapping[Kind, str] = {"vectors": "vectors.values", "int8": "int8.values", "residual": "residual.buckets"}
"""Of each kind the array that is written as it comes; the others, of 6 bytes a token at most, wait for its end."""

Arrays = dict[str, NDArray[Any]]
Step = Callable[[int], None]
"""Told, now and then, how many documents were written since."""


@final
@frozen(eq=False)
class Form:
    """How a file holds tokens.

    Attributes:
        kind: of its payload.
        codebook: of residuals.
        kept: whether it is the file of vectors that are kept beside residuals.
        anew: whether everything is encoded, also what is stored in this way.
    """

    kind: Kind
    codebook: Codebook | None = None
    kept: bool = False
    anew: bool = False

    def copied(self, part: Part, block: slice) -> Arrays | None:
        """Some documents of a part as they are stored; None where they are stored otherwise."""
        if self.anew:
            return None
        names = PAYLOADS[self.kind]
        return part.kept(names, block) if self.kept else part.stored(names, block)

    def encoded(self, tokens: Tensor) -> Arrays:
        """Tokens (T, D) in this form."""
        from lateinteraction.adapters.index.payloads import encode_int8, encode_residual, encode_vectors

        if self.kind == "residual":
            assert self.codebook is not None, "residuals need a codebook"
            return encode_residual(tokens, self.codebook)
        return (encode_int8 if self.kind == "int8" else encode_vectors)(tokens)


def merged(parts: Sequence[Part]) -> Iterator[Column]:
    """What the file of a segment holds besides tokens: part after part.

    Args:
        parts: at least one.
    """
    yield from ids.merged([(part.segment.ids, part.rows) for part in parts])
    yield from texts.merged([(part.segment.texts, part.rows) for part in parts])
    yield from updates.merged([(part.metadata, part.rows) for part in parts])
    yield from postings.merged([(part.segment.postings, part.rows) for part in parts])


def store_tokens(files: Sequence[tuple[FileWriter, Form]], parts: Sequence[Part], step: Step) -> list[Arrays]:
    """Write the tokens of parts, one after another, into files of different forms.

    Args:
        files: what to fill.
        parts: at least one.
        step: called before each block, and after it with its documents; what it raises ends the writing.

    Returns:
        For each file, its arrays besides the widest.
    """
    with ExitStack() as stack:
        sinks = [stack.enter_context(_Sink(*each)) for each in files]
        for part in parts:
            for block in blocks_of(part.lengths, TOKENS_AT_A_TIME):
                step(0)
                own: Tensor | None = None
                for sink in sinks:
                    arrays = sink.form.copied(part, block)
                    if arrays is None:
                        own = part.originals(block) if own is None else own
                        arrays = sink.form.encoded(own)
                    sink.take(arrays)
                _let_go(part)
                step(block.stop - block.start)
        return [sink.end() for sink in sinks]


def sampled(parts: Sequence[Part], tokens: int, step: Step) -> Tensor:
    """About so many unit vectors, float16, drawn from a seed.

    They are all tokens of some documents, or some tokens of all where these are few and long.

    Args:
        parts: of whose tokens.
        tokens: how many.
        step: as `store_tokens` has it.
    """
    if sum(part.tokens for part in parts) > TOKENS_AT_A_TIME:
        give_back_freed()
    share = min(1.0, tokens / max(1, sum(part.tokens for part in parts)))
    if share * sum(np.count_nonzero(part.lengths) for part in parts) >= FEW_DOCUMENTS:
        found = _drawn(parts, _Lot(documents=share), step)
        if len(found):
            return found
    return _drawn(parts, _Lot(tokens=share), step)


@final
@frozen
class _Lot:
    """What is drawn: this share of the documents, and of their tokens this share. The same each time it is drawn."""

    documents: float = 1.0
    tokens: float = 1.0

    def draw(self, parts: Sequence[Part]) -> Iterator[tuple[Part, NDArray[np.int64], NDArray[np.bool_] | None]]:
        """Block by block: a part, documents of it, and which of their tokens; None: all."""
        generator = np.random.default_rng(0)
        for part in parts:
            lengths = part.lengths
            for block in blocks_of(lengths, TOKENS_AT_A_TIME):
                which = block.start + np.flatnonzero(generator.random(block.stop - block.start) < self.documents)
                count = int(lengths[which].sum())
                yield part, which, None if self.tokens >= 1 else generator.random(count) < self.tokens

    def size(self, parts: Sequence[Part]) -> int:
        """How many tokens that is."""
        return sum(
            int(part.lengths[which].sum()) if chosen is None else int(np.count_nonzero(chosen))
            for part, which, chosen in self.draw(parts)
        )


def _drawn(parts: Sequence[Part], lot: _Lot, step: Step) -> Tensor:
    """The tokens of a lot, as `sampled` has them, each written where it stays: twice as many would not fit."""
    import torch

    from lateinteraction.adapters.neural.transfer import to_device

    found: Tensor | None = None
    filled = 0
    for part, which, chosen in lot.draw(parts):
        step(0)
        own = part.originals(which).detach()
        if chosen is not None:
            own = own[to_device(chosen, own.device)]
        if found is None:
            found = torch.empty((lot.size(parts), own.shape[1]), dtype=torch.float16, device=own.device)
        found[filled : filled + len(own)] = torch.nn.functional.normalize(own.type(torch.float32), dim=1)
        filled += len(own)
        _let_go(part)
    assert found is not None, "parts have documents"
    return found


def _let_go(part: Part) -> None:
    """Keep nothing of a large part in memory that lies in its files."""
    if part.tokens > TOKENS_AT_A_TIME:
        for arrays in (part.segment.arrays, part.segment.kept_arrays):
            if arrays is not None:
                arrays.let_go()


@final
class _Sink:
    """The tokens of one file on their way. A `with` block, which ends its widest array."""

    def __init__(self, file: FileWriter, form: Form) -> None:
        self.form = form
        self._file = file
        self._stack = ExitStack()
        self._rows: Rows | None = None
        self._narrow: dict[str, list[NDArray[Any]]] = {}

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def take(self, arrays: Arrays) -> None:
        """The next rows of every array."""
        widest = _WIDEST[self.form.kind]
        values = arrays[widest]
        if self._rows is None:
            self._rows = self._stack.enter_context(self._file.rows(widest, values.dtype, values.shape[1:]))
        self._rows.append(values)
        for name, each in arrays.items():
            if name != widest:
                self._narrow.setdefault(name, []).append(each)

    def end(self) -> Arrays:
        """Write what waited; these arrays."""
        self._stack.close()
        whole = {name: np.concatenate(blocks) for name, blocks in self._narrow.items()}
        for name, array in whole.items():
            self._file.add(name, array)
        return whole
