"""What the demo model does with a request, decided before anything is sent. Pure and deterministic: the same
conversation gets the same answer, also after a restart in the middle of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gateway.models import demo_text as text
from gateway.models.demo_calls import Call, asked_calls, call_steps, fitting_calls, results_of
from gateway.models.demo_steps import FAILURES, Pause, Step, spoken, tokens_of
from gateway.models.demo_summary import summary_of, wants_summary
from gateway.models.model import Finish, ModelRequest

DEFAULT_LONG_TOKENS = 500
MAX_LONG_TOKENS = 10_000_000
SLOW, FAST = 0.1, float("inf")

_COMMAND = re.compile(r"\s*/(slow|fast|length|help|call|fail|long|echo|silent|stall)\b ?", re.IGNORECASE)
_FLAGS = {"slow", "fast", "length"}
_NAME = re.compile(
    r"\b(?:my name is|my name's|call me|i am called|ich hei(?:ß|ss)e|je m'appelle|me llamo)\s+([^\W\d_][\w'\-]{0,40})",
    re.IGNORECASE,
)
_ASKS_NAME = re.compile(
    r"\b(?:what(?:'s| is) my name|who am i|remember my name|know my name|wie hei(?:ß|ss)e ich)\b", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_][\w'\-]*")
_SMALL = (
    "a about an and are as at be but by can could do does explain for from give has have hello hey hi how i i'm in is "
    "it its like me my of on or please show so tell that the their there these this to was we what when where which "
    "who why will with would write you your"
)
_SMALL_WORDS = frozenset(_SMALL.split())


class Script(NamedTuple):
    steps: Iterator[Step]
    """Ends with a `Finish`, a `ModelError` or `Pause.FOREVER`."""
    speed: float
    """Times the model's usual pace."""


class _Scene(NamedTuple):
    """What all parts of an answer may want to know."""

    request: ModelRequest
    users: list[str]
    """What the user said, oldest first."""
    rest: str
    """Of the last thing said: what follows the commands."""
    chance: random.Random

    @property
    def topic(self) -> str:
        return topic_of(self.rest)


def script_for(request: ModelRequest) -> Script:
    users = [_content(m) for m in request.messages if m.get("role") == "user"] or [""]
    if wants_summary(request.messages):
        return Script(_limited(spoken(summary_of(users[-1], request.max_tokens)), request.max_tokens), FAST)
    commands, rest = _commands(users[-1])
    scene = _Scene(request, users, rest, random.Random(_seed(request.messages)))
    speed = SLOW if "slow" in commands else FAST if "fast" in commands else 1.0
    steps = _limited(_steps(scene, commands), request.max_tokens)
    return Script(_too_long(steps) if "length" in commands else steps, speed)


def topic_of(question: str) -> str:
    """Up to three words of the question that carry its meaning."""
    words = [w for w in _WORD.findall(_NAME.sub("", question)) if w.lower() not in _SMALL_WORDS]
    return " ".join(words[:3]) or "this very conversation"


def count_words(messages: Sequence[dict[str, Any]]) -> int:
    """The estimate of a prompt's tokens: its words."""
    return sum(len(_content(message).split()) for message in messages)


def _steps(scene: _Scene, commands: set[str]) -> Iterator[Step]:
    main = next(iter(commands - _FLAGS), None)
    if scene.request.messages and scene.request.messages[-1].get("role") == "tool":
        return _after_results(scene)
    if main is None:
        if calls := fitting_calls(scene.rest, scene.request.tools):
            return _calling(scene, calls)
        return spoken(_answer(scene))
    return _PLAYS[main](scene)


# ---------------------------------------------------------------- plays, one for each command


def _help(_scene: _Scene) -> Iterator[Step]:
    return spoken(text.HELP.replace("CODES", ", ".join(f"`{code}`" for code in FAILURES)))


def _echo(scene: _Scene) -> Iterator[Step]:
    return spoken(scene.rest)


def _long(scene: _Scene) -> Iterator[Step]:
    wanted = re.match(r"\s*(\d{1,9})", scene.rest)
    count = min(int(wanted.group(1)) if wanted else DEFAULT_LONG_TOKENS, MAX_LONG_TOKENS)
    yield from itertools.islice(_endless(scene), count)
    yield Finish("stop")


