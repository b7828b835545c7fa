"""The system prompt: what the template says, what the conversation says, and what stands for left-out turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context.prompt import DROPPED_NOTICE, SUMMARY_HEADING, SystemPrompt
from protocol.frames import Memory

NOW_S = 1_764_000_000.0  # Monday, 2025-11-24 16:00 UTC
MEMORY = Memory(through="t1", summary="Ada has 3 cats.")
SUMMARY = f"{SUMMARY_HEADING}\nAda has 3 cats."


def rendered(template: str, system: str | None = None, memory: Memory | None = None, **claims: str) -> str:
    return SystemPrompt(template).render(system, memory, now_s=NOW_S, claims=claims)


@pytest.mark.parametrize(
    ("template", "system", "memory", "prompt"),
    [
        ("", None, None, ""),
        ("", "", None, ""),
        ("", "be brief", None, "be brief"),
        ("", "be brief", MEMORY, f"be brief\n\n{SUMMARY}"),
        ("", None, MEMORY, SUMMARY),
        ("", None, Memory(through="t1"), DROPPED_NOTICE),
        ("Today is {date}.", None, None, "Today is 2025-11-24."),
        ("{weekday}, {time}", None, None, "Monday, 16:00 UTC"),
        ("You are Bo.", "be brief", MEMORY, f"You are Bo.\n\nbe brief\n\n{SUMMARY}"),
        ("{summary}\n\nYou are Bo.\n\n{system}", "be brief", MEMORY, f"{SUMMARY}\n\nYou are Bo.\n\nbe brief"),
        ("{summary}\n\nYou are Bo.\n\n{system}", None, None, "You are Bo."),
        ("<s>{system}</s>", "be brief", None, "<s>be brief</s>"),
        ('Answer as {"a": 1} or {} or { x }.', None, None, 'Answer as {"a": 1} or {} or { x }.'),
        ("{{date}} {{", None, None, "{date} {"),
    ],
)
def test_rendered(template: str, system: str | None, memory: Memory | None, prompt: str) -> None:
    assert rendered(template, system, memory) == prompt


def test_claims() -> None:
    assert rendered("{claims.name} of {claims.team}", name="Ada", team="R&D") == "Ada of R&D"
    assert rendered("User: {claims.name}.") == "User: ."
    assert rendered("{claims}", name="Ada", team="R&D") == "name: Ada\nteam: R&D"
    assert rendered("", name="Ada") == "", "claims enter only where the operator wants them"


@given(st.text(), st.text())
def test_what_is_filled_in_is_no_template(system: str, claim: str) -> None:
    assert rendered("{system}|{claims.c}|", f"[{system}]", None, c=claim) == f"[{system}]|{claim}|"


def test_text_between_paragraphs_of_a_value_stays() -> None:
    assert rendered("", "one\n\n\n\ntwo") == "one\n\n\n\ntwo"
