"""Texts to ragged token ids, as a recipe says: cut to length, framed by special tokens and marker, expanded.

What is kept follows from ids alone, so it is decided here, on the host; lengths and offsets are then known before
the model runs. Batches, padding and the model belong to `encoder`.

Shapes: N texts, T tokens in all, C tokens of the texts' own characters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from lateinteraction.domain.embeddings import Offsets, TokenTrace, offsets_of
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe
from lateinteraction.domain.recipe import EncodingRecipe

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 2_048
"""Texts handed to the tokenizer in one call; its results weigh a hundred times the ids, so they must not pile up."""

_SPACES = " ▁Ġ"  # as vocabularies write them: as they are, SentencePiece, byte-level BPE


@frozen(eq=False)
class TokenisedTexts:
    """N texts as token ids, and what is to happen to each token.

    Args:
        token_ids: int64 (T,), everything the model sees except padding.
        kept: bool (T,), which tokens keep an embedding.
        offsets: int64 (N+1,), the tokens of each text.
        attended: int64 (N,), how many leading tokens of each text the others may attend to.
        truncated: int64, positions of the texts that were cut.
    """

    token_ids: NDArray[np.int64]
    kept: NDArray[np.bool_]
    offsets: Offsets
    attended: NDArray[np.int64]
    truncated: NDArray[np.int64]

    @property
    def kept_offsets(self) -> Offsets:
        """Offsets (N+1,) of the texts among the kept tokens."""
        return offsets_of(self.kept)[self.offsets]


class RecipeTokeniser:
    """A fast tokenizer that follows a recipe. Holds its own copy of the tokenizer and never changes it: thread-safe.

    Args:
        tokenizer: any transformers tokenizer with a `tokenizers` backend.
        recipe: lengths, markers, prompts, expansion and skiplist to follow.

    Raises:
        InvalidModel: a tokenizer without that backend, without a vocabulary, or that frames texts in an unknown way.
        InvalidRecipe: a setting this tokenizer cannot honour.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: EncodingRecipe) -> None:
        self._recipe = recipe
        self._tokenizer = _own_backend(tokenizer)
        self.padding_id = _id_of(tokenizer.pad_token_id) or 0
        self.largest_id = max(self._tokenizer.get_vocab().values())
        before, after = _probe_template(self._tokenizer)
        self._queries = _Frame(
            setting="query",
            prompt=recipe.query_prompt,
            before=_mark(before, recipe.query_prefix, "query_prefix", self._tokenizer),
            after=after,
            length=recipe.query_length,
            filler=_filler(tokenizer, recipe),
            filler_attended=recipe.attend_to_expansion,
        )
        self._documents = _Frame(
            setting="document",
            prompt=recipe.document_prompt,
            before=_mark(before, recipe.document_prefix, "document_prefix", self._tokenizer),
            after=after,
            length=recipe.document_length,
        )
        self._skipped = resolve_skiplist(self._tokenizer, recipe.skiplist, _id_of(tokenizer.unk_token_id))

    def queries(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokens of queries, expanded where the recipe says so."""
        return _tokenised(*self._read_queries(texts))

    def documents(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokens of documents; those of the skiplist keep no embedding."""
        return _tokenised(*self._read_documents(texts))

    def trace_queries(self, texts: Sequence[str]) -> TokenTrace:
        """Ids and characters of exactly the tokens that `queries` keeps."""
        return _trace(*self._read_queries(texts, spans=True))

    def trace_documents(self, texts: Sequence[str]) -> TokenTrace:
        """Ids and characters of exactly the tokens that `documents` keeps."""
        return _trace(*self._read_documents(texts, spans=True))

    def _read_queries(
        self, texts: Sequence[str], *, spans: bool = False
    ) -> tuple[_Contents, _Layout, NDArray[np.bool_]]:
        contents = self._contents(texts, self._queries, spans=spans)
        layout = _lay_out(self._queries, contents)
        return contents, layout, self._recipe.keeps_query_tokens(layout.special)

    def _read_documents(
        self, texts: Sequence[str], *, spans: bool = False
    ) -> tuple[_Contents, _Layout, NDArray[np.bool_]]:
        contents = self._contents(texts, self._documents, spans=spans)
        layout = _lay_out(self._documents, contents)
        kept = self._recipe.keeps_document_tokens(layout.token_ids, layout.special, self._skipped)
        return contents, layout, kept

    def _contents(self, texts: Sequence[str], frame: _Frame, *, spans: bool) -> _Contents:
        encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
        parts = [_Contents.none()]
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[first : first + TEXTS_AT_ONCE]
            prompted = ["" if not text or text.isspace() else frame.prompt + text for text in chunk]
            parts.append(_cut(encode(prompted, add_special_tokens=False), frame.room, first, spans=spans))
        return _joined(parts).after_prompt(len(frame.prompt))


def resolve_skiplist(tokenizer: Tokenizer, words: Sequence[str], unknown_id: int | None) -> NDArray[np.int64]:
    """The ids this tokenizer really emits for each word: at the start of a text, after a space, and, for words without
    a letter or digit, directly after a letter.

    Byte-level BPE has one id with and one without the leading space; both are skipped. An id says nothing of its
    place, so where such a tokenizer uses the same id inside a longer word, it is skipped there too.

    Raises:
        InvalidRecipe: a word the tokenizer does not know, or splits into several tokens everywhere.
    """
    skipped: set[int] = set()
    for word in words:
        places = [("", word), ("a ", word)] + ([] if any(map(str.isalnum, word)) else [("a", word)])
        found = {_single_token(tokenizer, left, right) for left, right in places} - {None, unknown_id}
        if not found:
            raise InvalidRecipe(
                f"skiplist word {word!r}, which the tokenizer does not know as one token",
                "words that are a single known token",
                "Leave it out of the skiplist.",
            )
        skipped.update(token_id for token_id in found if token_id is not None)
    return np.array(sorted(skipped), dtype=np.int64)


@frozen
class _Frame:
    """What surrounds the tokens of a text, and how long the whole may be.

    Args:
        setting: the role, as the recipe's settings spell it.
        before, after: ids put on either side; the marker is among the former.
        length: most tokens of the whole.
        filler: id that fills every text up to `length`, or None.
    """

    setting: str
    prompt: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    length: int
    filler: int | None = None
    filler_attended: bool = False

    def __attrs_post_init__(self) -> None:
        if self.room < 1:
            raise InvalidRecipe(
                f"{self.setting}_length = {self.length}",
                f"room for {self.length - self.room} special tokens and at least one of the text",
                f"Use {self.length - self.room + 1} or more.",
            )

    @property
    def room(self) -> int:
        """Most tokens of the text itself."""
        return self.length - len(self.before) - len(self.after)


@frozen(eq=False)
class _Contents:
    """The tokens of the texts' own characters, cut to their room.

    Args:
        token_ids: int64 (C,).
        counts: int64 (N,), of each text.
        truncated: int64, positions of the texts that were cut.
        spans: int64 (C, 2), first and last character; (0, 2) where nobody asked.
    """

    token_ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    truncated: NDArray[np.int64]
    spans: NDArray[np.int64]

    @classmethod
    def none(cls) -> _Contents:
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing, nothing.reshape(0, 2))

    def after_prompt(self, length: int) -> _Contents:
        """Spans counted from the text's first character; those of the prompt shrink to nothing."""
        return _Contents(self.token_ids, self.counts, self.truncated, np.maximum(self.spans - length, 0))


