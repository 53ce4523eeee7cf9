"""Scoring what a codec stores, K = 16,384 centroids, 32 query tokens, 128 dimensions.

Centroid interaction: 10,000 documents of 20 to 300 tokens on the table of 512 KB in eight bits, with codes that are
uniform, and with codes of Zipf's distribution (the r-th most frequent centroid ∝ 1 / r).

Residual MaxSim: 500 documents whose lengths are lognormal, 110 on average, 300 at most. Ours gets the table of
centroid scores, which the earlier stages of a search have made; with the table made inside the time it is reported.
The baseline is the decoding of ColBERT in straightforward torch, over all candidates at once: a table with the values
of every byte, centroids gathered and added, normalised, multiplied, and the maxima of each document by
`scatter_reduce` into one row per document, which is quicker here than padding.

Besides: k-means assignment, probing, encoding, decoding, and the table itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cases.kernels.floors import Machine, Work
from benchmarks.cases.kernels.inputs import (
    DIMENSION,
    LONGEST,
    QUERY_LENGTH,
    SHORTEST,
    Sizes,
    check_close,
    exact_scores,
    packed,
    queries_of,
    unit_rows,
)
from benchmarks.harness import Bench, Figure, Timing, clocked
from lateinteraction import kernels
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Tokens

CENTROIDS = 16_384
NPROBE = 8
BITS = (2, 4)
TARGETS = {2: 12.0, 4: 10.0}
DISTRIBUTIONS = ("uniform", "Zipf")
ASSIGN, PROBE, TABLE, QUANTISE = "k-means assignment", "probing 8 of each", "centroid scores", "quantising the table"
ENCODE, DECODE = "encoding, 2 bits", "decoding, 2 bits"

FIGURES = (
    *(Figure(f"centroid interaction, {codes} codes: per token", "ns", "<=", 2.0) for codes in DISTRIBUTIONS),
    Figure("centroid interaction, float32 table: per token", "ns"),
    *(Figure(f"residual MaxSim, {bits} bits: against torch", "×", ">=", TARGETS[bits]) for bits in BITS),
    *(Figure(f"residual MaxSim, {bits} bits, table included: against torch", "×") for bits in BITS),
    *(Figure(f"residual MaxSim, {bits} bits: per token", "ns") for bits in BITS),
    Figure("fp32 MaxSim of the decoded tokens: per token", "ns"),
    *(Figure(f"{name}: per token", "ns") for name in (ASSIGN, ENCODE, DECODE)),
    *(Figure(name, "ms") for name in (TABLE, QUANTISE, PROBE)),
    *(Figure(f"% of floor: centroid interaction, {codes} codes", "%") for codes in DISTRIBUTIONS),
    *(Figure(f"% of floor: residual MaxSim, {bits} bits", "%") for bits in BITS),
    *(Figure(f"% of floor: {name}", "%") for name in (ASSIGN, TABLE, PROBE, ENCODE, DECODE)),
)

Call = Callable[[], Tensor]


@frozen
class Stored:
    """A query, tokens around centroids, and how the codec of so many bits stores them."""

    query: Tokens
    scores: Tensor
    tokens: Tokens
    codec: Codec
    compressed: Compressed

    def score(self, scores: Tensor | None = None) -> Tensor:
        """Ours (1, N); with the table of centroid scores made on the way, unless it is given."""
        table = kernels.centroid_scores(self.query.values, self.codec.centroids) if scores is None else scores
        return kernels.residual_maxsim(self.query, table, self.codec, self.compressed)


def measure(bench: Bench, sizes: Sizes, machine: Machine) -> None:
    """Check everybody, time everybody in turn, report."""
    generator = np.random.default_rng(1)
    centroids = unit_rows(generator, sizes.reduced(CENTROIDS, 32))
    query = queries_of(generator, 1)
    scores = kernels.centroid_scores(query.values, centroids)
    _measure_interaction(bench, sizes, machine, generator, query, scores)
    stored = {bits: store(generator, sizes, query, centroids, bits) for bits in BITS}
    _measure_residuals(bench, sizes, machine, stored)
    _measure_others(bench, sizes, machine, stored[2])


def _measure_interaction(
    bench: Bench, sizes: Sizes, machine: Machine, generator: np.random.Generator, query: Tokens, scores: Tensor
) -> None:
    lengths = generator.integers(SHORTEST, LONGEST + 1, sizes.reduced(10_000, 2))
    documents = packed(torch.empty(int(lengths.sum()), 0), lengths).spans
    tokens = int(lengths.sum())
    codes = {name: draw_codes(generator, name, tokens, len(scores)) for name in DISTRIBUTIONS}
    tables = {"table in eight bits": kernels.quantise_table(scores), "float32 table": CentroidTable(scores)}
    contestants: dict[str, Call] = {}
    for table_name, table in tables.items():
        for name, drawn in codes.items():
            call = _interaction(table, query, drawn, documents)
            check_close(call(), _exact_interaction(table, drawn, documents), f"{table_name}, {name}", 1e-5)
            contestants[f"centroid interaction, {table_name}, {name} codes"] = call
    timings = list(
        bench.in_turn({name: clocked(call, 3) for name, call in contestants.items()}, sizes.repeats).values()
    )
    work = Work(read=4.0 * tokens)
    for name, timing in zip(DISTRIBUTIONS, timings[:2], strict=True):
        per_token = 1e9 * timing.cpu_p50 / tokens
        bench.report(
            f"centroid interaction, {name} codes: per token", per_token, f"{tokens:,} tokens, K = {len(scores):,}"
        )
        floor = f"{1e9 * machine.floor(work) / tokens:.2f} ns to read a code; the table is in a cache"
        bench.report(f"% of floor: centroid interaction, {name} codes", machine.share(work, timing), floor)
    per_token = 1e9 * timings[2].cpu_p50 / tokens
    bench.report("centroid interaction, float32 table: per token", per_token, "uniform codes")


def _interaction(table: CentroidTable, query: Tokens, codes: Tensor, documents: Tensor) -> Call:
    return lambda: kernels.centroid_interaction(table, query.spans, codes, documents)


def draw_codes(generator: np.random.Generator, distribution: str, tokens: int, centroids: int) -> Tensor:
    """Codes int32 of a distribution; frequent centroids lie anywhere."""
    if distribution == "uniform":
        return torch.from_numpy(generator.integers(0, centroids, tokens, dtype=np.int32))
    weights = 1.0 / np.arange(1, centroids + 1)
    ranks = generator.choice(centroids, tokens, p=weights / weights.sum())
    return torch.from_numpy(generator.permutation(centroids)[ranks].astype(np.int32))


def _exact_interaction(table: CentroidTable, codes: Tensor, documents: Tensor) -> NDArray[np.float64]:
    values, starts = table.values.numpy()[codes.numpy()], documents[:, 0].numpy()
    best = np.maximum.reduceat(values, starts, axis=0).astype(np.float64)
    if table.steps is not None and table.lows is not None:
        best = table.lows.double().numpy() + table.steps.double().numpy() * best
    return best.sum(axis=1)[None]


def store(generator: np.random.Generator, sizes: Sizes, query: Tokens, centroids: Tensor, bits: int) -> Stored:
    """Tokens that lie around centroids, and what a codec of their own residuals makes of them."""
    drawn = np.exp(generator.normal(np.log(110) - 0.18, 0.6, sizes.reduced(500, 2)))
    lengths = np.clip(drawn, 1, LONGEST).astype(np.int64)
    codes = draw_codes(generator, "uniform", int(lengths.sum()), len(centroids))
    noise = 0.05 * torch.from_numpy(generator.standard_normal((len(codes), DIMENSION), np.float32))
    values = torch.nn.functional.normalize(centroids[codes] + noise, dim=1)
    differences = (values - centroids[codes])[:1_000].flatten()
    edges = torch.arange(1, 2 ** (bits + 1)) / 2 ** (bits + 1)
    quantiles = torch.quantile(differences, edges)
    codec = Codec(centroids, quantiles[1::2].contiguous(), quantiles[::2].contiguous())
    residuals, inverse = kernels.residual_encode(values, codes, codec)
    tokens = packed(values, lengths)
    compressed = Compressed(codes, residuals, inverse.half(), tokens.spans)
    return Stored(query, kernels.centroid_scores(query.values, centroids), tokens, codec, compressed)


def decode_and_score(stored: Stored, lookup: Tensor, owners: Tensor) -> Tensor:
    """The baseline (1, N): every token decoded to float32, then MaxSim."""
    compressed = stored.compressed
    decoded = lookup[compressed.residuals.long()].view(-1, DIMENSION)
    decoded += stored.codec.centroids[compressed.codes.long()]
    similarities = torch.nn.functional.normalize(decoded, dim=1) @ stored.query.values.T
    best = similarities.new_full((len(compressed.spans), QUERY_LENGTH), -torch.inf)
    best.scatter_reduce_(0, owners, similarities, "amax")
    return best.sum(dim=1)[None]


def lookup_of(codec: Codec) -> Tensor:
    """The values (256, 8 / b) that each byte of residuals stands for."""
    slots = torch.arange(0, 8, codec.bits)
    return codec.weights[(torch.arange(256)[:, None] >> slots) & (2**codec.bits - 1)]


def owners_of(spans: Tensor) -> Tensor:
    """The document of each token, once for each query token: what `scatter_reduce` wants, made before the timing."""
    lengths = spans[:, 1] - spans[:, 0]
    return torch.arange(len(spans)).repeat_interleave(lengths)[:, None].repeat(1, QUERY_LENGTH)


def _measure_residuals(bench: Bench, sizes: Sizes, machine: Machine, stored: Mapping[int, Stored]) -> None:
    calls: dict[str, Call] = {}
    for bits, each in stored.items():
        lookup, owners = lookup_of(each.codec), owners_of(each.compressed.spans)
        own: dict[str, Call] = {
            f"residual MaxSim, {bits} bits": lambda each=each: each.score(each.scores),
            f"residual MaxSim, {bits} bits, table included": each.score,
            f"torch decoding, {bits} bits": lambda each=each, lookup=lookup, owners=owners: decode_and_score(
                each, lookup, owners
            ),
        }
        decoded = kernels.residual_decode(each.codec, each.compressed.codes, each.compressed.residuals)
        truth = exact_scores(each.query, each.tokens._replace(values=decoded))
        for name, call in own.items():
            # Half-precision norms are off by 2^-12 at most, and with them the similarities.
            check_close(call(), truth, name, 1e-5 if name.startswith("torch") else 4e-4)
        calls |= own
    tokens = stored[2].tokens
    calls["fp32 of the decoded tokens"] = lambda: kernels.maxsim_all_pairs(stored[2].query, tokens)
    timings = bench.in_turn({name: clocked(call, 2) for name, call in calls.items()}, sizes.repeats)
    _report_residuals(bench, machine, stored, timings)


def _report_residuals(
    bench: Bench, machine: Machine, stored: Mapping[int, Stored], timings: Mapping[str, Timing]
) -> None:
    for bits, each in stored.items():
        count, name = len(each.compressed.codes), f"residual MaxSim, {bits} bits"
        baseline = timings[f"torch decoding, {bits} bits"].cpu_p50
        for own in (name, f"{name}, table included"):
            taken = timings[own].cpu_p50
            bench.report(f"{own}: against torch", baseline / taken, f"{taken * 1e3:.2f} and {baseline * 1e3:.2f} ms")
        bench.report(f"{name}: per token", 1e9 * timings[name].cpu_p50 / count, f"{count:,} tokens")
        work = Work(2.0 * QUERY_LENGTH * DIMENSION * count, count * (4 + DIMENSION * bits / 8 + 2))
        beside = f"{machine.floor(work) * 1e3:.2f} ms, as a product of float32"
        bench.report(f"% of floor: {name}", machine.share(work, timings[name]), beside)
    count = len(stored[2].compressed.codes)
    per_token = 1e9 * timings["fp32 of the decoded tokens"].cpu_p50 / count
    bench.report("fp32 MaxSim of the decoded tokens: per token", per_token, f"{count:,} tokens")


def _measure_others(bench: Bench, sizes: Sizes, machine: Machine, stored: Stored) -> None:
    """What an index is built with, and what a search begins with."""
    centroids, values = stored.codec.centroids, stored.tokens.values[: sizes.reduced(16_384, 16)].contiguous()
    codes, residuals = stored.compressed.codes, stored.compressed.residuals
    few = centroids[: max(16, len(centroids) // 4)].contiguous()
    calls: dict[str, Callable[[], object]] = {
        ASSIGN: lambda: kernels.kmeans_assign(values, few),
        TABLE: lambda: kernels.centroid_scores(stored.query.values, centroids),
        QUANTISE: lambda: kernels.quantise_table(stored.scores),
        PROBE: lambda: kernels.probe(stored.scores, NPROBE),
        ENCODE: lambda: kernels.residual_encode(stored.tokens.values, codes, stored.codec),
        DECODE: lambda: kernels.residual_decode(stored.codec, codes, residuals),
    }
    _check_others(stored, values, few)
    timings = bench.in_turn({name: clocked(call, 2) for name, call in calls.items()}, sizes.repeats)
    counts = {ASSIGN: len(values), ENCODE: len(codes), DECODE: len(codes)}
    for name, count in counts.items():
        beside = f"{count:,} tokens" + (f", K = {len(few):,}" if name == ASSIGN else "")
        bench.report(f"{name}: per token", 1e9 * timings[name].cpu_p50 / count, beside)
    for name in (TABLE, QUANTISE, PROBE):
        bench.report(name, 1e3 * timings[name].cpu_p50, f"K = {len(centroids):,}")
    rows = 4.0 * DIMENSION * len(codes)
    works = {
        ASSIGN: Work(2.0 * DIMENSION * len(values) * len(few)),
        TABLE: Work(2.0 * DIMENSION * QUERY_LENGTH * len(centroids)),
        PROBE: Work(read=stored.scores.nbytes),
        ENCODE: Work(read=rows + residuals.nbytes),
        DECODE: Work(read=rows + residuals.nbytes),
    }
    for name, work in works.items():
        bench.report(f"% of floor: {name}", machine.share(work, timings[name]), f"{machine.floor(work) * 1e3:.2f} ms")


def _check_others(stored: Stored, values: Tensor, centroids: Tensor) -> None:
    rows = min(256, len(values))
    table = values[:rows].double() @ centroids.double().T
    chosen = table.gather(1, kernels.kmeans_assign(values, centroids)[:rows, None].long())
    check_close(chosen[:, 0], table.amax(dim=1).numpy(), ASSIGN, 1e-6)
    wide = stored.codec.centroids.double() @ stored.query.values.double().T
    check_close(stored.scores, wide.numpy(), TABLE, 1e-5)
    probed = kernels.probe(stored.scores, NPROBE)
    best = stored.scores.T.topk(min(NPROBE, len(stored.scores)), dim=1).values
    assert torch.equal(stored.scores.T.gather(1, probed), best), PROBE
    exact = lookup_of(stored.codec).double()[stored.compressed.residuals.long()].view(-1, DIMENSION)
    exact = torch.nn.functional.normalize(
        exact + stored.codec.centroids.double()[stored.compressed.codes.long()], dim=1
    )
    decoded = kernels.residual_decode(stored.codec, stored.compressed.codes, stored.compressed.residuals)
    check_close(decoded, exact.numpy(), DECODE, 1e-5)
    differences = stored.tokens.values - stored.codec.centroids[stored.compressed.codes.long()]
    buckets = torch.bucketize(differences, stored.codec.cutoffs)
    shifts = torch.arange(0, 8, stored.codec.bits)
    bytes_of_tokens = (buckets.view(len(buckets), -1, len(shifts)) << shifts).sum(dim=2)
    assert torch.equal(bytes_of_tokens.to(torch.uint8), stored.compressed.residuals), ENCODE
