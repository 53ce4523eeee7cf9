"""Agreement with PyLate 1.6.0 on its own numbers, and the places where we differ on purpose (tests/conformance)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lateinteraction.domain import reference
from lateinteraction.domain.candidates import TokenHits
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.reference import AS_IS, PYLATE_STUDENT
from lateinteraction.domain.text import DocumentId
from lateinteraction.domain.training import Targets

Floats = NDArray[np.floating]
Masks = NDArray[np.bool_]
Embeddings = TokenEmbeddings[Floats]
GOLDEN = Path(__file__).parents[1] / "conformance"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def arrays() -> dict[str, NDArray[Any]]:
    return load_file(GOLDEN / "golden.safetensors")


@functools.cache
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "golden.json").read_text())


def golden(case: str, field: str) -> NDArray[Any]:
    return arrays()[f"{case}/{field}"]


def cases(prefix: str, field: str) -> list[str]:
    return sorted(
        name.removesuffix(f"/{field}") for name in arrays() if name.startswith(prefix) and name.endswith(f"/{field}")
    )


def mask_of(case: str, side: str) -> Masks:
    """The mask (T,) of one side; all True where the case has none."""
    given = arrays().get(f"{case}/{side}_mask")
    return np.ones(golden(case, side).shape[:-1], bool).ravel() if given is None else given.ravel()


def padded(case: str, side: str) -> Embeddings:
    """All tokens of one side, padding and masked ones included."""
    tokens = golden(case, side)
    items = tokens.reshape(-1, *tokens.shape[-2:])
    return TokenEmbeddings(items.reshape(-1, items.shape[-1]), offsets_of([items.shape[1]] * len(items)))


def live(case: str, side: str) -> Embeddings:
    """The tokens that are not masked: ours."""
    return reference.keep(padded(case, side), mask_of(case, side))


def zeroed(case: str, side: str) -> Embeddings:
    """PyLate's view: a masked token is a token of zeros."""
    tokens = padded(case, side)
    return TokenEmbeddings(tokens.tokens * mask_of(case, side)[:, None], tokens.offsets)


def assert_gradients(case: str, grads: tuple[Floats, Floats], *, masked: str) -> None:
    """Compare with golden gradients; those of masked tokens are 0 there, and `zeros` or `absent` here."""
    for side, grad in zip("qd", grads, strict=True):
        mask = mask_of(case, side)
        expected = golden(case, f"grad_{side}").reshape(-1, grad.shape[1])
        np.testing.assert_array_equal(expected[~mask], 0.0)
        np.testing.assert_allclose(grad[mask] if masked == "zeros" else grad, expected[mask], **CLOSE)


# MaxSim

UNMASKED = ("colbert/nomask", "colbert/all_negative_nomask", "colbert/ties")
MASKED = tuple(
    f"colbert/{name}" for name in ("dmask_prefix", "dmask_holes", "qmask_dmask", "all_negative_dmask", "empty_document")
)


@pytest.mark.parametrize("case", UNMASKED)
def test_scores_and_gradients_without_masks_agree(case: str) -> None:
    queries, documents = padded(case, "q"), padded(case, "d")
    np.testing.assert_allclose(reference.maxsim_all_pairs(queries, documents), golden(case, "scores"), **CLOSE)
    assert_gradients(case, reference.maxsim_all_pairs_gradients(queries, documents, golden(case, "w")), masked="zeros")


@pytest.mark.parametrize("case", MASKED)
def test_pylate_scores_a_masked_token_as_a_token_of_zeros(case: str) -> None:
    queries, documents = zeroed(case, "q"), zeroed(case, "d")
    np.testing.assert_allclose(reference.maxsim_all_pairs(queries, documents), golden(case, "scores"), **CLOSE)
    assert_gradients(case, reference.maxsim_all_pairs_gradients(queries, documents, golden(case, "w")), masked="zeros")


@pytest.mark.parametrize("case", [*MASKED, "colbert_class/qmask_dmask"])
def test_scores_of_absent_tokens_differ_where_zero_won_and_by_what_it_won(case: str) -> None:
    queries, documents = live(case, "q"), live(case, "d")
    scores = reference.maxsim_all_pairs(queries, documents)
    for j, document in enumerate(documents):
        if not len(document):
            assert np.all(np.isneginf(scores[:, j]))
            np.testing.assert_array_equal(golden(case, "scores")[:, j], 0.0)
            continue
        some_masked = len(document) < padded(case, "d").lengths[j]
        for i, query in enumerate(queries):
            best = (query @ document.T).max(axis=1)
            lifted = np.maximum(-best, 0.0).sum() if some_masked else 0.0
            assert golden(case, "scores")[i, j] == pytest.approx(scores[i, j] + lifted, rel=1e-5, abs=1e-5)


