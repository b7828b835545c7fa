"""The system prompt of a model call: the operator's template, the conversation's own `system`, and what stands for
turns that aren't sent any more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from gateway.settings.template import PLACEHOLDER
from protocol.frames import Memory

SUMMARY_HEADING = "Summary of the conversation before the messages below:"
DROPPED_NOTICE = "The oldest messages of this conversation were left out; their content isn't known to you."
DEFAULT = "{system}\n\n{summary}"

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NO_CLAIMS: Mapping[str, str] = {}


class SystemPrompt:
    """A template that `settings.template.checked_template` accepted. What is filled in is never read as a template
    itself, so no client and no summary can bring placeholders in."""

    def __init__(self, template: str = "") -> None:
        mentioned = {found.group(1) for found in PLACEHOLDER.finditer(template)}
        missing = [f"{{{name}}}" for name in ("system", "summary") if name not in mentioned]
        self._template = "\n\n".join([template, *missing]) if template else DEFAULT

    def render(
        self, system: str | None, memory: Memory | None, *, now_s: float, claims: Mapping[str, str] = NO_CLAIMS
    ) -> str:
        """Empty when there is nothing to say. `now_s` is Unix seconds; dates and times are UTC. `claims` are those of
        the user that may enter a prompt; one that the user hasn't is filled in as nothing."""
        now = datetime.fromtimestamp(now_s, UTC)

        def value(found: re.Match[str]) -> str:
            match found.group(1):
                case None:
                    return found.group()[0]
                case "date":
                    return f"{now:%Y-%m-%d}"
                case "weekday":
                    return _WEEKDAYS[now.weekday()]
                case "time":
                    return f"{now:%H:%M} UTC"
                case "system":
                    return system or ""
                case "summary":
                    return summary_text(memory)
                case "claims":
                    return "\n".join(f"{name}: {text}" for name, text in claims.items())
                case name:
                    return claims.get(name.removeprefix("claims."), "")

        # Placeholders that brought nothing leave no heap of empty lines; what was filled in stays as it is.
        paragraphs = (PLACEHOLDER.sub(value, part).strip() for part in self._template.split("\n\n"))
        return "\n\n".join(part for part in paragraphs if part)


def summary_text(memory: Memory | None) -> str:
    """What stands for the turns up to `memory.through`."""
    if memory is None:
        return ""
    return f"{SUMMARY_HEADING}\n{memory.summary}" if memory.summary else DROPPED_NOTICE
