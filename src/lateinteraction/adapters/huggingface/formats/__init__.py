"""Checkpoint formats: what the files of a checkpoint say of it, before any weights are read.

The files decide, in this order: a modules.json (PyLate and sentence-transformers), the architecture HF_ColBERT
(Stanford's ColBERT), or neither (a plain encoder). Nothing is guessed and nothing in them is imported.
"""

from __future__ import annotations

from lateinteraction.adapters.huggingface.formats.description import Description, Format
from lateinteraction.adapters.huggingface.formats.listing import LENGTHS
from lateinteraction.adapters.huggingface.formats.modules import describe_modules
from lateinteraction.adapters.huggingface.formats.stanford import describe_stanford
from lateinteraction.adapters.huggingface.sources import Place

__all__ = ["Description", "Format", "describe"]


def describe(place: Place) -> Description:
    """What the files at a place say.

    Raises:
        InvalidModel: files that contradict themselves, or ask for what this library does not do.
    """
    modules = place.read_json("modules.json")
    if modules is not None:
        return describe_modules(place, modules)
    config = place.read_object("config.json") or {}
    if "HF_ColBERT" in (config.get("architectures") or ()):
        return describe_stanford(place)
    return Description(format="plain", bounded=LENGTHS)
