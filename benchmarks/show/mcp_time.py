"""An MCP server that we did not write (`mcp-server-time`), declared in `convobase.toml` and used from a conversation.

The offline model plays the model: it calls what it is told to, and says what came back.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.show.call_device import CallDevice
from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.report import Report

TITLE = "an MCP server that we did not write, end to end"
NAME = "mcp"
CONFIG = """\
[mcp.time]
command = {command}
args = ["-m", "mcp_server_time", "--local-timezone", "UTC"]
approval = ["convert_time"]
"""
NOW = '/call get_current_time {"timezone": "Asia/Tokyo"}'
CONVERT = '/call convert_time {"source_timezone": "Europe/Oslo", "time": "12:00", "target_timezone": "Asia/Tokyo"}'
UNKNOWN = '/call get_current_time {"timezone": "Nowhere/Atlantis"}'
BROKEN = '/call get_current_time {"zone": "Asia/Tokyo"}'


async def _turn(device: CallDevice, message: str, approve: bool = False) -> list[dict[str, Any]]:
    """The turn's frames."""
    seen = len(device.frames)
    device.send(type="chat_message", conversation_id=NAME, message=message)
    if approve:
        calls = len(device.of("function_call"))
        device.answer((await device.until_some("function_call", calls + 1))[-1], result=True)
    await device.until(lambda: any(frame["type"] in ("done", "error") for frame in device.frames[seen:]), 30)
    return device.frames[seen:]


def _result(frames: list[dict[str, Any]]) -> Any:
    """Of the turn's call: its result as JSON when it is one, or its error."""
    frame = next(frame for frame in frames if frame["type"] == "function_result")
    if "error" in frame:
        return frame["error"]
    result = frame["result"]
    return json.loads(result) if isinstance(result, str) else result


def _kinds(frames: list[dict[str, Any]]) -> list[str]:
    return [frame.get("runs", "") for frame in frames if frame["type"] == "function_call"]


async def _use(report: Report, gateway: GatewayProcess) -> None:
    device = CallDevice(gateway.url)
    await device.connect()
    try:
        device.send(type="subscribe", conversation_id=NAME, after=0)
        frames = await _turn(device, NOW)
        now = _result(frames)
        told = datetime.fromisoformat(now["datetime"])
        late_s = abs((datetime.now(UTC) - told).total_seconds())
        report.check(_kinds(frames) == ["gateway"], "get_current_time is run by the gateway")
        report.check(late_s < 30 and now["timezone"] == "Asia/Tokyo", f"it is {told} in {now['timezone']}")
        said = "".join(frame["content"] for frame in frames if frame["type"] == "token")
        report.check(now["datetime"] in said, "the model was told, and says so")

        frames = await _turn(device, CONVERT, approve=True)
        converted = _result(frames)
        report.check(_kinds(frames) == ["approval", "gateway"], "convert_time waits for approval, and is then run")
        report.check("target" in converted, f"12:00 in Oslo is {converted['target']['datetime']}")

        error = _result(await _turn(device, UNKNOWN))
        report.check("Atlantis" in str(error) or "timezone" in str(error).lower(), f"the server's own error: {error!r}")
        frames = await _turn(device, BROKEN)
        report.check(not _kinds(frames), "arguments that its schema refuses are given back to the model, and not to it")
        report.check(not device.ledgers[NAME].gaps + device.ledgers[NAME].duplicates, "no gap, no duplicate")
    finally:
        device.close()


async def show(report: Report, _: str | None) -> None:
    if find_spec("mcp_server_time") is None:
        report.check(False, "mcp-server-time isn't installed here; it is a development dependency (`make setup-dev`)")
        return
    with TemporaryDirectory(prefix="convobase-show-") as folder:
        config = Path(folder) / "convobase.toml"
        config.write_text(CONFIG.format(command=json.dumps(sys.executable)))
        report.note(f"convobase.toml: {CONFIG.splitlines()[0]} … mcp_server_time")
        async with running_gateway(CONFIG=config) as gateway:
            await _use(report, gateway)
            report.check(not gateway.complaints(), "no traceback in the gateway's log")
