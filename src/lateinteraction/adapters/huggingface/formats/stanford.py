"""Stanford's ColBERT: encoder and `linear.weight` in one weights file, settings in artifact.metadata.

Khattab and Zaharia, SIGIR 2020; defaults as in that code's ColBERTConfig: markers [unused0] and [unused1], queries of
32 and documents of 180 tokens, punctuation masked.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from lateinteraction.adapters.huggingface.formats.description import NOTHING, Description, flag, refused
from lateinteraction.adapters.huggingface.sources import Place
from lateinteraction.domain.errors import InvalidModel

METADATA = "artifact.metadata"


def describe_stanford(place: Place) -> Description:
    """What config.json and artifact.metadata say; with a remark where there is no artifact.metadata."""
    metadata = place.read_object(METADATA)
    remark = (
        f"{place} has no {METADATA}; its markers, lengths and skiplist are ColBERT's defaults. "
        f"Give a recipe where it was trained with others."
    )
    return Description(
        format="stanford",
        inline_projection=True,
        settings=_settings(place, metadata or NOTHING),
        remarks=(remark,) if metadata is None else (),
    )


def check_width(place: Place, width: int) -> None:
    """Raise unless artifact.metadata, where it speaks of a dimension, means that of `linear.weight`."""
    dimension = (place.read_object(METADATA) or NOTHING).get("dim")
    if dimension is not None and dimension != width:
        raise InvalidModel(
            f"{place}, whose {METADATA} has dim = {dimension}",
            f"{width}, as its linear.weight has",
            "The two belong to different models; get the whole checkpoint again.",
        )


def _settings(place: Place, metadata: Mapping[str, Any]) -> Mapping[str, object]:
    similarity = metadata.get("similarity") or "cosine"
    if similarity != "cosine":
        raise refused(
            place, f"similarity = {similarity!r} in {METADATA}", "'cosine'", "Other similarities are not scored here."
        )
    interaction = metadata.get("interaction") or "colbert"
    if interaction != "colbert":
        raise refused(
            place,
            f"interaction = {interaction!r} in {METADATA}",
            "'colbert'",
            "Other interactions are not scored here.",
        )
    return {
        "query_prefix": metadata.get("query_token_id") or "[unused0]",
        "document_prefix": metadata.get("doc_token_id") or "[unused1]",
        "query_length": metadata.get("query_maxlen") or 32,
        "document_length": metadata.get("doc_maxlen") or 180,
        "expansion": "fixed",
        "attend_to_expansion": flag(place, METADATA, metadata, "attend_to_mask_tokens", default=False),
        "skiplist": tuple(string.punctuation)
        if flag(place, METADATA, metadata, "mask_punctuation", default=True)
        else (),
    }