def _call(scene: _Scene) -> Iterator[Step]:
    calls = asked_calls(scene.rest)
    return _calling(scene, calls) if calls else _help(scene)


def _fail(scene: _Scene) -> Iterator[Step]:
    word = (scene.rest.split() or ["unavailable"])[0]
    play = FAILURES.get(word.lower().removeprefix("upstream_"))
    if play is None:
        codes = ", ".join(f"`{code}`" for code in FAILURES)
        return spoken(text.UNKNOWN_FAILURE.format(code=word[:40].replace("`", ""), codes=codes))
    return play()


def _silent(_scene: _Scene) -> Iterator[Step]:
    yield Pause.FOREVER


def _stall(_scene: _Scene) -> Iterator[Step]:
    yield from tokens_of(text.STALLING)
    yield Pause.FOREVER


_PLAYS: dict[str, Callable[[_Scene], Iterator[Step]]] = {
    "help": _help,
    "echo": _echo,
    "long": _long,
    "call": _call,
    "fail": _fail,
    "silent": _silent,
    "stall": _stall,
}

# ---------------------------------------------------------------- prose


def _answer(scene: _Scene) -> str:
    chance, topic = scene.chance, scene.topic
    name = _name(scene.users)
    if _ASKS_NAME.search(scene.rest):
        return text.REMEMBERED.format(name=name) if name else text.FORGOTTEN
    lead = ""
    if name and _NAME.search(scene.users[-1]):
        lead = text.GREETING.format(name=name)
    elif name and chance.random() < 0.5:
        lead = text.BY_NAME.format(name=name)
    elif len(scene.users) > 1:
        lead = chance.choice(text.RETURNING).format(earlier=topic_of(scene.users[-2]))
    paragraphs = [lead + chance.choice(text.OPENINGS), *chance.sample(text.PARAGRAPHS, 2)]
    if chance.random() < 0.7:
        paragraphs.append(chance.choice(text.LISTS))
    paragraphs.append(chance.choice(text.CLOSINGS))
    return "\n\n".join(paragraphs).replace("{topic}", topic)


def _endless(scene: _Scene) -> Iterator[str]:
    while True:
        for paragraph in scene.chance.sample(text.PARAGRAPHS, len(text.PARAGRAPHS)):
            yield from tokens_of(paragraph.replace("{topic}", scene.topic) + "\n\n")


def _name(users: list[str]) -> str | None:
    """The last name that the user gave."""
    for said in reversed(users):
        if found := _NAME.findall(said):
            return str(found[-1])
    return None


# ---------------------------------------------------------------- calls


def _calling(scene: _Scene, calls: list[Call]) -> Iterator[Step]:
    yield from tokens_of(scene.chance.choice(text.BEFORE_CALL))
    yield from call_steps(calls, scene.chance)
    yield Finish(None)


def _after_results(scene: _Scene) -> Iterator[Step]:
    said = ""
    for name, result, failed in results_of(scene.request.messages):
        said += (text.AFTER_ERROR if failed else text.AFTER_RESULT).format(name=name, result=result)
    return spoken(said + scene.chance.choice(text.AFTER_CALLS).replace("{topic}", scene.topic))


# ---------------------------------------------------------------- small parts


def _limited(steps: Iterator[Step], max_tokens: int | None) -> Iterator[Step]:
    left = max_tokens if max_tokens is not None else MAX_LONG_TOKENS
    for step in steps:
        if isinstance(step, str):
            if left <= 0:
                yield Finish("length")
                return
            left -= 1
        yield step


def _too_long(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield Finish("length") if isinstance(step, Finish) and step.reason == "stop" else step


def _commands(said: str) -> tuple[set[str], str]:
    """The commands at the beginning, flags first, then at most one other; and what follows them, untouched."""
    commands: set[str] = set()
    at = 0
    while match := _COMMAND.match(said, at):
        word = match.group(1).lower()
        commands.add(word)
        at = match.end()
        if word not in _FLAGS:
            break
    return commands, said[at:]


def _content(message: dict[str, Any]) -> str:
    """Content is a string, null, or a list of parts of which some are text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    return content if isinstance(content, str) else ""


def _seed(messages: Sequence[dict[str, Any]]) -> int:
    told = json.dumps([[m.get("role"), _content(m)] for m in messages], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big")
