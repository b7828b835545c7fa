"""SIGTERM: nobody is cut off in mid-answer, and nothing is lost (SPEC.md sections 7.11 and 10.6)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from websockets.asyncio.client import connect as ws_connect

from tests.support.process import GatewayProcess
from tests.support.wire import Events, is_, is_end, is_logged, is_token, kinds, text, wire

SQLITE = "sqlite:conversations.db"


async def not_ready(http: aiohttp.ClientSession) -> None:
    """Returns when the gateway says that it drains."""
    while True:
        async with http.get("/readyz") as answer:
            if answer.status == 503:
                assert "Retry-After" in answer.headers
                assert isinstance((await answer.json())["status"], str)
                return


async def ended(gateway: GatewayProcess) -> None:
    await asyncio.to_thread(gateway.check_end)


async def test_a_running_turn_comes_to_its_end(start: Any) -> None:
    async with start(drain_s=20) as gateway, aiohttp.ClientSession(gateway.base) as http:
        async with wire(gateway.chat) as client, wire(gateway.chat) as idle:
            await client.ask("chat_message", conversation_id="c", message="/long 40", message_id="m")
            await client.until(is_token)
            gateway.terminate()
            away = await idle.get("goaway")
            assert set(away) == {"type", "reason", "reconnect_after_ms"}
            assert away["reason"]
            assert away["reconnect_after_ms"] >= 0
            assert await idle.closed() == 1012
            await not_ready(http)
            async with http.get("/healthz") as answer:
                assert answer.status == 200
            refused = await client.ask("chat_message", conversation_id="d", message="/echo x")
            assert (refused["error"]["code"], refused["error"]["retryable"]) == ("OVERLOADED", True)
            for path in ("/api/chat", "/api/chat/stream"):
                async with http.post(path, json={"message": "x"}) as answer:
                    assert answer.status == 503
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert (await answer.json())["error"]["code"] == "OVERLOADED"
            async with ws_connect(gateway.chat, proxy=None) as late:
                await asyncio.wait_for(late.wait_closed(), 10)
                assert late.close_code == 1012
            again = await client.ask("chat_message", conversation_id="c", message="x", message_id="m")
            assert again["type"] == "message", "sending again isn't a new message"
            await client.until(is_("goaway"))
            assert await client.closed() == 1012
            turn = [frame for frame in client.frames if is_logged(frame) and not frame.get("duplicate")]
            assert kinds(turn) == ["message", "token", "done"]
            assert turn[-1]["finish_reason"] == "stop"
            assert turn[-1]["text_length"] == len(text(turn))
        await ended(gateway)


async def test_streams_and_requests_come_to_their_end(start: Any) -> None:
    async with start(drain_s=20) as gateway, aiohttp.ClientSession(gateway.base) as http:
        asking = asyncio.ensure_future(http.post("/api/chat", json={"message": "/long 30", "conversation_id": "r"}))
        async with http.post("/api/chat/stream", json={"message": "/long 30", "conversation_id": "s"}) as answer:
            events = Events(answer)
            frames = await events.until(is_token)
            gateway.terminate()
            frames += await events.all()
        async with await asking as reply:
            assert (await reply.json())["status"] == "completed"
        assert frames[-1]["finish_reason"] == "stop"
        assert frames[-1]["text_length"] == len(text(frames))
        await ended(gateway)


async def test_what_takes_longer_goes_on_at_the_next_start(start: Any) -> None:
    async with start(log_url=SQLITE, drain_s=0.3) as gateway:
        async with (
            wire(gateway.chat) as client,
            wire(gateway.chat) as waiter,
            aiohttp.ClientSession(gateway.base) as http,
        ):
            asked = await client.ask("chat_message", conversation_id="c", message="/stall", message_id="m")
            await client.until(is_token)
            await client.ask("chat_message", conversation_id="c", message="/fast /echo queued")
            await waiter.send("chat_message", conversation_id="w", message="/fast /call f")
            call = await waiter.get("function_call")
            async with http.get("/api/chat/stream?conversation_id=c") as answer:
                events = Events(answer)
                streamed = await events.until(is_token)
                gateway.terminate()
                began = asyncio.get_running_loop().time()
                for reader in (client, waiter):
                    await reader.get("goaway")
                    assert await reader.closed() == 1012
                streamed += await events.all()
            await ended(gateway)
            took_s = asyncio.get_running_loop().time() - began
        assert took_s < 4, f"a reader of an event stream held up the end for {took_s:.1f} s"
        assert not any(map(is_end, streamed)), "the turn isn't over"
        seen = [frame for frame in client.frames if is_logged(frame)]
        assert not any(map(is_end, seen))
        cursor = seen[-1]
        await asyncio.to_thread(gateway.start)
        async with wire(gateway.chat) as client, wire(gateway.chat) as waiter:
            await client.ask("subscribe", conversation_id="c", after=cursor["seq"])
            rest = await client.until(is_("restart"))
            assert rest[0]["type"] != "snapshot", "nothing that was shown is lost by an orderly stop"
            restart = rest[-1]
            assert (restart["attempt"], restart["keep_seq"]) == (0, asked["seq"]), "it spends no attempt"
            rest += await client.until(is_token)
            await client.send("cancel", conversation_id="c", turn_id=asked["turn_id"])
            rest += await client.until(lambda f: is_end(f) and f["turn_id"] != asked["turn_id"])
            seen += [frame for frame in rest if is_logged(frame)]
            turn = [frame for frame in seen if frame["turn_id"] == asked["turn_id"]]
            assert kinds(turn) == ["message", "token", "restart", "token", "done"]
            assert turn[-1]["text_length"] == len(text(turn))
            assert text([f for f in seen if f["turn_id"] != asked["turn_id"]]) == "queued"
            await waiter.ask("subscribe", conversation_id="w", after=call["seq"])
            await waiter.send("function_result", conversation_id="w", call_id=call["call_id"], result=1)
            rest = [frame for frame in await waiter.until(is_end) if is_logged(frame)]
            assert kinds(rest) == ["function_result", "token", "done"], "without a word"


async def test_a_second_signal_stops_at_once(start: Any) -> None:
    async with start(log_url=SQLITE, drain_s=30) as gateway:
        async with wire(gateway.chat) as client, aiohttp.ClientSession(gateway.base) as http:
            asked = await client.ask("chat_message", conversation_id="c", message="/silent")
            gateway.terminate()
            await not_ready(http)
            gateway.terminate()
            await client.closed()
            await ended(gateway)
        await asyncio.to_thread(gateway.start)
        async with wire(gateway.chat) as client:
            await client.ask("subscribe", conversation_id="c", after=0)
            restart = (await client.until(is_("restart")))[-1]
            assert (restart["turn_id"], restart["attempt"]) == (asked["turn_id"], 0)
            await client.ask("cancel", conversation_id="c")


async def test_a_request_that_waits_for_a_turn_that_is_handed_over(start: Any) -> None:
    async with start(log_url=SQLITE, drain_s=0.2) as gateway, aiohttp.ClientSession(gateway.base) as http:
        async with wire(gateway.chat) as client:
            await client.ask("subscribe", conversation_id="c")
            asking = asyncio.ensure_future(
                http.post("/api/chat", json={"message": "/silent", "conversation_id": "c", "message_id": "m"})
            )
            await client.get("message")
            gateway.terminate()
            began = asyncio.get_running_loop().time()
            async with await asking as reply:
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) >= 1
                assert (await reply.json())["error"]["code"] == "OVERLOADED"
        await ended(gateway)
        assert asyncio.get_running_loop().time() - began < 4


async def test_with_nothing_to_do_it_ends_at_once(start: Any) -> None:
    async with start(drain_s=30) as gateway:
        async with wire(gateway.chat) as client:
            await client.turn("/fast /echo a", "c")
            gateway.terminate()
            await client.get("goaway")
            assert await client.closed() == 1012
        began = asyncio.get_running_loop().time()
        await ended(gateway)
        assert asyncio.get_running_loop().time() - began < 5
