"""Texts to ragged token ids, as a recipe says: cut to length, framed by special tokens and marker, expanded.

What is kept follows from ids alone, so it is decided here, on the host; lengths and offsets are then known before
the model runs. Batches and padding belong to `batches`, the model to an engine.

Shapes: N texts, S sequences that the model sees, T tokens in all, C tokens of the texts' own characters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from attrs import evolve, fields, frozen
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from lateinteraction.domain.embeddings import Offsets, TokenTrace, offsets_of
from lateinteraction.domain.errors import InvalidModel, InvalidRecipe, TextTooLong, shown
from lateinteraction.domain.recipe import EncodingRecipe

OnTooLong = Literal["truncate", "split", "error"]

TEXTS_AT_ONCE = 2_048
"""Texts handed to the tokenizer in one call; its results weigh a hundred times the ids, so they must not pile up."""

CHARACTERS_AT_ONCE = 4_000_000
"""And this many characters at the most, unless one text alone has more: long texts are tokenised whole, then cut."""

_SPACES = " ▁Ġ"  # as vocabularies write them: as they are, SentencePiece, byte-level BPE


@frozen
class SpecialTokens:
    """Ids that have a meaning of their own; None where a vocabulary has no such token."""

    mask: int | None = None
    end: int | None = None
    padding: int | None = None
    unknown: int | None = None


@frozen(eq=False)
class TokenisedTexts:
    """N texts as S sequences of token ids, and what is to happen to each token.

    Args:
        token_ids: int64 (T,), everything the model sees except padding.
        kept: bool (T,), which tokens keep an embedding.
        offsets: int64 (S+1,), the tokens of each sequence.
        attended: int64 (S,), how many leading tokens of each sequence the others may attend to.
        items: int64 (N+1,), the sequences of each text: one, unless a long text was split.
        long: int64, positions of the texts that were longer than the recipe allows.
        lost: int64, of each of those, how many of its tokens nobody sees: none where it was split.
    """

    token_ids: NDArray[np.int64]
    kept: NDArray[np.bool_]
    offsets: Offsets
    attended: NDArray[np.int64]
    items: Offsets
    long: NDArray[np.int64]
    lost: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items) - 1

    @property
    def kept_offsets(self) -> Offsets:
        """Offsets (N+1,) of the texts among the kept tokens."""
        return offsets_of(self.kept)[self.offsets][self.items]


class RecipeTokeniser:
    """A tokenizer that follows a recipe. Holds its own copy of the tokenizer and never changes it: thread-safe.

    Args:
        tokenizer: from a tokenizer.json.
        specials: which ids it masks, ends, pads and gives up with.
        recipe: lengths, markers, prompts, expansion and skiplists to follow.
        on_too_long: what becomes of a text beyond the recipe's length: cut it, read it in several sequences that
            make one item, or raise.

    Raises:
        InvalidModel: a tokenizer without a vocabulary, or that frames texts in an unknown way.
        InvalidRecipe: a setting this tokenizer cannot honour.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        specials: SpecialTokens,
        recipe: EncodingRecipe,
        on_too_long: OnTooLong = "truncate",
    ) -> None:
        self._recipe = recipe
        self._on_too_long: OnTooLong = on_too_long
        self._tokenizer = _own_copy(tokenizer)
        # Padding never counts, so any id that has an embedding serves a vocabulary without one.
        self.padding_id = next((each for each in (specials.padding, specials.end) if each is not None), 0)
        self.largest_id = max(self._tokenizer.get_vocab().values())
        before, after = _probe_template(self._tokenizer)
        self._queries = _Frame(
            setting="query",
            prompt=recipe.query_prompt,
            before=_mark(before, recipe.query_prefix, "query_prefix", self._tokenizer),
            after=after,
            length=recipe.query_length,
            skipped=resolve_skiplist(self._tokenizer, recipe.query_skiplist, specials.unknown),
            prompt_tokens=len(self._tokenizer.encode(recipe.query_prompt, add_special_tokens=False)),
            filler=_filler(self._tokenizer, specials, recipe),
            filler_attended=recipe.attend_to_expansion,
        )
        self._documents = _Frame(
            setting="document",
            prompt=recipe.document_prompt,
            before=_mark(before, recipe.document_prefix, "document_prefix", self._tokenizer),
            after=after,
            length=recipe.document_length,
            skipped=resolve_skiplist(self._tokenizer, recipe.skiplist, specials.unknown),
            prompt_tokens=len(self._tokenizer.encode(recipe.document_prompt, add_special_tokens=False)),
        )

    def queries(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokens of queries, expanded where the recipe says so."""
        return self._tokenised(*self._read(texts, self._queries))

    def documents(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokens of documents; those of the skiplist keep no embedding."""
        return self._tokenised(*self._read(texts, self._documents))

    def trace_queries(self, texts: Sequence[str]) -> TokenTrace:
        """Ids and characters of exactly the tokens that `queries` keeps."""
        return self._trace(*self._read(texts, self._queries, spans=True))

    def trace_documents(self, texts: Sequence[str]) -> TokenTrace:
        """Ids and characters of exactly the tokens that `documents` keeps."""
        return self._trace(*self._read(texts, self._documents, spans=True))

    def _read(
        self, texts: Sequence[str], frame: _Frame, *, spans: bool = False
    ) -> tuple[_Contents, _Layout, NDArray[np.bool_]]:
        contents = self._contents(texts, frame, spans=spans)
        layout = _lay_out(frame, contents)
        return contents, layout, self._recipe.keeps_tokens(layout.token_ids, layout.special, frame.skipped)

    def _contents(self, texts: Sequence[str], frame: _Frame, *, spans: bool) -> _Contents:
        splits = self._on_too_long == "split" and bool(frame.prompt)
        encode = self._tokenizer.encode_batch if spans or splits else self._tokenizer.encode_batch_fast
        parts = [_Contents.none()]
        for first, last in _chunks(texts):
            chunk = texts[first:last]
            prompted = ["" if not text or text.isspace() else frame.prompt + text for text in chunk]
            encodings = encode(prompted, add_special_tokens=False)
            if frame.prompt:
                self._empty_where_only_prompt(encodings, chunk, frame)
            if self._on_too_long == "split":
                part = _split(encodings, frame, first, spans=spans)
            else:
                part = _cut(encodings, frame.room, first, spans=spans)
            self._check_lengths(part, frame, texts)
            parts.append(part)
        return _joined(parts).after_prompt(len(frame.prompt))

    def _empty_where_only_prompt(self, encodings: list[Encoding], texts: Sequence[str], frame: _Frame) -> None:
        """A text that the tokenizer makes nothing of is an empty item, prompted or not."""
        for row, text in enumerate(texts):
            if len(encodings[row]) <= frame.prompt_tokens and not self._tokenizer.encode(
                text, add_special_tokens=False
            ):
                encodings[row] = self._tokenizer.encode("", add_special_tokens=False)

    def _check_lengths(self, part: _Contents, frame: _Frame, texts: Sequence[str]) -> None:
        if self._on_too_long == "error" and len(part.long):
            raise TextTooLong(
                f"{len(part.long)} texts that are too long, {shown(texts[part.long[0]])} by {part.lost[0]} tokens",
                f"at most {frame.length} tokens, {frame.length - frame.room} markers included",
                f"Raise {frame.setting}_length, or use on_too_long='split' or 'truncate'.",
            )

    @staticmethod
    def _tokenised(contents: _Contents, layout: _Layout, kept: NDArray[np.bool_]) -> TokenisedTexts:
        items = offsets_of(contents.sequences)
        return TokenisedTexts(
            layout.token_ids, kept, layout.offsets, layout.attended, items, contents.long, contents.lost
        )

    @staticmethod
    def _trace(contents: _Contents, layout: _Layout, kept: NDArray[np.bool_]) -> TokenTrace:
        """Tokens that stand for no character lie where they are: at 0 before the content, at its end after it."""
        spans = np.zeros((len(layout.token_ids), 2), dtype=np.int64)
        spans[layout.content] = contents.spans
        last_token = np.maximum.accumulate(np.where(layout.content, np.arange(len(spans)), -1))
        own = last_token >= np.repeat(layout.offsets[:-1], np.diff(layout.offsets))
        after = ~layout.content & own
        spans[after] = spans[last_token[after], 1][:, None]
        offsets = offsets_of(kept)[layout.offsets][offsets_of(contents.sequences)]
        return TokenTrace(layout.token_ids[kept], spans[kept, 0], spans[kept, 1], offsets)


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


@frozen(eq=False)
class _Frame:
    """What surrounds the tokens of a text, and how long the whole may be.

    Args:
        setting: the role, as the recipe's settings spell it.
        before, after: ids put on either side; the marker is among the former.
        length: most tokens of the whole.
        skipped: ids that keep no embedding.
        prompt_tokens: how many tokens the prompt is on its own.
        filler: id that fills every text up to `length`, or None.
    """

    setting: str
    prompt: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    length: int
    skipped: NDArray[np.int64]
    prompt_tokens: int = 0
    filler: int | None = None
    filler_attended: bool = False

    def __attrs_post_init__(self) -> None:
        needed = self.length - self.room + self.prompt_tokens + 1
        if self.length < needed:
            prompt = f", {self.prompt_tokens} of the {self.setting}_prompt" if self.prompt else ""
            raise InvalidRecipe(
                f"{self.setting}_length = {self.length}",
                f"room for {self.length - self.room} special tokens{prompt} and at least one of the text",
                f"Use {needed} or more.",
            )

    @property
    def room(self) -> int:
        """Most tokens of the text itself."""
        return self.length - len(self.before) - len(self.after)


@frozen(eq=False)
class _Contents:
    """The tokens of the texts' own characters and prompts, fitted to their room.

    Args:
        token_ids: int64 (C,).
        counts: int64 (S,), of each sequence.
        sequences: int64 (N,), of each text; 1, unless it was split.
        long, lost: as in `TokenisedTexts`.
        spans: int64 (C, 2), first and last character; (0, 2) where nobody asked.
    """

    token_ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    sequences: NDArray[np.int64]
    long: NDArray[np.int64]
    lost: NDArray[np.int64]
    spans: NDArray[np.int64]

    @classmethod
    def none(cls) -> _Contents:
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing, nothing, nothing, nothing.reshape(0, 2))

    def after_prompt(self, length: int) -> _Contents:
        """Spans counted from the text's first character; those of the prompt shrink to nothing."""
        return evolve(self, spans=np.maximum(self.spans - length, 0))


