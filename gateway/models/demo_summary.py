"""The demo model's summaries of a conversation: sentences that hold facts, taken over word for word.

Pure and deterministic. What a person said outweighs what the demo model chatted, and a fact that is in the earlier
summary already outlives a new one that isn't worth more: after two hundred turns the name from the first is still
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

REQUEST = "You keep the running summary of a conversation"
"""How the gateway's request for a summary begins (`context.summary.INSTRUCTIONS`, which is out of reach from here)."""
DEFAULT_WORDS = 200
MAX_SENTENCE_WORDS = 40
SHARE = 0.6
"""Of what it replaces: a summary is shorter."""
BYTES_A_TOKEN = 3
"""What a token holds at least in most scripts, UTF-8."""

_PARTS = re.compile(r"Earlier summary:\n(?P<earlier>.*?)\n\nNew messages:\n(?P<new>.*)\n\nThe new summary", re.DOTALL)
_WORDS_WANTED = re.compile(r"in at most (\d+) words:\s*\Z")
_SPEAKER = re.compile(r"(User|Assistant|Function result): |(Assistant calls )")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_NUMBER = re.compile(r"\d")
_NAME = re.compile(r"(?<=[\w,;:] )[A-ZÀ-ÞА-Я][\w'’-]+|\b[A-Z][A-Z0-9-]{2,}\b")
_STATED = re.compile(
    r"\b(?:my|our|i am|i'm|i prefer|i like|i need|i want|we|decided|decision|agreed|remember|deadline|budget|always"
    r"|never|name is|called|must|meine?|unser|ich bin|wir)\b",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"/\w+\s*")


class _Fact(NamedTuple):
    text: str
    worth: float


def wants_summary(messages: Sequence[dict[str, Any]]) -> bool:
    first = messages[0] if messages else {}
    return first.get("role") == "system" and str(first.get("content")).startswith(REQUEST)


def summary_of(question: str, max_tokens: int | None) -> str:
    """The answer to the gateway's question: a list of facts, oldest first, within the words that it allows."""
    earlier, new, words = _read(question)
    facts = list(_earlier(earlier)) + list(_told(new))
    room_words = min(words, max(1, int(SHARE * len(f"{earlier} {new}".split()))))
    room_bytes = BYTES_A_TOKEN * max_tokens if max_tokens is not None else len(question.encode())
    chosen: set[int] = set()
    seen: set[str] = set()
    for place in sorted(range(len(facts)), key=lambda at: -facts[at].worth):
        text = facts[place].text
        size, key = len(text.split()) + 1, text.lower()
        if key in seen or size > room_words or len(text.encode()) + 3 > room_bytes:
            continue
        chosen.add(place)
        seen.add(key)
        room_words -= size
        room_bytes -= len(text.encode()) + 3
    if not chosen and facts:
        begin = " ".join(facts[0].text.split()[: max(1, room_words)])
        return begin.encode()[:room_bytes].decode(errors="ignore")
    return "\n".join(f"- {facts[place].text}" for place in sorted(chosen))


def _read(question: str) -> tuple[str, str, int]:
    found = _PARTS.search(question)
    wanted = _WORDS_WANTED.search(question)
    words = int(wanted.group(1)) if wanted else DEFAULT_WORDS
    if found is None:
        return "", question, words
    earlier = found["earlier"]
    return "" if earlier == "(none yet)" else earlier, found["new"], words


def _earlier(summary: str) -> Iterator[_Fact]:
    for line in summary.splitlines():
        if text := line.removeprefix("- ").strip():
            yield _Fact(text, _worth(text) + 1)


def _told(new: str) -> Iterator[_Fact]:
    speaker = "User"
    for line in new.splitlines():
        if begins := _SPEAKER.match(line):
            speaker = begins.group(1) or "call"
            line = line if speaker == "call" else line[begins.end() :]
        for sentence in _SENTENCE.split(line):
            text = " ".join(_COMMAND.sub("", sentence, count=1).split()[:MAX_SENTENCE_WORDS])
            if text:
                # The demo model's own prose is about itself; results of functions are facts.
                share = {"User": 1.0, "Function result": 0.8, "call": 0.5}.get(speaker, 0.2)
                yield _Fact(text if speaker != "Function result" else f"Result: {text}", share * _worth(text))


def _worth(text: str) -> float:
    """More for numbers, names, and statements about the one who speaks; less for questions and length."""
    worth = 1.0 + min(3, len(_NUMBER.findall(text))) + 1.5 * min(2, len(_NAME.findall(text)))
    worth += 2.0 * bool(_STATED.search(text)) - text.endswith("?")
    return worth - 0.02 * len(text.split())
