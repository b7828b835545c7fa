"""Commands to a node that doesn't own the conversation (SPEC.md sections 5 and 11.35): all nodes are one gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.support.cluster import fold
from tests.support.process import GatewayProcess
from tests.support.wire import MSGPACK, Events, Wire, is_, is_end, is_logged, is_token, kinds, text, wire

Trio = list[GatewayProcess]
NewId = Callable[[], str]


async def post(node: GatewayProcess, path: str, **body: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(node.base) as http,
        http.post(f"/api/conversations/{path}", json=body) as answer,
    ):
        return answer.status, await answer.json()


# ---------------------------------------------------------------- cancel


async def test_cancel(trio: Trio, new_id: NewId) -> None:
    """Before the first token; of a queued turn, by its name; of what is over, and of what never was."""
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        silent = await a.ask("chat_message", message="/silent", conversation_id=name)
        queued = await b.ask("chat_message", message="/fast /echo never", conversation_id=name)
        last = await a.ask("chat_message", message="/fast /echo last", conversation_id=name)
        stopped = await b.ask("cancel", conversation_id=name, turn_id=queued["turn_id"])
        assert (stopped["outcome"], stopped["turn_id"]) == ("stopped", queued["turn_id"])
        stopped = await b.ask("cancel", conversation_id=name)
        assert (stopped["outcome"], stopped["turn_id"]) == ("stopped", silent["turn_id"])
        ends = [await a.get("done", turn_id=turn["turn_id"]) for turn in (queued, silent, last)]
        assert [end["finish_reason"] for end in ends] == ["cancelled", "cancelled", "stop"]
        assert [end["text_length"] for end in ends] == [0, 0, 4]
        again = await b.ask("cancel", conversation_id=name, turn_id=silent["turn_id"])
        assert again["outcome"] == "already_done"
        again = await b.ask("cancel", conversation_id=name)
        assert (again["outcome"], again["turn_id"]) == ("already_done", last["turn_id"])
        unknown = await b.ask("cancel", conversation_id=new_id())
        assert (unknown["outcome"], unknown["turn_id"]) == ("not_found", None)
    assert await post(trio[2], f"{name}/cancel", turn_id="x") == (200, {"outcome": "not_found", "turn_id": "x"})


async def test_the_end_of_a_cancelled_turn_is_in_the_log_when_it_is_told(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a:
        await a.ask("chat_message", message="/long 500", conversation_id=name)
        await a.until(is_token)
        status, told = await post(trio[1], f"{name}/cancel")
        assert (status, told["outcome"]) == (200, "stopped")
        assert (await fold(trio[0], name))["turn"] is None
        seen = [frame for frame in [*a.frames, *await a.until(is_end)] if is_logged(frame)]
    done = seen[-1]
    assert (done["finish_reason"], done["usage"]) == ("cancelled", None)
    assert done["text_length"] == len((await fold(trio[2], name))["messages"][-1]["content"])


# ---------------------------------------------------------------- results of calls


async def test_function_results(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat, MSGPACK) as b:
        await b.ask("subscribe", conversation_id=name)
        await a.send("chat_message", message="/fast /call f {} g {}", conversation_id=name)
        calls = [await b.get("function_call", name=called) for called in ("f", "g")]
        accepted = await b.ask("function_result", conversation_id=name, call_id=calls[0]["call_id"], result=[1, None])
        assert (accepted["type"], accepted["call_id"]) == ("accepted", calls[0]["call_id"])
        again = await b.ask("function_result", conversation_id=name, call_id=calls[0]["call_id"], result=[1, None])
        assert again["type"] == "accepted", "the same result again has no effect"
        other = await b.ask("function_result", conversation_id=name, call_id=calls[0]["call_id"], result=[2])
        assert (other["error"]["code"], other["error"]["retryable"]) == ("CALL_CLOSED", False)
        unknown = await b.ask("function_result", conversation_id=name, call_id="c_none", result=1)
        assert unknown["error"]["code"] == "NOT_FOUND"
        nowhere = await b.ask("function_result", conversation_id=new_id(), call_id="c", result=1)
        assert nowhere["error"]["code"] == "NOT_FOUND"
        path = f"{name}/function_results"
        assert await post(trio[2], path, call_id=calls[1]["call_id"], error="it is broken") == (200, {"accepted": True})
        rest = await a.until(is_end)
        assert [frame.get("result") for frame in rest if frame["type"] == "function_result"][:1] == [[1, None]]
        assert "it is broken" in text([frame for frame in rest if is_logged(frame)])
        late = await b.ask("function_result", conversation_id=name, call_id=calls[1]["call_id"], result=5)
        assert late["error"]["code"] == "CALL_CLOSED"


async def test_one_of_many_nodes_answers_a_call(trio: Trio, new_id: NewId) -> None:
    """Two devices answer the same call at once, on two nodes: one result counts."""
    for _ in range(10):
        name = new_id()
        async with wire(trio[0].chat) as a, wire(trio[1].chat) as b, wire(trio[2].chat) as c:
            await a.send("chat_message", message="/fast /call f", conversation_id=name)
            call = await a.get("function_call")
            answers = await asyncio.gather(
                *(
                    client.ask("function_result", conversation_id=name, call_id=call["call_id"], result=number)
                    for number, client in enumerate((b, c))
                )
            )
            assert sorted(answer["type"] for answer in answers) == ["accepted", "error"]
            rest = await a.until(is_end)
            (result,) = [frame for frame in rest if frame["type"] == "function_result"]
            assert answers[result["result"]]["type"] == "accepted"


# ---------------------------------------------------------------- delete


async def test_delete(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b, aiohttp.ClientSession(trio[2].base) as http:
        await a.turn("/fast /echo before", name)
        await b.ask("subscribe", conversation_id=name, after=0)
        running = await a.ask("chat_message", message="/stall", conversation_id=name)
        queued = await b.ask("chat_message", message="waits", conversation_id=name)
        async with http.get(f"/api/chat/stream?conversation_id={name}") as streamed:
            events = Events(streamed)
            await events.next()
            async with http.delete(f"/api/conversations/{name}") as answer:
                assert answer.status == 204
            told = await events.all()
        # The end of the last open turn may be the end of the stream, too.
        assert is_end(told[-1]) or told[-1]["type"] == "deleted"
        for reader in (a, b):
            seen = [*reader.frames, *(await reader.until(is_("deleted")))]
            ends = {frame["turn_id"]: frame for frame in seen if is_end(frame)}
            assert ends[running["turn_id"]]["finish_reason"] == "cancelled"
            assert ends[queued["turn_id"]]["finish_reason"] == "cancelled"
        for node in trio:
            assert (await fold(node, name))["error"]["code"] == "NOT_FOUND"
        async with http.delete(f"/api/conversations/{name}") as answer:
            assert answer.status == 204, "again, and what isn't there"
        # It may begin again, anywhere, and is another one then.
        turn = await b.turn("/fast /echo after", name)
        assert turn[0]["seq"] == 1
        assert turn[0]["epoch"] > 0
        assert text(turn) == "after"
        await a.ask("subscribe", conversation_id=name, after=3)
        assert (await a.next())["type"] == "snapshot", "of the old one"


async def test_deleting_everywhere_at_once(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a:
        await a.ask("chat_message", message="/long 500", conversation_id=name)

        async def delete(node: GatewayProcess) -> int:
            async with aiohttp.ClientSession(node.base) as http, http.delete(f"/api/conversations/{name}") as answer:
                return answer.status

        assert await asyncio.gather(*(delete(node) for node in trio for _ in range(2))) == [204] * 6
        await a.until(is_("deleted"))
    assert (await fold(trio[1], name))["error"]["code"] == "NOT_FOUND"


# ---------------------------------------------------------------- messages


async def test_a_message_id_on_all_nodes_at_once_starts_one_turn(trio: Trio, new_id: NewId) -> None:
    """Also when nobody owned the conversation before."""
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b, wire(trio[2].chat) as c:
        names = [new_id() for _ in range(12)]

        async def send(client: Wire, ref: str) -> None:
            for name in names:
                await client.send(
                    "chat_message", message="/fast /echo once", conversation_id=name, message_id="m", ref=ref + name
                )

        async def told(client: Wire, ref: str) -> dict[str, Any]:
            """Its direct answers, by conversation, read to the end of all turns."""
            ended: set[str] = set()
            while len(ended) < len(names):
                ended.add((await client.until(is_end))[-1]["conversation_id"])
            return {frame["conversation_id"]: frame for frame in client.frames if frame.get("ref", "")[:1] == ref}

        clients = {"a": a, "b": b, "c": c}
        await asyncio.gather(*(send(client, ref) for ref, client in clients.items()))
        answers = await asyncio.gather(*(told(client, ref) for ref, client in clients.items()))
        for name in names:
            found = [answer[name] for answer in answers]
            assert {frame["type"] for frame in found} == {"message"}
            assert len({(frame["turn_id"], frame["seq"]) for frame in found}) == 1
            said = (await fold(trio[1], name))["messages"]
            assert [line["content"] for line in said] == ["/fast /echo once", "once"]


async def test_queueing_from_everywhere(trio: Trio, new_id: NewId) -> None:
    """Turns run in the order in which their messages were acknowledged, whatever node they came to."""
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b, wire(trio[2].chat) as c:
        first = await a.ask("chat_message", message="/long 20", conversation_id=name)
        asked = [first]
        for number in range(6):
            client = (b, c, a)[number % 3]
            asked.append(await client.ask("chat_message", message=f"/fast /echo n{number}", conversation_id=name))
        assert [frame["seq"] for frame in asked] == sorted(frame["seq"] for frame in asked)
        ends = [await b.get("done", turn_id=frame["turn_id"]) for frame in asked[1:]]
        assert [end["seq"] for end in ends] == sorted(end["seq"] for end in ends)
        assert [end["text_length"] for end in ends] == [2] * 6


async def test_interrupting_and_rejecting_from_another_node(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        running = await a.ask("chat_message", message="/long 500", conversation_id=name)
        await a.until(is_token)
        queued = await a.ask("chat_message", message="/fast /echo later", conversation_id=name)
        refused = await b.ask("chat_message", message="no", conversation_id=name, on_busy="reject")
        assert (refused["error"]["code"], refused["error"]["retryable"]) == ("BUSY", True)
        urgent = await b.ask("chat_message", message="/fast /echo now", conversation_id=name, on_busy="interrupt")
        assert urgent["interrupt"] is True
        order = [(await b.get("done"))["turn_id"] for _ in range(3)]
        assert order == [running["turn_id"], urgent["turn_id"], queued["turn_id"]]
        accepted = await b.ask("chat_message", message="/fast /echo yes", conversation_id=name, on_busy="reject")
        assert accepted["type"] == "message"
        await b.until(is_end)


async def test_too_many_wait(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        await a.ask("chat_message", message="/silent", conversation_id=name)
        answers = [
            await (a, b)[number % 2].ask("chat_message", message="x", conversation_id=name) for number in range(18)
        ]
        assert [answer["type"] for answer in answers] == ["message"] * 16 + ["error"] * 2
        assert answers[-1]["error"]["code"] == "BUSY"
        async with aiohttp.ClientSession(trio[2].base) as http:
            async with http.post("/api/chat", json={"message": "x", "conversation_id": name}) as answer:
                assert answer.status == 409
            async with http.delete(f"/api/conversations/{name}") as answer:
                assert answer.status == 204


async def test_messages_without_an_id_of_their_own(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        await a.turn("/fast /echo one", name)
        turns = [await b.turn(f"/fast /echo {number}", name) for number in range(5)]
        assert len({turn[0]["message_id"] for turn in turns}) == 5
        assert [text(turn) for turn in turns] == ["0", "1", "2", "3", "4"]


async def test_the_direct_answer_comes_in_its_order(trio: Trio, new_id: NewId) -> None:
    """The entry may be here, from the log, before the owner's word is: it is the answer all the same."""
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        for _ in range(5):
            name = new_id()
            await b.ask("subscribe", conversation_id=name)
            await a.turn("/fast /echo one", name)
            await b.until(is_end)
            for number in range(4):
                before = len(b.frames)
                await b.send("chat_message", message="/fast /echo x", conversation_id=name, ref=f"r{number}")
                await b.until(is_end)
                await b.silent()
                told = [frame for frame in b.frames[before:] if frame["type"] == "message"]
                assert [frame.get("ref") for frame in told] == [f"r{number}"]
                assert "duplicate" not in told[0]


