"""Model: an encoder with its scorer, for texts as people type them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from lateinteraction import wiring
from lateinteraction.api.typed import (
    Documents,
    Result,
    Stream,
    documents_of,
    drawn,
    fresh_numbers,
    items_of,
    query_of,
    results_of,
)
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import InvalidOption, shown
from lateinteraction.domain.explanation import Explanation
from lateinteraction.domain.ports import Progress
from lateinteraction.domain.quantisation import (
    BinaryEmbeddings,
    Int8Embeddings,
    quantise_to_bits,
    quantise_to_int8,
)
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Query

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.encoding.encoder import EncodedDocuments, EncodingOptions, WorkingEncoder
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions
    from lateinteraction.application.explanation import Explainer
    from lateinteraction.application.retrieval import Reranker

Output = Literal["torch", "numpy", "int8", "binary"]


def load_model(
    source: str | Path | None = None,
    *,
    device: str | Sequence[str] = "auto",
    runtime: wiring.Runtime = "torch",
    recipe: Mapping[str, object] | None = None,
    progress: Progress | None = None,
    checkpoint: CheckpointOptions | None = None,
    encoding: EncodingOptions | None = None,
) -> Model:
    """Load a model.

    Args:
        source: a folder or a hub name; None is the offline default model (extra `demo`).
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; several, such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"], share
            the work between as many processes.
        runtime: "torch", or "onnx" for a folder that `Model.export_onnx` wrote (extra `onnx`); that loads no torch.
        recipe: settings of `EncodingRecipe` that replace the model's own, such as {"document_length": 512}.
        progress: told how many documents are encoded, such as a `ProgressLine`.
        checkpoint: precision, revision, a projection for an encoder without one, and what else concerns reading.
        encoding: size of batches, and what becomes of long texts.

    Raises:
        InvalidModel: nothing usable there; ModelMismatch when weights are not the expected ones.
        InvalidRecipe: settings that contradict each other or the model.
        InvalidOption: an option out of range, or a device that this machine does not have.
        MissingExtra: a package that is needed for it and not installed.
    """
    if progress is not None:
        encoding = wiring.with_progress(encoding, progress)
    return Model(
        wiring.model(source, device=device, runtime=runtime, recipe=recipe, checkpoint=checkpoint, encoding=encoding)
    )


class Model:
    """An encoder together with MaxSim: encodes, reranks, explains, and can be saved."""

    def __init__(self, encoders: wiring.Encoders) -> None:
        self._encoders = encoders

    def close(self) -> None:
        """End the processes of a model on several devices; others have none. A `with` block does it at its end."""
        self._encoders.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def recipe(self) -> EncodingRecipe:
        """How text becomes tokens."""
        return self._encoders.host.recipe

    @cached_property
    def encoder(self) -> WorkingEncoder[Tensor]:
        """The port below this façade; also reports what it did to each text."""
        return self._encoders.tensors()

    @cached_property
    def _reranker(self) -> Reranker[Tensor]:
        return wiring.reranker(self.encoder)

    @cached_property
    def _explainer(self) -> Explainer[Tensor]:
        return wiring.explainer(self.encoder)

    @overload
    def encode_queries(
        self, queries: Sequence[str] | Sequence[Query], *, output: Literal["torch"] = "torch"
    ) -> TokenEmbeddings[Tensor]: ...
    @overload
    def encode_queries(
        self, queries: Sequence[str] | Sequence[Query], *, output: Literal["numpy"]
    ) -> TokenEmbeddings[NDArray[np.float32]]: ...
    @overload
    def encode_queries(
        self, queries: Sequence[str] | Sequence[Query], *, output: Literal["int8"]
    ) -> Int8Embeddings: ...
    @overload
    def encode_queries(
        self, queries: Sequence[str] | Sequence[Query], *, output: Literal["binary"]
    ) -> BinaryEmbeddings: ...
    def encode_queries(self, queries: Sequence[str] | Sequence[Query], *, output: Output = "torch") -> object:
        """Token embeddings of queries, packed: torch tensors, NumPy arrays, or eight bits or one bit for each value."""
        given = [query_of(query) for query in items_of(queries, "queries")]
        if _checked(output) == "torch":
            return self.encoder.encode_queries(given)
        return _compressed(self._encoders.host.encode_queries(given), output)

    @overload
    def encode_documents(
        self, documents: Documents, *, output: Literal["torch"] = "torch"
    ) -> TokenEmbeddings[Tensor]: ...
    @overload
    def encode_documents(
        self, documents: Documents, *, output: Literal["numpy"]
    ) -> TokenEmbeddings[NDArray[np.float32]]: ...
    @overload
    def encode_documents(self, documents: Documents, *, output: Literal["int8"]) -> Int8Embeddings: ...
    @overload
    def encode_documents(self, documents: Documents, *, output: Literal["binary"]) -> BinaryEmbeddings: ...
    def encode_documents(self, documents: Documents, *, output: Output = "torch") -> object:
        """Token embeddings of documents, packed, in the same four forms."""
        given = documents_of(documents, fresh_numbers())
        if _checked(output) == "torch":
            return self.encoder.encode_documents(given)
        return _compressed(self._encoders.host.encode_documents(given), output)

    @overload
    def stream_documents(
        self, documents: Stream, *, documents_per_piece: int = 512, output: Literal["numpy"] = "numpy"
    ) -> Iterator[EncodedDocuments[NDArray[np.float32]]]: ...
    @overload
    def stream_documents(
        self, documents: Stream, *, documents_per_piece: int = 512, output: Literal["torch"]
    ) -> Iterator[EncodedDocuments[Tensor]]: ...
    def stream_documents(
        self, documents: Stream, *, documents_per_piece: int = 512, output: Literal["numpy", "torch"] = "numpy"
    ) -> object:
        """Encode what need not fit in memory: pieces of documents with their embeddings, in order.

        Texts without ids get "0", "1", …, by their own count.
        """
        if output not in ("numpy", "torch"):
            raise InvalidOption(f"output = {shown(output)}", "'numpy' or 'torch'", "Quantise each piece on its own.")
        encoder = self._encoders.host if output == "numpy" else self.encoder
        return encoder.stream_documents(drawn(documents), documents_per_piece=documents_per_piece)

    def trace_queries(self, queries: Sequence[str] | Sequence[Query]) -> TokenTrace:
        """Token ids and characters behind each embedding of `encode_queries`."""
        return self._encoders.host.trace_queries([query_of(query) for query in items_of(queries, "queries")])

    def trace_documents(self, documents: Documents) -> TokenTrace:
        """Token ids and characters behind each embedding of `encode_documents`."""
        return self._encoders.host.trace_documents(documents_of(documents, fresh_numbers()))

    def rerank(self, query: str | Query, documents: Documents, k: int | None = None) -> list[Result]:
        """The documents in falling order of score with the query; texts without ids get "0", "1", …"""
        coerced = documents_of(documents, fresh_numbers())
        return results_of(self._reranker.rank(query_of(query), coerced, k), coerced)

    def explain(
        self, query: str | Query, document: str | Document, *, stored: TokenEmbeddings[Tensor] | None = None
    ) -> Explanation:
        """Which token of the document answered which token of the query, and what it gave to the score.

        Args:
            query: what is asked.
            document: what answers.
            stored: what an index keeps of the document: explained beside it.
        """
        own = document if isinstance(document, Document) else Document(DocumentId("0"), document)
        return self._explainer.explain(query_of(query), own, stored)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> str:
        """Write a folder that this library, PyLate and sentence-transformers load; where it is.

        Raises:
            InvalidOption: a folder that is not empty, unless it holds a model and `overwrite` is set.
        """
        return wiring.save(self._encoders, folder, overwrite=overwrite)

    def push_to_hub(
        self, name: str, *, private: bool = True, token: str | None = None, revision: str | None = None
    ) -> str:
        """Put the same files on the Hugging Face hub; the repository's name, owner included."""
        return wiring.push(self._encoders, name, private=private, token=token, revision=revision)

    def export_onnx(
        self, folder: str | Path, *, weights: wiring.OnnxWeights = "float32", overwrite: bool = False
    ) -> str:
        """Write a folder for `load_model(folder, runtime="onnx")`, in full precision or with weights of eight bits."""
        return wiring.export(self._encoders, folder, weights=weights, overwrite=overwrite)


def _checked(output: Output) -> Output:
    if output not in get_args(Output):
        raise InvalidOption(f"output = {shown(output)}", f"one of {', '.join(get_args(Output))}", "Choose one of them.")
    return output


def _compressed(embeddings: TokenEmbeddings[NDArray[np.float32]], output: Output) -> object:
    if output == "numpy":
        return embeddings
    return quantise_to_int8(embeddings) if output == "int8" else quantise_to_bits(embeddings)
