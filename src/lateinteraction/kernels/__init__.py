"""Interaction kernels: raw tensors in, raw tensors out, one name per operation whatever computes it.

Three forms beside the NumPy oracle: eager torch, numba for CPUs, Triton for GPUs. Device and precision choose
(`form_for`), `use` forces. What each operation computes is said in `form.Form`, once. Shapes are the caller's to check.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lateinteraction.kernels import library
from lateinteraction.kernels.dispatch import Choice, FormName, MissingForm, form_for, use
from lateinteraction.kernels.eager.order import best_of
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens, spans_of
from lateinteraction.kernels.packing import packed, padded
from lateinteraction.kernels.sharing import at_most

__all__ = [
    "CentroidTable",
    "Choice",
    "Codec",
    "Compressed",
    "FormName",
    "Listed",
    "MissingForm",
    "Tokens",
    "at_most",
    "centroid_interaction",
    "centroid_scores",
    "form_for",
    "inverse_norms",
    "kmeans_assign",
    "kmeans_update",
    "listed_scores",
    "maxsim_all_pairs",
    "maxsim_all_pairs_winners",
    "maxsim_listed",
    "maxsim_pairs",
    "maxsim_pairs_winners",
    "maxsim_rerank",
    "maxsim_top_k",
    "packed",
    "padded",
    "probe",
    "quantise_table",
    "residual_decode",
    "residual_encode",
    "residual_maxsim",
    "spans_of",
    "use",
    "xtr_all_pairs",
]

ROWS_PER_LIST = 16_384
"""Rows that `maxsim_listed` packs at a time: work for three threads with a query of 32 tokens.

8 MB at 128 dimensions of float32, which stays in cache. 1,000 documents of 20–300 tokens, one thread, ms of CPU time:
17 by 4,096 rows, 13.9 by 8,192, 13.2 by 16,384, 14.3 by 65,536, 50 by all.
"""


def maxsim_all_pairs(queries: Tokens, documents: Tokens, *, unit: bool = False) -> Tensor:
    """Scores (Q, N) of every query with every document: S[i, j] = Σ_s max_t q_s · d_t.

    Khattab and Zaharia, SIGIR 2020, eq. 3. Differentiable with respect to the values of both. Under autocast on a CUDA
    device the products are made in its precision, and the scores stay float32; on the CPU autocast changes nothing.

    Args:
        queries: no scales where gradients are wanted, except by `unit`.
        documents: likewise; their spans must not overlap then.
        unit: compare unit vectors, whatever the lengths of the values; a vector of zeros stays one. Gradients are
            those of the values, through the normalisation.
    """
    queries, documents = _prepared(queries, unit), _prepared(documents, unit)
    if _wants_gradient(queries, documents):
        return library.maxsim_all_pairs_winners(*queries, *documents, unit)[0]
    return library.maxsim_all_pairs(*queries, *documents)


def maxsim_all_pairs_winners(queries: Tokens, documents: Tokens, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    """Scores (Q, N) and winners (S, N), int16 or int32: which document token each query row likes best."""
    queries, documents = _prepared(queries, unit), _prepared(documents, unit)
    return library.maxsim_all_pairs_winners(*queries, *documents, unit)


def maxsim_pairs(queries: Tokens, documents: Tokens, pairs: Tensor, *, unit: bool = False) -> Tensor:
    """Scores (P,) of query pairs[p, 0] with document pairs[p, 1]; otherwise as `maxsim_all_pairs`.

    Args:
        queries: Q of them.
        documents: N of them.
        pairs: int64 (P, 2), where the spans are; an item may be in any number of pairs.
        unit: as there.
    """
    queries, documents = _prepared(queries, unit), _prepared(documents, unit)
    if _wants_gradient(queries, documents):
        return library.maxsim_pairs_winners(*queries, *documents, pairs, unit)[0]
    return library.maxsim_pairs(*queries, *documents, pairs)


def maxsim_pairs_winners(
    queries: Tokens, documents: Tokens, pairs: Tensor, *, unit: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores (P,) and winners (P, queries.longest), int16 or int32; −1 beyond a query's tokens."""
    queries, documents = _prepared(queries, unit), _prepared(documents, unit)
    return library.maxsim_pairs_winners(*queries, *documents, pairs, unit)


