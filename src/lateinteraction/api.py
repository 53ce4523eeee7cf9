"""What people type: strings in, results out. Coercion only; decisions are in `wiring`, work in the application.

    model = load_model()                      Model: an encoder with its scorer
    index = Index(model)                      Index: documents to search, in memory or in a folder
    index.add([...]); index.search("...")     → list[Result]

Each object leads to the next level: `model.encoder`, `index.retriever`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args, overload

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction import wiring
from lateinteraction.application.numbering import Numbers
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import InvalidIdentifier, InvalidOption, InvalidText, shown
from lateinteraction.domain.explanation import Explanation
from lateinteraction.domain.filters import Filter, check_filter, filter_from_json
from lateinteraction.domain.ports import AddCounts, AddReport, OnDuplicate, Progress, StageProgress
from lateinteraction.domain.quantisation import (
    BinaryEmbeddings,
    Int8Embeddings,
    quantise_to_bits,
    quantise_to_int8,
)
from lateinteraction.domain.ranking import Fusion, Ranking, Score
from lateinteraction.domain.recipe import EncodingRecipe
from lateinteraction.domain.text import Document, DocumentId, Metadata, Query
from lateinteraction.wiring import indexes

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.encoding.encoder import EncodedDocuments, EncodingOptions, WorkingEncoder
    from lateinteraction.adapters.flat import FlatIndex
    from lateinteraction.adapters.huggingface.reading import CheckpointOptions
    from lateinteraction.adapters.index.index import StoredIndex
    from lateinteraction.adapters.index.search import SearchOptions
    from lateinteraction.adapters.index.settings import IndexOptions
    from lateinteraction.application.explanation import Explainer
    from lateinteraction.application.retrieval import Reranker, Retriever

T = TypeVar("T")
Where = Filter | Mapping[str, object]
Output = Literal["torch", "numpy", "int8", "binary"]
By = Literal["embeddings", "words", "both"]
Stream = Iterable[str] | Iterable[Document] | Mapping[str, str]
Documents = Sequence[str] | Sequence[Document] | Mapping[str, str]


@frozen
class Result:
    """One document that was found."""

    id: DocumentId
    score: Score
    text: str
    metadata: Metadata


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
        given = [_query(query) for query in _items(queries, "queries")]
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
        given = _documents(documents, _fresh())
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
        if isinstance(documents, (str, bytes)) or not isinstance(cast("object", documents), Iterable):
            raise InvalidText(f"documents as a {type(documents).__name__}", "texts to draw", "Put one into a list.")
        if output not in ("numpy", "torch"):
            raise InvalidOption(f"output = {shown(output)}", "'numpy' or 'torch'", "Quantise each piece on its own.")
        encoder = self._encoders.host if output == "numpy" else self.encoder
        return encoder.stream_documents(_drawn(documents), documents_per_piece=documents_per_piece)

    def trace_queries(self, queries: Sequence[str] | Sequence[Query]) -> TokenTrace:
        """Token ids and characters behind each embedding of `encode_queries`."""
        return self._encoders.host.trace_queries([_query(query) for query in _items(queries, "queries")])

    def trace_documents(self, documents: Documents) -> TokenTrace:
        """Token ids and characters behind each embedding of `encode_documents`."""
        return self._encoders.host.trace_documents(_documents(documents, _fresh()))

    def rerank(self, query: str | Query, documents: Documents, k: int | None = None) -> list[Result]:
        """The documents in falling order of score with the query; texts without ids get "0", "1", …"""
        coerced = _documents(documents, _fresh())
        return _results(self._reranker.rank(_query(query), coerced, k), coerced)

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
        return self._explainer.explain(_query(query), own, stored)

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


class Index:
    """Documents to search: in memory and exactly, or in a folder, where they stay. Safe to use from several threads.

        li.Index(model)                        in memory
        li.Index(model, "my-index")            in a folder, which is made where there is none

    Args:
        model: encodes documents and queries; a folder remembers which one filled it, and refuses others.
        folder: None: in memory.
        options: of a new folder: how embeddings are stored, and the language of the texts.

    Raises:
        IndexMismatch: a folder that another model filled, or that was made with other options.
        CorruptIndex: a folder that is damaged.
    """

    def __init__(self, model: Model, folder: str | Path | None = None, options: IndexOptions | None = None) -> None:
        if folder is None and options is not None:
            raise InvalidOption("options for an index in memory", "a folder", "Name one: Index(model, 'my-index').")
        self.model = model
        self._in_folder = None if folder is None else indexes.stored_index(folder, model.encoder, options)
        self._store: FlatIndex | StoredIndex = wiring.memory_index() if self._in_folder is None else self._in_folder
        self.retriever: Retriever[Tensor] = wiring.retriever(model.encoder, self._store)
        self._numbers = Numbers(self._store.held)

    @property
    def stored(self) -> StoredIndex:
        """The index of the folder: what can be done with one besides, such as `compact`, `verify`, `stats`.

        Raises:
            InvalidOption: it is in memory.
        """
        if self._in_folder is None:
            raise InvalidOption("an index in memory", "one in a folder", "Make it as Index(model, 'my-index').")
        return self._in_folder

    def close(self) -> None:
        """Let other processes write to the folder. A `with` block does it at its end."""
        if self._in_folder is not None:
            self._in_folder.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._store

    def add(self, documents: Documents, *, on_duplicate: OnDuplicate = "error") -> AddReport:
        """Add texts, a mapping from id to text, or `Document`s: all of them, or on an error none.

        Texts without ids are numbered: "0", "1", …, leaving out what is an id already. This object gives no number
        twice; one that opens the folder later may give that of a document that was removed.

        Raises:
            DuplicateDocument: an id twice, or one already there and on_duplicate is "error".
        """
        named = _documents(documents, self._numbers)
        return self.retriever.add(named, on_duplicate=on_duplicate)

    def add_stream(
        self,
        documents: Stream,
        *,
        on_duplicate: OnDuplicate = "error",
        documents_per_commit: int = 2048,
        total: int | None = None,
        progress: StageProgress | None = None,
    ) -> AddCounts:
        """Add what need not fit in memory: `documents_per_commit` at a time are encoded and, in a folder, committed.

        What was interrupted goes on after its last commit when the same stream is added with on_duplicate="skip".

        Args:
            documents: texts, `Document`s, or a mapping from id to text; texts without ids get "0", "1", … by their own
                count, so that they have the same ones when they come again.
            on_duplicate: what becomes of an id that is there already.
            documents_per_commit: the piece that is lost at most by a kill.
            total: how many there are, for the progress; known by itself of what has a length.
            progress: such as a `BuildLine`.
        """
        if total is None and isinstance(documents, Sized):
            total = len(documents)
        return self.retriever.add_stream(
            _drawn(documents),
            on_duplicate=on_duplicate,
            documents_per_add=documents_per_commit,
            total=total,
            progress=progress,
        )

    def remove(self, which: Sequence[str] | Where) -> int:
        """Remove documents by ids or by filter; how many."""
        if isinstance(which, (str, Sequence)):
            return self.retriever.remove(_ids(which, "ids"))
        return self.retriever.remove(_filter(which))

    def update(self, metadata: Mapping[str, Metadata]) -> int:
        """Give documents of a folder new metadata in place of all they had; nothing is encoded. How many documents."""
        return self.stored.update({DocumentId(identifier): new for identifier, new in metadata.items()})

    @overload
    def search(
        self,
        query: str | Query,
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[Result]: ...
    @overload
    def search(
        self,
        query: Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[list[Result]]: ...
    def search(
        self,
        query: str | Query | Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
        by: By | Fusion = "embeddings",
        options: SearchOptions | None = None,
    ) -> list[Result] | list[list[Result]]:
        """The k best documents for a query; for a list of queries, a list for each.

        Args:
            query: one, or several at once.
            k: how many.
            where: only documents whose metadata match, as a `Filter` or in its JSON form.
            candidates: only these ids; none of them gives no results.
            by: "embeddings", and in a folder "words" (BM25) or "both", whose scores are sums of reciprocal ranks; a
                `Fusion` says otherwise.
            options: how much a search of a folder may cost.
        """
        queries = [_query(one) for one in ([query] if isinstance(query, (str, Query)) else _items(query, "queries"))]
        eligible = None if where is None else _filter(where)
        among = None if candidates is None else _ids(candidates, "candidates")
        snapshot = self._store.snapshot()  # rankings and texts of one moment, whoever writes meanwhile
        if by == "embeddings" and options is None:
            search = wiring.searcher(self.model.encoder, snapshot).search
        else:
            snapshot = self.stored.snapshot()
            search = indexes.search_of(self.model.encoder, snapshot, by, options)
        rankings = search(queries, k, where=eligible, candidates=among)
        found = [_results(ranking, snapshot.get(ranking.documents)) for ranking in rankings]
        return found[0] if isinstance(query, (str, Query)) else found

    def explain(self, query: str | Query, identifier: str) -> Explanation:
        """Why a document scores as it does: by its text, and in `stored` by what the index keeps of it."""
        ids = [DocumentId(identifier)]
        snapshot = self._store.snapshot()
        return self.model.explain(query, snapshot.get(ids)[0], stored=snapshot.fetch(ids))


def _checked(output: Output) -> Output:
    if output not in get_args(Output):
        raise InvalidOption(f"output = {shown(output)}", f"one of {', '.join(get_args(Output))}", "Choose one of them.")
    return output


def _compressed(embeddings: TokenEmbeddings[NDArray[np.float32]], output: Output) -> object:
    if output == "numpy":
        return embeddings
    return quantise_to_int8(embeddings) if output == "int8" else quantise_to_bits(embeddings)


def _query(query: str | Query) -> Query:
    return query if isinstance(query, Query) else Query(query)


def _filter(where: Where) -> Filter:
    if isinstance(where, Mapping):
        return filter_from_json(where)
    check_filter(where)
    return where


def _ids(given: Sequence[str], what: str) -> list[DocumentId]:
    for identifier in _items(given, what):
        if not isinstance(cast("object", identifier), str):
            raise InvalidIdentifier(f"{shown(identifier)} among the {what}", "ids, which are str", "Convert it first.")
    return [DocumentId(identifier) for identifier in given]


def _items(given: Sequence[T], what: str) -> Sequence[T]:
    """A lone str is a sequence of its characters; nobody means that."""
    if isinstance(given, (str, bytes)) or not isinstance(cast("object", given), Sequence):
        raise InvalidText(f"{what} as a {type(given).__name__}", "a list", "Put a single one into a list.")
    return given


def _documents(documents: Documents, numbers: Numbers) -> list[Document]:
    """Documents as such; what has no id gets the next number that no other document has."""
    if isinstance(documents, Mapping):
        return [Document(DocumentId(identifier), text) for identifier, text in documents.items()]
    given = _items(documents, "documents")
    named = {item.id for item in given if isinstance(item, Document)}
    free = iter(numbers.take(sum(not isinstance(item, Document) for item in given), named))
    return [item if isinstance(item, Document) else Document(next(free), item) for item in given]


def _fresh() -> Numbers:
    """Numbers of a call that has nothing to do with others."""
    return Numbers(lambda ids: frozenset())


def _drawn(documents: Stream) -> Iterator[Document]:
    """Documents one by one; a mapping holds texts by their ids."""
    if isinstance(documents, Mapping):
        texts = cast("Mapping[str, str]", documents)
        return (Document(DocumentId(identifier), text) for identifier, text in texts.items())
    numbers = map(str, count())
    return (item if isinstance(item, Document) else Document(DocumentId(next(numbers)), item) for item in documents)


def _results(ranking: Ranking, documents: Sequence[Document]) -> list[Result]:
    by_id = {document.id: document for document in documents}
    return [Result(hit.document, hit.score, by_id[hit.document].text, by_id[hit.document].metadata) for hit in ranking]