def test_the_golden_cases_show_both_agreement_and_difference() -> None:
    """Without this, the test above could pass on cases in which zero never wins, or always does."""
    differences = {
        case: np.abs(reference.maxsim_all_pairs(live(case, "q"), live(case, "d")) - golden(case, "scores"))
        for case in MASKED
    }
    assert np.any(differences["colbert/dmask_holes"] < 1e-6)
    assert np.any(differences["colbert/dmask_holes"] > 0.1)
    assert differences["colbert/all_negative_dmask"].max() > 4.0
    assert np.isinf(differences["colbert/empty_document"]).sum() == len(golden("colbert/empty_document", "q"))


@pytest.mark.parametrize("case", ["colbert/bf16", "colbert/fp16"])
def test_low_precision_scores_agree_as_far_as_that_precision_goes(case: str) -> None:
    scores = reference.maxsim_all_pairs(zeroed(case, "q"), zeroed(case, "d"))
    np.testing.assert_allclose(scores, golden(case, "scores").astype(np.float32), rtol=2e-2, atol=2e-2)


def test_every_query_with_the_documents_of_all_queries() -> None:
    case = "colbert_class/qmask_dmask"
    queries, documents = zeroed(case, "q"), zeroed(case, "d")
    np.testing.assert_allclose(reference.maxsim_all_pairs(queries, documents), golden(case, "scores"), **CLOSE)
    assert_gradients(case, reference.maxsim_all_pairs_gradients(queries, documents, golden(case, "w")), masked="zeros")


def test_pairs_agree() -> None:
    queries, documents, rows = padded("pairwise/basic", "q"), padded("pairwise/basic", "d"), np.arange(4)
    scores = reference.maxsim_pairs(queries, documents, rows, rows)
    np.testing.assert_allclose(scores, golden("pairwise/basic", "scores"), **CLOSE)
    upstream = np.diag(golden("pairwise/basic", "w"))
    assert_gradients(
        "pairwise/basic", reference.maxsim_all_pairs_gradients(queries, documents, upstream), masked="zeros"
    )


def test_ragged_pairs_agree() -> None:
    queries, documents = (
        TokenEmbeddings(
            golden("pairwise/ragged", f"{side}_flat"), offsets_of(golden("pairwise/ragged", f"{side}_lens"))
        )
        for side in "qd"
    )
    scores = reference.maxsim_pairs(queries, documents, np.arange(3), np.arange(3))
    np.testing.assert_allclose(scores, golden("pairwise/ragged", "scores"), **CLOSE)


@pytest.mark.parametrize("case", ["kd/nomask", "kd/dmask", "kd/qmask_dmask"])
def test_each_query_with_its_own_documents(case: str) -> None:
    queries, documents, groups = zeroed(case, "q"), zeroed(case, "d"), offsets_of([3] * 4)
    scores = reference.maxsim_grouped(queries, documents, groups)
    np.testing.assert_allclose(scores, golden(case, "scores").ravel(), **CLOSE)
    grads = reference.maxsim_grouped_gradients(queries, documents, groups, golden(case, "w").ravel())
    assert_gradients(case, grads, masked="zeros")


# Reranking


def ragged(case: str, lengths: list[list[int]]) -> list[Embeddings]:
    """The documents of each query."""
    flat, own = golden(case, "d_flat"), []
    for counts in lengths:
        own.append(TokenEmbeddings(flat[: sum(counts)], offsets_of(counts)))
        flat = flat[sum(counts) :]
    return own


def with_zeros(documents: Embeddings) -> Embeddings:
    """As PyLate pads them: every document but the longest ends in zeros (one is as good as many)."""
    zero = np.zeros((1, documents.dimension), np.float32)
    longer = [
        tokens if len(tokens) == documents.lengths.max() else np.concatenate([tokens, zero]) for tokens in documents
    ]
    return TokenEmbeddings(np.concatenate(longer), offsets_of([len(tokens) for tokens in longer]))


