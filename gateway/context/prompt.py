"""The system prompt of a model call: the conversation's own, and what stands for turns that aren't sent any more."""

from __future__ import annotations

from protocol.frames import Memory

SUMMARY_HEADING = "Summary of the conversation before the messages below:"
DROPPED_NOTICE = "The oldest messages of this conversation were left out; their content isn't known to you."


def system_prompt(system: str | None, memory: Memory | None) -> str:
    """Empty when there is nothing to say."""
    parts = [system] if system else []
    if memory is not None:
        parts.append(f"{SUMMARY_HEADING}\n{memory.summary}" if memory.summary else DROPPED_NOTICE)
    return "\n\n".join(parts)
