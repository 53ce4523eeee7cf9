"""Payloads: what a segment keeps of its documents' tokens, three ways, each written as arrays and read from arrays.

- `vectors`: float16, 2 D bytes a token.
- `int8`: a byte for each dimension and a scale for each token, D + 4 bytes.
- `residual`: the centroid of a token and 1, 2 or 4 bits for each dimension of what is left, D b / 8 + 6 bytes.

Encoding takes tokens (T, D) and gives arrays with a row for each token, so that a stream is encoded block by block.
Reading verifies the rows that are used and copies nothing: tensors lie on the mapped file.

Letters: S query tokens, N documents, n of them, T tokens, D dimensions, K centroids, b bits per dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.adapters.index.arrays import Arrays, InMemory
from lateinteraction.adapters.index.codebook import Codebook
from lateinteraction.adapters.index.columns import ranges
from lateinteraction.adapters.index.halves import as_halves
from lateinteraction.adapters.index.hits import Rows as Rows
from lateinteraction.adapters.index.hits import Scores as Scores
from lateinteraction.adapters.index.lent import lent
from lateinteraction.adapters.index.once import once
from lateinteraction.adapters.index.queries import PreparedQuery as PreparedQuery
from lateinteraction.adapters.index.queries import check_finite
from lateinteraction.adapters.neural.transfer import to_device, to_host
from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, offsets_of
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch, InvalidEmbeddings
from lateinteraction.domain.quantisation import quantise_to_int8
from lateinteraction.kernels.operands import CentroidTable, Compressed, Tokens

OFFSETS = "tokens.offsets"
VECTORS = "vectors.values"
INT8, INT8_SCALES = "int8.values", "int8.scales"
CODES, RESIDUALS, SCALES = "residual.codes", "residual.buckets", "residual.scales"

DECODED_AT_ONCE = 256
"""Documents of `int8` whose bytes are widened at a time, to be scored by a query that is not rounded."""

WIDENED_AT_ONCE = 2**14
"""Tokens of `residual` that are decoded at a time, in four times the memory of what comes of it."""

SPARSE = 16
"""Centroids for each token, from which it is quicker to sort the few codes than to mark them among all centroids."""

SAMPLED = 2**14
"""Tokens that stand for all of a segment where the least of many similarities is estimated: 8 MB at 128 dimensions."""

FEW = 1.3
"""Tokens for each centroid, below which a query is compared with the centroids of these tokens alone. With 46,000
centroids, a search with so many tokens on its shortlist, by all centroids and by theirs: 0.7 6.2 and 5.0 ms, 0.8 7.2
and 6.6, 1.2 10.0 and 8.1, 1.7 10.9 and 11.5."""

IN_BYTES = 16
"""Tokens for each centroid from which it pays to put a table into bytes: 25 ns a centroid, and looking up a code takes
0.5 ns for 1.9."""

_VERIFY = "Run `verify`: a file of the index is damaged, or is not the one that its manifest means."


class Payload(Protocol):
    """The tokens of a segment's documents. Threads may call at once."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def lengths(self) -> Offsets:
        """Tokens of each document, int64 (N,)."""
        ...

    @property
    def approximates(self) -> bool:
        """Whether `approximate` is something else than `score`, and quicker."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def approximate(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """Scores (n,) that are good enough to make a shortlist of these documents."""
        ...

    def score(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """MaxSim (n,) of the query with these documents as they are stored, in this order; without rows, with all."""
        ...

    def maxima(self, query: PreparedQuery, rows: Rows) -> Scores:
        """The addends (S, n) of these scores: how similar the most similar token of each document is."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is stored, verified; what it was read from."""
        ...

    def decode(self, rows: Rows | None = None) -> TokenEmbeddings[Tensor]:
        """The tokens of these documents as they are stored, float32, in this order; without rows, of all."""
        ...


def offsets_array(lengths: Offsets) -> dict[str, NDArray[Any]]:
    """What a segment keeps beside any payload: where the tokens of each document begin."""
    return {OFFSETS: offsets_of(lengths)}


def encode_vectors(tokens: Tensor) -> dict[str, NDArray[Any]]:
    """Tokens (T, D) as float16.

    Raises:
        InvalidEmbeddings: what float16 cannot hold, as `as_halves` says.
    """
    return {VECTORS: to_host(as_halves(tokens))}