@pytest.mark.parametrize(
    "case", ["rerank/ragged", "rerank/ties", "rerank/negative_short_document_gets_zero_from_padding"]
)
def test_rankings_of_padded_documents_agree(case: str) -> None:
    about = facts()[case]
    queries = TokenEmbeddings(golden(case, "q_flat"), offsets_of(about["q_lens"]))
    for query, documents in enumerate(ragged(case, about["d_lens"])):
        scores = reference.maxsim_all_pairs(queries.span(query, query + 1), with_zeros(documents))[0]
        ranking = Ranking.from_scores([DocumentId(str(each)) for each in about["documents_ids"][query]], scores)
        assert list(ranking.documents) == [str(hit["id"]) for hit in about["result"][query]]
        np.testing.assert_allclose(ranking.scores, [hit["score"] for hit in about["result"][query]], **CLOSE)


def test_padding_raises_the_score_of_a_short_document_and_we_do_not_pad() -> None:
    case = "rerank/negative_short_document_gets_zero_from_padding"
    queries = TokenEmbeddings(golden(case, "q_flat"), offsets_of(facts()[case]["q_lens"]))
    short, long = reference.maxsim_all_pairs(queries, ragged(case, facts()[case]["d_lens"])[0])[0]
    beside, alone = facts()[case]["result"][0], facts()["rerank/negative_short_document_alone"]["result"][0][0]
    assert (beside[0]["id"], beside[0]["score"]) == ("short", 0.0)
    assert short == pytest.approx(alone["score"], rel=1e-6)
    assert long == pytest.approx(beside[1]["score"], rel=1e-6)


# XTR


@pytest.mark.parametrize("case", cases("xtr/", "scores"))
def test_in_batch_xtr_agrees(case: str) -> None:
    queries, documents, k = live(case, "q"), live(case, "d"), int(golden(case, "k"))
    np.testing.assert_allclose(reference.xtr_all_pairs(queries, documents, k), golden(case, "scores"), **CLOSE)
    assert_gradients(case, reference.xtr_gradients(queries, documents, k, golden(case, "w")), masked="absent")


@pytest.mark.parametrize("case", cases("xtr_kd/", "scores"))
def test_xtr_of_each_querys_own_documents_is_a_part_of_the_matrix(case: str) -> None:
    queries, documents, k = live(case, "q"), live(case, "d"), int(golden(case, "k"))
    scores = reference.xtr_all_pairs(queries, documents, k)
    own = np.arange(12).reshape(4, 3)
    np.testing.assert_allclose(np.take_along_axis(scores, own, axis=1), golden(case, "scores"), **CLOSE)
    upstream = np.zeros((4, 12))
    np.put_along_axis(upstream, own, golden(case, "w"), axis=1)
    assert_gradients(case, reference.xtr_gradients(queries, documents, k, upstream), masked="absent")


def test_rankings_by_retrieved_tokens_agree() -> None:
    about = facts()["score_xtr/basic"]
    lengths = [len(documents) for documents in about["query_doc_ids"]]
    hits = TokenHits(
        [document for documents in about["query_doc_ids"] for document in documents],
        np.concatenate(about["query_scores"]),
        offsets_of(lengths),
        [0, len(lengths)],
    )
    ranking = reference.xtr_rankings(hits, about["k"])[0]
    assert list(ranking.documents) == [hit["id"] for hit in about["result"]]
    np.testing.assert_allclose(ranking.scores, [hit["score"] for hit in about["result"]], **CLOSE)


# Losses: the model is a table, token = table[id] / norm

BATCH = 6


def table() -> Floats:
    return golden("losses/inputs", "table").astype(np.float64)


class Side:
    """Queries or documents as the losses see them, and the way back from token gradients to the table."""

    def __init__(self, ids: NDArray[np.int64], live: Masks, *, masked: str) -> None:
        self.mask = live.ravel() if masked == "zeros" else np.ones(live.sum(), bool)
        self.ids = ids.ravel() if masked == "zeros" else ids[live]
        self.norms = np.linalg.norm(table()[self.ids], axis=1, keepdims=True)
        self.units = table()[self.ids] / self.norms
        lengths = [ids.shape[1]] * len(ids) if masked == "zeros" else live.sum(axis=1)
        self.embeddings = TokenEmbeddings(self.units * self.mask[:, None], offsets_of(lengths))

    def table_gradient(self, grad: Floats) -> Floats:
        """∂L/∂table through token = x / ‖x‖: what is along the token is lost, the rest is divided by the norm."""
        grad = grad * self.mask[:, None]
        along = np.sum(grad * self.units, axis=1, keepdims=True) * self.units
        total = np.zeros_like(table())
        np.add.at(total, self.ids, (grad - along) / self.norms)
        return total


