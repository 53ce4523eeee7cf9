"""Exact MaxSim by everybody: ours, torch as one writes it, `torch.compile`, and the two libraries of Triton kernels.

torch's own multiplies, takes maxima and sums, in pieces of the documents that keep the table of similarities below
2 GB, unless gradients are wanted, which need it whole. Of the libraries the call that their documentation names for the
shape is timed; both get tensors without padding, and no peer a shape that it cannot address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from attrs import frozen
from torch import Tensor

from benchmarks.cases.gpu.devices import Device, importable
from benchmarks.cases.gpu.shapes import BEST, DIMENSION, Dense
from lateinteraction import kernels
from lateinteraction.kernels.operands import Tokens

TABLE_VALUES = 2**30
"""Similarities that torch's own holds at a time."""
ADDRESSABLE = 2**31
"""Values that late-interaction-kernels 0.4.5 can address: its kernels count them in 32 bits."""
SAMPLE = 64
"""Documents, at either end, whose scores are checked."""
WITHIN = {"float32": 1e-5, "bfloat16": 1e-4, "float16": 1e-4, "int8": 2e-2}
"""How far scores may be apart, relative to the largest: products are exact but for eight bits, sums are float32."""
TORCH, COMPILED, LIK, FLASH = "torch", "torch.compile", "late-interaction-kernels", "flash-maxsim"

Outcome = tuple[Tensor, ...]
Contestant = Callable[[], Outcome]


@frozen
class Tensors:
    """Queries (Q, Lq, D) and documents (N, Ld, D), or (Q, K, Ld, D) of pairs, and what is asked of their gradients."""

    shape: Dense
    queries: Tensor
    documents: Tensor
    upstream: Tensor

    def step(self, score: Callable[[], Tensor]) -> Outcome:
        """Scores; where the shape learns, with the gradients of both."""
        if not self.shape.learns:
            return (score(),)
        self.queries.grad = self.documents.grad = None
        scores = score()
        scores.backward(self.upstream)
        assert self.queries.grad is not None
        assert self.documents.grad is not None
        return scores.detach(), self.queries.grad, self.documents.grad


def make(shape: Dense, device: Device) -> Tensors:
    """Random unit vectors, made in place a piece at a time."""
    generator = torch.Generator(device.name).manual_seed(0)
    dtype = torch.bfloat16 if shape.dtype == "int8" else getattr(torch, shape.dtype)
    made = []
    for rows in (shape.queries * shape.query_length, shape.all_documents * shape.document_length):
        values = torch.empty((rows, DIMENSION), dtype=dtype, device=device.name)
        for piece in values.split(2**20):
            drawn = torch.randn(piece.shape, generator=generator, device=device.name)
            piece.copy_(torch.nn.functional.normalize(drawn, dim=1))
        made.append(values)
    queries = made[0].view(shape.queries, shape.query_length, DIMENSION)
    counts = (shape.queries, shape.documents) if shape.own else (shape.documents,)
    documents = made[1].view(*counts, shape.document_length, DIMENSION)
    upstream = torch.randn(shape.queries, shape.documents, generator=generator, device=device.name)
    if shape.learns:
        queries.requires_grad_()
        documents.requires_grad_()
    return Tensors(shape, queries, documents, upstream)


def contestants(tensors: Tensors, device: Device) -> dict[str, Contestant]:
    """Who can compute this shape here; ours comes first and has no name of its own."""
    shape = tensors.shape
    found: dict[str, Contestant] = {"": ours(tensors)}
    if shape.dtype == "int8":
        return found
    for name, one_piece in ((TORCH, similarities_and_maxima), (COMPILED, device.compiled(similarities_and_maxima))):
        found[name] = _by_torch(tensors, one_piece)
    if importable(LIK) and tensors.documents.numel() < ADDRESSABLE and shape.dtype != "float32":
        found[LIK] = _by_late_interaction_kernels(tensors)
    if importable(FLASH) and shape.dtype != "float32":
        found[FLASH] = _by_flash_maxsim(tensors)
    return found


