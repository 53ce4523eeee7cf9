"""MultiVectorEncoder, of sentence-transformers 6: late interaction said in modules.

The transformer's own file has the lengths and the expansion, MultiVectorMask the skiplist, Normalize and
HierarchicalTokenPooling what comes after the dense layers. Markers are prompts, their tokens known to the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from lateinteraction.adapters.huggingface.formats.description import Description, flag
from lateinteraction.adapters.huggingface.formats.listing import LENGTHS, OTHER_LIBRARY, ROLES, Listing, or_else
from lateinteraction.domain.errors import shown
from lateinteraction.domain.recipe import TokenPooling

_STAGES = {"Transformer": 0, "Dense": 1, "Normalize": 2, "HierarchicalTokenPooling": 3}
MULTI_VECTOR_KINDS = frozenset({"MultiVectorMask", *_STAGES})
_DOCUMENTS = ["document"]


def describe_multi_vector(listing: Listing) -> Description:
    """What the modules and the transformer's file say.

    Raises:
        InvalidModel: an order, a mask, an expansion or a pooling that no recipe can say.
    """
    transformer = listing.transformer_settings()
    _check_order(listing)
    for module in listing.of_kind("Dense"):
        listing.check_dense_names(module, ("token_embeddings",))
    longest = transformer.get("max_seq_length") or listing.tokenizer_limit()
    lengths = {name: or_else(transformer, name, longest) for name in LENGTHS}
    settings: dict[str, object] = {
        **listing.prompts(),
        **{name: length for name, length in lengths.items() if length is not None},
        **_expansion(listing, transformer),
        **_mask(listing),
        **_pooling(listing),
        "normalise": _normalises(listing),
    }
    bounded = tuple(name for name in LENGTHS if transformer.get(name) is None and settings.get(name) == longest)
    return listing.described("multi-vector", settings, transformer, bounded, _remarks(listing, settings))


def _remarks(listing: Listing, settings: Mapping[str, object]) -> tuple[str, ...]:
    remarks: list[str] = []
    if listing.config.get("similarity_fn_name") == "meanmaxsim":
        remarks.append(
            f"{listing.place} divides scores by the number of query tokens; here they are sums. Rankings are the same."
        )
    pooling = settings.get("pooling")
    if isinstance(pooling, TokenPooling) and pooling.flavour == "exact":
        remarks.append(
            f"{listing.place} pools documents; here they are clustered exactly, which sentence-transformers does not "
            f"always do. Their embeddings may differ."
        )
    return tuple(remarks)


def _check_order(listing: Listing) -> None:
    """Dense, then norm, then pooling, and the mask before the pooling: what a recipe can say."""
    kinds = listing.kinds
    stages = [_STAGES[kind] for kind in kinds if kind in _STAGES]
    once = all(kinds.count(kind) <= 1 for kind in MULTI_VECTOR_KINDS - {"Dense"})
    pooled = kinds.index("HierarchicalTokenPooling") if "HierarchicalTokenPooling" in kinds else len(kinds)
    if stages != sorted(stages) or not once or "MultiVectorMask" in kinds[pooled:]:
        expected = "Transformer, Dense…, MultiVectorMask, Normalize, HierarchicalTokenPooling"
        raise listing.refused(f"modules in the order {kinds}", expected, OTHER_LIBRARY)


def _expansion(listing: Listing, transformer: Mapping[str, Any]) -> dict[str, object]:
    expansion = transformer.get("query_expansion")
    if expansion is None:
        return {"expansion": "none"}
    settings = cast("Mapping[str, Any]", expansion) if isinstance(expansion, dict) else {"strategy": expansion}
    if settings.get("strategy") != "fixed":
        raise listing.refused(
            f"query_expansion by {shown(settings.get('strategy'))}",
            "strategy 'fixed', which fills every query to one length",
            "Use the library that wrote it; or, where no query is longer than its length, write 'fixed' into the file.",
        )
    length = {"query_length": settings.get("length")}
    attends = bool(settings.get("attend"))
    if not attends and "MultiVectorMask" not in listing.kinds:
        return {"expansion": "none", **length}  # nothing sees the added tokens and nothing scores them
    token = settings.get("token")
    return {"expansion": "fixed", "attend_to_expansion": attends, "expansion_token": token, **length}


def _mask(listing: Listing) -> dict[str, object]:
    for module in listing.of_kind("MultiVectorMask"):
        file, settings = listing.settings_of(module)
        if settings.get("keep_only_token_ids"):
            raise listing.refused(f"keep_only_token_ids in {file}", "none: texts, not images", OTHER_LIBRARY)
        words, tasks = settings.get("skiplist_words") or (), or_else(settings, "skiplist_tasks", _DOCUMENTS)
        named = {tasks} if isinstance(tasks, str) else set(cast("Sequence[str]", tasks))
        if not named <= set(ROLES):
            raise listing.refused(f"skiplist_tasks {sorted(named)} in {file}", f"some of {ROLES}", OTHER_LIBRARY)
        skiplists = {"document": "skiplist", "query": "query_skiplist"}
        return {setting: words for task, setting in skiplists.items() if task in named}
    return {}


def _pooling(listing: Listing) -> dict[str, object]:
    for module in listing.of_kind("HierarchicalTokenPooling"):
        file, settings = listing.settings_of(module)
        if or_else(settings, "tasks", _DOCUMENTS) not in ("document", _DOCUMENTS):
            raise listing.refused(f"pooled queries in {file}", "pooled documents, queries as they are", OTHER_LIBRARY)
        # A file from before the setting existed means false.
        exact = flag(listing.place, file, settings, "normalize_embeddings", default=False)
        pooling = TokenPooling(
            settings.get("pool_factor", 1.0), settings.get("num_protected_tokens", 1), "exact" if exact else "pylate"
        )
        return {} if pooling.changes_nothing else {"pooling": pooling}
    return {}


def _normalises(listing: Listing) -> bool:
    return any(
        listing.settings_of(module)[1].get("module_input_name") == "token_embeddings"
        for module in listing.of_kind("Normalize")
    )
