"""The operations as torch sees them: registered right, traced whole, exported, differentiated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lateinteraction import kernels
from lateinteraction.kernels import library
from lateinteraction.kernels.operands import Codec, Compressed, Listed, Tokens


def tokens(rows: int, spans: list[list[int]], *, gradient: bool = False) -> Tokens:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, 8, generator=generator).requires_grad_(gradient)
    return Tokens(values, torch.tensor(spans), max(end - start for start, end in spans))


QUERIES, DOCUMENTS = tokens(5, [[0, 2], [2, 5]], gradient=True), tokens(9, [[4, 9], [0, 4], [4, 4]], gradient=True)
PAIRS = torch.tensor([[0, 1], [1, 0], [1, 1]])
CENTROIDS = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=1)
CODEC = Codec(CENTROIDS, torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-0.7, -0.2, 0.2, 0.7]))
CODES = torch.arange(9, dtype=torch.int32) % 6
LISTED = Listed(
    torch.tensor([0, 2, 4, 1, 2], dtype=torch.uint16),
    torch.tensor([[[0, 3], [3, 5]], [[2, 2], [1, 4]]]),
    torch.tensor([0, 4]),
)
SCORES = CENTROIDS @ QUERIES.values.detach().mT


def compressed() -> Compressed:
    residuals, norms = kernels.residual_encode(DOCUMENTS.values.detach(), CODES, CODEC)
    return Compressed(CODES, residuals, norms, DOCUMENTS.spans)


def detached(each: Tokens) -> Tokens:
    return each._replace(values=each.values.detach())


def winners() -> Tensor:
    return kernels.maxsim_all_pairs_winners(detached(QUERIES), detached(DOCUMENTS))[1]


def pair_winners() -> Tensor:
    return kernels.maxsim_pairs_winners(detached(QUERIES), detached(DOCUMENTS), PAIRS)[1]


SAMPLES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "maxsim_all_pairs": lambda: (*detached(QUERIES), *detached(DOCUMENTS)),
    "maxsim_all_pairs_winners": lambda: (*QUERIES, *DOCUMENTS, False),
    "maxsim_all_pairs_gradients": lambda: (
        *detached(QUERIES), *detached(DOCUMENTS), winners(), torch.ones(2, 3), False,
    ),
    "maxsim_pairs": lambda: (*detached(QUERIES), *detached(DOCUMENTS), PAIRS),
    "maxsim_pairs_winners": lambda: (*QUERIES, *DOCUMENTS, PAIRS, False),
    "maxsim_pairs_gradients": lambda: (
        *detached(QUERIES), *detached(DOCUMENTS), PAIRS, pair_winners(), torch.ones(3), False,
    ),
    "maxsim_top_k": lambda: (*detached(QUERIES), *detached(DOCUMENTS), 2),
    "xtr_all_pairs": lambda: (*QUERIES, *DOCUMENTS, 3),
    "inverse_norms": lambda: (DOCUMENTS.values.detach(),),
    "centroid_scores": lambda: (QUERIES.values.detach(), CENTROIDS),
    "quantise_table": lambda: (SCORES,),
    "probe": lambda: (SCORES, 2),
    "listed_scores": lambda: (*LISTED, torch.tensor([[0.5, 0.25], [1.0, 0.0]]), 9),
    "centroid_interaction": lambda: (*kernels.quantise_table(SCORES), QUERIES.spans, CODES, DOCUMENTS.spans),
    "residual_maxsim": lambda: (*detached(QUERIES), SCORES, *CODEC, *compressed()),
    "kmeans_assign": lambda: (DOCUMENTS.values.detach(), CENTROIDS),
    "kmeans_update": lambda: (DOCUMENTS.values.detach(), CODES, CENTROIDS),
    "residual_encode": lambda: (DOCUMENTS.values.detach(), CODES, *CODEC),
    "residual_decode": lambda: (*CODEC, CODES, compressed().residuals),
}  # fmt: skip
VARIANTS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "all pairs of float64": ("maxsim_all_pairs", lambda: (*wide(QUERIES), *wide(DOCUMENTS))),
    "winners of float64": ("maxsim_all_pairs_winners", lambda: (*wide(QUERIES), *wide(DOCUMENTS), False)),
    "pairs of int8": ("maxsim_pairs", lambda: (*bytes_of(QUERIES), *bytes_of(DOCUMENTS), PAIRS)),
    "best of int8": ("maxsim_top_k", lambda: (*bytes_of(QUERIES), *bytes_of(DOCUMENTS), 2)),
    "no documents": ("maxsim_all_pairs", lambda: (*detached(QUERIES), *nothing())),
    "winners of no documents": ("maxsim_all_pairs_winners", lambda: (*detached(QUERIES), *nothing(), False)),
    "no pairs": ("maxsim_pairs", lambda: (*detached(QUERIES), *detached(DOCUMENTS), PAIRS[:0])),
    "the best of none": ("maxsim_top_k", lambda: (*detached(QUERIES), *nothing(), 2)),
    "norms of float64": ("inverse_norms", lambda: (DOCUMENTS.values.detach().double(),)),
    "encoding of float64": ("residual_encode", lambda: (DOCUMENTS.values.detach().double(), CODES, *CODEC)),
    "encoding of nothing": ("residual_encode", lambda: (DOCUMENTS.values.detach()[:0], CODES[:0], *CODEC)),
}


def wide(each: Tokens) -> Tokens:
    return each._replace(values=each.values.detach().double())


def bytes_of(each: Tokens) -> Tokens:
    values = (each.values.detach() * 40).clamp(-127, 127).to(torch.int8)
    return each._replace(values=values, scales=torch.full((len(values),), 1 / 40))


def nothing() -> Tokens:
    return Tokens(torch.empty(0, 8), torch.empty((0, 2), dtype=torch.int64), 0)


DIFFERENTIABLE = {"maxsim_all_pairs_winners", "maxsim_pairs_winners", "xtr_all_pairs"}


def test_every_operation_has_a_sample() -> None:
    registered = {name for name, each in vars(library).items() if isinstance(each, library.Operation)}
    assert registered == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_an_operation_is_registered_as_torch_demands(name: str) -> None:
    """Schema, gradient registration and shapes; the traced forward and backward only where there is a gradient."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(getattr(library, name).operator, SAMPLES[name](), test_utils=checks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_so_for_every_precision_and_for_nothing(variant: str) -> None:
    name, sample = VARIANTS[variant]
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(getattr(library, name).operator, sample(), test_utils=checks)