def encode_int8(tokens: Tensor) -> dict[str, NDArray[Any]]:
    """Tokens (T, D) in eight bits, as `domain.quantisation` rounds them.

    Raises:
        InvalidEmbeddings: NaN or infinity.
    """
    wide = to_host(tokens.detach().type(torch.float32))
    made = quantise_to_int8(TokenEmbeddings(wide, offsets_of([len(wide)])))
    return {INT8: made.codes.tokens, INT8_SCALES: made.scales}


def encode_residual(tokens: Tensor, codebook: Codebook) -> dict[str, NDArray[Any]]:
    """Tokens (T, D) as codes, buckets, and scales that give each decoded token the length of the original.

    Raises:
        InvalidEmbeddings: NaN, infinity, or a length beyond float16; another width than the codebook's.
    """
    if tokens.shape[1] != codebook.dimension:
        raise InvalidEmbeddings(
            f"tokens of {tokens.shape[1]} dimensions", f"{codebook.dimension}, as the codebook", "Use one encoder."
        )
    wide = tokens.detach().type(torch.float32)
    check_finite(wide)
    lengths = torch.linalg.vector_norm(wide, dim=1)
    units = wide / torch.where(lengths > 0, lengths, 1)[:, None]
    codes = codebook.assign(units)
    buckets, inverse_norms = kernels.residual_encode(units, codes, codebook.codec)
    scales = (lengths * inverse_norms).type(torch.float16)
    check_finite(scales)
    return {CODES: to_host(codes), RESIDUALS: to_host(buckets), SCALES: to_host(scales)}


def read_payload(arrays: Arrays, codebook: Codebook | None = None) -> Payload:
    """The payload that these arrays hold; of several, the smallest (vectors that are kept beside it: `Vectors`).

    Raises:
        CorruptIndex: none, or one whose arrays do not fit together.
        IndexMismatch: residuals without a codebook, or with one that did not encode them.
    """
    if CODES not in arrays:
        return Int8(arrays) if INT8 in arrays else Vectors(arrays)
    if codebook is None:
        raise IndexMismatch("residuals without a codebook", "the codebook that encoded them", _VERIFY)
    return Residuals(arrays, codebook)


