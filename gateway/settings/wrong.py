"""The one line that says what is wrong with a setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

_SHOWN_CHARS = 60


class SettingsError(Exception):
    """A setting is wrong. Its text is one line that names the setting as the user wrote it and says what would be
    right; it never holds a secret."""


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """`known`: what may have been meant, and how to write it."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean `{known[close[0]]}`?" if close else "; see the table of settings in README.md."


def one_of(name: str, known: Iterable[str]) -> str:
    """The same where there are few, so that all of them can be named."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; there are {', '.join(names)}."
