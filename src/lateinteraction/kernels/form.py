"""The operations, each once: what every form computes. `domain.reference` has the formulas.

A form is a module with these functions: `eager` (torch, any device), `cpu` (numba), `gpu` (Triton). Rules of all:

- Similarities and sums are float32, whatever the inputs (float64 where they are, in forms that take it); float32 inputs
  are multiplied as float32. int8 meets int8 alone in compiled forms.
- An item without tokens: an empty query scores 0, an empty document −∞ (with an empty query, 0). NaN gives NaN.
- Ties go to the lowest row. What else is in the call changes no bit of a score in the cpu form, and 1e-6 of what is
  summed in the others, by rounding: there one short query takes another kernel, and torch chooses one by shape.
- Two equal calls on one device give equal bits, in compiled forms.
- Inputs are only read; outputs are new and fully written.
- A dtype or device that a form cannot compute raises `TypeError`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens


class Form(Protocol):
    """One implementation of every operation."""

    @staticmethod
    def maxsim_all_pairs(queries: Tokens, documents: Tokens) -> Tensor:
        """Scores (Q, N) of every query with every document: Σ_s max_t q_s · d_t."""
        ...

    @staticmethod
    def maxsim_all_pairs_winners(queries: Tokens, documents: Tokens) -> tuple[Tensor, Tensor]:
        """Scores (Q, N), and winners (S, N): the document token each row of queries.values likes best.

        Counted within the document; −1 where it is empty; int16 or int32 (`winners_dtype`). Entries of rows that no
        query has may hold anything.
        """
        ...

    @staticmethod
    def maxsim_all_pairs_gradients(
        queries: Tokens, documents: Tokens, winners: Tensor, upstream: Tensor, *, unit: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients (S, D) and (R, D) of the values, in their dtypes, from upstream (Q, N) = ∂L/∂score.

        Through the winners; none where a winner is −1 (then upstream is not read). Rows that no span names get 0.
        Deterministic: each row is summed by one owner, in float32, in one order. Of 16-bit values a form may take each
        term of a document's gradient to within 2⁻¹⁷ of itself.

        What is not finite, in a query token or in upstream, may make NaN of the gradient of every row of the documents
        that it met, not only of the rows that it liked best.

        With `unit` the scales are inverse norms of the values themselves and the gradients are those of the values
        before normalisation: (g − (g · x̂) x̂) / ‖x‖. Without it scales are taken as constants.
        """
        ...

    @staticmethod
    def maxsim_pairs(queries: Tokens, documents: Tokens, pairs: Tensor) -> Tensor:
        """Scores (P,) of query pairs[p, 0] with document pairs[p, 1]; pairs int64 (P, 2), where the spans are."""
        ...

    @staticmethod
    def maxsim_pairs_winners(queries: Tokens, documents: Tokens, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (P,) and winners (P, queries.longest), as above; −1 beyond a query's tokens."""
        ...

    @staticmethod
    def maxsim_pairs_gradients(
        queries: Tokens, documents: Tokens, pairs: Tensor, winners: Tensor, upstream: Tensor, *, unit: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients as of all pairs, from upstream (P,). An item may be in any number of pairs."""
        ...

    @staticmethod
    def maxsim_top_k(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor]:
        """The best min(k, N) documents of each query, best first: scores (Q, k) and int64 places in the spans (Q, k).

        Ties: lowest place. Never holds Q × N scores. Documents that score −∞ or NaN come last, NaN after all.
        """
        ...

    @staticmethod
    def inverse_norms(values: Tensor) -> Tensor:
        """1 / ‖row‖, float32 (R,); 0 for a row of zeros: the scales that make `Tokens` unit vectors."""
        ...

    @staticmethod
    def xtr_all_pairs(queries: Tokens, documents: Tokens, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """In-batch XTR scores (Q, N), winners (S, N) and finders int32 (Q, N) (`reference.xtr_all_pairs`).

        Each query token retrieves its k best of all document tokens (ties: lowest row of the values). A winner is −1
        where the token retrieved nothing of the document; finders counts the tokens of a query that retrieved some of
        it. The gradient is that of MaxSim through these winners, with upstream / max(1, finders).
        """
        ...

    @staticmethod
    def centroid_scores(query_values: Tensor, centroids: Tensor) -> Tensor:
        """The table q_s · c_k, float32 (K, S), of query rows (S, D) and centroids float32 (K, D)."""
        ...

    @staticmethod
    def quantise_table(scores: Tensor) -> CentroidTable:
        """The table (K, S) in eight bits: with low and high the extremes of column s and step = (high − low) / 255,

        value = round-half-to-even((score − low) / step), all in float32; 0 in a column of equal scores (step 0).
        """
        ...

    @staticmethod
    def probe(scores: Tensor, nprobe: int) -> Tensor:
        """The best min(nprobe, K) centroids of each query token, from scores (K, S): int64 (S, nprobe), best first.

        Exact, by blocks: the best of each block first, then only blocks that can hold a winner. Ties: lowest index.
        """
        ...

    @staticmethod
    def listed_scores(listed: Listed, gains: Tensor, count: int) -> Tensor:
        """What lists say of documents 0 … count − 1, float32 (count,), with gains float32 (S, M), at least 0:

        Σ_s max(0, gains[s, m] over the lists m of token s that name the document), summed in the order of tokens.

        Raises:
            IndexError: a list names another document.
        """
        ...

    @staticmethod
    def centroid_interaction(
        table: CentroidTable, query_spans: Tensor, codes: Tensor, document_spans: Tensor
    ) -> Tensor:
        """Approximate scores float32 (Q, N): MaxSim where each document token is its centroid; codes int32 (R,).

        Maxima of uint8 tables are taken on the bytes: they are exact.
        """
        ...

    @staticmethod
    def residual_maxsim(queries: Tokens, scores: Tensor, codec: Codec, documents: Compressed) -> Tensor:
        """Scores (Q, N) of MaxSim on the decoded tokens, none of which is written to memory:

        Σ_s max_t (scores[code_t, s] + q_s · r_t) · inverse_norm_t, with scores (K, S) = `centroid_scores` and r_t the
        weights of the token's buckets.
        """
        ...

    @staticmethod
    def kmeans_assign(values: Tensor, centroids: Tensor) -> Tensor:
        """Codes int32 (T,): argmax_k x_t · c_k. Ties: lowest index."""
        ...

    @staticmethod
    def kmeans_update(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
        """Centroids float32 (K, D): the mean of a centroid's tokens divided by its norm; unchanged where there is none.

        Deterministic.
        """
        ...

    @staticmethod
    def residual_encode(values: Tensor, codes: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
        """Residuals uint8 (T, B) of tokens (T, D) with given codes, and the inverse norms float32 (T,) of what they
        decode to (0 for a norm of 0)."""
        ...

    @staticmethod
    def residual_decode(codec: Codec, codes: Tensor, residuals: Tensor) -> Tensor:
        """The unit vectors float32 (T, D) that stand for the tokens; a vector of zeros stays one."""
        ...
