"""The README's table of settings, made from their definitions."""

from __future__ import annotations

from pydantic import SecretStr

from gateway.settings.tree import Limits, LogAndSessions, Serving, Slice, ToolLimits, Upstream, Who

_GROUPS: tuple[tuple[str, type[Slice]], ...] = (
    ("Serving", Serving),
    ("Log and sessions", LogAndSessions),
    ("Model", Upstream),
    ("Tools", ToolLimits),
    ("Who", Who),
    ("How much", Limits),
)


def settings_table() -> str:
    """Markdown, one row a setting, without a final line end."""
    rows = ["| | default | |", "|---|---|---|"]
    for title, group in _GROUPS:
        rows.append(f"| *{title}* | | |")
        for name, field in group.model_fields.items():
            rows.append(f"| `{name.upper()}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    match default:
        case None | "" | ():
            return ""
        case SecretStr():
            return "…"
        case bool():
            return f"`{str(default).lower()}`"
        case _:
            return f"`{default}`"
