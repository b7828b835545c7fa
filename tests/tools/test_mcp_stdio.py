"""MCP servers that run as processes: one that we did not write, and one that misbehaves when asked."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.telemetry.logging import configure
from gateway.tools.failure import ToolFailed
from gateway.tools.toolbox import Toolbox

TIME = {"command": sys.executable, "args": ["-m", "mcp_server_time", "--local-timezone", "Europe/Berlin"]}


def names(toolbox: Toolbox) -> list[str]:
    return [spec.function.name for spec in toolbox.specs]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    """For what only another process knows."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_server_that_we_did_not_write(opened: Any) -> None:
    """mcp-server-time, of the protocol's own project."""
    async with opened(
        mcp={"time": TIME | {"approval": ["convert_time"], "idempotent": ["get_current_time"]}}
    ) as toolbox:
        assert names(toolbox) == ["get_current_time", "convert_time"]
        assert toolbox.specs[0].function.parameters["required"] == ["timezone"]
        assert (toolbox.runs("get_current_time"), toolbox.runs("convert_time")) == ("gateway", "approval")
        assert (toolbox.idempotent("get_current_time"), toolbox.idempotent("convert_time")) == (True, False)
        now = await toolbox.run("get_current_time", {"timezone": "Asia/Tokyo"}, call_id="c")
        assert (now["timezone"], now["is_dst"]) == ("Asia/Tokyo", False)
        args = {"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "Asia/Kolkata"}
        assert (await toolbox.run("convert_time", args, call_id="c"))["time_difference"] == "-3.5h"
        with pytest.raises(ToolFailed, match="No time zone found with key Atlantis"):
            await toolbox.run("get_current_time", {"timezone": "Atlantis"}, call_id="c")


async def test_its_process_ends_with_the_toolbox(opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw()}) as toolbox:
        pid = int(await toolbox.run("pid", {}, call_id="c"))
        assert alive(pid)
    assert not alive(pid)


@pytest.mark.parametrize(
    ("tool", "result"),
    [
        ("echo", "ü"),
        ("picture", [{"left_out": "image/png"}, "a cat"]),
    ],
)
async def test_results(tool: str, result: Any, opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw()}) as toolbox:
        assert await toolbox.run(tool, {"text": "ü"}, call_id="c") == result


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("fail", "that went wrong"),
        ("huge", "the result has 200002 bytes of JSON, more than the 65536 that it may have"),
        ("sleep", "the tool took longer than 0.3 s"),
    ],
)
async def test_failures(tool: str, message: str, opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw(timeout_s=0.3 if tool == "sleep" else 20)}) as toolbox:
        with pytest.raises(ToolFailed) as failed:
            await toolbox.run(tool, {}, call_id="c")
        assert str(failed.value) == message
        # The session lives on.
        if tool != "sleep":
            assert await toolbox.run("echo", {"text": "still here"}, call_id="c") == "still here"


async def test_allow_deny_and_names_that_models_take(opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw(allow=["echo", "crash", "odd.name"], deny=["crash"])}) as toolbox:
        assert names(toolbox) == ["echo", "odd_name"]
        assert await toolbox.run("odd_name", {"text": "a"}, call_id="c") == "a"
        assert toolbox.runs("crash") == "client"
        with pytest.raises(ToolFailed, match="there is no tool `crash`"):
            await toolbox.run("crash", {}, call_id="c")


async def test_names_that_are_taken_get_a_prefix(opened: Any, raw: Any, serve: Any) -> None:
    servers = {"one": raw(allow=["echo", "pid"]), "two": raw(allow=["echo"]), "three": raw(allow=["echo"], prefix=True)}
    async with opened(http={"pid": {"url": "http://127.0.0.1:9/"}}, mcp=servers) as toolbox:
        assert names(toolbox) == ["pid", "echo", "one_pid", "two_echo", "three_echo"]
        assert int(await toolbox.run("one_pid", {}, call_id="c"))
        assert await toolbox.run("two_echo", {"text": "2"}, call_id="c") == "2"


