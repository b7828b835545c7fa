"""When a turn is open already: queue, interrupt, reject; and cancelling, by whom and where from (section 10)."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import Frame, is_, is_end, is_logged, is_token, kinds, text, wire


async def ask(client: Any, conversation: str, message: str, **fields: Any) -> Frame:
    answer: Frame = await client.ask("chat_message", conversation_id=conversation, message=message, **fields)
    return answer


def ends(frames: list[Frame]) -> list[tuple[str, str]]:
    return [(frame["turn_id"], frame.get("finish_reason", "error")) for frame in frames if is_end(frame)]


async def test_turns_run_in_the_order_of_their_acknowledgement(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as one, connect() as two:
        await two.ask("subscribe", conversation_id=conversation)
        turns = [await ask(one, conversation, "/stall")]
        turns += [await ask((two, one)[n % 2], conversation, f"/fast /echo n{n}") for n in range(6)]
        assert [turn["seq"] for turn in turns] == sorted(turn["seq"] for turn in turns), "acknowledged at once"
        await one.ask("cancel", conversation_id=conversation)
        await one.until(lambda f: is_end(f) and f["turn_id"] == turns[-1]["turn_id"])
    frames = [frame for frame in one.frames if is_logged(frame)]
    assert ends(frames) == [(turns[0]["turn_id"], "cancelled"), *((t["turn_id"], "stop") for t in turns[1:])]
    for number, turn in enumerate(turns[1:]):
        assert text([f for f in frames if f["turn_id"] == turn["turn_id"]]) == f"n{number}"


async def test_max_queued_and_one_more_is_busy(impatient: GatewayProcess, new_id: Any) -> None:
    conversation = new_id()
    async with wire(impatient.chat) as client, aiohttp.ClientSession(impatient.base) as http:
        running = await ask(client, conversation, "/call f")
        queued = [await ask(client, conversation, f"/echo {n}") for n in range(2)]
        refused = await ask(client, conversation, "/echo 3")
        assert (refused["type"], refused["error"]["code"], refused["error"]["retryable"]) == ("error", "BUSY", True)
        assert "turn_id" not in refused
        body = {"message": "x", "conversation_id": conversation}
        for path in ("/api/chat", "/api/chat/stream"):
            async with http.post(path, json=body) as answer:
                assert answer.status == 409
                assert (await answer.json())["error"]["code"] == "BUSY"
        interrupting = await ask(client, conversation, "/fast /echo now", on_busy="interrupt")
        assert interrupting["interrupt"] is True, "an interrupting message doesn't wait, so it is never BUSY"
        await client.until(lambda f: is_end(f) and f["turn_id"] == queued[-1]["turn_id"])
        frames = [frame for frame in client.frames if is_logged(frame)]
        assert [turn for turn, _ in ends(frames)] == [
            running["turn_id"], interrupting["turn_id"], queued[0]["turn_id"], queued[1]["turn_id"],
        ]  # fmt: skip


async def test_interrupt_ends_the_running_turn_and_goes_first(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        running = await ask(client, conversation, "/stall")
        await client.until(is_token)
        queued = await ask(client, conversation, "/fast /echo later")
        await client.send(
            "chat_message", conversation_id=conversation, message="/fast /echo now", on_busy="interrupt", ref="now"
        )
        message, done, *_ = [
            f for f in await client.until(lambda f: is_end(f) and f["turn_id"] == queued["turn_id"])
            if f["type"] != "token" or f["turn_id"] != running["turn_id"]
        ]  # fmt: skip
    assert (message["ref"], message["interrupt"]) == ("now", True)
    assert (done["turn_id"], done["finish_reason"], done["seq"]) == (
        running["turn_id"], "cancelled", message["seq"] + 1,
    )  # fmt: skip
    assert done["usage"] is None
    frames = [frame for frame in client.frames if is_logged(frame)]
    assert [turn for turn, _ in ends(frames)] == [running["turn_id"], message["turn_id"], queued["turn_id"]]
    said = text([f for f in frames if f["turn_id"] == running["turn_id"]])
    assert done["text_length"] == len(said) > 0


async def test_interrupt_with_nothing_to_interrupt_is_an_ordinary_message(connect: Connect, new_id: Any) -> None:
    async with connect() as client:
        turn = await client.turn("/fast /echo a", new_id(), on_busy="interrupt")
    assert "interrupt" not in turn[0]
    assert kinds(turn) == ["message", "token", "done"]


async def test_a_later_interrupt_ends_an_earlier_one(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        first = await ask(client, conversation, "/silent")
        queued = await ask(client, conversation, "/fast /echo queued")
        second = await ask(client, conversation, "/silent", on_busy="interrupt")
        third = await ask(client, conversation, "/fast /echo third", on_busy="interrupt")
        if not any(is_end(f) and f["turn_id"] == queued["turn_id"] for f in client.frames):
            await client.rest(queued["turn_id"])
        assert ends(client.frames) == [
            (first["turn_id"], "cancelled"), (second["turn_id"], "cancelled"),
            (third["turn_id"], "stop"), (queued["turn_id"], "stop"),
        ]  # fmt: skip
    async with http.get(f"/api/conversations/{conversation}") as answer:
        asked = [m["turn_id"] for m in (await answer.json())["messages"] if m["role"] == "user"]
    assert asked == [turn["turn_id"] for turn in (first, second, third, queued)], "in the order of turns"


async def test_reject_is_busy(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        running = await ask(client, conversation, "/silent")
        refused = await ask(client, conversation, "x", on_busy="reject")
        assert (refused["error"]["code"], refused["conversation_id"]) == ("BUSY", conversation)
        await client.ask("cancel", conversation_id=conversation)
        assert not is_logged(client.frames[-1])
        accepted = await client.turn("/fast /echo a", conversation, on_busy="reject")
        assert accepted[0]["seq"] == running["seq"] + 2, "the refused one left nothing in the log"


@pytest.mark.parametrize("message", ["/silent", "/stall", "/fast /call f", "/long 20000"])
async def test_cancel_at_any_time(connect: Connect, new_id: Any, message: str) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        running = await ask(client, conversation, message)
        if message != "/silent":
            await client.until(is_("function_call") if "call" in message else is_token)
        answer = await other.ask("cancel", conversation_id=conversation)
        assert answer == {
            "type": "cancelled", "conversation_id": conversation, "outcome": "stopped",
            "turn_id": running["turn_id"], "ref": answer["ref"],
        }  # fmt: skip
        await other.ask("subscribe", conversation_id=conversation, after=0)
        turn = await other.until(is_end)
        assert (turn[-1]["finish_reason"], turn[-1]["usage"]) == ("cancelled", None)
        assert turn[-1]["text_length"] == len(text(turn))
        again = await client.ask("cancel", conversation_id=conversation)
        assert (again["outcome"], again["turn_id"]) == ("already_done", running["turn_id"])


async def test_cancel_by_name(connect: Connect, http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()
    url = f"/api/conversations/{conversation}/cancel"
    async with connect() as client:
        running = await ask(client, conversation, "/silent")
        queued = [await ask(client, conversation, f"/fast /echo q{n}") for n in range(3)]
        stopped = await client.ask("cancel", conversation_id=conversation, turn_id=queued[1]["turn_id"])
        assert (stopped["outcome"], stopped["turn_id"]) == ("stopped", queued[1]["turn_id"])
        done = next(filter(is_end, client.frames), None) or (await client.until(is_end))[-1]
        assert (done["turn_id"], done["text_length"], done["usage"]) == (queued[1]["turn_id"], 0, None)
        async with http.post(url, json={"turn_id": queued[0]["turn_id"]}) as answer:
            assert await answer.json() == {"outcome": "stopped", "turn_id": queued[0]["turn_id"]}
        async with http.post(url, json={"turn_id": queued[0]["turn_id"]}) as answer:
            assert (await answer.json())["outcome"] == "already_done"
        for turn_id in ("nope", running["message_id"]):
            unknown = await client.ask("cancel", conversation_id=conversation, turn_id=turn_id)
            assert unknown["outcome"] == "not_found"
        async with http.post(url) as answer:
            assert await answer.json() == {"outcome": "stopped", "turn_id": running["turn_id"]}
        if ends(client.frames)[-1][0] != queued[2]["turn_id"]:
            await client.rest(queued[2]["turn_id"])
        async with http.post(url) as answer:
            assert await answer.json() == {"outcome": "already_done", "turn_id": queued[2]["turn_id"]}
    assert {reason for turn, reason in ends(client.frames) if turn == queued[2]["turn_id"]} == {"stop"}


async def test_stopped_means_that_its_done_is_there_already(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        await ask(client, conversation, "/silent")
        await other.ask("cancel", conversation_id=conversation)
        subscribed = await other.ask("subscribe", conversation_id=conversation)
    assert subscribed["head"] == 2


async def test_cancel_of_what_never_was(connect: Connect, new_id: Any) -> None:
    async with connect() as client:
        for fields in ({}, {"turn_id": "t"}):
            answer = await client.ask("cancel", conversation_id=new_id(), **fields)
            assert (answer["type"], answer["outcome"]) == ("cancelled", "not_found")
            assert answer["turn_id"] in (None, "t")


async def test_nobody_reads(start: Any, new_id: Any) -> None:
    """With ORPHAN_GRACE_S a turn without readers is stopped, but not while it waits for the client's results."""
    silent, waiting = new_id(), new_id()
    async with start(orphan_grace_s=0.2) as gateway:
        async with wire(gateway.chat) as client:
            await client.ask("chat_message", conversation_id=waiting, message="/fast /call f")
            await client.until(is_("function_call"))
            await client.ask("chat_message", conversation_id=silent, message="/silent")
        async with aiohttp.ClientSession(gateway.base) as http:
            fold: Frame = {"turn": {}}
            while fold["turn"] is not None:
                async with http.get(f"/api/conversations/{silent}") as answer:
                    fold = await answer.json()
            assert [m["status"] for m in fold["messages"]] == ["cancelled", "cancelled"]
            async with http.get(f"/api/conversations/{waiting}") as answer:
                assert (await answer.json())["turn"]["status"] == "function_call"
