"""The operations as torch knows them, `torch.ops.lateinteraction.*`: shapes for tracing, gradients for training.

Opaque to compilers on purpose: a graph holds one node for each, whatever form computes it, so that tracing and export
need neither a device nor Triton. `lateinteraction.kernels` calls these; nobody else needs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lateinteraction.kernels.dispatch import form_for, load, use
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import CentroidTable, Codec, Compressed, Listed, Tokens, winners_dtype

# torch has no public question for its modes and transforms. A name that goes is an error at import, seen at once.
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
_transform: Callable[[], int | None] = torch._C._functorch.maybe_current_level  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

Result = Tensor | tuple[Tensor, ...]

_QUERIES = "Tensor query_values, Tensor query_spans, SymInt query_longest, Tensor? query_scales"
_DOCUMENTS = "Tensor document_values, Tensor document_spans, SymInt document_longest, Tensor? document_scales"
_TOKENS = f"{_QUERIES}, {_DOCUMENTS}"
_CODEC = "Tensor centroids, Tensor cutoffs, Tensor weights"
_COMPRESSED = "Tensor codes, Tensor residuals, Tensor inverse_norms, Tensor document_spans"
_SCORES_AND_WINNERS = "(Tensor scores, Tensor winners)"
_GRADIENTS = "(Tensor query_gradient, Tensor document_gradient)"


class Operation(NamedTuple):
    """One operation: as torch's operator, and as the plain function behind it."""

    operator: Any
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Compute: by the function where nobody traces or differentiates, for it gives the same and starts at once.

        The first call of an operator takes a second, in which torch imports its compiler; later ones 50 µs.
        """
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if _forward_mode() and any(forward_ad.unpack_dual(each).tangent is not None for each in tensors):
            raise NotImplementedError("forward-mode derivatives of an interaction; use backward()")
        if _plain(tensors):
            return self.function(*arguments)
        return self.operator(*arguments)


def _operation(name: str, schema: str, compute: Callable[..., Result], shapes: Callable[..., Result]) -> Operation:
    """Register one: what computes it, and what it would return.

    Autocast ends here: sums are float32. Operands are made contiguous, which kernels take them for (spans and pairs may
    have any strides); results are, as tracing was told.
    """

    def computed(*arguments: Any) -> Result:
        ready = [
            each.contiguous() if isinstance(each, Tensor) and each.dtype != torch.int64 else each for each in arguments
        ]
        with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
            result = compute(*ready)
        return result.contiguous() if isinstance(result, Tensor) else tuple(each.contiguous() for each in result)

    operator = torch.library.custom_op(f"lateinteraction::{name}", computed, mutates_args=(), schema=schema)
    operator.register_fake(shapes)
    return Operation(operator, computed)


def _forward_mode() -> bool:
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are ordinary tensors, and nobody traces, transforms or differentiates the call."""
    if torch.compiler.is_compiling() or _modes() > 0 or _transform() is not None:
        return False
    if any(type(each) not in (Tensor, torch.nn.Parameter) for each in tensors):
        return False
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))


def _form(*tensors: Tensor) -> Form:
    return load(form_for(tensors[0].device.type, *(tensor.dtype for tensor in tensors)).form)


def _both(arguments: Sequence[Any]) -> tuple[Tokens, Tokens]:
    queries, documents = Tokens(*arguments[:4]), Tokens(*arguments[4:8])
    _same_width(queries.values, documents.values)
    if queries.spans.dtype != torch.int64 or documents.spans.dtype != torch.int64:
        raise TypeError(f"spans of {queries.spans.dtype} and {documents.spans.dtype}, where int64 is wanted")
    return queries, documents


def _same_width(*rows: Tensor) -> None:
    """Kernels read rows by address, so a width that differs must not reach them."""
    widths = [each.shape[1] for each in rows]
    if any(width != widths[0] for width in widths):
        raise ValueError(f"rows of {' and '.join(map(str, widths))} dimensions, where all want the same")


def _precision(*values: Tensor) -> torch.dtype:
    return torch.float64 if any(each.dtype == torch.float64 for each in values) else torch.float32


# ── MaxSim and XTR ──────────────────────────────────────────────────────────────────────────────────────────────────


def _matrix(queries: Tokens, documents: Tokens) -> Tensor:
    shape = queries.spans.shape[0], documents.spans.shape[0]
    return queries.values.new_empty(shape, dtype=_precision(queries.values, documents.values))


def _winners(queries: Tokens, documents: Tokens) -> Tensor:
    shape = queries.values.shape[0], documents.spans.shape[0]
    return queries.values.new_empty(shape, dtype=winners_dtype(documents))


