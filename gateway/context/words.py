"""Words for searching: tool names, descriptions and messages cut into comparable pieces. Pure.

English gets a light stemmer; every other language keeps its words as they are, and scripts that are written without
spaces become pairs of characters, as is usual for searching them (Lucene's CJK bigrams).
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

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

_KIN = """
folder directory
pr pull request
picture image photo screenshot
save write store
open read view show
remove delete erase forget drop
find search look lookup locate
make create new
change edit modify update fix replace
rename move put
repo repository
ticket issue bug problem
website site page web
link url
mail email
chat message slack
tell post send announce write say
remember memory knowledge
press click push hit
type fill enter
choose select pick
answer reply respond
history log recent
undo reset revert
switch checkout
address street
coordinate latitude longitude geocode position
height altitude elevation
route way direction
far distance
people user member colleague person account
place location nearby near
time clock hour
database sql table
difference diff compare change
status state check
label tag
script javascript code
list which
"""
"""Words of one line say the same when people ask for what computers do; tools have been named with one of them."""

_HINTS = (
    (re.compile(r"https?://\S+"), "url"),
    (re.compile(r"(?<!\w)[~/][\w./-]+|\b[\w~./-]+\.[a-z][a-z0-9]{1,4}\b"), "file"),
    (re.compile(r"\b\d{1,2}:\d\d\b|\b\d{1,2} ?[ap]m\b"), "time"),
)
"""What shows by its shape what it is, and is seldom named."""
KIN_WEIGHT = 0.5
KEPT_WORDS, KEPT_CHARS = 8_192, 32
"""Most words of a list of tools come again and again: so many are remembered, 300 bytes each; longer ones aren't."""


def words_of(text: str) -> list[str]:
    """The words of `text`, lower case and stemmed, in order; `createIssue` and `create_issue` are two each."""
    return [
        piece
        for found in _WORD.findall(text)
        for piece in (_kept_pieces(found) if len(found) <= KEPT_CHARS else _pieces(found))
    ]


def _pieces(found: str) -> tuple[str, ...]:
    pieces: list[str] = []
    for part in _CAMEL.sub(" ", found).split():
        word = part.lower()
        if word not in _STOP_WORDS:
            pieces += _pairs(word) if _UNSPACED.search(word) else [stem(word)]
    return tuple(pieces)


_kept_pieces = lru_cache(maxsize=KEPT_WORDS)(_pieces)


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
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
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


def query_of(message: str) -> dict[str, float]:
    """The words of a message, words of the same meaning, and what it holds by its shape, each with its weight."""
    weights = dict.fromkeys(words_of(message), 1.0)
    weights |= {hint: 1.0 for shape, hint in _HINTS if shape.search(message)}
    for word in list(weights):
        for other in _kin().get(word, ()):
            weights.setdefault(other, KIN_WEIGHT)
    return weights


@cache
def _kin() -> dict[str, list[str]]:
    kin: dict[str, list[str]] = {}
    for line in _KIN.strip().splitlines():
        stems = [stem(word) for word in line.split()]
        for one in stems:
            kin.setdefault(one, []).extend(other for other in stems if other != one)
    return kin