def ours(tensors: Tensors) -> Contestant:
    """The call of `kernels`, on views of the same tensors."""
    shape = tensors.shape
    queries, documents = tokens_of(tensors.queries), tokens_of(tensors.documents)
    if shape.dtype == "int8":
        small = [in_eight_bits(each) for each in (queries, documents)]
        return lambda: (kernels.maxsim_all_pairs(*small),)
    if shape.operation == "top":
        return lambda: kernels.maxsim_top_k(queries, documents, BEST)
    if not shape.own:
        return lambda: tensors.step(lambda: kernels.maxsim_all_pairs(queries, documents))
    places = torch.arange(shape.all_documents, device=tensors.queries.device)
    pairs = torch.stack([places // shape.documents, places], dim=1)
    return lambda: tensors.step(lambda: kernels.maxsim_pairs(queries, documents, pairs).view(tensors.upstream.shape))


def tokens_of(tensor: Tensor) -> Tokens:
    """Rows of a tensor (…, L, D) as items of L tokens."""
    length = tensor.shape[-2]
    values = tensor.view(-1, tensor.shape[-1])
    offsets = torch.arange(0, values.shape[0] + 1, length, device=tensor.device)
    return kernels.packed(values, offsets, length)


def in_eight_bits(tokens: Tokens) -> Tokens:
    """Each token's values in steps of its largest absolute value over 127."""
    values = tokens.values.float()
    scales = values.abs().amax(dim=1) / 127
    return tokens._replace(values=(values / scales[:, None]).round().char(), scales=scales)


def similarities_and_maxima(queries: Tensor, documents: Tensor) -> Tensor:
    """MaxSim (Q, N) as one writes it, of pairs (Q, K); summed in float32, or in float64 where that comes in."""
    table = torch.einsum("qsd,qntd->qnst" if documents.dim() == 4 else "qsd,ntd->qnst", queries, documents)
    return table.amax(-1).sum(-1, dtype=torch.promote_types(table.dtype, torch.float32))


def _by_torch(tensors: Tensors, one_piece: Callable[[Tensor, Tensor], Tensor]) -> Contestant:
    shape = tensors.shape
    if shape.learns or shape.own:
        return lambda: tensors.step(lambda: one_piece(tensors.queries, tensors.documents))
    rows = shape.queries * shape.query_length * shape.document_length
    pieces = tensors.documents.split(max(1, min(shape.documents, TABLE_VALUES // rows)))

    def scores() -> Tensor:
        return torch.cat([one_piece(tensors.queries, piece) for piece in pieces], dim=1)

    return _ranked(shape, scores)


def _ranked(shape: Dense, scores: Callable[[], Tensor]) -> Contestant:
    if shape.operation == "top":
        return lambda: tuple(scores().topk(min(BEST, shape.documents), dim=1))
    return lambda: (scores(),)


def _by_late_interaction_kernels(tensors: Tensors) -> Contestant:
    maxsim, shape = import_module("late_interaction_kernels").maxsim, tensors.shape
    if shape.learns:
        return lambda: tensors.step(lambda: maxsim(tensors.queries, tensors.documents))
    return _ranked(shape, lambda: maxsim(tensors.queries, tensors.documents))


def _by_flash_maxsim(tensors: Tensors) -> Contestant:
    flash = import_module("flash_maxsim")
    shape, queries, documents = tensors.shape, tensors.queries, tensors.documents
    if shape.learns:
        return lambda: tensors.step(
            lambda: flash.flash_maxsim_batched_train(queries, documents, shared_docs=not shape.own)
        )
    if shape.queries == 1 and not shape.own:
        return _ranked(shape, lambda: flash.flash_maxsim(queries[0], documents)[None])
    return _ranked(shape, lambda: flash.flash_maxsim_batched(queries, documents, shared_docs=not shape.own))


def check_ours(tensors: Tensors, found: Outcome) -> None:
    """Scores of documents at either end against float64; of the best, against the scores they stand for.

    Raises:
        AssertionError: they are wrong.
    """
    shape = tensors.shape
    if shape.operation == "top":
        assert bool((found[0].diff(dim=1) <= 0).all()), "the best documents are not in order"
        for query, places in enumerate(found[1]):
            _close(found[0][query], exact(tensors.queries[query : query + 1], tensors.documents[places])[0], 1e-4)
        return
    within = WITHIN[shape.dtype]
    for first, last in _ends(shape.documents):
        documents = tensors.documents[:, first:last] if shape.own else tensors.documents[first:last]
        _close(found[0][:, first:last], exact(tensors.queries, documents), within)
    for gradient in found[1:]:
        assert bool(gradient.isfinite().all()), "a gradient is not finite"


def check_gradients(tensors: Tensors) -> None:
    """Gradients of a corner of the batch against those of torch in float64. Near ties are rare enough for the norm."""
    if not tensors.shape.learns:
        return
    few = slice(0, 8)
    documents = tensors.documents[few, few] if tensors.shape.own else tensors.documents[few]
    corner = [each.detach().clone().requires_grad_() for each in (tensors.queries[few], documents)]
    upstream = tensors.upstream[few, few].contiguous()
    wide = [each.detach().double().requires_grad_() for each in corner]
    similarities_and_maxima(*wide).backward(upstream)
    shape = tensors.shape
    small = Tensors(
        Dense(
            name=shape.name,
            operation=shape.operation,
            queries=len(corner[0]),
            query_length=shape.query_length,
            documents=upstream.shape[1],
            document_length=shape.document_length,
        ),
        corner[0],
        corner[1],
        upstream,
    )
    for gradient, expected in zip(ours(small)()[1:], (each.grad for each in wide), strict=True):
        assert expected is not None
        apart = (gradient.double() - expected).norm() / expected.norm()
        assert float(apart) < 1e-2, f"gradients are {float(apart):.2g} apart"


def check_rival(found: Outcome, rival: Outcome) -> None:
    """That a rival computes the same, as well as its precision lets it.

    Raises:
        AssertionError: it does not.
    """
    _close(rival[0].float(), found[0].double(), 2e-2)


def exact(queries: Tensor, documents: Tensor) -> Tensor:
    """MaxSim in float64, a few documents at a time."""
    wide = queries.detach().double()
    pieces = documents.detach().split(8, dim=documents.dim() - 3)
    return torch.cat([similarities_and_maxima(wide, piece.double()) for piece in pieces], dim=1)


def _ends(count: int) -> Iterator[tuple[int, int]]:
    yield 0, min(SAMPLE, count)
    if count > SAMPLE:
        yield max(SAMPLE, count - SAMPLE), count


def _close(found: Tensor, truth: Tensor, within: float) -> None:
    apart = (found.double() - truth.double()).abs().max() / truth.abs().max()
    assert float(apart) <= within, (
        f"scores are {float(apart):.2g} apart, relative to the largest; {within:g} is allowed"
    )