def maxsim_top_k(queries: Tokens, documents: Tokens, k: int, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    """The best min(k, N) documents of each query: scores and int64 places in the spans, best first, ties: lowest."""
    _check_count("k", k)
    return library.maxsim_top_k(*_prepared(queries, unit), *_prepared(documents, unit), k)


def maxsim_rerank(
    queries: Tokens, documents: Tokens, candidates: Tensor, k: int, *, unit: bool = False
) -> tuple[Tensor, Tensor]:
    """The best min(k, C) of each query's own candidates: scores (Q, k) and int64 places (Q, k), ties: lowest place.

    One number is kept per candidate, whatever the lengths. Candidates that score NaN come last.

    Args:
        queries: Q of them.
        documents: N of them.
        candidates: int64 (Q, C), where the spans are: places in the documents' spans, each once for a query, in any
            order. −1 is no candidate: it costs nothing, and comes back last as −1 that scores −∞.
        k: at least 1.
        unit: as of `maxsim_all_pairs`.

    Raises:
        ValueError: candidates of another shape; k below 1.
    """
    _check_count("k", k)
    count = queries.spans.shape[0]
    if candidates.dim() != 2 or candidates.shape[0] != count:
        raise ValueError(
            f"candidates of shape {tuple(candidates.shape)}, where a list for each of {count} queries is wanted"
        )
    candidates = candidates.sort(dim=1).values
    # No candidate is an empty document in front of all others, so that nothing must be cut out, on whatever device.
    empty = documents.spans.new_zeros((1, 2))
    ranked = _prepared(documents, unit)._replace(spans=torch.cat([empty, documents.spans]))
    rows = torch.arange(count, device=candidates.device)[:, None].expand_as(candidates)
    pairs = torch.stack([rows.flatten(), candidates.flatten() + 1], dim=1)
    scores = library.maxsim_pairs(*_prepared(queries, unit), *ranked, pairs).view(candidates.shape)
    absent = candidates < 0
    best = best_of(scores.masked_fill(absent, torch.nan), k)
    return scores.masked_fill(absent, -torch.inf).gather(1, best), candidates.gather(1, best)


def maxsim_listed(queries: Tokens, documents: Sequence[Tensor]) -> Tensor:
    """`maxsim_all_pairs` with documents that are separate tensors (length, D) on the host, packed a few at a time.

    What was packed stays in cache; packing the whole list first would write all of it to fresh memory, which costs
    more than scoring it.
    """
    ends = torch.tensor([0, *map(len, documents)]).cumsum(0)
    columns: list[Tensor] = []
    first = 0
    while first < len(documents):
        fitting = int(torch.searchsorted(ends, ends[first] + ROWS_PER_LIST, right=True)) - 1
        last = max(fitting, first + 1)
        offsets = ends[first : last + 1] - ends[first]
        longest = int(offsets.diff().max())
        columns.append(maxsim_all_pairs(queries, packed(torch.cat(list(documents[first:last])), offsets, longest)))
        first = last
    return torch.cat(columns, dim=1) if columns else queries.values.new_empty((queries.spans.shape[0], 0)).float()


def xtr_all_pairs(queries: Tokens, documents: Tokens, k: int) -> Tensor:
    """In-batch XTR scores (Q, N), differentiable: each query token retrieves its k best of all document tokens.

    Lee et al., NeurIPS 2023, §3.1, as `domain.reference.xtr_all_pairs` words it.
    """
    _check_count("k", k)
    return library.xtr_all_pairs(*_prepared(queries), *_prepared(documents), k)[0]


def inverse_norms(values: Tensor) -> Tensor:
    """1 / ‖row‖, float32 (R,); 0 for a row of zeros."""
    return library.inverse_norms(values)


def centroid_scores(query_values: Tensor, centroids: Tensor) -> Tensor:
    """The table q_s · c_k, (K, S), of query rows (S, D) and centroids (K, D)."""
    return library.centroid_scores(query_values, centroids)


def quantise_table(scores: Tensor) -> CentroidTable:
    """The table (K, S) in eight bits, each query token between its own extremes."""
    return CentroidTable(*library.quantise_table(scores))


def probe(scores: Tensor, nprobe: int) -> Tensor:
    """The best min(nprobe, K) centroids of each query token, from (K, S): int64 (S, nprobe), best first."""
    _check_count("nprobe", nprobe)
    return library.probe(scores, nprobe)


def listed_scores(listed: Listed, gains: Tensor, count: int) -> Tensor:
    """What lists say of documents 0 … count − 1, float32 (count,): Σ over tokens of the best gain of a list, or 0.

    Args:
        listed: of each query token, M lists.
        gains: float32 (S, M), at least 0.
        count: documents.
    """
    return library.listed_scores(*listed, gains, count)


def centroid_interaction(table: CentroidTable, query_spans: Tensor, codes: Tensor, document_spans: Tensor) -> Tensor:
    """Approximate scores float32 (Q, N): MaxSim where each document token is its centroid; codes int32 (R,)."""
    return library.centroid_interaction(*table, query_spans, codes, document_spans)


def residual_maxsim(queries: Tokens, scores: Tensor, codec: Codec, documents: Compressed) -> Tensor:
    """Scores (Q, N) of MaxSim on what the codec stores, with scores (K, S) = `centroid_scores` of the query rows."""
    return library.residual_maxsim(*queries, scores, *codec, *documents)


def kmeans_assign(values: Tensor, centroids: Tensor) -> Tensor:
    """Codes int32 (T,): the centroid with the largest inner product. Ties: lowest index."""
    return library.kmeans_assign(values, centroids)


def kmeans_update(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Centroids (K, D): the mean of a centroid's tokens divided by its norm; unchanged where there is none."""
    return library.kmeans_update(values, codes, centroids)


def residual_encode(values: Tensor, codes: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Residuals uint8 (T, B) of tokens with given codes, and the inverse norms (T,) of what they decode to."""
    return library.residual_encode(values, codes, *codec)


def residual_decode(codec: Codec, codes: Tensor, residuals: Tensor) -> Tensor:
    """The unit vectors (T, D) that stand for the tokens."""
    return library.residual_decode(*codec, codes, residuals)


def _prepared(tokens: Tokens, unit: bool = False) -> Tokens:
    """With the scales that make unit vectors, where wanted, and in the precision of autocast on a CUDA device."""
    values = tokens.values.contiguous()
    device = values.device.type
    halves = values.is_floating_point() and values.dtype != torch.float64  # double precision was asked for by name
    if device == "cuda" and halves and torch.is_autocast_enabled(device):
        values = values.type(torch.get_autocast_dtype(device))
    scales = library.inverse_norms(values.detach()) if unit else tokens.scales
    return tokens._replace(values=values, scales=scales)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} = {count}, where at least 1 is wanted")


def _wants_gradient(queries: Tokens, documents: Tokens) -> bool:
    return torch.is_grad_enabled() and (queries.values.requires_grad or documents.values.requires_grad)