@frozen(eq=False)
class _Layout:
    """Every token in its place; `content` and `special` are masks (T,), neither holds for the filler."""

    token_ids: NDArray[np.int64]
    content: NDArray[np.bool_]
    special: NDArray[np.bool_]
    offsets: Offsets
    attended: NDArray[np.int64]


def _own_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if not tokenizer.is_fast:
        raise InvalidModel(
            f"the tokenizer of {tokenizer.name_or_path!r}, a {type(tokenizer).__name__}",
            "one with a `tokenizers` backend (a tokenizer.json)",
            "Convert it with transformers and save it again.",
        )
    # A published tokenizer.json may switch truncation and padding on, and other users of a shared one may at any time.
    own = copy.deepcopy(cast("Tokenizer", tokenizer.backend_tokenizer))
    own.no_truncation()
    own.no_padding()
    if own.get_vocab_size() <= len(set(tokenizer.all_special_ids)):
        raise InvalidModel(
            f"the tokenizer of {tokenizer.name_or_path!r}, which knows only its special tokens",
            "a vocabulary",
            "Put the model's tokenizer.json beside its weights.",
        )
    return own


def _id_of(special: object) -> int | None:
    """A special token's id, which transformers types as nearly anything."""
    return special if isinstance(special, int) else None


def _probe_template(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special ids this tokenizer puts before and after a text."""
    probe = next((text for text in ("a", "1", ".") if tokenizer.encode(text, add_special_tokens=False).ids), "")
    content = tokenizer.encode(probe, add_special_tokens=False).ids
    framed = tokenizer.encode(probe)
    first = framed.special_tokens_mask.index(0) if content else 0
    last = first + len(content)
    if not content or framed.ids[first:last] != content or any(framed.type_ids):
        raise InvalidModel(
            f"a tokenizer that makes {framed.ids} with segments {framed.type_ids} of {probe!r}",
            "the ids of the text between special tokens, all in segment 0",
            "Use a model whose tokenizer does.",
        )
    return tuple(framed.ids[:first]), tuple(framed.ids[last:])


def _mark(before: tuple[int, ...], prefix: str | None, setting: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The marker goes after the first special token, or first where there is none (ColBERT, §3.2)."""
    if prefix is None:
        return before
    marker = tokenizer.token_to_id(prefix)
    if marker is None:
        raise InvalidRecipe(
            f"{setting} = {prefix!r}, which is no token of the tokenizer",
            "one known or added token, spaces included",
            "Name a token the model has, such as '[unused0]'.",
        )
    return (*before[:1], marker, *before[1:])


def _filler(tokenizer: PreTrainedTokenizerBase, recipe: EncodingRecipe) -> int | None:
    if recipe.expansion == "none":
        return None
    mask = _id_of(tokenizer.mask_token_id)
    if mask is None:
        raise InvalidRecipe(
            "expansion = 'fixed' with a tokenizer that has no mask token",
            "a mask token to expand with",
            "Use expansion='none'.",
        )
    return mask


def _single_token(tokenizer: Tokenizer, left: str, word: str) -> int | None:
    """The id of the token that stands for `word` after `left`, spaces before it aside; None where several do."""
    encoding = tokenizer.encode(left + word, add_special_tokens=False)
    touching = [
        (token_id, start)
        for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        if end > len(left) and token.strip(_SPACES)
    ]
    if len(touching) != 1 or left[touching[0][1] :].strip():
        return None
    return touching[0][0]


def _cut(encodings: Sequence[Encoding], room: int, first: int, *, spans: bool) -> _Contents:
    """Contents of one chunk whose first text is at position `first`."""
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    counts = np.minimum(lengths, room)
    total = int(counts.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids[:room] for encoding in encodings), np.int64, total)
    pairs = chain.from_iterable(chain.from_iterable(encoding.offsets[:room]) for encoding in encodings)
    characters = np.fromiter(pairs, np.int64, 2 * total) if spans else np.zeros(0, np.int64)
    return _Contents(ids, counts, first + np.flatnonzero(lengths > room), characters.reshape(-1, 2))


