"""Which of the three formats with a modules.json a checkpoint has; PyLate's, and the single-vector one.

PyLate ≤ 1.6 keeps its settings in config_sentence_transformers.json. A single-vector model of sentence-transformers has
none; late interaction takes the place of its pooling. `multi_vector` reads that of sentence-transformers 6.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, cast

from lateinteraction.adapters.huggingface.formats.description import Description, Format, flag
from lateinteraction.adapters.huggingface.formats.listing import (
    CONFIG,
    LENGTHS,
    ROLES,
    Listing,
    or_else,
    read_listing,
)
from lateinteraction.adapters.huggingface.formats.multi_vector import MULTI_VECTOR_KINDS, describe_multi_vector
from lateinteraction.adapters.huggingface.sources import Place
from lateinteraction.domain.errors import shown

OWN_SETTINGS = "lateinteraction"
"""Key of CONFIG under which are the settings that PyLate and sentence-transformers have no words for."""
OWN_VERSION = 1
_OWN_KEYS = frozenset({"keep_special_tokens", "normalise", "query_skiplist", "expansion_token", "pooling"})
_PYLATE_KEYS = frozenset(
    (
        *("query_prefix", "document_prefix", "query_length", "document_length", "attend_to_expansion_tokens"),
        *("skiplist_words", "do_query_expansion", OWN_SETTINGS),
    )
)
_PYLATE_PREFIXES = ("[Q] ", "[D] ")
_SINGLE_VECTOR_KINDS = frozenset({"Transformer", "Dense", "Pooling", "Normalize"})


def describe_modules(place: Place, listed: object) -> Description:
    """What modules.json and the files it names say.

    Raises:
        InvalidModel: no single transformer in front, a module that is not known, or settings nobody here honours.
    """
    listing = read_listing(place, listed)
    kind = _format(listing)
    known = MULTI_VECTOR_KINDS if kind == "multi-vector" else _SINGLE_VECTOR_KINDS
    unknown = sorted(set(listing.kinds) - known)
    if unknown:
        raise listing.refused(
            f"modules {unknown}",
            f"only {sorted(known)}",
            "Without its modules the embeddings would be others; use the library that wrote it.",
        )
    if kind == "multi-vector":
        return describe_multi_vector(listing)
    return _describe_pylate(listing) if kind == "pylate" else _describe_single_vector(listing)


def _format(listing: Listing) -> Format:
    """Which of the three; PyLate's own marks count for more than `model_type`, which early versions did not write."""
    model_type = listing.config.get("model_type")
    if model_type == "MultiVectorEncoder" or "MultiVectorMask" in listing.kinds:
        return "multi-vector"
    marked = any(module.package == "pylate" for module in listing.modules) or _PYLATE_KEYS & set(listing.config)
    if model_type == "ColBERT" or (marked and model_type in (None, "SentenceTransformer")):
        return "pylate"
    if model_type in (None, "SentenceTransformer"):
        return "sentence-transformers"
    raise listing.refused(
        f"model_type = {shown(model_type)} in {CONFIG}",
        "'ColBERT', 'SentenceTransformer' or 'MultiVectorEncoder'",
        "It gives no token embeddings; use the library that wrote it.",
    )


def _describe_pylate(listing: Listing) -> Description:
    config, place = listing.config, listing.place
    expands = flag(place, CONFIG, config, "do_query_expansion", default=True)
    attends = flag(place, CONFIG, config, "attend_to_expansion_tokens", default=False)
    defaults = zip(ROLES, _PYLATE_PREFIXES, strict=True)
    settings: dict[str, object] = {
        **{f"{role}_prefix": or_else(config, f"{role}_prefix", prefix) or None for role, prefix in defaults},
        **listing.prompts(),
        "query_length": or_else(config, "query_length", 32),
        "document_length": or_else(config, "document_length", 180),
        "expansion": "fixed" if expands else "none",
        "attend_to_expansion": expands and attends,
        "skiplist": or_else(config, "skiplist_words", tuple(string.punctuation)),
        **_own_settings(listing),
    }
    return listing.described("pylate", settings, listing.transformer_settings())


def _own_settings(listing: Listing) -> dict[str, object]:
    """What `writing` kept beside PyLate's settings."""
    own = listing.config.get(OWN_SETTINGS)
    if own is None:
        return {}
    known = isinstance(own, dict) and own.get("version") == OWN_VERSION and set(own) <= {"version", *_OWN_KEYS}
    if not known:
        raise listing.refused(
            f"settings under {OWN_SETTINGS!r} in {CONFIG} that are not known here",
            f"version {OWN_VERSION}: some of {sorted(_OWN_KEYS)}",
            "Read it with the version of lateinteraction that wrote it, or a newer one.",
        )
    return {name: value for name, value in cast("Mapping[str, Any]", own).items() if name != "version"}


def _describe_single_vector(listing: Listing) -> Description:
    transformer = listing.transformer_settings()
    longest = transformer.get("max_seq_length") or listing.tokenizer_limit()
    lengths = {} if longest is None else dict.fromkeys(LENGTHS, longest)
    for module in listing.of_kind("Dense"):
        listing.check_dense_names(module, ("sentence_embedding", "token_embeddings"))
    return listing.described("sentence-transformers", {**listing.prompts(), **lengths}, transformer, bounded=LENGTHS)