def queries_of(name: str, *, masked: str = "zeros") -> Side:
    attention = golden("losses/inputs", "q_attn").astype(bool)
    return Side(
        golden("losses/inputs", "q_ids"), attention if "dqe0" in name else np.ones_like(attention), masked=masked
    )


def documents_of(name: str, *, masked: str = "zeros") -> Side:
    if "distillation" in name:
        ids, attention = (golden("losses/kd_inputs", field) for field in ("ids", "attn"))
    else:
        negatives = int(name.split("neg")[1][0]) if "neg" in name else 1
        ids, attention = (
            np.stack([golden("losses/inputs", f"d{slot}_{field}") for slot in range(negatives + 1)], axis=1).reshape(
                -1, 8
            )
            for field in ("ids", "attn")
        )
    return Side(ids, attention.astype(bool) & ~np.isin(ids, golden("losses/inputs", "skiplist")), masked=masked)


def contrastive_of(name: str) -> tuple[float, Floats]:
    """Loss and table gradient, means over queries, with masked tokens as PyLate sees them."""
    queries, documents = queries_of(name), documents_of(name)
    targets = Targets(offsets_of([len(documents.embeddings) // BATCH] * BATCH))
    temperature = float(name.split("_T")[1].split("_")[0])
    loss, *grads = reference.through_maxsim(
        lambda scores: reference.contrastive(scores, targets, temperature), queries.embeddings, documents.embeddings
    )
    return loss, queries.table_gradient(grads[0]) + documents.table_gradient(grads[1])


def assert_table_gradient(name: str, gradient: Floats) -> None:
    expected = golden(f"losses/{name}", "grad_table")
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [case.removeprefix("losses/") for case in cases("losses/contrastive_T", "loss")])
def test_contrastive_loss_and_gradient_agree(name: str) -> None:
    queries = BATCH if name.endswith("_sum") else 1
    loss, gradient = contrastive_of(name)
    assert queries * loss == pytest.approx(float(golden(f"losses/{name}", "loss")), rel=1e-5)
    assert_table_gradient(name, queries * gradient)


@pytest.mark.parametrize("name", [case.removeprefix("losses/") for case in cases("losses/cached_T", "loss")])
def test_pylates_cached_loss_agrees_and_its_gradient_is_that_of_the_sum(name: str) -> None:
    """The gradient of a mean over 6 queries is a sixth of what PyLate's cached loss gives; of a sum, all of it."""
    loss, gradient = contrastive_of(name)
    returned = BATCH if name.endswith("_sum") else 1
    assert returned * loss == pytest.approx(float(golden(f"losses/{name}", "loss")), rel=1e-5)
    assert_table_gradient(name, BATCH * gradient)


@pytest.mark.parametrize("name", [case.removeprefix("losses/") for case in cases("losses/distillation_norm", "loss")])
def test_distillation_loss_and_gradient_agree(name: str) -> None:
    queries, documents, groups = queries_of(name), documents_of(name), offsets_of([3] * BATCH)
    targets = Targets(groups, golden("losses/kd_inputs", "labels").ravel())
    student = PYLATE_STUDENT if "norm1" in name else AS_IS
    loss, *grads = reference.through_maxsim_grouped(
        lambda scores: reference.distillation(scores, targets, student=student),
        queries.embeddings,
        documents.embeddings,
        groups,
    )
    summed = BATCH if "avg0" in name else 1
    assert summed * loss == pytest.approx(float(golden(f"losses/{name}", "loss")), rel=1e-5)
    assert_table_gradient(name, summed * (queries.table_gradient(grads[0]) + documents.table_gradient(grads[1])))


def xtr_choices(name: str, queries: Embeddings, documents: Embeddings, live: Masks) -> Masks:
    """Which live document tokens (S, T) torch's topk chose for each query token; checked to be k best ones."""
    chosen = golden(f"losses/{name}", "retrieved").reshape(len(queries.tokens), -1)
    found = queries.tokens @ documents.tokens.T
    assert not chosen[:, ~live].any()
    assert np.all(chosen.sum(axis=1) == 16)
    chosen = chosen[:, live]
    lowest_kept = np.where(chosen, found, np.inf).min(axis=1)
    highest_left = np.where(chosen, -np.inf, found).max(axis=1)
    assert np.all(lowest_kept >= highest_left - 1e-6)
    assert np.any(np.abs(lowest_kept - highest_left) < 1e-6), "no ties: the choice need not be given"
    return chosen


@pytest.mark.parametrize("name", ["contrastive_xtr_k16", "distillation_xtr_k16"])
def test_losses_of_xtr_scores_agree_once_ties_are_broken_as_torch_broke_them(name: str) -> None:
    """In-batch XTR is the mean, over the query tokens that retrieved any, of MaxSim on retrieved tokens."""
    queries, documents = queries_of(name, masked="absent"), documents_of(name, masked="absent")
    chosen = xtr_choices(name, queries.embeddings, documents.embeddings, documents_of(name).mask)
    owners = np.repeat(np.arange(BATCH), queries.embeddings.lengths)
    every = [TokenEmbeddings(token[None], [0, 1]) for token in queries.embeddings.tokens]
    kept = [reference.keep(documents.embeddings, row) for row in chosen]
    parts = np.concatenate([reference.maxsim_all_pairs(one, own) for one, own in zip(every, kept, strict=True)])
    retrieved = np.isfinite(parts)
    counts = np.stack([retrieved[owners == i].sum(axis=0) for i in range(BATCH)])
    sums = np.stack([np.where(retrieved, parts, 0.0)[owners == i].sum(axis=0) for i in range(BATCH)])
    loss, upstream = loss_of_xtr(name, sums / np.maximum(counts, 1))
    grad_queries, grad_documents = np.zeros_like(queries.units), np.zeros_like(documents.units)
    for s, (one, own) in enumerate(zip(every, kept, strict=True)):
        share = (upstream / np.maximum(counts, 1))[owners[s]][None]
        grad, grad_own = reference.maxsim_all_pairs_gradients(one, own, share)
        grad_queries[s] = grad[0]
        grad_documents[chosen[s]] += grad_own
    assert loss == pytest.approx(float(golden(f"losses/{name}", "loss")), rel=1e-5)
    assert_table_gradient(name, queries.table_gradient(grad_queries) + documents.table_gradient(grad_documents))


def loss_of_xtr(name: str, scores: Floats) -> tuple[float, Floats]:
    groups = offsets_of([scores.shape[1] // BATCH] * BATCH)
    if "contrastive" in name:
        return reference.contrastive(scores, Targets(groups))
    rows, columns = np.repeat(np.arange(BATCH), np.diff(groups)), np.arange(scores.shape[1])
    targets = Targets(groups, golden("losses/kd_inputs", "labels").ravel())
    loss, own = reference.distillation(scores[rows, columns], targets, student=PYLATE_STUDENT)
    upstream = np.zeros_like(scores)
    upstream[rows, columns] = own
    return loss, upstream


# Pooling


@pytest.mark.parametrize("factor", [2, 3])
def test_pooled_tokens_agree(factor: int) -> None:
    case = f"pool/f{factor}"
    tokens = TokenEmbeddings(golden(case, "inp"), offsets_of(golden(case, "in_lens")))
    pooled = reference.pool(tokens, factor, flavour="pylate")
    np.testing.assert_array_equal(pooled.lengths, golden(case, "out_lens"))
    np.testing.assert_allclose(pooled.tokens, golden(case, "out"), **CLOSE)


@pytest.mark.parametrize(("case", "factor", "protected"), [("pool2", 2, 1), ("pool3_protect0", 3, 0)])
def test_pooled_documents_agree(case: str, factor: int, protected: int) -> None:
    tokens = TokenEmbeddings(golden("encode/documents", "emb_flat"), offsets_of(golden("encode/documents", "lens")))
    pooled = reference.pool(tokens, factor, protected=protected, flavour="pylate")
    np.testing.assert_array_equal(pooled.lengths, golden(f"encode/documents_{case}", "lens"))
    np.testing.assert_allclose(pooled.tokens, golden(f"encode/documents_{case}", "emb_flat"), **CLOSE)


@pytest.mark.parametrize("factor", [2, 3])
def test_our_own_pooling_makes_the_same_clusters_of_length_1(factor: int) -> None:
    case = f"pool/f{factor}"
    tokens = TokenEmbeddings(golden(case, "inp"), offsets_of(golden(case, "in_lens")))
    theirs = TokenEmbeddings(golden(case, "out"), offsets_of(golden(case, "out_lens")))
    for ours, them in zip(reference.pool(tokens, factor), theirs, strict=True):
        np.testing.assert_array_equal(ours[:1], them[:1])
        scaled = them[1:] / np.linalg.norm(them[1:], axis=1, keepdims=True)
        assert len(ours) == len(them)
        same = ours[1:] @ scaled.T > 1 - 1e-5
        np.testing.assert_array_equal(same.sum(axis=0), 1)
        np.testing.assert_array_equal(same.sum(axis=1), 1)