def _all_pairs(*arguments: Any) -> Tensor:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).maxsim_all_pairs(queries, documents)


def _all_pairs_winners(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).maxsim_all_pairs_winners(queries, documents)


def _all_pairs_gradients(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    winners, upstream, unit = arguments[8:]
    counts = queries.spans.shape[0], documents.spans.shape[0]
    if winners.shape != (queries.values.shape[0], counts[1]) or upstream.shape != counts:
        raise ValueError(f"winners {tuple(winners.shape)} and upstream {tuple(upstream.shape)} of {counts} scores")
    form = _form(queries.values, documents.values)
    return form.maxsim_all_pairs_gradients(queries, documents, winners, upstream, unit=unit)


def _pairs(*arguments: Any) -> Tensor:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).maxsim_pairs(queries, documents, arguments[8])


def _pairs_winners(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).maxsim_pairs_winners(queries, documents, arguments[8])


def _pairs_gradients(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    pairs, winners, upstream, unit = arguments[8:]
    if winners.shape != (pairs.shape[0], queries.longest) or upstream.shape != pairs.shape[:1]:
        raise ValueError(f"winners {tuple(winners.shape)} and upstream {tuple(upstream.shape)} of {len(pairs)} pairs")
    form = _form(queries.values, documents.values)
    return form.maxsim_pairs_gradients(queries, documents, pairs, winners, upstream, unit=unit)


def _top_k(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).maxsim_top_k(queries, documents, arguments[8])


def _xtr(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    queries, documents = _both(arguments)
    return _form(queries.values, documents.values).xtr_all_pairs(queries, documents, arguments[8])


def _pair_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    pairs: Tensor = arguments[8]
    scores = queries.values.new_empty(pairs.shape[0], dtype=_precision(queries.values, documents.values))
    return scores, queries.values.new_empty((pairs.shape[0], queries.longest), dtype=winners_dtype(documents))


def _top_k_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    shape = queries.spans.shape[0], min(arguments[8], documents.spans.shape[0])
    scores = queries.values.new_empty(shape, dtype=_precision(queries.values, documents.values))
    return scores, queries.values.new_empty(shape, dtype=torch.int64)


def _xtr_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    queries, documents = _both(arguments)
    scores = _matrix(queries, documents)
    return scores, _winners(queries, documents), torch.empty_like(scores, dtype=torch.int32)


def _gradient_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    queries, documents = _both(arguments)
    return queries.values.new_empty(queries.values.shape), documents.values.new_empty(documents.values.shape)


maxsim_all_pairs = _operation(
    "maxsim_all_pairs", f"({_TOKENS}) -> Tensor", _all_pairs, lambda *given: _matrix(*_both(given))
)
maxsim_all_pairs_gradients = _operation(
    "maxsim_all_pairs_gradients",
    f"({_TOKENS}, Tensor winners, Tensor upstream, bool unit) -> {_GRADIENTS}",
    _all_pairs_gradients,
    _gradient_shapes,
)
maxsim_all_pairs_winners = _operation(
    "maxsim_all_pairs_winners",
    f"({_TOKENS}, bool unit) -> {_SCORES_AND_WINNERS}",
    _all_pairs_winners,
    lambda *given: (_matrix(*_both(given)), _winners(*_both(given))),
)
maxsim_pairs = _operation(
    "maxsim_pairs", f"({_TOKENS}, Tensor pairs) -> Tensor", _pairs, lambda *given: _pair_shapes(*given)[0]
)
maxsim_pairs_gradients = _operation(
    "maxsim_pairs_gradients",
    f"({_TOKENS}, Tensor pairs, Tensor winners, Tensor upstream, bool unit) -> {_GRADIENTS}",
    _pairs_gradients,
    _gradient_shapes,
)
maxsim_pairs_winners = _operation(
    "maxsim_pairs_winners",
    f"({_TOKENS}, Tensor pairs, bool unit) -> {_SCORES_AND_WINNERS}",
    _pairs_winners,
    _pair_shapes,
)
maxsim_top_k = _operation(
    "maxsim_top_k", f"({_TOKENS}, SymInt k) -> (Tensor scores, Tensor places)", _top_k, _top_k_shapes
)
xtr_all_pairs = _operation(
    "xtr_all_pairs", f"({_TOKENS}, SymInt k) -> (Tensor scores, Tensor winners, Tensor finders)", _xtr, _xtr_shapes
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the gradients need: the tokens and the winners, never a similarity."""
    queries, documents = _both(inputs)
    ctx.longest = queries.longest, documents.longest
    ctx.others = inputs[8:]
    ctx.form = form_for(queries.values.device.type, queries.values.dtype, documents.values.dtype).form
    ctx.save_for_backward(
        queries.values, queries.spans, queries.scales, documents.values, documents.spans, documents.scales, *output[1:]
    )
    ctx.mark_non_differentiable(*output[1:])


def _saved(context: Any) -> tuple[list[Any], tuple[Tensor, ...]]:
    """The tokens as arguments, and the outputs behind the scores."""
    query_values, query_spans, query_scales, values, spans, scales, *others = context.saved_tensors
    queries, documents = context.longest
    return [query_values, query_spans, queries, query_scales, values, spans, documents, scales], tuple(others)


def _gradients(pair: tuple[Tensor, Tensor], others: int) -> tuple[Tensor | None, ...]:
    """One for each argument of the forward operation."""
    return pair[0], None, None, None, pair[1], None, None, None, *[None] * others


def _all_pairs_backward(context: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tokens, (winners,) = _saved(context)
    (unit,) = context.others
    with use(context.form):
        return _gradients(maxsim_all_pairs_gradients(*tokens, winners, upstream.contiguous(), unit), 1)


def _pairs_backward(context: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tokens, (winners,) = _saved(context)
    pairs, unit = context.others
    with use(context.form):
        return _gradients(maxsim_pairs_gradients(*tokens, pairs, winners, upstream.contiguous(), unit), 2)


def _xtr_backward(context: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    tokens, (winners, finders) = _saved(context)
    with use(context.form):  # in autograd's own thread, or after the block that forced the form
        return _gradients(maxsim_all_pairs_gradients(*tokens, winners, upstream / finders.clamp(min=1), False), 1)


maxsim_all_pairs_winners.operator.register_autograd(_all_pairs_backward, setup_context=_save)
maxsim_pairs_winners.operator.register_autograd(_pairs_backward, setup_context=_save)
xtr_all_pairs.operator.register_autograd(_xtr_backward, setup_context=_save)


# ── Centroids and residuals ─────────────────────────────────────────────────────────────────────────────────────────


def _table_interaction(
    values: Tensor,
    steps: Tensor | None,
    lows: Tensor | None,
    query_spans: Tensor,
    codes: Tensor,
    document_spans: Tensor,
) -> Tensor:
    table = CentroidTable(values, steps, lows)
    if (steps is None) != (lows is None) or any(
        each.shape[0] != values.shape[1] for each in (steps, lows) if each is not None
    ):
        raise ValueError("steps and lows: one of each for every column of the table, or neither")
    return _form(values).centroid_interaction(table, query_spans, codes, document_spans)


def _quantised(scores: Tensor) -> tuple[Tensor, ...]:
    return tuple(each for each in _form(scores).quantise_table(scores) if each is not None)


def _listed(documents: Tensor, spans: Tensor, firsts: Tensor, gains: Tensor, count: int) -> Tensor:
    if spans.shape != (*gains.shape, 2) or firsts.shape != gains.shape[1:]:
        raise ValueError(
            f"spans {tuple(spans.shape)} and first documents {tuple(firsts.shape)} of gains {tuple(gains.shape)}"
        )
    return _form(gains).listed_scores(Listed(documents, spans, firsts), gains, count)


def _residual_maxsim(*arguments: Any) -> Tensor:
    queries, scores, codec = Tokens(*arguments[:4]), arguments[4], Codec(*arguments[5:8])
    documents = Compressed(*arguments[8:])
    _same_width(queries.values, codec.centroids)
    _fits(codec, documents.codes, documents.residuals)
    if scores.shape != (codec.centroids.shape[0], queries.values.shape[0]):
        raise ValueError(f"scores of shape {tuple(scores.shape)}, where centroids and query rows want (K, S)")
    if documents.inverse_norms.shape[0] != documents.codes.shape[0]:
        raise ValueError(f"{documents.inverse_norms.shape[0]} inverse norms of {documents.codes.shape[0]} codes")
    return _form(queries.values, scores).residual_maxsim(queries, scores, codec, documents)


def _fits(codec: Codec, codes: Tensor, residuals: Tensor) -> None:
    """Raise ValueError unless there is a code and a row of bytes for each token, as this codec writes them."""
    wanted = codes.shape[0], -(-codec.centroids.shape[1] * codec.bits // 8)
    if residuals.shape != wanted or codec.weights.shape[0] not in (2, 4, 16):
        raise ValueError(
            f"residuals of shape {tuple(residuals.shape)}, where codes and a codec of {codec.bits} bits want {wanted}"
        )


def _scores_of_centroids(values: Tensor, centroids: Tensor) -> Tensor:
    _same_width(values, centroids)
    return _form(values, centroids).centroid_scores(values, centroids)


def _assigned(values: Tensor, centroids: Tensor) -> Tensor:
    _same_width(values, centroids)
    return _form(values, centroids).kmeans_assign(values, centroids)


def _updated(values: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    _same_width(values, centroids)
    _one_each(values, codes)
    return _form(values, centroids).kmeans_update(values, codes, centroids)


def _encoded(values: Tensor, codes: Tensor, *codec: Tensor) -> tuple[Tensor, Tensor]:
    _same_width(values, codec[0])
    _one_each(values, codes)
    return _form(values, codec[0]).residual_encode(values, codes, Codec(*codec))


def _decoded(centroids: Tensor, cutoffs: Tensor, weights: Tensor, codes: Tensor, residuals: Tensor) -> Tensor:
    codec = Codec(centroids, cutoffs, weights)
    _fits(codec, codes, residuals)
    return _form(centroids).residual_decode(codec, codes, residuals)


def _one_each(values: Tensor, codes: Tensor) -> None:
    if codes.shape != values.shape[:1]:
        raise ValueError(f"{codes.shape[0]} codes of {values.shape[0]} tokens")


def _encoded_shapes(values: Tensor, codes: Tensor, *codec: Tensor) -> tuple[Tensor, Tensor]:
    width = -(-values.shape[1] * Codec(*codec).bits // 8)
    residuals = values.new_empty((values.shape[0], width), dtype=torch.uint8)
    return residuals, values.new_empty(values.shape[0], dtype=_precision(codec[0]))


inverse_norms = _operation(
    "inverse_norms",
    "(Tensor values) -> Tensor",
    lambda values: _form(values).inverse_norms(values),
    lambda values: values.new_empty(values.shape[0], dtype=_precision(values)),
)
centroid_scores = _operation(
    "centroid_scores",
    "(Tensor query_values, Tensor centroids) -> Tensor",
    _scores_of_centroids,
    lambda values, centroids: centroids.new_empty((centroids.shape[0], values.shape[0])),
)
quantise_table = _operation(
    "quantise_table",
    "(Tensor scores) -> (Tensor values, Tensor steps, Tensor lows)",
    _quantised,
    lambda scores: (
        torch.empty_like(scores, dtype=torch.uint8),
        scores.new_empty(scores.shape[1]),
        scores.new_empty(scores.shape[1]),
    ),
)
probe = _operation(
    "probe",
    "(Tensor scores, SymInt nprobe) -> Tensor",
    lambda scores, nprobe: _form(scores).probe(scores, nprobe),
    lambda scores, nprobe: scores.new_empty((scores.shape[1], min(nprobe, scores.shape[0])), dtype=torch.int64),
)
centroid_interaction = _operation(
    "centroid_interaction",
    "(Tensor values, Tensor? steps, Tensor? lows, Tensor query_spans, Tensor codes, Tensor document_spans) -> Tensor",
    _table_interaction,
    lambda values, steps, lows, query_spans, codes, document_spans: values.new_empty(
        (query_spans.shape[0], document_spans.shape[0]), dtype=torch.float32
    ),
)
listed_scores = _operation(
    "listed_scores",
    "(Tensor documents, Tensor spans, Tensor firsts, Tensor gains, SymInt count) -> Tensor",
    _listed,
    lambda documents, spans, firsts, gains, count: gains.new_empty(count),
)
residual_maxsim = _operation(
    "residual_maxsim",
    f"({_QUERIES}, Tensor scores, {_CODEC}, {_COMPRESSED}) -> Tensor",
    _residual_maxsim,
    lambda *given: given[4].new_empty((given[1].shape[0], given[11].shape[0])),
)
kmeans_assign = _operation(
    "kmeans_assign",
    "(Tensor values, Tensor centroids) -> Tensor",
    _assigned,
    lambda values, centroids: values.new_empty(values.shape[0], dtype=torch.int32),
)
kmeans_update = _operation(
    "kmeans_update",
    "(Tensor values, Tensor codes, Tensor centroids) -> Tensor",
    _updated,
    lambda values, codes, centroids: centroids.new_empty(centroids.shape, dtype=_precision(values, centroids)),
)
residual_encode = _operation(
    "residual_encode",
    f"(Tensor values, Tensor codes, {_CODEC}) -> (Tensor residuals, Tensor inverse_norms)",
    _encoded,
    _encoded_shapes,
)
residual_decode = _operation(
    "residual_decode",
    f"({_CODEC}, Tensor codes, Tensor residuals) -> Tensor",
    _decoded,
    lambda centroids, cutoffs, weights, codes, residuals: centroids.new_empty((codes.shape[0], centroids.shape[1])),
)
