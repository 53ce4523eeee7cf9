"""Analysis: a text to the terms that word matching counts.

Text is normalised (NFKC, case folded) and cut by the categories of its characters. A word is letters, digits and the
marks on them, so the vowel signs of Indic scripts do not cut it; an identifier gives itself and its parts; scripts
written without spaces give overlapping pairs of characters. Words are then stemmed by language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

from attrs import Attribute, field, frozen

from lateinteraction.domain.errors import IndexMismatch, InvalidOption, MissingExtra, shown

Language = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto", "estonian",
    "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian",
    "nepali", "norwegian", "persian", "polish", "portuguese", "romanian", "russian", "serbian", "sesotho", "spanish",
    "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip
"""`none` neither stems nor stops: for names, mixed languages, and languages that have no stemmer."""

VERSION = 1
"""Of the rules in this module. An index remembers by which its terms were made."""

_STOP_WORDS: Mapping[str, frozenset[str]] = {
    # Those of Lucene's EnglishAnalyzer, with which published BM25 figures are made.
    "english": frozenset(
        {
            "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not",
            "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was",
            "will", "with",
        }
    )
}  # fmt: skip
_CONTRACTION = re.compile(r"(?<=[^\W\d_])(?:n['’]t|['’](?:s|d|m|ll|re|ve))(?![^\W_])", re.IGNORECASE)
"""What is cut off by the apostrophe would be a word of its own."""
_TURKISH_I = {ord("I"): "ı", ord("İ"): "i"}

_PAIRED = re.compile(
    # Han, kana, bopomofo, Hangul, and the signs that stand for one of them.
    "[\u3005\u3007\u3031-\u3035\u303b-\u303c\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
    # Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham.
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaa7f]"
)
"""Letters of scripts that put no space between words."""

_ASCII_WORD = re.compile(r"[A-Za-z0-9](?:\w*[A-Za-z0-9])?", re.ASCII)
# The others read texts whose characters are replaced by their classes; see `_class_of`.
_PIECE = re.compile(r"(p[pm]*)|[lud](?:[ludm_]*[ludm])?")
_CLUSTER = re.compile(r"pm*")
_PART = re.compile(r"(?:um*){2,}lm*(?!l)|(?:um*)+(?![lm])|(?:um*)?(?:lm*)+|(?:dm*)+")
"""CPUs; HTTP of HTTPServer; Server; 2 of v2."""

_REMEMBERED = 1 << 16
"""Words whose terms are kept at hand. A text has few others."""


def _class_of(character: str) -> str:
    """One of: `l`ower or caseless letter, `u`pper, `d`igit, `m`ark, letter that is `p`aired, underscore; or a space,
    for what separates."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":  # joiners, soft hyphens: they cut nothing
        return "m"
    if category in ("Nd", "No"):
        return "d"
    if category[0] == "L" or category == "Nl":
        if _PAIRED.match(character):
            return "p"
        return "u" if category in ("Lu", "Lt") else "l"
    return "_" if character == "_" else " "


class _Classes(dict[int, str]):
    """Character → class, as `str.translate` asks for it."""

    def __missing__(self, character: int) -> str:
        self[character] = found = _class_of(chr(character))
        return found


def _is_language(_: object, __: Attribute[Any], language: object) -> None:
    if language not in get_args(Language):
        raise InvalidOption(
            f"language = {shown(language)}", f"one of {', '.join(get_args(Language))}", "Choose 'none' for others."
        )


