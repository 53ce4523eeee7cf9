"""The analyser: words of every script, identifiers, stems, and one answer however a text is written."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.analysis import Analyser, Language
from lateinteraction.domain.errors import IndexMismatch, InvalidOption
from lateinteraction.testing import strategies

PLAIN = Analyser("none")
ENGLISH = Analyser("english")
EM_SPACE = "\N{EM SPACE}"
"""Not ASCII, and separates."""


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        (" \t...,,,!!! -- __ _", []),
        ("Late interaction, late.", ["late", "interaction", "late"]),
        ("3.14 and 1,000", ["3", "14", "and", "1", "000"]),
        ("state-of-the-art", ["state", "of", "the", "art"]),
        ("C++ C# .NET", ["c", "c", "net"]),
        ("naïve ﬁne Ｆｕｌｌ x²", ["naïve", "fine", "full", "x2", "x", "2"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ΣΊΣΥΦΟΣ Σίσυφος", ["σίσυφοσ", "σίσυφοσ"]),
        ("İstanbul", ["istanbul"]),
        ("co\N{SOFT HYPHEN}operate", ["cooperate"]),
        ("a\N{ZERO WIDTH NON-JOINER}b", ["ab"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("x\x00y\u2028z\ufeff", ["x", "y", "z"]),
        ("👩‍👩‍👧‍👦 🏳️‍🌈 ok", ["ok"]),
    ],
)
def test_words_are_letters_digits_and_marks(text: str, terms: list[str]) -> None:
    assert PLAIN.terms(text) == terms


@pytest.mark.parametrize(
    "word",
    [
        *("हिन्दी", "विद्यार्थी", "বাংলা", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ગુજરાતી", "ਪੰਜਾਬੀ", "සිංහල"),
        *("ཀ\u0f72", "مُحَمَّد", "שָׁלוֹם", "e\u0302\u0323"),
    ],
)
def test_marks_do_not_cut_a_word(word: str) -> None:
    assert PLAIN.terms(f"a {word}, {word}.") == ["a", *[unicodedata.normalize("NFKC", word)] * 2]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("我爱Python编程", ["我爱", "python", "编程"]),
        ("カタカナ・テスト", ["カタ", "タカ", "カナ", "テス", "スト"]),
        ("ﾃｽﾄ", ["テス", "スト"]),
        ("ガ行", ["ガ行"]),
        ("か\u3099く", ["がく"]),
        ("한국어 검색", ["한국", "국어", "검색"]),
        ("\u1112\u1161\u11ab국", ["한국"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("日々", ["日々"]),
        ("3月", ["3", "月"]),
        ("黑豹队，防守", ["黑豹", "豹队", "防守"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("ที่นี่", ["ที่นี่"]),
        ("ភាសា", ["ភាសា"]),
        ("ພາສາ", ["ພາ", "າສ", "ສາ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
    ],
)
def test_scripts_without_spaces_give_pairs(text: str, terms: list[str]) -> None:
    assert PLAIN.terms(text) == terms


@pytest.mark.parametrize(
    ("word", "terms"),
    [
        ("parse_date", ["parse_date", "parse", "date"]),
        ("__init__", ["init"]),
        ("_a", ["a"]),
        ("camelCase", ["camelcase", "camel", "case"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("parseHTTPDate2", ["parsehttpdate2", "parse", "http", "date", "2"]),
        ("utf8", ["utf8", "utf", "8"]),
        ("CPUs", ["cpus"]),
        ("getURLs", ["geturls", "get", "urls"]),
        ("NASA", ["nasa"]),
        ("Word", ["word"]),
        ("iPhone", ["iphone", "i", "phone"]),
        ("MAX_SIZE", ["max_size", "max", "size"]),
        ("a1b2", ["a1b2", "a", "1", "b", "2"]),
        ("größeÄnderung", ["grösseänderung", "grösse", "änderung"]),
        ("ВерсияПО", ["версияпо", "версия", "по"]),
        ("x86_64", ["x86_64", "x", "86", "64"]),
        ("os.path.join", ["os", "path", "join"]),
    ],
)
def test_an_identifier_gives_itself_and_its_parts(word: str, terms: list[str]) -> None:
    assert PLAIN.terms(word) == terms
    assert PLAIN.terms(f"({word}){EM_SPACE}") == terms


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("english", "The connections are connected", ["connect", "connect"]),
        ("english", "It's the dog's; they don't, it isn’t, we'll", ["dog", "do", "we"]),
        ("english", "O'Neil 'quoted'", ["o", "neil", "quot"]),
        ("english", "parse_dates", ["parse_d", "pars", "date"]),
        ("german", "Häuser des Hauses", ["haus", "des", "haus"]),
        ("french", "l'amitié continuellement", ["l", "amiti", "continuel"]),
        ("russian", "важными", ["важн"]),
        ("turkish", "IŞIKLAR ışıklar", ["ışık", "ışık"]),
        ("hindi", "लड़कियाँ लड़का", ["लड\u093cक"] * 2),
        ("none", "The connections it's", ["the", "connections", "it", "s"]),
    ],
)
def test_words_are_stemmed_by_language(language: Language, text: str, terms: list[str]) -> None:
    assert Analyser(language).terms(text) == terms


@pytest.mark.parametrize("language", get_args(Language))
def test_every_language_has_a_stemmer(language: Language) -> None:
    assert Analyser(language).terms("42 東京") == ["42", "東京"]


@given(strategies.texts(), st.sampled_from([PLAIN, ENGLISH, Analyser("turkish"), Analyser("arabic")]))
def test_terms_can_be_stored_and_are_never_empty(text: str, analyser: Analyser) -> None:
    for term in analyser.terms(text):
        assert term
        assert term.encode().decode() == term


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_gives_what_the_long_one_does(text: str) -> None:
    for analyser in (PLAIN, ENGLISH):
        assert analyser.terms(text) == analyser.terms(f"{text}{EM_SPACE}")


@given(strategies.texts())
def test_compatible_spellings_are_one(text: str) -> None:
    expected = PLAIN.terms(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert PLAIN.terms(unicodedata.normalize(form, text)) == expected


@given(st.lists(st.sampled_from(["late", "Search", "index", "42", "naïve", "東京", "हिन्दी"])))
def test_words_do_not_depend_on_their_neighbours(words: list[str]) -> None:
    assert PLAIN.terms(" ".join(words)) == [term for word in words for term in PLAIN.terms(word)]


@given(strategies.texts(), strategies.texts())
def test_what_was_read_before_changes_nothing(before: str, text: str) -> None:
    analyser = Analyser("english")
    analyser.terms(before)
    assert analyser.terms(text) == Analyser("english").terms(text)


def test_more_words_than_are_remembered_are_read_alike() -> None:
    analyser = Analyser("none")
    words = [f"w{number}x" for number in range(70_000)]
    assert len(analyser.terms(" ".join(words))) == 70_000 * 4
    assert analyser.terms("w1x w69999x") == ["w1x", "w", "1", "x", "w69999x", "w", "69999", "x"]


def test_threads_may_share_an_analyser() -> None:
    analyser = Analyser("english")
    texts = [f"connection{'s' * (n % 2)} number{n} generalisations running" for n in range(200)]
    expected = [Analyser("english").terms(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert all(list(pool.map(analyser.terms, texts)) == expected for _ in range(3))


@pytest.mark.parametrize(
    "hostile",
    [
        *("_" * 50_000, "a" + "_" * 50_000, "aB" * 50_000, "A" * 100_000 + "b", "a1" * 50_000, "'" * 50_000),
        *("\u0301" * 50_000, "e" + "\u0301" * 50_000, "ก" * 50_000, "Aé" * 50_000),
    ],
)
def test_time_grows_with_the_text_and_no_faster(hostile: str) -> None:
    assert len(ENGLISH.terms(hostile)) <= len(hostile) + 1


@pytest.mark.parametrize("language", ["auto", "klingon", "English", "", None, 7])
def test_an_unknown_language_is_refused(language: Any) -> None:
    with pytest.raises(InvalidOption, match="english"):
        Analyser(language)


@pytest.mark.parametrize("language", ["none", "english", "german"])
def test_an_index_remembers_its_analyser(language: Language) -> None:
    analyser = Analyser(language)
    assert Analyser.from_settings(json.loads(json.dumps(analyser.settings()))) == analyser
    assert pickle.loads(pickle.dumps(analyser)) == analyser
    assert hash(Analyser(language)) == hash(analyser)
    assert analyser != Analyser("french")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_rules_of_another_version_are_refused(version: Any) -> None:
    with pytest.raises(IndexMismatch, match="version"):
        Analyser.from_settings({"language": "english", "version": version})


def test_without_pystemmer_it_says_what_to_install() -> None:
    script = """
import sys
sys.modules["Stemmer"] = None
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.domain.errors import MissingExtra
assert Analyser("none").terms("Running") == ["running"]
try:
    Analyser("english").terms("Running")
except MissingExtra as error:
    assert "lateinteraction[lexical]" in str(error) and "none" in str(error), error
    assert not any(name.split(".")[0] == "torch" for name in sys.modules)
    print("said")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("said\n", "")


def test_a_pystemmer_that_lacks_the_language_is_named() -> None:
    script = """
import sys, types
from lateinteraction.adapters.index.analysis import Analyser
from lateinteraction.domain.errors import MissingExtra
old = types.ModuleType("Stemmer")
old.version = lambda: "2.2.0"
old.Stemmer = lambda language, size: {}[language]
sys.modules["Stemmer"] = old
try:
    Analyser("czech").terms("slovo")
except MissingExtra as error:
    assert "2.2.0" in str(error) and "3.1" in str(error), error
    print("said")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("said\n", "")
