"""MaxSim in plain NumPy: every pair, listed pairs, groups; its winners and its gradients.

Every function computes in float64 and returns float32, or float64 where tokens of that precision came in.
Shapes: S query tokens of Q queries, T document tokens of N documents, P pairs, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.embeddings import Offsets, TokenEmbeddings, check_offsets, offsets_of
from lateinteraction.domain.errors import InvalidEmbeddings

Floats = NDArray[np.floating[Any]]
Embeddings = TokenEmbeddings[Floats]


def maxsim_all_pairs(queries: Embeddings, documents: Embeddings) -> Floats:
    """Scores (Q, N) of every query with every document.

        score(q, d) = Σ_s max_t q_s · d_t

    Khattab and Zaharia, SIGIR 2020, §3.3. The maximum over no token is −∞ and the sum over no token is 0, so
    an empty document scores −∞, except that an empty query scores 0 with everything.

    Raises:
        InvalidEmbeddings: queries and documents of different width.
    """
    table = similarities(queries.tokens, documents.tokens)
    scores = sum_of_maxima(table, queries.offsets, documents.offsets)
    return scores.astype(precision_of(queries.tokens, documents.tokens))


def maxsim_pairs(queries: Embeddings, documents: Embeddings, query_rows: ArrayLike, document_rows: ArrayLike) -> Floats:
    """Scores (P,) of query query_rows[p] with document document_rows[p]; the formula of `maxsim_all_pairs`.

    Raises:
        InvalidEmbeddings: rows that are not two lists of one length, or that name no item; different widths.
    """
    check_widths(queries, documents)
    rows_of_queries = _rows(query_rows, len(queries), "query")
    rows_of_documents = _rows(document_rows, len(documents), "document")
    if len(rows_of_queries) != len(rows_of_documents):
        raise InvalidEmbeddings(
            f"{len(rows_of_queries)} query rows and {len(rows_of_documents)} document rows",
            "one of each per pair",
            "List both sides of every pair.",
        )
    scores = np.empty(len(rows_of_queries), precision_of(queries.tokens, documents.tokens))
    for pair, (i, j) in enumerate(zip(rows_of_queries, rows_of_documents, strict=True)):
        scores[pair] = similarities(queries[i], documents[j]).max(axis=1, initial=-np.inf).sum()
    return scores


def maxsim_grouped(queries: Embeddings, documents: Embeddings, groups: Offsets) -> Floats:
    """Scores (N,): documents groups[i] … groups[i+1]−1 with query i; the formula of `maxsim_all_pairs`.

    Raises:
        InvalidEmbeddings: groups (Q+1,) that do not share out the documents among the queries; different widths.
    """
    return maxsim_pairs(queries, documents, query_of_document(queries, documents, groups), np.arange(len(documents)))


def keep(embeddings: Embeddings, mask: NDArray[np.bool_]) -> Embeddings:
    """The same items without the tokens whose entry in the mask (T,) is False, wherever they stand.

    A masked token is absent, not zero: a zero token would have similarity 0 and win over negative ones.

    Raises:
        InvalidEmbeddings: a mask that is not one boolean per token.
    """
    if mask.dtype != np.bool_ or mask.shape != (len(embeddings.tokens),):
        raise InvalidEmbeddings(
            f"a mask of dtype {mask.dtype} and shape {mask.shape}",
            f"bool and ({len(embeddings.tokens)},)",
            "Give one boolean per token, packed as the tokens are.",
        )
    kept_before = offsets_of(mask)  # how many of the first t tokens stay, for every t
    return TokenEmbeddings(embeddings.tokens[mask], kept_before[embeddings.offsets])


def maxsim_winners(queries: Embeddings, documents: Embeddings) -> NDArray[np.int64]:
    """Winners (S, N): for each query token, the most similar token of each document, counted within the document.

    Ties go to the lowest index; an empty document has no winner: −1.

    Raises:
        InvalidEmbeddings: different widths.
    """
    check_widths(queries, documents)
    winners = np.full((len(queries.tokens), len(documents)), -1, np.int64)
    for j, document in enumerate(documents):
        if len(document):
            winners[:, j] = np.argmax(similarities(queries.tokens, document), axis=1)
    return winners


def maxsim_all_pairs_gradients(queries: Embeddings, documents: Embeddings, upstream: Floats) -> tuple[Floats, Floats]:
    """Gradients (S, D) and (T, D) of the tokens, from upstream (Q, N) = ∂L/∂score.

        t*(s, j) = argmax_t q_s · d_jt
        ∂L/∂q_s  = Σ_j upstream_ij d_j,t*(s,j)                  for s of query i
        ∂L/∂d_jt = Σ_i Σ_{s of i : t*(s, j) = t} upstream_ij q_s

    A subgradient where tokens tie: all of it goes to the lowest index. The score −∞ of an empty document is
    constant, so its column of upstream is not read.

    Raises:
        InvalidEmbeddings: upstream of another shape; different widths.
    """
    check_upstream(upstream, (len(queries), len(documents)))
    winners = maxsim_winners(queries, documents)
    rows = np.where(winners >= 0, winners + documents.offsets[:-1], -1)
    return through_winners(queries, documents, rows, np.repeat(upstream, queries.lengths, axis=0))


def maxsim_grouped_gradients(
    queries: Embeddings, documents: Embeddings, groups: Offsets, upstream: Floats
) -> tuple[Floats, Floats]:
    """Gradients (S, D) and (T, D) of the tokens, from upstream (N,) = ∂L/∂score of `maxsim_grouped`.

    Raises:
        InvalidEmbeddings: groups or upstream that do not fit; different widths.
    """
    rows = query_of_document(queries, documents, groups)
    check_upstream(upstream, (len(documents),))
    spread = np.zeros((len(queries), len(documents)))
    spread[rows, np.arange(len(documents))] = upstream
    return maxsim_all_pairs_gradients(queries, documents, spread)


def through_winners(
    queries: Embeddings, documents: Embeddings, winners: NDArray[np.int64], weights: Floats
) -> tuple[Floats, Floats]:
    """Gradients (S, D) and (T, D) of Σ_s Σ_j weights_sj q_s · d_winners_sj.

    winners (S, N) are rows of all document tokens; −1 where there is none, and then the weight is not read.
    """
    query_tokens, document_tokens = queries.tokens.astype(np.float64), documents.tokens.astype(np.float64)
    grad_queries, grad_documents = np.zeros_like(query_tokens), np.zeros_like(document_tokens)
    for s, j in np.argwhere(winners >= 0):
        t = winners[s, j]
        grad_queries[s] += weights[s, j] * document_tokens[t]
        grad_documents[t] += weights[s, j] * query_tokens[s]
    precision = precision_of(queries.tokens, documents.tokens)
    return grad_queries.astype(precision), grad_documents.astype(precision)


def similarities(query_tokens: Floats, document_tokens: Floats) -> NDArray[np.float64]:
    """Inner products (S, T) in float64; cosines where the tokens are unit vectors.

    Not a matrix product: BLAS may sum the same two vectors in another order in another place of the matrix,
    and then equal tokens would not tie.

    Raises:
        InvalidEmbeddings: different widths.
    """
    _check_widths(query_tokens.shape[1], document_tokens.shape[1])
    left = np.ascontiguousarray(query_tokens, dtype=np.float64)
    right = np.ascontiguousarray(document_tokens, dtype=np.float64)
    return np.einsum("sd,td->st", left, right)


def sum_of_maxima(table: NDArray[np.float64], query_offsets: Offsets, document_offsets: Offsets) -> NDArray[np.float64]:
    """Scores (Q, N) from a table (S, T) of how similar each query token is to each document token."""
    scores = np.empty((len(query_offsets) - 1, len(document_offsets) - 1))
    for i in range(len(query_offsets) - 1):
        for j in range(len(document_offsets) - 1):
            tokens = slice(query_offsets[i], query_offsets[i + 1]), slice(document_offsets[j], document_offsets[j + 1])
            scores[i, j] = table[tokens].max(axis=1, initial=-np.inf).sum()
    return scores


def precision_of(*arrays: Floats) -> np.dtype[Any]:
    """The dtype of results from these inputs: float64 where one of them is, else float32."""
    return np.dtype(np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32)


def check_upstream(upstream: Floats, shape: tuple[int, ...]) -> None:
    """Raise `InvalidEmbeddings` unless there is an upstream gradient for each score."""
    if upstream.shape != shape:
        raise InvalidEmbeddings(
            f"upstream gradients of shape {upstream.shape}",
            f"{shape}, as the scores",
            "Give ∂L/∂score for every score.",
        )


def check_widths(queries: Embeddings, documents: Embeddings) -> None:
    """Raise `InvalidEmbeddings` unless query and document tokens have the same number of dimensions."""
    _check_widths(queries.dimension, documents.dimension)


def query_of_document(queries: Embeddings, documents: Embeddings, groups: Offsets) -> NDArray[np.int64]:
    """The query (N,) that each document belongs to.

    Raises:
        InvalidEmbeddings: groups are not offsets (Q+1,) over the documents.
    """
    check_offsets(groups, len(documents), "documents")
    if len(groups) != len(queries) + 1:
        raise InvalidEmbeddings(
            f"{len(groups) - 1} groups for {len(queries)} queries", "a group for each", "Groups may be empty."
        )
    return np.repeat(np.arange(len(queries)), np.diff(groups))


def _check_widths(left: int, right: int) -> None:
    if left != right:
        raise InvalidEmbeddings(
            f"tokens of {left} and of {right} dimensions",
            "one width",
            "Encode both with the same model and recipe.",
        )


def _rows(rows: ArrayLike, end: int, what: str) -> list[int]:
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InvalidEmbeddings(
            f"{what} rows of dtype {given.dtype} and shape {given.shape}", "a list of whole numbers", "Give positions."
        )
    outside = given[(given < 0) | (given >= end)]
    if outside.size:
        raise InvalidEmbeddings(f"{what} row {outside[0]}", f"0 to {end - 1}", f"There are {end} items.")
    return list(map(int, given))
