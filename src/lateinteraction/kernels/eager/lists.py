"""Inverted lists: what they say of documents."""

from __future__ import annotations

import torch
from torch import Tensor

from lateinteraction.kernels.operands import Listed


def listed_scores(listed: Listed, gains: Tensor, count: int) -> Tensor:
    """Scores (count,). See `Form.listed_scores`."""
    scores = gains.new_zeros(count)
    for spans, own in zip(listed.spans, gains, strict=True):
        starts, ends = spans.unbind(1)
        lengths = ends - starts
        before = lengths.cumsum(0) - lengths
        steps = torch.arange(int(lengths.sum()), device=gains.device)
        places = torch.repeat_interleave(starts - before, lengths) + steps
        documents = listed.documents.type(torch.int64)[places] + torch.repeat_interleave(listed.firsts, lengths)
        if len(documents) and int(documents.max()) >= count:
            raise IndexError(f"a list names a document beyond the {count} that there are")
        best = torch.zeros_like(scores)
        scores += best.scatter_reduce(0, documents, torch.repeat_interleave(own, lengths), "amax")
    return scores
