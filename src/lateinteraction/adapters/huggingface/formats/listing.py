"""A modules.json and the files around it: what PyLate and both kinds of sentence-transformers checkpoints share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from attrs import frozen

from lateinteraction.adapters.huggingface.formats.description import NOTHING, Description, Format, flag, refused
from lateinteraction.adapters.huggingface.sources import SENTENCE_CONFIGS, Place, inner_path, joined
from lateinteraction.domain.errors import InvalidModel, shown

CONFIG = "config_sentence_transformers.json"
ROLES = ("query", "document")
LENGTHS = ("query_length", "document_length")
REFETCH = "Get the whole checkpoint again."
OTHER_LIBRARY = "Use the library that wrote it."
_KIND = re.compile(r"(sentence_transformers|pylate)(?:\.\w+)*\.(\w+)")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""In the order in which sentence-transformers looks for them."""
_HARMLESS_ARGUMENTS = frozenset(
    (
        *("attn_implementation", "torch_dtype", "dtype", "add_pooling_layer", "use_safetensors", "device_map"),
        *("model_max_length", "padding_side", "use_fast", "max_length"),
    )
)
"""What a file may hand to transformers that changes no embedding, or that is decided here in any case."""


@frozen
class Module:
    """One entry of modules.json: its class without packages, the package it comes from, and its folder."""

    kind: str
    package: str
    path: str


@frozen
class Listing:
    """Settings and modules of a checkpoint, read once."""

    place: Place
    config: Mapping[str, Any]
    modules: tuple[Module, ...]

    @property
    def kinds(self) -> list[str]:
        """In the order in which they run."""
        return [module.kind for module in self.modules]

    def of_kind(self, kind: str) -> list[Module]:
        """The modules of a class, in order."""
        return [module for module in self.modules if module.kind == kind]

    def refused(self, what: str, expected: str, remedy: str) -> InvalidModel:
        """An error about something in this checkpoint's files."""
        return refused(self.place, what, expected, remedy)

    def settings_of(self, module: Module) -> tuple[str, Mapping[str, Any]]:
        """The path of a module's config.json and what it says; a module without one says nothing."""
        file = joined(module.path, "config.json")
        self.place.fetch([file])
        return file, self.place.read_object(file) or NOTHING

    def prompts(self) -> dict[str, object]:
        """The prompts of both roles, as settings of a recipe."""
        prompts = self.config.get("prompts") or {}
        if not isinstance(prompts, dict):
            raise self.refused(f"prompts = {shown(prompts)} in {CONFIG}", "an object of texts", "Correct the file.")
        named = cast("Mapping[str, Any]", prompts)
        fallback = named.get(self.config.get("default_prompt_name") or "")
        of_document = next((named[name] for name in _DOCUMENT_PROMPTS if name in named), fallback)
        return {"query_prompt": named.get("query", fallback) or "", "document_prompt": of_document or ""}

    def transformer_settings(self) -> Mapping[str, Any]:
        """What sentence_bert_config.json says, checked for what would change embeddings without our knowing."""
        inner = self.modules[0].path
        self.place.fetch_transformer(inner)
        named = ((name, self.place.read_object(joined(inner, name))) for name in SENTENCE_CONFIGS)
        name, settings = next(((name, found) for name, found in named if found), (SENTENCE_CONFIGS[0], NOTHING))
        task = settings.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise self.refused(f"transformer_task = {shown(task)} in {name}", "'feature-extraction'", OTHER_LIBRARY)
        inputs = sorted(set(settings.get("modality_config") or ()) - {"text"})
        if inputs:
            raise self.refused(f"inputs {inputs} in {name}", "plain texts, no chat template", OTHER_LIBRARY)
        if any((settings.get("processing_kwargs") or {}).values()):
            raise self.refused(f"processing_kwargs in {name}", "none", OTHER_LIBRARY)
        for key in ("model", "tokenizer", "config", "processor"):
            for ending in ("args", "kwargs"):
                self._check_arguments(name, f"{key}_{ending}", settings.get(f"{key}_{ending}") or {})
        return settings

    def _check_arguments(self, file: str, key: str, arguments: Mapping[str, Any]) -> None:
        if arguments.get("trust_remote_code"):
            raise self.refused(
                f"trust_remote_code in {file}",
                "a checkpoint that leaves that to you",
                "Take it out of the file; pass trust_remote_code yourself once you have read the code.",
            )
        unknown = sorted(set(arguments) - _HARMLESS_ARGUMENTS - {"trust_remote_code"})
        if unknown:
            raise self.refused(f"{key} {unknown} in {file}", "none that change the model", OTHER_LIBRARY)

    def tokenizer_limit(self) -> int | None:
        """The tokenizer's own limit, where it has a real one; transformers writes a huge number for none."""
        tokenizer = self.place.read_object(joined(self.modules[0].path, "tokenizer_config.json")) or NOTHING
        limit = tokenizer.get("model_max_length")
        return limit if isinstance(limit, int) and limit < 1_000_000 else None

    def check_dense_names(self, module: Module, allowed: tuple[str, ...]) -> None:
        """Raise where a dense layer reads or writes anything but the embeddings."""
        file, settings = self.settings_of(module)
        taken = or_else(settings, "module_input_name", allowed[0])
        given = or_else(settings, "module_output_name", taken)
        if taken not in allowed or given != taken:
            what = f"a dense layer from {shown(taken)} to {shown(given)} in {file}"
            raise self.refused(what, f"one of {allowed} on both sides", OTHER_LIBRARY)

    def described(
        self,
        kind: Format,
        settings: Mapping[str, object],
        transformer: Mapping[str, Any],
        bounded: tuple[str, ...] = (),
        remarks: tuple[str, ...] = (),
    ) -> Description:
        """The description that these settings make."""
        return Description(
            format=kind,
            transformer=self.modules[0].path,
            dense=tuple(module.path for module in self.of_kind("Dense")),
            settings=settings,
            bounded=bounded,
            lower_case=flag(self.place, SENTENCE_CONFIGS[0], transformer, "do_lower_case", default=False),
            remarks=remarks,
        )


def read_listing(place: Place, listed: object) -> Listing:
    """The listing of what modules.json holds.

    Raises:
        InvalidModel: no list of modules, a module of neither library, or not exactly one transformer, in front.
    """
    if not isinstance(listed, list) or not listed:
        raise refused(place, f"{shown(listed)} in modules.json", "a list of modules", REFETCH)
    modules = tuple(_module(place, entry) for entry in cast("list[object]", listed))
    if [module.kind == "Transformer" for module in modules] != [True] + [False] * (len(modules) - 1):
        kinds = [module.kind for module in modules]
        raise refused(place, f"modules {kinds}", "one Transformer, the first", OTHER_LIBRARY)
    return Listing(place, place.read_object(CONFIG) or NOTHING, modules)


def _module(place: Place, entry: object) -> Module:
    named = cast("Mapping[str, object]", entry) if isinstance(entry, dict) else {}
    kind = named.get("type")
    if not isinstance(kind, str) or "path" not in named:
        raise refused(place, "a module without a type or a path in modules.json", "both, as text", REFETCH)
    known = _KIND.fullmatch(kind)
    if known is None:
        raise refused(
            place,
            f"the module {shown(kind)}",
            "modules of sentence_transformers or pylate",
            "A checkpoint's own code is never run; use the library that it is made for.",
        )
    return Module(known[2], known[1], inner_path(place, named["path"]))


def or_else(config: Mapping[str, Any], key: str, default: object) -> object:
    """A value, or the default where it is absent or null."""
    value = config.get(key)
    return default if value is None else value
