"""`kill -9` and a new start on `sqlite:` (SPEC.md sections 2.2, 2.5, 6.6 and 10.6)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from tests.support.process import GatewayProcess
from tests.support.wire import Events, Frame, is_, is_end, is_logged, is_token, kinds, text, wire

SQLITE = "sqlite:conversations.db"


async def kill_and_start(gateway: GatewayProcess) -> None:
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)


async def settled(client: Any) -> None:
    """Everything that was shown before is in the log now: commits are groups, and they are in order."""
    await client.turn("/fast /echo settled", "settling")


async def whole(gateway: GatewayProcess, conversation: str) -> Frame:
    async with (
        aiohttp.ClientSession(gateway.base) as http,
        http.get(f"/api/conversations/{conversation}") as answer,
    ):
        assert answer.status == 200
        fold: Frame = await answer.json()
        return fold


async def test_a_turn_that_ran_goes_on_with_a_restart(start: Any) -> None:
    async with start(log_url=SQLITE) as gateway:
        async with wire(gateway.chat) as client:
            done = await client.turn("/fast /echo before", "c", message_id="q0")
            running = await client.ask("chat_message", conversation_id="c", message="/stall", message_id="q1")
            await client.until(is_token)
            queued = [
                await client.ask("chat_message", conversation_id="c", message=f"/fast /echo n{n}", message_id=f"n{n}")
                for n in range(2)
            ]
            await settled(client)
            seen = [f for f in client.frames if is_logged(f) and f["conversation_id"] == "c"]
            last = seen[-1]
            before_s = int(time.time())
            await kill_and_start(gateway)
        async with wire(gateway.chat) as client:
            # What was acknowledged is known, also to a client that resends.
            again = await client.ask("chat_message", conversation_id="c", message="x", message_id="q0")
            assert again["turn_id"] == done[0]["turn_id"]
            subscribed = await client.ask("subscribe", conversation_id="c", after=last["seq"], epoch=0)
            assert subscribed["after"] == last["seq"], "the cursor is valid: no snapshot follows"
            restart = (await client.until(is_logged))[-1]
            while restart["type"] == "token":  # what was said before the end, and not yet read
                seen.append(restart)
                restart = (await client.until(is_logged))[-1]
            assert restart["type"] == "restart", restart
            assert (restart["turn_id"], restart["attempt"], restart["keep_seq"]) == (
                running["turn_id"], 1, running["seq"],
            )  # fmt: skip
            assert restart["epoch"] >= before_s
            seen.append(restart)
            seen += await client.until(is_token)
            await client.send("cancel", conversation_id="c", turn_id=running["turn_id"])
            seen += await client.until(lambda f: is_end(f) and f["turn_id"] == queued[-1]["turn_id"])
            seen = [frame for frame in seen if is_logged(frame)]
            turn = [frame for frame in seen if frame["turn_id"] == running["turn_id"]]
            assert kinds(turn) == ["message", "token", "restart", "token", "done"]
            assert turn[-1]["text_length"] == len(text(turn)), "only what stands"
            for number, asked in enumerate(queued):
                frames = [f for f in seen if f["turn_id"] == asked["turn_id"]]
                assert (text(frames), frames[-1]["finish_reason"]) == (f"n{number}", "stop")
            assert {frame.get("epoch", 0) for frame in seen} == {0, restart["epoch"]}
            fold = await whole(gateway, "c")
            assert [m["content"] for m in fold["messages"] if m["role"] == "assistant"] == [
                "before", text(turn), "n0", "n1",
            ]  # fmt: skip
            assert fold["epoch"] == restart["epoch"]
            # An entry that only the old epoch could have had, and one of the new with the old epoch: both are void.
            for after, epoch in ((restart["seq"], 0), (running["seq"], restart["epoch"])):
                await client.ask("subscribe", conversation_id="c", after=after, epoch=epoch)
                assert (await client.next())["type"] == "snapshot"


async def test_a_turn_that_waits_for_results_goes_on_without_a_word(start: Any) -> None:
    async with start(log_url=SQLITE) as gateway:
        async with wire(gateway.chat) as client:
            await client.send("chat_message", conversation_id="c", message="/fast /call f {} g {}", message_id="m")
            first = await client.get("function_call", name="f")
            second = await client.get("function_call", name="g")
            await client.ask("function_result", conversation_id="c", call_id=first["call_id"], result="one")
            head = client.order.last["c"][0] if client.frames[-1]["type"] != "accepted" else second["seq"] + 1
            await kill_and_start(gateway)
        async with wire(gateway.chat) as client, aiohttp.ClientSession(gateway.base) as http:
            await client.ask("subscribe", conversation_id="c", after=head)
            assert await client.silent() == []
            fold = await whole(gateway, "c")
            assert fold["turn"]["status"] == "function_call"
            async with http.post(
                "/api/conversations/c/function_results", json={"call_id": second["call_id"], "result": "two"}
            ) as answer:
                assert answer.status == 200
            rest = await client.until(is_end)
            assert kinds(rest) == ["function_result", "token", "done"]
            assert rest[0]["epoch"] > 0, "the first append after an unclean stop begins a new epoch"
            assert "one" in text(rest)
            assert "two" in text(rest)
            again = await client.ask("function_result", conversation_id="c", call_id=first["call_id"], result="one")
            assert again["type"] == "accepted"


async def test_rounds_whose_calls_are_logged_are_kept(start: Any) -> None:
    """The model call after the results was cut off: the restart cuts behind the last result."""
    async with start(log_url=SQLITE) as gateway:
        async with wire(gateway.chat) as client:
            await client.send("chat_message", conversation_id="c", message="/call f")
            call = await client.get("function_call")
            await client.send("function_result", conversation_id="c", call_id=call["call_id"], result="word " * 30)
            result = await client.get("function_result")
            await client.until(is_token)
            await kill_and_start(gateway)
        async with wire(gateway.chat) as client:
            await client.ask("subscribe", conversation_id="c", after=0)
            turn = await client.until(is_end)
    restart = next(frame for frame in turn if frame["type"] == "restart")
    assert (restart["keep_seq"], restart["attempt"]) == (result["seq"], 1)
    assert turn[-1]["text_length"] == len(text(turn))
    assert kinds([f for f in turn if f["seq"] <= restart["keep_seq"]]) == [
        "message", "token", "function_call", "function_result",
    ]  # fmt: skip


async def test_after_three_losses_the_fourth_ends_the_turn(start: Any) -> None:
    async with start(log_url=SQLITE) as gateway:
        async with wire(gateway.chat) as client:
            await client.ask("chat_message", conversation_id="c", message="/silent")
            await client.ask("chat_message", conversation_id="c", message="/fast /echo next")
        epochs, seen = [], list[Frame]()
        for attempt in range(1, 5):
            await kill_and_start(gateway)
            async with wire(gateway.chat) as client:
                await client.ask("subscribe", conversation_id="c", after=0)
                wanted = is_("restart", attempt=attempt) if attempt < 4 else is_end
                seen = await client.until(wanted)
                epochs.append(seen[-1]["epoch"])
                if attempt == 4:
                    seen += await client.until(is_end)
        assert epochs == sorted(set(epochs)), "an epoch is never used twice"
        (lost,) = (frame for frame in seen if frame["type"] == "error")
        assert (lost["error"]["code"], lost["error"]["retryable"]) == ("NODE_LOST", True)
        assert seen[-1]["finish_reason"] == "stop", "queued turns follow"
        assert text(seen) == "next"


async def test_idle_conversations_are_as_they_were(start: Any) -> None:
    async with start(log_url=SQLITE, session_idle_s=0.1) as gateway:
        async with wire(gateway.chat) as client:
            turns = [await client.turn(f"/fast /echo {n} é 👋", f"c{n}", message_id="m") for n in range(5)]
            before = [await whole(gateway, f"c{n}") for n in range(5)]
        await kill_and_start(gateway)
        assert [await whole(gateway, f"c{n}") for n in range(5)] == before
        async with wire(gateway.chat) as client, aiohttp.ClientSession(gateway.base) as http:
            for number, turn in enumerate(turns):
                head = turn[-1]["seq"]
                url = f"/api/chat/stream?conversation_id=c{number}&after={head}"
                async with http.get(url) as answer:
                    assert answer.status == 204, "the cursor still is valid"
                after = await client.turn("/fast /echo on", f"c{number}")
                assert after[0]["seq"] == head + 1
                assert after[0]["epoch"] > 0
                await client.ask("subscribe", conversation_id=f"c{number}", after=head)
                assert text(await client.until(is_end)) == "on"


async def test_an_event_source_goes_on_with_its_last_id(start: Any) -> None:
    async with start(log_url=SQLITE) as gateway:
        seen: list[Frame] = []
        async with (
            aiohttp.ClientSession(gateway.base) as http,
            http.post("/api/chat/stream", json={"message": "/long 40", "conversation_id": "c"}) as answer,
        ):
            events = Events(answer)
            seen += await events.until(is_token)
            for _ in range(3):
                seen.append(await events.next())
            await kill_and_start(gateway)
        last = f"{seen[-1]['seq']}"
        async with (
            aiohttp.ClientSession(gateway.base) as http,
            http.get("/api/chat/stream?conversation_id=c", headers={"Last-Event-ID": last}) as answer,
        ):
            rest = await Events(answer).all()
        if rest[0]["type"] == "snapshot":  # the last token was shown, and not yet in the log
            rest, seen = rest[1:], []
            return_to = await whole(gateway, "c")
            assert return_to["messages"][-1]["status"] == "completed"
            assert rest[-1]["text_length"] == len(return_to["messages"][-1]["content"])
            return
        frames = seen + rest
        assert kinds(frames) == ["message", "token", "restart", "token", "done"]
        assert rest[-1]["text_length"] == len(text(frames))


async def test_memory_forgets_and_says_so(start: Any) -> None:
    async with start(log_url="memory:") as gateway:
        async with wire(gateway.chat) as client:
            await client.turn("/fast /echo a", "c")
        await kill_and_start(gateway)
        async with wire(gateway.chat) as client:
            await client.ask("subscribe", conversation_id="c", after=3)
            snapshot = await client.next()
        assert (snapshot["type"], snapshot["seq"], snapshot["messages"]) == ("snapshot", 0, [])