class _Stored:
    """What all payloads have: the spans of documents, and arrays with a row for each token."""

    def __init__(self, arrays: Arrays, dtypes: Mapping[str, type[np.generic]]) -> None:
        self._arrays = arrays
        self._rows = {name: _opened(arrays, name, dtype) for name, dtype in dtypes.items()}
        offsets = arrays.whole(OFFSETS)
        self.lengths: Offsets = _lengths_of(offsets, {len(rows) for rows in self._rows.values()})
        self._spans = kernels.spans_of(tensor_of(offsets)).contiguous()
        self._longest = int(self.lengths.max(initial=0))
        self._verified: set[str] = set()

    def __len__(self) -> int:
        return len(self.lengths)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is stored, verified."""
        self._used(None, *self._rows)
        return {**offsets_array(self.lengths), **{name: to_host(rows) for name, rows in self._rows.items()}}

    def taken(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """A copy of what is stored of these documents, verified."""
        places, offsets = self._places(rows, *self._rows)
        return {OFFSETS: offsets, **{name: to_host(each.index_select(0, places)) for name, each in self._rows.items()}}

    def _used(self, rows: Rows | None, *names: str) -> Tensor:
        """The spans int64 (n, 2) of these documents, whose tokens are verified in these arrays."""
        spans = self._spans if rows is None else self._spans.index_select(0, to_device(rows, "cpu"))
        for name in names:
            if name in self._verified:
                continue
            if rows is None:
                self._arrays.check_all(name)
                self._verified.add(name)
            else:
                self._arrays.check(name, *to_host(spans).T)
        return spans

    def _places(self, rows: Rows | None, *names: str) -> tuple[Tensor, Offsets]:
        """The tokens of these documents, int64, verified in these arrays, and their offsets."""
        firsts = to_host(self._used(rows, *names))[:, 0]
        offsets = offsets_of(self.lengths if rows is None else self.lengths[rows])
        places = np.repeat(firsts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
        return to_device(places, "cpu"), offsets


@final
class Vectors(_Stored):
    """`vectors`: a `Payload`."""

    approximates = False

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays, {VECTORS: np.float16})

    @property
    def dimension(self) -> int:
        return self._rows[VECTORS].shape[1]

    def approximate(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """See `Payload.approximate`: the scores themselves."""
        return self.score(query, rows)

    def score(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """See `Payload.score`."""
        return self._scores(query.tokens, rows)[0]

    def maxima(self, query: PreparedQuery, rows: Rows) -> Scores:
        """See `Payload.maxima`."""
        return self._scores(query.apart, rows)

    def _scores(self, queries: Tokens, rows: Rows | None) -> Scores:
        documents = Tokens(self._rows[VECTORS], self._used(rows, VECTORS), self._longest)
        return to_host(kernels.maxsim_all_pairs(queries, documents))

    def decode(self, rows: Rows | None = None) -> TokenEmbeddings[Tensor]:
        """See `Payload.decode`."""
        places, offsets = self._places(rows, VECTORS)
        return TokenEmbeddings(self._rows[VECTORS].index_select(0, places).type(torch.float32), offsets)


@final
class Int8(_Stored):
    """`int8`: a `Payload`. Bytes are multiplied about four times as fast as float32, hence the shortlist."""

    approximates = True

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays, {INT8: np.int8, INT8_SCALES: np.float32})

    @property
    def dimension(self) -> int:
        return self._rows[INT8].shape[1]

    def approximate(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """Scores of a query that is rounded as the documents are."""
        spans = self._used(rows, INT8, INT8_SCALES)
        documents = Tokens(self._rows[INT8], spans, self._longest, self._rows[INT8_SCALES])
        return to_host(kernels.maxsim_all_pairs(query.in_eight_bits, documents)[0])

    def score(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """See `Payload.score`."""
        return self._scores(query.tokens, np.arange(len(self)) if rows is None else rows)[0]

    def maxima(self, query: PreparedQuery, rows: Rows) -> Scores:
        """See `Payload.maxima`."""
        return self._scores(query.apart, rows)

    def _scores(self, queries: Tokens, rows: Rows) -> Scores:
        parts = [np.empty((len(queries.spans), 0), np.float32)]
        for part in np.split(rows, np.arange(DECODED_AT_ONCE, len(rows), DECODED_AT_ONCE)):
            decoded = self.decode(part)
            offsets = to_device(decoded.offsets, "cpu")
            documents = kernels.packed(decoded.tokens, offsets, self._longest)
            parts.append(to_host(kernels.maxsim_all_pairs(queries, documents)))
        return np.concatenate(parts, axis=1)

    def decode(self, rows: Rows | None = None) -> TokenEmbeddings[Tensor]:
        """See `Payload.decode`."""
        places, offsets = self._places(rows, INT8, INT8_SCALES)
        values = self._rows[INT8].index_select(0, places).type(torch.float32)
        return TokenEmbeddings(values * self._rows[INT8_SCALES].index_select(0, places)[:, None], offsets)


def joined(payloads: Sequence[Payload]) -> Payload:
    """One payload of the documents of many of one kind, one behind the other, in memory of its own."""
    parts = [payload.arrays() for payload in payloads]
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return read_payload(InMemory(together | offsets_array(np.concatenate([each.lengths for each in payloads]))))


class _Excerpt(NamedTuple):
    """Some documents by themselves: their tokens, where these lie, and the centroids that they name."""

    places: Tensor
    codes: Tensor
    spans: Tensor
    centroids: Tensor


@final
class Residuals(_Stored):
    """`residual`: a `Payload`."""

    approximates = True

    def __init__(self, arrays: Arrays, codebook: Codebook) -> None:
        super().__init__(arrays, {CODES: np.int32, RESIDUALS: np.uint8, SCALES: np.float16})
        self.codebook = codebook
        width, wanted = self._rows[RESIDUALS].shape[1], -(-codebook.dimension * codebook.bits // 8)
        if width != wanted:
            raise IndexMismatch(f"residuals of {width} bytes", f"{wanted}, as the codebook writes", _VERIFY)

    @property
    def dimension(self) -> int:
        return self.codebook.dimension

    def approximate(self, query: PreparedQuery, rows: Rows | None = None, least: Scores | None = None) -> Scores:
        """Scores of unit vectors that lie where the centroids are.

        Args:
            query: S tokens.
            rows: of which documents; None: of all.
            least: (S,), what no query token's similarity falls below, where there is such a bound.
        """
        with _codes_of(self.codebook):
            if self._few(query, rows):
                own = self._excerpt(rows, CODES)
                table = CentroidTable(_lifted(kernels.centroid_scores(query.tokens.values, own.centroids), least))
                found = kernels.centroid_interaction(table, query.tokens.spans, own.codes, own.spans)
            else:
                spans = self._used(rows, CODES)
                if len(self._rows[CODES]) < IN_BYTES * len(self.codebook):
                    table = CentroidTable(query.table(self.codebook, least))
                else:
                    table = query.table_of_bytes(self.codebook, least)
                found = kernels.centroid_interaction(table, query.tokens.spans, self._rows[CODES], spans)
            return to_host(found[0])

    def score(self, query: PreparedQuery, rows: Rows | None = None) -> Scores:
        """See `Payload.score`."""
        return self._scores(query, query.tokens, rows)[0]

    def maxima(self, query: PreparedQuery, rows: Rows) -> Scores:
        """See `Payload.maxima`."""
        return self._scores(query, query.apart, rows)

    def _scores(self, query: PreparedQuery, queries: Tokens, rows: Rows | None) -> Scores:
        codec = self.codebook.codec
        with _codes_of(self.codebook):
            if self._few(query, rows):
                own = self._excerpt(rows, CODES, RESIDUALS, SCALES)
                table = kernels.centroid_scores(query.tokens.values, own.centroids)
                buckets, scales = (self._rows[name].index_select(0, own.places) for name in (RESIDUALS, SCALES))
                codec, documents = (
                    codec._replace(centroids=own.centroids),
                    Compressed(own.codes, buckets, scales, own.spans),
                )
            else:
                spans, table = self._used(rows, CODES, RESIDUALS, SCALES), query.table(self.codebook)
                documents = Compressed(self._rows[CODES], self._rows[RESIDUALS], self._rows[SCALES], spans)
            return to_host(kernels.residual_maxsim(queries, table, codec, documents))

    def _few(self, query: PreparedQuery, rows: Rows | None) -> bool:
        """Whether it is quicker to compare the query with the centroids of these documents alone."""
        if query.has_table(self.codebook):
            return False
        tokens = len(self._rows[CODES]) if rows is None else int(self.lengths[rows].sum())
        return tokens < FEW * len(self.codebook)

    def _excerpt(self, rows: Rows | None, *names: str) -> _Excerpt:
        """These documents by themselves, verified in these arrays."""
        places, offsets = self._places(rows, *names)
        codes = self._rows[CODES].index_select(0, places)
        if len(codes) * SPARSE < len(self.codebook):
            named, inverse = torch.unique(codes, return_inverse=True)
            renumbered = inverse.type(torch.int32)
        else:
            used = torch.zeros(len(self.codebook), dtype=torch.int32, device="cpu")
            used.index_fill_(0, codes.type(torch.int64), 1)
            named = used.nonzero()[:, 0]
            renumbered = (used.cumsum(0, dtype=torch.int32) - 1).index_select(0, codes)
        centroids = self.codebook.centroids.index_select(0, named)
        return _Excerpt(places, renumbered, kernels.spans_of(to_device(offsets, "cpu")), centroids)

    @once
    def sample(self) -> Tensor:
        """Some tokens (≤ SAMPLED, D) as they are stored, drawn from a seed; all, where there are few."""
        return self.sample_of(None)

    def sample_of(self, rows: Rows | None) -> Tensor:
        """The same of these documents."""
        if rows is None:
            places = np.arange(int(self.lengths.sum()))
        else:
            places = ranges(to_host(self._spans)[rows, 0], self.lengths[rows])
        chosen = np.sort(np.random.default_rng(0).choice(places, min(SAMPLED, len(places)), replace=False))
        for name in (CODES, RESIDUALS, SCALES):
            self._arrays.check(name, chosen, chosen + 1)
        return self._decoded(to_device(chosen, "cpu"))

    def sizes(self, rows: Rows | None = None) -> NDArray[np.int64]:
        """Tokens of these documents at each centroid, (K,)."""
        if rows is None:
            return self._sizes
        codes = to_host(self._rows[CODES].index_select(0, self._places(rows, CODES)[0]))
        return self._counted(codes)

    @once
    def _sizes(self) -> NDArray[np.int64]:
        return self._counted(self.codes())

    def _counted(self, codes: NDArray[np.int32]) -> NDArray[np.int64]:
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codebook):
            raise CorruptIndex(f"a code beyond {len(self.codebook)} centroids", "codes of this codebook", _VERIFY)
        return np.bincount(codes, minlength=len(self.codebook))

    def codes(self) -> NDArray[np.int32]:
        """The centroid (T,) of every token."""
        self._used(None, CODES)
        return to_host(self._rows[CODES])

    def decode(self, rows: Rows | None = None) -> TokenEmbeddings[Tensor]:
        """See `Payload.decode`."""
        places, offsets = self._places(rows, CODES, RESIDUALS, SCALES)
        return TokenEmbeddings(self._decoded(places), offsets)

    def _decoded(self, places: Tensor) -> Tensor:
        """These tokens, which are verified."""
        if len(places) > WIDENED_AT_ONCE:
            return torch.cat([self._decoded(some) for some in places.split(WIDENED_AT_ONCE)])
        codec, codes = self.codebook.codec, self._rows[CODES].index_select(0, places)
        shifts = torch.arange(0, 8, codec.bits, device="cpu")
        buckets = torch.arange(256, device="cpu")[:, None] >> shifts & (2**codec.bits - 1)
        residuals = codec.weights[buckets][self._rows[RESIDUALS].index_select(0, places).type(torch.int64)].flatten(1)
        with _codes_of(self.codebook):
            tokens = codec.centroids.index_select(0, codes) + residuals[:, : self.dimension]
        return tokens * self._rows[SCALES].index_select(0, places)[:, None].type(torch.float32)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A tensor on the array's own memory, be it a read-only file: to be read, never written."""
    return torch.from_numpy(lent(array))


