"""The operator's template of the system prompt: its language, so that a wrong placeholder stops the start."""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*(?:\.\w+)*)\}")
"""`{name}` or a doubled brace. Any other brace is text: JSON in a prompt needs no care."""

NAMES = ("date", "weekday", "time", "system", "summary", "claims")
"""`claims` is all of them, `claims.NAME` one."""
RIGHT = (
    "a text whose placeholders are {date}, {weekday}, {time}, {system}, {summary}, {claims} or {claims.NAME}, "
    "with {{ and }} for braces around a word"
)


def checked_template(value: str) -> str:
    """`value`, when each of its placeholders is known. Raises `ValueError`."""
    for found in PLACEHOLDER.finditer(value):
        name = found.group(1)
        if name is not None and name not in NAMES and not re.fullmatch(r"claims\.\w+", name):
            raise ValueError("unknown placeholder")
    return value
