"""What people type: strings in, results out. Coercion only; decisions are in `wiring`, work in the application.

    model = load_model()                      Model: an encoder with its scorer
    index = Index(model)                      Index: documents to search, in memory
    index.add([...]); index.search("...")     → list[Result]

Each object leads to the next level: `model.encoder`, `index.retriever`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, overload

from attrs import frozen

from lateinteraction import wiring
from lateinteraction.domain.errors import InvalidIdentifier, InvalidText, shown
from lateinteraction.domain.explanation import Explanation
from lateinteraction.domain.filters import Filter, check_filter, filter_from_json
from lateinteraction.domain.ports import AddReport, OnDuplicate, Progress
from lateinteraction.domain.ranking import Ranking, Score
from lateinteraction.domain.text import Document, DocumentId, Metadata, Query, check_new

if TYPE_CHECKING:
    from torch import Tensor

    from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
    from lateinteraction.application.retrieval import Retriever
    from lateinteraction.domain.embeddings import TokenEmbeddings

T = TypeVar("T")
Where = Filter | Mapping[str, object]
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
    device: str = "auto",
    recipe: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model.

    Args:
        source: a folder or a hub name; None is the offline default model (extra `demo`).
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        recipe: settings of `EncodingRecipe` that replace the model's own, as {"document_length": 128}.
        progress: told how many texts are encoded, of how many.

    Raises:
        InvalidModel: nothing usable there; ModelMismatch when the default model's weights are not the published ones.
        InvalidRecipe: settings that contradict each other or the model.
    """
    return Model(wiring.encoder(source, device=device, recipe=recipe, progress=progress))


class Model:
    """An encoder together with MaxSim: encodes, reranks, explains."""

    def __init__(self, encoder: HuggingFaceEncoder) -> None:
        self.encoder = encoder
        self._reranker = wiring.reranker(encoder)
        self._explainer = wiring.explainer(encoder)

    def encode_queries(self, queries: Sequence[str] | Sequence[Query]) -> TokenEmbeddings[Tensor]:
        """Token embeddings of queries, packed."""
        return self.encoder.encode_queries([_query(query) for query in _items(queries, "queries")])

    def encode_documents(self, documents: Documents) -> TokenEmbeddings[Tensor]:
        """Token embeddings of documents, packed."""
        return self.encoder.encode_documents(_documents(documents, count()))

    def rerank(self, query: str | Query, documents: Documents, k: int | None = None) -> list[Result]:
        """The documents in falling order of score with the query; texts without ids get "0", "1", …"""
        coerced = _documents(documents, count())
        return _results(self._reranker.rank(_query(query), coerced, k), coerced)

    def explain(self, query: str | Query, document: str | Document) -> Explanation:
        """Which token of the document answered which token of the query, and what it gave to the score."""
        own = document if isinstance(document, Document) else Document(DocumentId("0"), document)
        return self._explainer.explain(_query(query), own)


class Index:
    """Documents to search exactly, in memory. Safe to use from several threads."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._store = wiring.memory_index()
        self.retriever: Retriever[Tensor] = wiring.retriever(model.encoder, self._store)
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._store

    def add(self, documents: Documents, *, on_duplicate: OnDuplicate = "error") -> AddReport:
        """Add texts, a mapping from id to text, or `Document`s: all of them, or on an error none.

        Texts without ids are numbered: "0", "1", …, leaving out what is an id already. No number is given twice.

        Raises:
            DuplicateDocument: an id twice, or one already there and on_duplicate is "error".
        """
        named = _documents(documents, self._numbers, self._store)
        if on_duplicate == "error":  # said again by the index; here it costs no encoding
            check_new((document.id for document in named), self._store)
        return self.retriever.add(named, on_duplicate=on_duplicate)

    def remove(self, which: Sequence[str] | Where) -> int:
        """Remove documents by ids or by filter; how many."""
        if isinstance(which, (str, Sequence)):
            return self.retriever.remove(_ids(which, "ids"))
        return self.retriever.remove(_filter(which))

    @overload
    def search(
        self, query: str | Query, k: int = 10, *, where: Where | None = None, candidates: Sequence[str] | None = None
    ) -> list[Result]: ...
    @overload
    def search(
        self,
        query: Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[list[Result]]: ...
    def search(
        self,
        query: str | Query | Sequence[str] | Sequence[Query],
        k: int = 10,
        *,
        where: Where | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[Result] | list[list[Result]]:
        """The k best documents for a query; for a list of queries, a list for each.

        Args:
            where: only documents whose metadata match, as a `Filter` or in its JSON form.
            candidates: only these ids; none of them gives no results.
        """
        queries = [query] if isinstance(query, (str, Query)) else _items(query, "queries")
        snapshot = self._store.snapshot()  # rankings and texts of one moment, whoever writes meanwhile
        rankings = wiring.searcher(self.model.encoder, snapshot).search(
            [_query(one) for one in queries],
            k,
            where=None if where is None else _filter(where),
            candidates=None if candidates is None else _ids(candidates, "candidates"),
        )
        found = [_results(ranking, snapshot.get(ranking.documents)) for ranking in rankings]
        return found[0] if isinstance(query, (str, Query)) else found

    def explain(self, query: str | Query, identifier: str) -> Explanation:
        """Why a document of this index scores as it does."""
        return self.model.explain(query, self._store.get([DocumentId(identifier)])[0])


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


def _documents(documents: Documents, numbers: Iterator[int], taken: Container[str] = ()) -> list[Document]:
    """Documents as such; what has no id gets the next number that no other document has."""
    if isinstance(documents, Mapping):
        return [Document(DocumentId(identifier), text) for identifier, text in documents.items()]
    given = _items(documents, "documents")
    named = {item.id for item in given if isinstance(item, Document)}
    free = (DocumentId(number) for number in map(str, numbers) if number not in taken and number not in named)
    return [item if isinstance(item, Document) else Document(next(free), item) for item in given]


def _results(ranking: Ranking, documents: Sequence[Document]) -> list[Result]:
    by_id = {document.id: document for document in documents}
    return [Result(hit.document, hit.score, by_id[hit.document].text, by_id[hit.document].metadata) for hit in ranking]
