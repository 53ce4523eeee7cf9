"""OnnxEncoder: texts to packed token embeddings in ONNX Runtime, on the CPU; neither torch nor transformers is loaded.

This module reads an exported folder and is the engine. The loop around it is `adapters.encoding`, writing such a
folder is `export`.

Shapes: B sequences of at most L tokens in a batch; K kept tokens; D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, final

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lateinteraction.adapters.encoding.batches import Batch
from lateinteraction.adapters.encoding.encoder import EncodingOptions, Engine, TextEncoder
from lateinteraction.adapters.encoding.tokenisation import RecipeTokeniser
from lateinteraction.adapters.onnx.folder import MODEL, TOKENIZER, Description, check_digests, read_description
from lateinteraction.adapters.onnx.session import Session, open_session
from lateinteraction.domain.embeddings import TokenEmbeddings
from lateinteraction.domain.errors import InvalidModel, InvalidOption, InvalidRecipe, shown
from lateinteraction.domain.recipe import EncodingRecipe, TokenPooling

Rows = NDArray[np.float32]

TOKENS_PER_BATCH = 1_024
"""MiniLM-L6, texts of 128 tokens, one thread, tokens per CPU second in float32 and int8: 256: 7,190 and 15,300; 512:
7,290 and 15,490; 1k: 7,050 and 15,090; 2k: 6,780 and 13,500; 4k: 6,270 and 12,800; 8k: 5,820 and 12,200. Fewer batches
leave more work to threads, so the largest that costs next to nothing."""
_SMALLEST_NORM = np.float32(1e-12)
_NOTHING: Mapping[str, object] = MappingProxyType({})


@frozen(kw_only=True)
class OnnxOptions:
    """How an exported model is read and run.

    Args:
        recipe: settings of `EncodingRecipe` that replace the folder's own.
        encoding: how texts are worked through.
        threads: of one operation; None leaves the number to ONNX Runtime.

    Raises:
        InvalidOption: a number of threads below 1.
    """

    recipe: Mapping[str, object] = _NOTHING
    encoding: EncodingOptions = field(factory=EncodingOptions)
    threads: int | None = None

    def __attrs_post_init__(self) -> None:
        threads = self.threads
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise InvalidOption(f"threads = {shown(threads)}", "a whole number of at least 1", "None is the default.")


_DEFAULTS = OnnxOptions()


@frozen(eq=False, kw_only=True)
class OnnxModel:
    """An exported model in memory.

    Args:
        session: its graph.
        tokenizer: never changed.
        description: what its folder says of it.
    """

    session: Session
    tokenizer: Tokenizer
    description: Description

    def with_recipe(self, recipe: EncodingRecipe) -> OnnxModel:
        """The same model read by another recipe; the session is shared."""
        return evolve(self, description=evolve(self.description, recipe=recipe))


@final
class OnnxEncoder(TextEncoder[Rows]):
    """An `Encoder[NDArray]` and `TokenTracer` over an exported model. Embeddings are float32.

    Several threads may call it at once. Pooling alone loads torch.

    Args:
        source: a folder that `export_onnx` wrote, or a model read from one.
        options: how it is read and run.

    Raises:
        InvalidModel: a folder that is no such export, or a file of it that is missing or cannot be used.
        ModelMismatch: a file that is not as it was written.
        InvalidRecipe: settings this model or tokenizer cannot honour.
        InvalidOption: a batch that could not hold one text of the recipe's length.
        MissingExtra: ONNX Runtime is not installed.
    """

    def __init__(self, source: str | Path | OnnxModel, options: OnnxOptions = _DEFAULTS) -> None:
        model = source if isinstance(source, OnnxModel) else read_model(source, threads=options.threads)
        recipe = model.description.recipe.merge(options.recipe)
        _check_recipe(model.description, recipe)
        self.model = model.with_recipe(recipe)
        tokeniser = RecipeTokeniser(model.tokenizer, model.description.specials, recipe, options.encoding.on_too_long)
        super().__init__(_OnnxEngine(self.model), tokeniser, recipe, options.encoding)

    def with_recipe(self, recipe: EncodingRecipe) -> OnnxEncoder:
        """The same model read by another recipe; the session is shared."""
        return OnnxEncoder(self.model.with_recipe(recipe), OnnxOptions(encoding=self.options))


def read_model(folder: str | Path, *, threads: int | None = None) -> OnnxModel:
    """Read and check all of a folder that `export_onnx` wrote; raises as `OnnxEncoder` does."""
    place = Path(folder).expanduser()
    description = read_description(place)
    check_digests(place, description)
    session = open_session(place / MODEL, threads=threads)
    with _Translated(place):
        tokenizer = Tokenizer.from_file(str(place / TOKENIZER))
    largest_id = max(tokenizer.get_vocab().values(), default=0)
    if largest_id >= description.vocabulary or session.dimension != description.dimension:
        raise InvalidModel(
            f"{place} with token ids up to {largest_id} and rows of {session.dimension} dimensions",
            f"{description.vocabulary} token embeddings and {description.dimension} dimensions",
            "Its files belong to several models; export one again.",
        )
    return OnnxModel(session=session, tokenizer=tokenizer, description=description)


@frozen
class _Translated:
    """What tokenizers raises, `Exception` itself, as `InvalidModel`; a handler that names it would catch everything."""

    place: Path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise InvalidModel(
                f"{self.place / TOKENIZER} ({error})"[:300],
                "a tokenizer.json that this version of tokenizers reads",
                "Install a newer tokenizers, or export the model again.",
            ) from error


class _OnnxEngine:
    """The forward pass in ONNX Runtime; all else of a batch in NumPy."""

    def __init__(self, model: OnnxModel) -> None:
        recipe = model.description.recipe
        self._session = model.session
        self._normalise = recipe.normalise
        self._dimension = recipe.dimension or model.description.dimension

    @property
    def tokens_per_batch(self) -> int:
        return TOKENS_PER_BATCH

    def allocate(self, rows: int) -> Rows:
        return np.empty((rows, self._dimension), dtype=np.float32)

    def fill(self, embeddings: Rows, batch: Batch) -> None:
        ids, attended, source, destination = np.split(batch.sheet, np.cumsum(batch.parts)[:-1])
        mask = np.arange(batch.width) < attended[:, None]
        given = self._session.run(ids.reshape(batch.sequences, batch.width), mask.astype(np.int64))
        rows = given.reshape(-1, given.shape[-1])[source, : self._dimension]
        lengths = np.sqrt(np.einsum("kd,kd->k", rows, rows))[:, None]
        if not np.all(np.isfinite(lengths)):
            raise InvalidModel(
                f"{self._session.file}, which gives embeddings that are not finite",
                "a model whose weights are numbers",
                "Export the model again, from weights that are whole.",
            )
        embeddings[destination] = rows / np.maximum(lengths, _SMALLEST_NORM) if self._normalise else rows

    def joined(self, parts: list[Rows]) -> Rows:
        whole = self.allocate(sum(map(len, parts)))
        first = 0
        while parts:
            part = parts.pop(0)
            whole[first : first + len(part)] = part
            first += len(part)
        return whole

    def pool(self, embeddings: TokenEmbeddings[Rows], pooling: TokenPooling) -> TokenEmbeddings[Rows]:
        from lateinteraction.adapters.neural.pooling import pooled
        from lateinteraction.adapters.neural.transfer import to_numpy, to_torch

        return to_numpy(pooled(to_torch(embeddings, "cpu"), pooling))

    def ran_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)

    def free(self) -> None:
        """Nothing is held between batches but what ONNX Runtime's arena keeps for the next."""


def _check_recipe(description: Description, recipe: EncodingRecipe) -> None:
    positions = description.positions
    for setting in ("query_length", "document_length"):
        if positions is not None and getattr(recipe, setting) > positions:
            raise InvalidRecipe(
                f"{setting} = {getattr(recipe, setting)}", f"at most {positions}, the model's positions", "Lower it."
            )
    if recipe.dimension is not None and recipe.dimension > description.dimension:
        raise InvalidRecipe(
            f"dimension = {recipe.dimension}", f"at most {description.dimension}, the model's width", "Lower it."
        )


if TYPE_CHECKING:
    _: type[Engine[Rows]] = _OnnxEngine