async def test_a_tool_with_a_broken_schema_is_left_out(
    opened: Any, raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    async with opened(mcp={"raw": raw(allow=["echo", "broken_schema"])}) as toolbox:
        assert names(toolbox) == ["echo"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "`properties.a.type`: is no type that JSON Schema knows" in lines[0]


async def test_a_list_that_changes(opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw(allow=["grow", "grown"])}) as toolbox:
        before = toolbox.specs
        assert names(toolbox) == ["grow"]
        assert await toolbox.run("grow", {}, call_id="c") == "grown"
        await until(lambda: names(toolbox) == ["grow", "grown"])
        assert len(before) == 1


async def test_a_crash_in_a_call_and_the_way_back(opened: Any, raw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    async with opened(mcp={"raw": raw()}) as toolbox:
        first = int(await toolbox.run("pid", {}, call_id="c"))
        waiting = asyncio.create_task(toolbox.run("sleep", {}, call_id="c"))
        await asyncio.sleep(0)
        for call in (toolbox.run("crash", {}, call_id="c"), waiting):
            with pytest.raises(ToolFailed, match=r"went away before it answered; whether the tool did its work isn't"):
                await call
        assert "echo" in names(toolbox)
        second = int(await toolbox.run("pid", {}, call_id="c"))
        assert second != first
        assert not alive(first)
    assert not alive(second)
    lines = [line for line in capsys.readouterr().err.splitlines() if "not available" in line]
    assert len(lines) == 1
    assert '"last_line":"going down"' in lines[0]


async def test_a_crash_between_calls_is_not_seen_by_the_next(opened: Any, raw: Any) -> None:
    async with opened(mcp={"raw": raw()}) as toolbox:
        pid = int(await toolbox.run("pid", {}, call_id="c"))
        os.kill(pid, 9)
        await until(lambda: not toolbox._sessions[0]._up.is_set())
        assert await toolbox.run("echo", {"text": "back"}, call_id="c") == "back"


async def test_cancelling_a_call_tells_the_server(opened: Any, raw: Any, tmp_path: Path) -> None:
    told = tmp_path / "told"
    async with opened(mcp={"raw": raw(str(told))}) as toolbox:
        call = asyncio.create_task(toolbox.run("sleep", {}, call_id="c"))
        # The answer to a later call shows that the server has the first one.
        await asyncio.sleep(0)
        assert await toolbox.run("echo", {"text": "a"}, call_id="c") == "a"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: told.exists() and told.read_text() == "cancelled\n")
        assert await toolbox.run("echo", {"text": "b"}, call_id="c") == "b"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"command": "/nonexistent/server"}, "FileNotFoundError"),
        ({"env": {"RAW_MCP": "broken"}}, "no licence key"),
        ({"env": {"RAW_MCP": "deaf"}, "start_timeout_s": 0.3}, "it took longer than 0.3 s"),
    ],
)
async def test_a_server_that_does_not_start(
    settings: dict[str, Any],
    line: str,
    opened: Any,
    raw: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value_s in (("WAIT_S", 0.1), ("FIRST_PAUSE_S", 0.05)):
        monkeypatch.setattr(f"gateway.tools.mcp.{name}", value_s)
    configure("info", "json")
    async with opened(mcp={"raw": raw(**settings), "other": raw(allow=["echo"])}) as toolbox:
        assert names(toolbox) == ["echo"]
        session = toolbox._sessions[0]
        with pytest.raises(ToolFailed, match=r"^the tool's server isn't available now; it may be later$"):
            await session.call("echo", {})
        # A second attempt fails as well, and there is still one line.
        session._tried.clear()
        await session.first_try()
    lines = [text for text in capsys.readouterr().err.splitlines() if '"server":"raw"' in text]
    assert len(lines) == 1
    assert line in lines[0]
    assert "Traceback" not in lines[0]


async def test_a_secret_in_the_environment_reaches_the_server_only(
    opened: Any, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOBASE_JWT_SECRET", "hush")
    async with opened(mcp={"raw": raw(env={"GIVEN": "shown"})}) as toolbox:
        pid = int(await toolbox.run("pid", {}, call_id="c"))
        environment = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
    assert b"GIVEN=shown" in environment
    assert b"hush" not in environment
