"""What must not reach a kernel, which reads by address: what does not fit is refused, what is strided laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from lateinteraction import kernels
from lateinteraction.kernels import library
from lateinteraction.kernels.dispatch import FormName
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Tokens

TOKENS = Tokens(torch.randn(6, 8), torch.tensor([[0, 2], [2, 6]]), 4)
NARROW = Tokens(torch.randn(6, 4), torch.tensor([[0, 6]]), 6)
CODEC = Codec(torch.randn(5, 8), torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-0.7, -0.2, 0.2, 0.7]))
CODES = torch.tensor([0, 1, 2, 3, 4, 0], dtype=torch.int32)
STORED = Compressed(CODES, torch.zeros(6, 2, dtype=torch.uint8), torch.ones(6), TOKENS.spans)
SCORES = torch.randn(5, 6)


@pytest.fixture(params=["eager", "cpu", "gpu"])
def form(request: pytest.FixtureRequest) -> Iterator[FormName]:
    with kernels.use(request.param):
        yield request.param


MISFITS: dict[str, Callable[[], object]] = {
    "widths of tokens": lambda: kernels.maxsim_all_pairs(TOKENS, NARROW),
    "widths of listed tokens": lambda: kernels.maxsim_pairs(TOKENS, NARROW, torch.tensor([[0, 0]])),
    "widths of centroids": lambda: kernels.centroid_scores(NARROW.values, CODEC.centroids),
    "widths to assign": lambda: kernels.kmeans_assign(NARROW.values, CODEC.centroids),
    "a code too few": lambda: kernels.kmeans_update(TOKENS.values, CODES[1:], CODEC.centroids),
    "a code too many": lambda: kernels.residual_encode(TOKENS.values[1:], CODES, CODEC),
    "bytes too few": lambda: kernels.residual_decode(CODEC, CODES, STORED.residuals[:, :1]),
    "a table of other tokens": lambda: kernels.residual_maxsim(TOKENS, SCORES[:, 1:], CODEC, STORED),
    "a table of other centroids": lambda: kernels.residual_maxsim(TOKENS, SCORES[1:], CODEC, STORED),
    "an inverse norm too few": lambda: kernels.residual_maxsim(
        TOKENS, SCORES, CODEC, STORED._replace(inverse_norms=torch.ones(5))
    ),
    "steps without lows": lambda: kernels.centroid_interaction(
        CentroidTable(SCORES.to(torch.uint8), torch.ones(6)), TOKENS.spans, CODES, TOKENS.spans
    ),
    "no best document": lambda: kernels.maxsim_top_k(TOKENS, TOKENS, 0),
    "no retrieved token": lambda: kernels.xtr_all_pairs(TOKENS, TOKENS, -1),
    "no probe": lambda: kernels.probe(SCORES, 0),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_is_refused(form: FormName, what: str) -> None:
    with pytest.raises(ValueError, match=r"\d|neither"):
        MISFITS[what]()


def test_narrow_spans_are_refused(form: FormName) -> None:
    """Addresses would be computed in as many bits."""
    with pytest.raises(TypeError, match="int64"):
        kernels.maxsim_all_pairs(TOKENS, TOKENS._replace(spans=TOKENS.spans.int()))


def test_winners_and_gradients_of_other_scores_are_refused(form: FormName) -> None:
    winners = torch.zeros(6, 2, dtype=torch.int16)
    for wrong, upstream in ((winners[1:], torch.ones(2, 2)), (winners, torch.ones(2, 1))):
        with pytest.raises(ValueError, match=r"of .* scores"):
            library.maxsim_all_pairs_gradients(*TOKENS, *TOKENS, wrong, upstream, False)
    pairs = torch.tensor([[0, 1]])
    for wrong, upstream in ((winners[:1], torch.ones(1)), (winners[:1, :1].expand(1, 4), torch.ones(2))):
        with pytest.raises(ValueError, match="of 1 pairs"):
            library.maxsim_pairs_gradients(*TOKENS, *TOKENS, pairs, wrong, upstream, False)


BEYOND: dict[str, Callable[[torch.Tensor], object]] = {
    "interaction": lambda codes: kernels.centroid_interaction(CentroidTable(SCORES), TOKENS.spans, codes, TOKENS.spans),
    "residual": lambda codes: kernels.residual_maxsim(TOKENS, SCORES, CODEC, STORED._replace(codes=codes)),
    "update": lambda codes: kernels.kmeans_update(TOKENS.values, codes, CODEC.centroids),
    "encode": lambda codes: kernels.residual_encode(TOKENS.values, codes, CODEC),
    "decode": lambda codes: kernels.residual_decode(CODEC, codes, STORED.residuals),
}


@pytest.mark.parametrize("code", [-1, 5, 2**31 - 1])
@pytest.mark.parametrize("what", BEYOND)
def test_a_code_of_no_centroid_is_refused_on_the_host(what: str, code: int) -> None:
    codes = CODES.clone()
    codes[3] = code
    with pytest.raises(IndexError):
        BEYOND[what](codes)


def test_a_code_of_a_row_that_is_in_no_span_is_nobodys() -> None:
    codes = torch.cat([CODES, torch.tensor([-7], dtype=torch.int32)])
    whole = kernels.centroid_interaction(CentroidTable(SCORES), TOKENS.spans, CODES, TOKENS.spans)
    assert torch.equal(kernels.centroid_interaction(CentroidTable(SCORES), TOKENS.spans, codes, TOKENS.spans), whole)


@pytest.mark.parametrize("call", [kernels.maxsim_all_pairs, kernels.maxsim_all_pairs_winners])
def test_an_item_longer_than_was_said_is_refused_on_the_host(call: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="4 tokens, where the longest was said to have 3"):
        call(TOKENS, TOKENS._replace(longest=3))


@pytest.mark.parametrize("spans", [[[0, 7]], [[-1, 2]], [[3, 2]]])
def test_spans_of_rows_that_are_not_there_are_refused_on_the_host(spans: list[list[int]]) -> None:
    wrong = torch.tensor(spans)
    with pytest.raises(IndexError):
        kernels.maxsim_all_pairs(TOKENS, TOKENS._replace(spans=wrong))
    with pytest.raises(IndexError):
        kernels.centroid_interaction(CentroidTable(SCORES), TOKENS.spans, CODES, wrong)
    with pytest.raises(IndexError):
        kernels.residual_maxsim(TOKENS, SCORES, CODEC, STORED._replace(spans=wrong))


def test_strided_operands_are_laid_out(form: FormName) -> None:
    wide, tall = torch.randn(6, 16), torch.randn(8, 5).mT
    scores = kernels.centroid_scores(wide[:, :8], tall)
    torch.testing.assert_close(scores, tall @ wide[:, :8].mT, rtol=1e-5, atol=1e-5)
    assert torch.equal(kernels.probe(scores.mT.contiguous().mT, 2), kernels.probe(scores, 2))
    assert torch.equal(kernels.kmeans_assign(wide[:, :8], tall), kernels.kmeans_assign(wide[:, :8].contiguous(), tall))
    table = torch.rand(6, 2)
    scaled = TOKENS._replace(scales=table[:, 0])
    plain = TOKENS._replace(scales=table[:, 0].contiguous())
    assert torch.equal(kernels.maxsim_all_pairs(TOKENS, scaled), kernels.maxsim_all_pairs(TOKENS, plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_precision_changes_nothing(form: FormName, dtype: torch.dtype) -> None:
    def run() -> list[torch.Tensor]:
        encoded = kernels.residual_encode(TOKENS.values, CODES, CODEC)
        table = kernels.quantise_table(SCORES)
        return [
            kernels.maxsim_all_pairs(TOKENS, TOKENS),
            kernels.maxsim_top_k(TOKENS, TOKENS, 1)[0],
            kernels.centroid_scores(TOKENS.values, CODEC.centroids),
            kernels.centroid_interaction(table, TOKENS.spans, CODES, TOKENS.spans),
            kernels.residual_maxsim(TOKENS, SCORES, CODEC, STORED),
            kernels.kmeans_update(TOKENS.values, CODES, CODEC.centroids),
            kernels.residual_decode(CODEC, CODES, encoded[0]),
            *encoded,
        ]

    plain = run()
    torch.set_default_dtype(dtype)
    try:
        found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_are_computed_by_the_form_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the block that forced it has ended, and another form is forced that could not."""
    values = torch.randn(6, 8, dtype=torch.float32, requires_grad=True)
    with kernels.use("eager"):
        scores = kernels.maxsim_all_pairs(TOKENS._replace(values=values), TOKENS)
    monkeypatch.delenv("TRITON_INTERPRET")
    with kernels.use("gpu"):
        scores.sum().backward()
    assert values.grad is not None