@frozen
class Analyser:
    """Texts to terms, for documents and queries alike.

    Args:
        language: what to stem by; see `Language`.

    Raises:
        InvalidOption: another language.

    >>> Analyser("none").terms("Use parse_date or parseHTTPDates: 東京都")
    ['use', 'parse_date', 'parse', 'date', 'or', 'parsehttpdates', 'parse', 'http', 'dates', '東京', '京都']
    """

    language: Language = field(default="english", validator=_is_language)
    _classes: _Classes = field(init=False, eq=False, repr=False, factory=_Classes)
    _known: dict[str, tuple[str, ...]] = field(init=False, eq=False, repr=False, factory=dict)
    _stemmer: list[Callable[[str], str]] = field(init=False, eq=False, repr=False, factory=list)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Analyser:
        """The analyser that an index was made with.

        Raises:
            IndexMismatch: its rules are not those known here.
        """
        version = settings.get("version")
        if version != VERSION:
            raise IndexMismatch(
                f"terms by the rules of version {shown(version)}", f"version {VERSION}", "Install a newer release."
            )
        return cls(settings["language"])

    def settings(self) -> dict[str, int | str]:
        """What an index remembers: JSON."""
        return {"version": VERSION, "language": self.language}

    def __reduce__(self) -> tuple[type[Analyser], tuple[Language]]:
        """What it has read so far stays behind."""
        return Analyser, (self.language,)

    def terms(self, text: str) -> list[str]:
        """The terms of a text, as often as they occur.

        Raises:
            MissingExtra: the language has a stemmer, and PyStemmer is not installed, or too old to know it.
        """
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        if self.language == "english" and ("'" in plain or "’" in plain):
            plain = _CONTRACTION.sub("", plain)
        if not plain.isascii():
            return [term for terms in self._pieces(plain) for term in terms]
        found: list[str] = []
        for word in _ASCII_WORD.findall(plain):
            terms = self._known.get(word)
            found += self._of_word(word) if terms is None else terms
        return found

    def _pieces(self, text: str) -> Iterator[tuple[str, ...]]:
        classes = text.translate(self._classes)
        for piece in _PIECE.finditer(classes):
            start, end = piece.span()
            if piece.lastindex is None:
                terms = self._known.get(text[start:end])
                yield self._of_word(text[start:end]) if terms is None else terms
            else:
                clusters = [_shorn(text[slice(*each.span())]) for each in _CLUSTER.finditer(classes, start, end)]
                yield tuple(map("".join, pairwise(clusters))) or tuple(clusters)

    def _of_word(self, word: str) -> tuple[str, ...]:
        """The term of a word; of an identifier also those of its parts."""
        parts = [word[slice(*part.span())] for part in _PART.finditer(word.translate(self._classes))]
        names = map(self._folded, [word, *parts] if len(parts) > 1 else [word])
        stops = _STOP_WORDS.get(self.language, frozenset())
        terms = tuple(self._stemmed(name) for name in names if name not in stops)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[word] = terms
        return terms

    def _folded(self, word: str) -> str:
        cased = word.translate(_TURKISH_I) if self.language == "turkish" else word
        return _shorn(cased.casefold())

    def _stemmed(self, word: str) -> str:
        if self.language == "none":
            return word
        if not self._stemmer:
            self._stemmer.append(_stemmer_of(self.language))
        return self._stemmer[0](word)


def _shorn(text: str) -> str:
    """Without characters that only steer how others are shown, and normalised again, which folding may undo."""
    if text.isascii():
        return text
    visible = "".join(each for each in text if unicodedata.category(each) != "Cf")
    return unicodedata.normalize("NFKC", visible.replace("i\u0307", "i"))  # what İ folds to


def _stemmer_of(language: str) -> Callable[[str], str]:
    try:
        import Stemmer
    except ImportError as error:
        raise MissingExtra(
            f"stemming of {language} without the package PyStemmer",
            "the extra `lexical`",
            "Run: pip install \"lateinteraction[lexical]\". Or choose language='none'.",
        ) from error
    try:
        return Stemmer.Stemmer(language, 0).stemWord
    except KeyError as error:
        raise MissingExtra(
            f"stemming of {language} with PyStemmer {Stemmer.version()}",
            "PyStemmer 3.1 or newer",
            'Run: pip install --upgrade "lateinteraction[lexical]"',
        ) from error