async def test_large_messages(trio: Trio, new_id: NewId) -> None:
    """As large as a frame may be, with text that takes more bytes on another wire."""
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        await a.turn("/fast /echo one", name)
        for content in ("é" * 10_000, '"\\\n' * 5000, "x" * 60_000, "👋" * 4000):
            turn = await b.turn(f"/fast /length /echo {content}", name)
            assert turn[0]["content"] == f"/fast /length /echo {content}"
            assert turn[-1]["type"] == "done"


async def test_what_is_sent_with_a_message(trio: Trio, new_id: NewId) -> None:
    name = new_id()
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        await a.turn("/fast /echo one", name)
        fields = {"metadata": {"from": ["b", 1, None]}, "tools": tools, "system": "Be brief.", "model": "demo"}
        await b.send("chat_message", message="/fast look_up", conversation_id=name, message_id="mine", **fields)
        message = await b.get("message")
        assert message["metadata"]["client"] == {"from": ["b", 1, None]}
        assert message["message_id"] == "mine"
        assert kinds(await b.until(lambda frame: is_end(frame) or frame["type"] == "function_call"))[-1] in (
            "function_call", "done",
        )  # fmt: skip
        bad = await b.ask("chat_message", message="x", conversation_id=name, tools=[*tools, *tools])
        assert bad["error"]["code"] == "BAD_FRAME"
        await b.ask("cancel", conversation_id=name)