def _joined(parts: Sequence[_Contents]) -> _Contents:
    return _Contents(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        np.concatenate([part.spans for part in parts]),
    )


def _lay_out(frame: _Frame, contents: _Contents) -> _Layout:
    """Put before, content, after and filler of every text in their places.

    A text without a token of its own gets none at all: markers alone would make an empty document similar to anything.
    """
    first, last = len(frame.before), len(frame.before) + contents.counts
    occupied = contents.counts > 0
    unfilled = np.where(occupied, last + len(frame.after), 0)
    lengths = unfilled if frame.filler is None else np.where(occupied, frame.length, 0)
    offsets = offsets_of(lengths)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    content = (place >= first) & (place < np.repeat(last, lengths))
    token_ids = np.full(len(place), frame.filler or 0, dtype=np.int64)
    token_ids[content] = contents.token_ids
    for step, token_id in enumerate(frame.before):
        token_ids[offsets[:-1][occupied] + step] = token_id
    for step, token_id in enumerate(frame.after):
        token_ids[(offsets[:-1] + last)[occupied] + step] = token_id
    special = ~content & (place < np.repeat(unfilled, lengths))
    return _Layout(token_ids, content, special, offsets, lengths if frame.filler_attended else unfilled)


def _tokenised(contents: _Contents, layout: _Layout, kept: NDArray[np.bool_]) -> TokenisedTexts:
    return TokenisedTexts(layout.token_ids, kept, layout.offsets, layout.attended, contents.truncated)


def _trace(contents: _Contents, layout: _Layout, kept: NDArray[np.bool_]) -> TokenTrace:
    """Tokens that stand for no character lie where they are: at 0 before the content, at its end after it."""
    spans = np.zeros((len(layout.token_ids), 2), dtype=np.int64)
    spans[layout.content] = contents.spans
    last_token = np.maximum.accumulate(np.where(layout.content, np.arange(len(spans)), -1))
    own = last_token >= np.repeat(layout.offsets[:-1], np.diff(layout.offsets))
    after = ~layout.content & own
    spans[after] = spans[last_token[after], 1][:, None]
    return TokenTrace(layout.token_ids[kept], spans[kept, 0], spans[kept, 1], offsets_of(kept)[layout.offsets])