@pytest.mark.parametrize("name", sorted(DIFFERENTIABLE))
def test_an_operation_with_gradients_is_traced_through_both_ways(name: str) -> None:
    torch.library.opcheck(getattr(library, name).operator, SAMPLES[name](), test_utils=["test_aot_dispatch_static"])


# What inductor warns of is its own use of torch.
INDUCTOR = (
    pytest.mark.deep,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
)


def loss(query_values: Tensor, document_values: Tensor) -> Tensor:
    """Everything a training step asks for: tokens from a padded batch, scores of all pairs and of some."""
    queries = kernels.padded(query_values)
    documents = kernels.padded(document_values, document_values[..., 0] > -0.5)
    scores = kernels.maxsim_all_pairs(queries, documents, unit=True)
    chosen = kernels.maxsim_pairs(queries, documents, PAIRS)
    return (
        scores.softmax(dim=1).diagonal().log().sum() + chosen.sum() + kernels.xtr_all_pairs(queries, documents, 4).sum()
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=INDUCTOR)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_whole_step_compiles_into_one_graph(backend: str, dynamic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in ((2, 3, 8), (2, 5, 8))]
    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=dynamic)
    results = []
    for call in (loss, compiled):
        inputs = [each.clone().requires_grad_() for each in given]
        value = call(*inputs)
        value.backward()
        results.append([value.detach(), *(each.grad for each in inputs)])
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain)


