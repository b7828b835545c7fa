"""What is kept of older messages word for word: short sentences that hold a number or a name.

A model that writes a summary anew at every compression loses or bends details, a weak one nearly all of them. So the
sentences that hold most of them are carried beside its text by rule, not by a model: they are never rewritten, and an
older one gives way only to one that is worth more. Extraction beside abstraction is an old remedy for summaries that
aren't faithful; how much a sentence is worth is counted by its numbers and names, as in classic extractive methods
(H. P. Edmundson, "New methods in automatic extracting", 1969).

It is a heuristic. What was said without a name or a number, in a very long sentence, or in a script without capital
letters and without digits, is up to the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

HEADING = "Said earlier, word for word:"
MAX_WORDS = 40
"""Of a sentence. What is longer is no short fact, and often not a sentence at all."""
MAX_CHARS = 300

_SPEAKERS = {"User": 1.0, "Function result": 0.7, "Assistant": 0.3}
"""What people told weighs most; models talk much, and can say it again."""
_SPEAKER = re.compile(rf"({'|'.join(_SPEAKERS)}): ")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_NUMBER = re.compile(r"\w*\d[\w.,:/\-]*")
_NAME = re.compile(r"(?<=[\w,;:] )[^\W\d_a-zß-öø-ÿ][\w'’\-]+")
"""A capital letter that begins no sentence."""
_PRONOUNS = frozenset({"I'm", "I've", "I'd", "I'll", "I’m", "I’ve", "I’d", "I’ll"})


class Quote(NamedTuple):
    line: str
    """With its speaker: `User: I was born in Bergen.`"""
    worth: float


def split_summary(summary: str) -> tuple[str, list[str]]:
    """The model's text of a summary, and the lines that are quoted under it. See `joined_summary`."""
    prose, _, rest = summary.partition(f"{HEADING}\n")
    quoted = [line for line in rest.splitlines() if line.startswith("- ")]
    others = [line for line in rest.splitlines() if not line.startswith("- ")]
    return "\n".join([prose.rstrip(), *others]).strip(), [line[2:] for line in quoted]


def joined_summary(prose: str, quoted: Sequence[str]) -> str:
    if not quoted:
        return prose
    lines = "\n".join(f"- {line}" for line in quoted)
    return f"{prose}\n\n{HEADING}\n{lines}".strip()


def quotes(text: str) -> Iterator[Quote]:
    """The sentences worth keeping of messages that are told as `User: …`, `Assistant: …`, `Function result: …`, each
    from a new line on; whatever else begins a line belongs to the message above it."""
    speaker = "User"
    for line in text.splitlines():
        if begins := _SPEAKER.match(line):
            speaker, line = begins[1], line[begins.end() :]
        elif line.startswith("Assistant calls "):
            speaker = "Assistant"
            continue
        for sentence in _SENTENCE.split(line):
            words = sentence.split()
            plain = " ".join(words)
            if len(words) <= MAX_WORDS and len(plain) <= MAX_CHARS and (worth := _worth(plain)):
                yield Quote(f"{speaker}: {plain}", _SPEAKERS[speaker] * worth)


def _worth(sentence: str) -> float:
    numbers = set(_NUMBER.findall(sentence))
    names = set(_NAME.findall(sentence)) - numbers - _PRONOUNS
    worth = min(3, len(numbers)) + 1.5 * min(3, len(names))
    return 0.5 * worth if sentence.endswith(("?", "？")) else worth


def chosen(candidates: Iterable[Quote], sizes: Sequence[int], room: int) -> list[str]:
    """The lines of most worth whose `sizes` together are at most `room`, in their old order, none twice. Of two that
    are worth the same the earlier one stays."""
    found = list(candidates)
    kept: set[int] = set()
    seen: set[str] = set()
    for place in sorted(range(len(found)), key=lambda at: -found[at].worth):
        key = found[place].line.casefold()
        if key not in seen and sizes[place] <= room:
            kept.add(place)
            seen.add(key)
            room -= sizes[place]
    return [found[place].line for place in sorted(kept)]


def without_repeats(text: str) -> str:
    """Weak models say the same again and again until they are stopped: each sentence stays once."""
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        fresh, said_more = [], not line
        for sentence in _SENTENCE.split(line):
            key = " ".join(sentence.casefold().split()).lstrip("-*0123456789. ")  # without a list's mark
            if key not in seen:
                fresh.append(sentence)
                said_more |= bool(key)
            if key:
                seen.add(key)
        if said_more:
            lines.append(" ".join(fresh))
    return "\n".join(lines).strip()
