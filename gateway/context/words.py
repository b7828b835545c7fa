"""Words for searching: tool names, descriptions and messages cut into comparable pieces. Pure.

English gets a light stemmer; every other language keeps its words as they are, and scripts that are written without
spaces become pairs of characters, as is usual for searching them (Lucene's CJK bigrams).
"""

from __future__ import annotations

import re

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
# Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+")
_ENGLISH = re.compile(r"[a-z]{4,}")
_VOWEL = re.compile(r"[aeiouy]")

_SMALL = (
    "a about am an and any are as at be been but by can could did do does don for from get give got had has have hey "
    "hi how i if in into is it its just know let like ll me my need no not of on or our out please s shall should so "
    "some t tell than thanks that the their them then there these they this those to too us ve want was we were what "
    "when where which who why will with would you your"
)
_STOP_WORDS = frozenset(_SMALL.split())
"""Common in questions and rare in descriptions, so that their rarity would count for much and mean nothing."""


def words_of(text: str) -> list[str]:
    """The words of `text`, lower case and stemmed, in order; `createIssue` and `create_issue` are two each."""
    words: list[str] = []
    for found in _WORD.findall(_CAMEL.sub(" ", text)):
        word = found.lower()
        if word in _STOP_WORDS:
            continue
        words += _pairs(word) if _UNSPACED.search(word) else [stem(word)]
    return words


def _pairs(word: str) -> list[str]:
    pieces: list[str] = []
    at = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > at:
            pieces.append(word[at : run.start()])
        text = run.group()
        pieces += [text[i : i + 2] for i in range(len(text) - 1)] or [text]
        at = run.end()
    return [*pieces, word[at:]] if at < len(word) else pieces


def stem(word: str) -> str:
    """`word` without the endings that change no meaning in English: plural, -ed, -ing, a final e, y for i.

    The plural rules are Harman's S-stemmer (How effective is suffixing?, 1991); -ed and -ing follow step 1b of
    Porter's. Words that aren't of the letters a to z are left alone.
    """
    if not _ENGLISH.fullmatch(word):
        return word
    word = _singular(word)
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and _VOWEL.search(rest):
            word = rest
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss", "is")):
        return word[:-1]
    return word
