"""Why a frame can't be read, in plain words (SPEC.md section 4.6).

msgspec finds what is wrong and where; this module says it so that the person who wrote the frame can mend it:
the field, what would be right, and what kind of value was there. The value itself is never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

import msgspec
from msgspec import UNSET

from protocol.codes import ErrorCode, Refusal
from protocol.frames import AnyClientFrame

BAD, UNKNOWN = ErrorCode.BAD_FRAME, ErrorCode.UNKNOWN_TYPE

MAX_REF_CHARS = 128

UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""All that decoding can raise, whatever the bytes: text that isn't UTF-8 and deep nesting pass msgspec's own error."""

CLIENT_TYPES: tuple[str, ...] = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyClientFrame))

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class BadFrame(Refusal):
    """A frame or a body that can't be read; `field` is the path of what is wrong, if it has one.

    `ref` and `conversation_id` are those of the refused frame when they could be read, so that the `error` frame
    finds its sender.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        field: str | None = None,
        ref: str | None = None,
        conversation_id: str | None = None,
    ) -> None:
        super().__init__(code, message)
        self.field = field
        self.ref = ref
        self.conversation_id = conversation_id


def valid_identifier(text: str) -> bool:
    """Whether `text` may name a conversation or a message (SPEC.md section 4.2)."""
    return _IDENTIFIER.fullmatch(text) is not None


# field -> what would be right, and the kind of value that it says (so that "not a string" isn't said of a string).
_COUNT = ("a whole number from 0 to 9007199254740991", "a number")
_NAME = ("1 to 128 characters of A-Z a-z 0-9 _ . -", "a string")
_TEXT = ("a string", "a string")
_FILLED = ("a non-empty string", "a string")
_OBJECT = ("an object", "an object")

RIGHT: dict[str, tuple[str, str]] = {
    "type": (f"one of {', '.join(CLIENT_TYPES)}", ""),
    "ref": (f"a string of at most {MAX_REF_CHARS} characters", "a string"),
    "message": _FILLED,
    "conversation_id": _NAME,
    "message_id": _NAME,
    "on_busy": ("queue, interrupt or reject", "a string"),
    "model": _FILLED,
    "tools": ("an array of tools in OpenAI's function format", "an array"),
    "tools[]": ("an object with `type` and `function`", "an object"),
    "tools[].type": ("function", "a string"),
    "tools[].function": ("an object with `name`, `description` and `parameters`", "an object"),
    "tools[].function.name": ("1 to 64 characters of A-Z a-z 0-9 _ -", "a string"),
    "tools[].function.description": _TEXT,
    "tools[].function.parameters": ("an object (a JSON Schema)", "an object"),
    "tools[].function.strict": ("true or false", "a boolean"),
    "system": _TEXT,
    "metadata": _OBJECT,
    "call_id": _FILLED,
    "result": ("any JSON value", ""),
    "error": _TEXT,
    "turn_id": _FILLED,
    "after": _COUNT,
    "epoch": _COUNT,
    "token": _FILLED,
}


def kind_of(value: object) -> str:
    """What people call this kind of value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string" if value else "an empty string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "binary data"


_AT = re.compile(r" - at `(?P<inside>[^`]*)`(?: in `(?P<parent>[^`]*)`)?$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_STEP = re.compile(r"\.?(\w+)|\[(\d+)\]")


def explain(error: Exception, reread: Callable[[], object], what: str, language: str) -> BadFrame:
    """The refusal for what a decoder raised. `reread` decodes the same bytes without a schema; `what` is `frame` or
    `body`, `language` JSON or MessagePack."""
    if not isinstance(error, msgspec.ValidationError):
        return BadFrame(BAD, _malformed(error, what, language))
    try:
        content = reread()
    except msgspec.ValidationError:  # a number that no decoder takes: the rest is still well-formed
        content = UNSET
    except UNREADABLE as problem:
        return BadFrame(BAD, _malformed(problem, what, language))
    refusal = _invalid(error, content, what)
    refusal.ref, refusal.conversation_id = _sender(content)
    return refusal


def not_an_object(content: object, what: str) -> BadFrame:
    found = "" if content is UNSET else f", not {kind_of(content)}"
    return BadFrame(BAD, f"a {what} has to be an object{found}")


def _malformed(error: Exception, what: str, language: str) -> str:
    if isinstance(error, RecursionError):
        return f"the {what} is nested too deeply"
    if isinstance(error, UnicodeError):
        return f"the {what} holds a text that isn't UTF-8"
    if "surrogate" in str(error):
        return f"the {what} holds half of a UTF-16 surrogate pair, which is no character"
    if "truncated" in str(error):
        return f"the {what} isn't {language}: it ends in the middle, or in half of a surrogate pair"
    place = re.search(r"\(byte \d+\)", str(error))
    return f"the {what} isn't {language}" + (f" {place[0]}" if place else "")


def _sender(content: object) -> tuple[str | None, str | None]:
    if not isinstance(content, dict):
        return None, None
    ref, conversation_id = content.get("ref"), content.get("conversation_id")
    return (
        ref if isinstance(ref, str) and len(ref) <= MAX_REF_CHARS else None,
        conversation_id if isinstance(conversation_id, str) and valid_identifier(conversation_id) else None,
    )


def _invalid(error: Exception, content: object, what: str) -> BadFrame:
    place = _AT.search(str(error))
    if place and place["inside"] == "key":
        parent = _field(place["parent"] or "$")
        return BadFrame(
            BAD, f"the keys of {f'`{parent}`' if parent else f'the {what}'} have to be strings", field=parent or None
        )
    field = _field(place["inside"]) if place else ""
    if missing := _MISSING.search(str(error)):
        field = f"{field}.{missing[1]}" if field else missing[1]
        return BadFrame(BAD, f"`{field}` is missing; it has to be {_right(field)[0]}", field=field)
    if not field:
        return not_an_object(content, what)
    if content is UNSET:
        return BadFrame(BAD, f"`{field}` holds a number that is too large", field=field)
    if field == "type":
        return _wrong_type(content)
    right, said = _right(field)
    kind = kind_of(_value_at(content, field))
    return BadFrame(BAD, f"`{field}` has to be {right}" + (f", not {kind}" if kind != said else ""), field=field)


def _wrong_type(content: object) -> BadFrame:
    value = content.get("type") if isinstance(content, dict) else None
    if not isinstance(value, str):
        return BadFrame(BAD, f"`type` has to be a string, not {kind_of(value)}", field="type")
    if value in CLIENT_TYPES:  # the decoder read another one before
        return BadFrame(BAD, "`type` is given twice", field="type")
    return BadFrame(UNKNOWN, f"`type` has to be {RIGHT['type'][0]}", field="type")


def _field(path: str) -> str:
    """The innermost field with a rule on msgspec's path `$.tools[0].function…`; what lies inside a value has none."""
    field = path.removeprefix("$").removeprefix(".")
    while field and _general(field) not in RIGHT:
        field = field[: max(field.rfind("."), field.rfind("["), 0)]
    return field


def _general(field: str) -> str:
    return re.sub(r"\[\d+\]", "[]", field)


def _right(field: str) -> tuple[str, str]:
    return RIGHT[_general(field)]


def _value_at(content: object, field: str) -> object:
    value = content
    for step in _STEP.finditer(field):
        key, index = step[1], step[2]
        if key is not None and isinstance(value, dict):
            value = value.get(key)
        elif index is not None and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        else:
            return None
    return value
