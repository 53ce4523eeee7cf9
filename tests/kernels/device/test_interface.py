"""What callers use, where its device matters: autograd, autocast, masks, compilers, several devices, odd tensors.

Each test has one body; on the host it runs too, so that it is right before there is a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from every_operation import CALLS, OPERATIONS, World, check, eighths, make
from torch import Tensor

from lateinteraction import kernels
from lateinteraction.kernels.dispatch import load
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import Tokens

gpu = pytest.mark.gpu
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
every = pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*call, id=f"{call[0]}, {str(call[1]).removeprefix('torch.')}") for call in CALLS],
)

SCORES: dict[str, Callable[[Tokens, Tokens, Tensor], Tensor]] = {
    "all pairs": lambda queries, documents, _: kernels.maxsim_all_pairs(queries, documents),
    "all pairs, unit": lambda queries, documents, _: kernels.maxsim_all_pairs(queries, documents, unit=True),
    "pairs": lambda queries, documents, pairs: kernels.maxsim_pairs(queries, documents, pairs),
    "pairs, unit": lambda queries, documents, pairs: kernels.maxsim_pairs(queries, documents, pairs, unit=True),
    "xtr": lambda queries, documents, _: kernels.xtr_all_pairs(queries, documents, 7),
}
differentiable = pytest.mark.parametrize("name", SCORES)


def gradients(world: World, scores: Callable[[Tokens, Tokens, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Scores and, from weights that are multiples of 1/8, the gradients of both sides; all on the host."""
    leaves = [each.values.detach().clone().requires_grad_() for each in (world.queries, world.documents)]
    sides = (world.queries._replace(values=leaves[0]), world.documents._replace(values=leaves[1]))
    found = scores(*sides, world.pairs)
    weights = (torch.arange(found.numel(), device=found.device) % 17 / 8 - 1).view(found.shape)
    (found * weights).sum().backward()
    grads = [cast("Tensor", leaf.grad) for leaf in leaves]
    return tuple(each.detach().cpu() for each in (found, *grads))


def expected_gradients(world: World, scores: Callable[[Tokens, Tokens, Tensor], Tensor]) -> tuple[Tensor, ...]:
    with kernels.use("eager"):
        return gradients(world, scores)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], *, exact: bool) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if exact else 2e-5, atol=0 if exact else 2e-5)


@everywhere
@differentiable
def test_autograd_gives_what_torch_operations_give(device: str, name: str) -> None:
    """On a device gradients are computed in a thread of autograd's own."""
    world = make(2, queries=(4, 20), documents=(20, 45), width=40)
    found = gradients(world.on(device), SCORES[name])
    same(found, expected_gradients(world, SCORES[name]), exact=name in ("all pairs", "pairs"))


@gpu
@differentiable
def test_autograd_follows_the_stream_of_the_scores(name: str) -> None:
    world = make(3, queries=(4, 20), documents=(60, 45), width=40)
    there = world.on("cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = gradients(there, SCORES[name])
    torch.cuda.current_stream().wait_stream(side)
    same(found, expected_gradients(world, SCORES[name]), exact=name in ("all pairs", "pairs"))


@everywhere
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["all pairs", "pairs"])
def test_autocast_multiplies_in_its_precision_on_a_device_and_changes_nothing_on_the_host(
    device: str, half: torch.dtype, name: str
) -> None:
    world = make(4, queries=(3, 20), documents=(9, 30), width=24).on(device)
    fine = 1 + 2.0**-12  # which no half precision holds
    sides = [each._replace(values=each.values * fine) for each in (world.queries, world.documents)]
    leaves = [each._replace(values=each.values.requires_grad_()) for each in sides]
    with torch.autocast(device, dtype=half):
        found = SCORES[name](*leaves, world.pairs)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert [cast("Tensor", each.values.grad).dtype for each in leaves] == [torch.float32] * 2
    if device == "cuda":
        sides = [each._replace(values=each.values.detach().to(half)) for each in sides]
    with torch.no_grad():
        expected = SCORES[name](*sides, world.pairs)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-6)