def gathered(parts: Sequence[tuple[Residuals, Rows]]) -> Residuals:
    """One payload, in memory of its own, of some documents of many that have one codebook."""
    taken = [payload.taken(rows) for payload, rows in parts]
    together = {name: np.concatenate([each[name] for each in taken]) for name in (CODES, RESIDUALS, SCALES)}
    lengths = np.concatenate([payload.lengths[rows] for payload, rows in parts])
    return Residuals(InMemory(together | offsets_array(lengths)), parts[0][0].codebook)


def _lifted(scores: Tensor, least: Scores | None) -> Tensor:
    """A table (K, S), none of it below a bound for each query token."""
    return scores if least is None else scores.maximum(to_device(least, "cpu"))


@contextmanager
def _codes_of(codebook: Codebook) -> Iterator[None]:
    """Kernels look at codes before they follow them: one that is no centroid's is damage."""
    try:
        yield
    except IndexError as error:
        raise CorruptIndex(f"a code beyond {len(codebook)} centroids", "codes of this codebook", _VERIFY) from error


def _opened(arrays: Arrays, name: str, dtype: type[np.generic]) -> Tensor:
    array = arrays.lazily(name)
    if array.dtype != dtype:
        raise CorruptIndex(f"{name} of {array.dtype}", np.dtype(dtype).name, _VERIFY)
    return tensor_of(array)


def _lengths_of(offsets: NDArray[Any], rows: set[int]) -> Offsets:
    """Lengths (N,), where the offsets are sound and all arrays have as many rows."""
    sound = offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets) > 0 and int(offsets[0]) == 0
    lengths = np.diff(offsets) if sound else np.full(1, -1)
    if int(lengths.min(initial=0)) < 0 or rows != {int(offsets[-1])}:
        raise CorruptIndex(f"{OFFSETS} that do not fit {sorted(rows)} tokens", "where each document ends", _VERIFY)
    return lengths


if TYPE_CHECKING:
    _payloads: list[type[Payload]] = [Vectors, Int8, Residuals]
