"""SPEC.md names everything there is, and every section that the code cites exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from protocol import frames
from protocol.codec import CODECS
from protocol.codes import CloseCode, ErrorCode
from protocol.refusals import MAX_REF_CHARS

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "protocol/SPEC.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^#+ ([0-9]+(?:\.[0-9]+)*)\.? ", SPEC, re.MULTILINE))


@pytest.mark.parametrize("kind", [*get_args(frames.AnyClientFrame), *get_args(frames.AnyServerFrame)])
def test_every_frame_and_field_is_there(kind: type[frames.ClientFrame]) -> None:
    assert f"`{kind.__struct_config__.tag}`" in SPEC
    for field in kind.__struct_fields__:
        assert f"`{field}`" in SPEC, field


@pytest.mark.parametrize("record", [frames.Metadata, frames.FoldedCall, frames.FoldedMessage, frames.RunningTurn])
def test_every_field_of_the_fold_is_there(record: type[frames.Metadata]) -> None:
    for field in record.__struct_fields__:
        assert f"`{field}`" in SPEC, field


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_there(code: ErrorCode) -> None:
    retryable = "yes" if code.retryable else "no"
    assert re.search(rf"^\| `{code.name}` \| {code.http_status} \| {retryable} \|", SPEC, re.MULTILINE)


@pytest.mark.parametrize("code", CloseCode)
def test_every_close_code_is_there(code: CloseCode) -> None:
    assert re.search(rf"^\| {code.value} \|", SPEC, re.MULTILINE)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"{frames.MAX_METADATA_BYTES:,} bytes" in SPEC
    assert f"{MAX_REF_CHARS} characters" in SPEC
    assert all(f"`{name}`" in SPEC for name in CODECS)


def test_sections_count_up_without_a_gap() -> None:
    last: list[int] = [0]
    for number in re.findall(r"^#+ ([0-9]+(?:\.[0-9]+)*)\.? ", SPEC, re.MULTILINE):
        steps = [int(step) for step in number.split(".")]
        parent, siblings = steps[:-1], last[: len(steps)]
        expected = siblings[-1] + 1 if len(last) >= len(steps) else 1
        assert steps == [*parent, expected], number
        assert parent == last[: len(parent)], number
        last = steps


def cited(text: str) -> set[str]:
    """Section numbers of "SPEC.md section 2.3", "sections 8 and 9", "sections 4 to 7"."""
    numbers: set[str] = set()
    for first, joint, second in re.findall(
        r"SPEC(?:\.md)?,? sections? ([0-9][0-9.]*[0-9]|[0-9])(?:,? (and|to) ([0-9][0-9.]*[0-9]|[0-9]))?", text
    ):
        numbers |= {first, second} - {""}
        if joint == "to":
            numbers |= {str(number) for number in range(int(first), int(second))}
    return numbers


def test_citations_are_understood() -> None:
    text = "SPEC.md section 2.3). SPEC.md sections 8 and 9. (SPEC.md sections 4 to 7)"
    assert cited(text) == {"2.3", "8", "9", "4", "5", "6", "7"}


def test_every_cited_section_exists() -> None:
    files = [path for folder in ("protocol", "gateway", "tests", "benchmarks") for path in (ROOT / folder).rglob("*")]
    files += (ROOT / "protocol/vectors").glob("*.json")
    sources = {
        path for path in files if path.suffix in {".py", ".json", ".ts", ".tsx"} and "node_modules" not in path.parts
    }
    missing = {
        (str(path.relative_to(ROOT)), number)
        for path in sources
        for number in cited(path.read_text(encoding="utf-8"))
        if number not in SECTIONS
    }
    assert not missing
    assert all(number in SECTIONS for number in cited(SPEC))
