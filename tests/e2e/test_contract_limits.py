"""What settings bound: running streams, idle sessions, retention; and settings that are wrong."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.process import ROOT
from tests.support.wire import Events, is_, is_end, text, wire


async def gauge(http: aiohttp.ClientSession, name: str) -> float:
    async with http.get("/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


async def test_more_streams_than_allowed_are_overloaded(start: Any) -> None:
    async with (
        start(max_streams=1) as gateway,
        aiohttp.ClientSession(gateway.base) as http,
        wire(gateway.chat) as client,
    ):
        await client.ask("chat_message", conversation_id="a", message="/silent", message_id="m")
        refused = await client.ask("chat_message", conversation_id="b", message="x")
        assert (refused["error"]["code"], refused["error"]["retryable"]) == ("OVERLOADED", True)
        for path in ("/api/chat", "/api/chat/stream"):
            async with http.post(path, json={"message": "x"}) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
        again = await client.ask("chat_message", conversation_id="a", message="x", message_id="m")
        assert again["duplicate"] is True, "a message that is known already needs no room"
        await client.ask("cancel", conversation_id="a")
        await client.turn("/fast /echo now", "b")


async def test_idle_sessions_leave_memory_and_come_back(start: Any) -> None:
    async with (
        start(log_url="sqlite:c.db", session_idle_s=0.2) as gateway,
        wire(gateway.chat) as client,
        aiohttp.ClientSession(gateway.base) as http,
    ):
        names = [f"c{n}" for n in range(20)]
        heads = {}
        for name in names:
            heads[name] = (await client.turn(f"/fast /echo I am {name}", name, message_id="m"))[-1]["seq"]
        await client.send("chat_message", conversation_id="waiting", message="/fast /call f")
        call = await client.get("function_call")
        while await gauge(http, "convobase_sessions") > 1:
            await asyncio.sleep(0.02)
        assert await gauge(http, "convobase_sessions") == 1, "an open call is activity"
        for name in names:
            again = await client.ask("chat_message", conversation_id=name, message="x", message_id="m")
            assert again["duplicate"] is True
            turn = await client.turn("/fast /echo on", name)
            assert turn[0]["seq"] == heads[name] + 1, "the subscription and the numbers go on"
            assert "epoch" not in turn[0]
        await client.send("function_result", conversation_id="waiting", call_id=call["call_id"], result=1)
        await client.until(lambda f: is_end(f) and f["conversation_id"] == "waiting")


@pytest.mark.parametrize("log", ["memory:", "sqlite:c.db"])
async def test_a_conversation_is_removed_as_a_whole_when_it_is_old(start: Any, log: str) -> None:
    async with (
        start(log_url=log, retention_s=1, session_idle_s=0.2) as gateway,
        wire(gateway.chat) as client,
        aiohttp.ClientSession(gateway.base) as http,
    ):
        await client.turn("/fast /echo a", "old")
        await client.ask("chat_message", conversation_id="open", message="/silent")
        assert is_("deleted", conversation_id="old")(await client.get("deleted"))
        async with http.get("/api/conversations/old") as answer:
            assert answer.status == 404
        async with http.get("/api/conversations/open") as answer:
            assert answer.status == 200, "not while a turn is open"
        await client.ask("cancel", conversation_id="open")
        again = await client.turn("/fast /echo b", "old")
        assert again[0]["seq"] == 1
        assert again[0]["epoch"] > 0
        async with http.get("/api/chat/stream?conversation_id=old&after=2") as answer:
            assert (await Events(answer).all())[0]["type"] == "snapshot"


@pytest.mark.parametrize(("chars", "ms"), [(0, 50), (4000, 60000)])
async def test_batching_never_keeps_the_last_words(start: Any, chars: int, ms: int) -> None:
    said = "one two three four five six"
    async with start(batch_chars=chars, batch_ms=ms) as gateway, wire(gateway.chat) as client:
        turn = await client.turn(f"/fast /echo {said}", "c")
        assert text(turn) == said
        slow = await client.turn(f"/echo {said}", "d")
        assert text(slow) == said
        pieces = [frame for frame in slow if frame["type"] == "token"]
        assert (len(pieces) > 3) is (not chars or not ms)


@pytest.mark.parametrize(("name", "value"), [("PORT", "http"), ("HOST", "0.0.0.0")])
async def test_a_wrong_setting_is_one_line_that_names_it(tmp_path: Path, name: str, value: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), f"CONVOBASE_{name}": value}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "serve", cwd=tmp_path, env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    (line,) = said.decode().splitlines()
    assert name in line.upper()