def test_scoring_can_be_exported() -> None:
    class Score(torch.nn.Module):
        def forward(self, query_values: Tensor, document_values: Tensor) -> Tensor:
            return kernels.maxsim_all_pairs(kernels.padded(query_values), kernels.padded(document_values))

    inputs = torch.randn(2, 3, 8), torch.randn(4, 5, 8)
    program = torch.export.export(Score(), inputs)
    assert "lateinteraction.maxsim_all_pairs" in str(program.graph)
    assert torch.equal(program.module()(*inputs), Score()(*inputs))


def test_autocast_on_the_cpu_changes_nothing() -> None:
    plain = kernels.maxsim_all_pairs(detached(QUERIES), detached(DOCUMENTS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernels.maxsim_all_pairs(detached(QUERIES), detached(DOCUMENTS)), plain)
        assert torch.equal(kernels.maxsim_pairs(detached(QUERIES), detached(DOCUMENTS), PAIRS), plain[tuple(PAIRS.T)])


def test_winners_are_saved_in_sixteen_bits_and_no_similarity_is() -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        kernels.maxsim_all_pairs(QUERIES, DOCUMENTS)
    assert sorted(str(each.dtype) for each in saved) == ["torch.float32"] * 2 + ["torch.int16"] + ["torch.int64"] * 2
    assert sum(each.numel() for each in saved if each.is_floating_point()) == (5 + 9) * 8


def operators_in(call: Callable[[], object]) -> set[str]:
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages() if event.key.startswith("lateinteraction::")}


def test_who_wants_no_gradient_pays_for_none() -> None:
    """Neither for winners nor for the operator, whose first call imports torch's compiler."""
    with torch.no_grad():
        assert operators_in(lambda: kernels.maxsim_all_pairs(QUERIES, DOCUMENTS)) == set()
    assert operators_in(lambda: kernels.maxsim_all_pairs(detached(QUERIES), detached(DOCUMENTS))) == set()
    asked = {"lateinteraction::maxsim_all_pairs_winners"}
    assert operators_in(lambda: kernels.maxsim_all_pairs(QUERIES, detached(DOCUMENTS))) == asked
    assert operators_in(lambda: kernels.maxsim_all_pairs(detached(QUERIES), DOCUMENTS)) == asked


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own formulas
def test_a_forward_mode_derivative_is_refused_and_never_lost() -> None:
    values = QUERIES.values.detach()

    def scores(each: Tensor) -> Tensor:
        return kernels.maxsim_all_pairs(QUERIES._replace(values=each), detached(DOCUMENTS))

    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        scores(forward_ad.make_dual(values, torch.ones_like(values)))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(scores, (values,), (torch.ones_like(values),))


def test_a_transform_of_torch_sees_the_operation() -> None:
    values = DOCUMENTS.values.detach()
    graph = make_fx(lambda each: kernels.maxsim_all_pairs(detached(QUERIES), DOCUMENTS._replace(values=each)))(values)
    assert "lateinteraction.maxsim_all_pairs" in str(graph.graph)


def test_an_operand_without_a_gradient_formula_says_so() -> None:
    """Instead of a result that is silently cut off from what it came from."""
    scores = kernels.centroid_scores(QUERIES.values.detach(), CENTROIDS.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="no autograd formula"):
        scores.sum().backward()


def test_scoring_imports_no_compiler_of_torch() -> None:
    script = (
        "import sys, torch; from lateinteraction import kernels\n"
        "tokens = kernels.padded(torch.ones(2, 3, 4))\n"
        "kernels.maxsim_all_pairs(tokens, tokens)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'numba') if name in sys.modules])\n"
    )
    kernels.maxsim_all_pairs(detached(QUERIES), detached(DOCUMENTS))  # compiled and stored, so that numba is not needed
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
