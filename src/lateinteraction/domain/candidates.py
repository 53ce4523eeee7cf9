"""TokenHits: what a token-level index proposes, before any document is scored.

Shapes: H hits in all, T query tokens, N queries.
"""

from __future__ import annotations

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, NDArray

from lateinteraction.domain.embeddings import Offsets, check_offsets, read_only_integers
from lateinteraction.domain.errors import InvalidEmbeddings
from lateinteraction.domain.text import DocumentId


def _similarities(values: ArrayLike) -> NDArray[np.float32]:
    copied = np.array(values, dtype=np.float32)
    copied.flags.writeable = False
    return copied


@frozen(eq=False)
class TokenHits:
    """For every token of every query, the nearest document tokens, as (document, similarity) pairs.

    Args:
        documents: (H,) the document each hit belongs to; a document may occur many times.
        similarities: float32 (H,), finite.
        offsets: int64 (T+1,), the hits of each query token.
        query_offsets: int64 (N+1,), the query tokens of each query, as in the query embeddings.

    Raises:
        InvalidEmbeddings: counts disagree or a similarity is not finite.
    """

    documents: tuple[DocumentId, ...] = field(converter=tuple)
    similarities: NDArray[np.float32] = field(converter=_similarities)
    offsets: Offsets = field(converter=read_only_integers)
    query_offsets: Offsets = field(converter=read_only_integers)

    def __attrs_post_init__(self) -> None:
        if self.similarities.shape != (len(self.documents),):
            raise InvalidEmbeddings(
                f"{len(self.documents)} documents and similarities of shape {self.similarities.shape}",
                "a similarity for each",
                "Return one pair per hit.",
            )
        if not np.all(np.isfinite(self.similarities)):
            raise InvalidEmbeddings("a similarity that is not finite", "finite similarities", "Check the embeddings.")
        check_offsets(self.offsets, len(self.documents), "hits")
        check_offsets(self.query_offsets, len(self.offsets) - 1, "query tokens")

    def __len__(self) -> int:
        """Queries, not hits."""
        return len(self.query_offsets) - 1

    def documents_of(self, query: int) -> list[DocumentId]:
        """The distinct documents that any token of this query hit, in the order of their first hit."""
        first, last = self.query_offsets[query], self.query_offsets[query + 1]
        return list(dict.fromkeys(self.documents[self.offsets[first] : self.offsets[last]]))