@frozen(eq=False)
class _Layout:
    """Every token in its place; `content` and `special` are masks (T,), neither holds for the filler."""

    token_ids: NDArray[np.int64]
    content: NDArray[np.bool_]
    special: NDArray[np.bool_]
    offsets: Offsets
    attended: NDArray[np.int64]


def _own_copy(tokenizer: Tokenizer) -> Tokenizer:
    # A published tokenizer.json may switch truncation and padding on, and other users of a shared one may at any time.
    own = copy.deepcopy(tokenizer)
    own.no_truncation()
    own.no_padding()
    special = sum(token.special for token in own.get_added_tokens_decoder().values())
    if own.get_vocab_size() <= special:
        raise InvalidModel(
            f"a tokenizer that knows only its {special} special tokens",
            "a vocabulary",
            "Put the model's tokenizer.json beside its weights.",
        )
    return own


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


def _filler(tokenizer: Tokenizer, specials: SpecialTokens, recipe: EncodingRecipe) -> int | None:
    if recipe.expansion == "none":
        return None
    if recipe.expansion_token is not None:
        filler = tokenizer.token_to_id(recipe.expansion_token)
    else:
        filler = specials.end if specials.mask is None else specials.mask
    if filler is None:
        raise InvalidRecipe(
            "expansion = 'fixed' with a tokenizer that has no "
            + ("mask and no end token" if recipe.expansion_token is None else f"token {recipe.expansion_token!r}"),
            "a token to expand with",
            "Use expansion='none', or name an expansion_token it has.",
        )
    return filler


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


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last of each run of texts that is tokenised at once."""
    first = characters = 0
    for position, text in enumerate(texts):
        if position > first and (position - first == TEXTS_AT_ONCE or characters + len(text) > CHARACTERS_AT_ONCE):
            yield first, position
            first, characters = position, 0
        characters += len(text)
    if first < len(texts):
        yield first, len(texts)


def _cut(encodings: Sequence[Encoding], room: int, first: int, *, spans: bool) -> _Contents:
    """Contents of one chunk whose first text is at position `first`, without what is beyond the room."""
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    counts = np.minimum(lengths, room)
    long = np.flatnonzero(lengths > room)
    ids = chain.from_iterable(encoding.ids[:room] for encoding in encodings)
    pairs = chain.from_iterable(encoding.offsets[:room] for encoding in encodings) if spans else ()
    return _Contents(
        np.fromiter(ids, np.int64, int(counts.sum())),
        counts,
        np.ones(len(encodings), dtype=np.int64),
        first + long,
        lengths[long] - room,
        _pairs(pairs),
    )


def _split(encodings: Sequence[Encoding], frame: _Frame, first: int, *, spans: bool) -> _Contents:
    """Contents of one chunk, every long text in several sequences; each begins with the prompt."""
    ids: list[int] = []
    pairs: list[tuple[int, int]] = []
    counts: list[int] = []
    sequences: list[int] = []
    for encoding in encodings:
        own, places = encoding.ids, encoding.offsets if spans else []
        is_long = len(own) > frame.room
        head = sum(end <= len(frame.prompt) for _, end in encoding.offsets) if is_long and frame.prompt else 0
        step = max(1, frame.room - head)
        starts = range(head, len(own), step) if is_long else range(1)
        for start in starts:
            body = slice(start, start + step)
            ids += own[:head] + own[body]
            pairs += places[:head] + places[body]
            counts.append(head + len(own[body]))
        sequences.append(len(starts))
    split = np.array(sequences, dtype=np.int64)
    long = np.flatnonzero(split > 1)
    return _Contents(
        np.array(ids, dtype=np.int64),
        np.array(counts, dtype=np.int64),
        split,
        first + long,
        np.zeros_like(long),
        _pairs(pairs),
    )


def _pairs(pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, 2)


def _joined(parts: Sequence[_Contents]) -> _Contents:
    return _Contents(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(_Contents)))


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
