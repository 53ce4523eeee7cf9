"""XTR in plain NumPy: documents ranked by retrieved tokens alone, and the in-batch score that trains for it.

Lee et al., "Rethinking the Role of Token Retrieval in Multi-Vector Retrieval", NeurIPS 2023.
Precision as in `maxsim_all_pairs`. Shapes: S query tokens of Q queries, T document tokens of N documents, D dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.ranking import Ranking, check_cutoff
from lateinteraction.domain.reference.maxsim import (
    Embeddings,
    Floats,
    check_upstream,
    precision_of,
    similarities,
    through_winners,
)
from lateinteraction.domain.text import DocumentId


def xtr_rankings(hits: TokenHits, k: int | None = None) -> list[Ranking]:
    """Rank the documents that any token of a query retrieved, by their retrieved tokens alone (§3.2).

        score(q, d) = Σ_s  max of s's hits in d     where s has a hit in d
                           m_s                      where it has none
        m_s = the lowest similarity that s retrieved; 0 where it retrieved nothing

    Where the hits are the nearest tokens there are, a token of d that s did not retrieve cannot exceed m_s. The
    paper divides by the number of query tokens, which changes no ranking and is left out: with every token
    retrieved this is MaxSim.

    Raises:
        InvalidRanking: k below 1.
    """
    if k is not None:
        check_cutoff(k)
    return [_ranking(hits, query, k) for query in range(len(hits))]


def xtr_all_pairs(queries: Embeddings, documents: Embeddings, k: int) -> Floats:
    """In-batch scores (Q, N) for training (§3.1): each query token retrieves its k best of all document tokens.

        A_st = 1 where t is among the k tokens most similar to s, of all documents together; ties: lowest index
        score(q, d) = 1/Z Σ_{s: Z_s = 1} max_{t of d, A_st = 1} q_s · d_t
        Z_s = 1 where s retrieved a token of d, else 0; Z = Σ_s Z_s

    A document that nothing retrieved, an empty one included, scores 0. The maximum runs over retrieved tokens
    only, so a negative similarity counts as what it is; the paper's max_t A_st q_s · d_t would lift it to 0
    in documents that also have a token which was not retrieved. k beyond the tokens there are means all.

    Raises:
        InvalidEmbeddings: different widths.
        InvalidRanking: k below 1.
    """
    retrieved, winners = _retrieve(queries, documents, k)
    scores = np.zeros((len(queries), len(documents)), precision_of(queries.tokens, documents.tokens))
    for i in range(len(queries)):
        tokens = _tokens_of(queries, i)
        for j in range(len(documents)):
            found = winners[tokens, j] >= 0
            if found.any():
                scores[i, j] = retrieved[tokens][found, winners[tokens, j][found]].mean()
    return scores


def xtr_gradients(queries: Embeddings, documents: Embeddings, k: int, upstream: Floats) -> tuple[Floats, Floats]:
    """Gradients (S, D) and (T, D) of the tokens, from upstream (Q, N) = ∂L/∂score of `xtr_all_pairs`.

    As for MaxSim, divided by Z and through retrieved winners alone. Which tokens are retrieved, and so Z, are
    taken as constants: they only jump.

    Raises:
        InvalidEmbeddings: upstream of another shape; different widths.
        InvalidRanking: k below 1.
    """
    check_upstream(upstream, (len(queries), len(documents)))
    _, winners = _retrieve(queries, documents, k)
    weights = np.zeros(winners.shape)
    for i in range(len(queries)):
        finders = winners[_tokens_of(queries, i)] >= 0
        weights[_tokens_of(queries, i)] = upstream[i] / np.maximum(finders.sum(axis=0), 1)
    return through_winners(queries, documents, winners, weights)


def _ranking(hits: TokenHits, query: int, k: int | None) -> Ranking:
    scores = dict.fromkeys(hits.documents_of(query), 0.0)
    for token in range(hits.query_offsets[query], hits.query_offsets[query + 1]):
        best, missing = _best_hits(hits, token)
        for document in scores:
            scores[document] += best.get(document, missing)
    return Ranking.from_scores(list(scores), list(scores.values()), k)


def _best_hits(hits: TokenHits, token: int) -> tuple[dict[DocumentId, float], float]:
    """The best similarity of each document that one query token retrieved, and what stands in for the others."""
    first, last = hits.offsets[token], hits.offsets[token + 1]
    best: dict[DocumentId, float] = {}
    for document, similarity in zip(hits.documents[first:last], map(float, hits.similarities[first:last]), strict=True):
        best[document] = max(similarity, best.get(document, similarity))
    return best, float(hits.similarities[first:last].min()) if last > first else 0.0


def _retrieve(queries: Embeddings, documents: Embeddings, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Similarities (S, T) with −∞ where t was not retrieved, and the winner (S, N), a row of all tokens; −1: none."""
    check_cutoff(k)
    found = similarities(queries.tokens, documents.tokens)
    for row in found:
        row[np.argsort(-row, kind="stable")[k:]] = -np.inf
    winners = np.full((len(found), len(documents)), -1, np.int64)
    for j, (first, last) in enumerate(zip(documents.offsets[:-1], documents.offsets[1:], strict=True)):
        for s, row in enumerate(found[:, first:last]):
            if row.max(initial=-np.inf) > -np.inf:
                winners[s, j] = first + np.argmax(row)
    return found, winners


def _tokens_of(queries: Embeddings, query: int) -> slice:
    return slice(int(queries.offsets[query]), int(queries.offsets[query + 1]))