@everywhere
def test_a_padded_batch_is_scored_by_its_mask_wherever_the_mask_keeps_tokens(device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    batches, masks = [], []
    for items, length in ((3, 12), (7, 30)):
        batches.append(eighths(generator, items, length, 16).to(device).requires_grad_())
        masks.append((torch.rand(items, length, generator=generator) < 0.6).to(device))
    found = kernels.maxsim_all_pairs(*(kernels.padded(*each) for each in zip(batches, masks, strict=True)))
    found.sum().backward()
    for i in range(3):
        for j in range(7):
            query, document = batches[0][i][masks[0][i]], batches[1][j][masks[1][j]]
            assert torch.equal(found[i, j], (query @ document.T).amax(dim=1).sum())
    for batch, mask in zip(batches, masks, strict=True):
        assert batch.grad is not None
        assert not batch.grad[~mask].any()
        assert batch.grad[mask].any()


@everywhere
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # which are left off, on purpose
@pytest.mark.timeout(600)  # the compiler that this is about takes its time
def test_a_compiled_loss_has_the_gradients_of_the_plain_one(device: str) -> None:
    world = make(6, queries=(4, 12), documents=(8, 25), width=32).on(device)

    def loss(query_values: Tensor, document_values: Tensor) -> Tensor:
        queries = world.queries._replace(values=query_values * 2)
        documents = world.documents._replace(values=document_values * 2)
        scores = kernels.maxsim_all_pairs(queries, documents)
        return (torch.where(scores.isinf(), 0.0, scores) * world.upstream).sum()

    torch.compiler.reset()
    backend = "inductor" if device == "cuda" else "aot_eager"  # on the host inductor builds C++ for a minute
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        leaves = [each.values.clone().requires_grad_() for each in (world.queries, world.documents)]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)


@gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_device_that_is_not_the_current_one_computes(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    world = make(7, width=40)
    with torch.cuda.device(0):
        found = OPERATIONS[name](load("gpu"), world.on("cuda:1"))
        assert {each.device for each in found} == {torch.device("cuda", 1)}
        assert torch.cuda.current_device() == 0
    check(name, found, OPERATIONS[name](load("eager"), world))


def changed(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same operands, each tensor replaced by one that lies otherwise in memory."""
    if isinstance(given, World):
        return World(**{name: changed(getattr(given, name), change) for name in World.__annotations__})
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, tuple):
        return type(given)(*(changed(each, change) for each in given))
    return given


def unaligned(tensor: Tensor) -> Tensor:
    """Contiguous, from the second entry of its memory on."""
    room = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    return room.copy_(tensor)


def strided(tensor: Tensor) -> Tensor:
    """Every second entry of its memory."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def form_of(device: str) -> Form:
    return load("gpu" if device == "cuda" else "cpu")


@everywhere
@every
def test_tensors_may_begin_anywhere(device: str, name: str, dtype: torch.dtype) -> None:
    """Rows of 33 numbers, each at an address that its own size divides and nothing more."""
    world = make(8, dtype, queries=(3, 20), documents=(12, 40), width=33)
    found = OPERATIONS[name](form_of(device), changed(world.on(device), unaligned))
    check(name, found, OPERATIONS[name](load("eager"), world))


PUBLIC = [name for name in OPERATIONS if "gradients" not in name and "xtr" not in name]
"""What `kernels` offers as a form does; gradients it has from autograd, and of XTR the scores alone."""


@everywhere
@pytest.mark.parametrize("name", PUBLIC)
def test_tensors_may_have_any_strides(device: str, name: str) -> None:
    world = make(9, queries=(3, 20), documents=(12, 40), width=40)
    operands = changed(world.on(device), strided)
    assert not operands.queries.values.is_contiguous()
    found = OPERATIONS[name](cast("Form", kernels), operands)
    check(name, found, OPERATIONS[name](load("eager"), world))
