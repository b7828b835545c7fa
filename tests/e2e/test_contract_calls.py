"""Function calls that the client answers (SPEC.md sections 5.2, 6.3, 6.4 and 10.4)."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.wire import MSGPACK, Frame, is_, is_end, is_logged, kinds, text

TWO = '/fast /call weather {"city": "Zürich", "n": [1, {"deep": null}]} clock {}'


async def calls_of(client: Any, conversation: str, message: str = TWO, count: int = 2) -> list[Frame]:
    await client.send("chat_message", conversation_id=conversation, message=message)
    calls: list[Frame] = []
    while len(calls) < count:
        calls.append(await client.get("function_call"))
    return calls


async def test_calls_are_whole_and_the_stream_goes_on_in_the_same_turn(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        calls = await calls_of(client, conversation)
        assert set(calls[0]) == {
            "type", "conversation_id", "turn_id", "seq", "metadata", "call_id", "name", "args", "runs", "round",
        }  # fmt: skip
        assert [(call["name"], call["args"]) for call in calls] == [
            ("weather", {"city": "Zürich", "n": [1, {"deep": None}]}), ("clock", {}),
        ]  # fmt: skip
        assert {(call["runs"], call["round"]) for call in calls} == {("client", 1)}
        assert len({call["call_id"] for call in calls}) == 2
        results: tuple[Frame, ...] = ({"error": "broken"}, {"result": {"sky": "blau"}})
        for call, result in zip(reversed(calls), results, strict=True):
            answer = await client.ask(
                "function_result", conversation_id=conversation, call_id=call["call_id"], **result
            )
            assert answer["type"] == "accepted"
        if not any(map(is_end, client.frames)):
            await client.until(is_end)
    turn = [frame for frame in client.frames if is_logged(frame)]
    assert kinds(turn) == [
        "message", "token", "function_call", "function_call", "function_result", "function_result", "token", "done",
    ]  # fmt: skip
    assert len({frame["turn_id"] for frame in turn}) == 1
    first, second = (frame for frame in turn if frame["type"] == "function_result")
    assert (first["name"], first["error"], second["name"], second["result"]) == (
        "clock", "broken", "weather", {"sky": "blau"},
    )  # fmt: skip
    assert "result" not in first
    assert turn[-1]["text_length"] == len(text(turn)), "over all rounds"
    assert "blau" in text(turn)


@pytest.mark.parametrize("result", [None, False, 0, "", [], {}, "é", [1, 2.5, {"x": None}], 2**63])
async def test_any_json_is_a_result(connect: Connect, new_id: Any, result: Any) -> None:
    conversation = new_id()
    async with connect(MSGPACK) as client, connect() as other:
        await other.ask("subscribe", conversation_id=conversation)
        (call,) = await calls_of(client, conversation, "/fast /call f", 1)
        await client.send("function_result", conversation_id=conversation, call_id=call["call_id"], result=result)
        for reader in (client, other):
            frame = await reader.get("function_result")
            assert frame["result"] == result
            assert type(frame["result"]) is type(result)
            await reader.until(is_end)


async def test_sent_twice_from_other_devices_and_transports(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    url = f"/api/conversations/{conversation}/function_results"
    async with connect() as client, connect(MSGPACK) as other:
        first, second = await calls_of(client, conversation)
        result = {"a": 1, "b": [True, None]}
        same = {"call_id": first["call_id"], "result": {"b": [True, None], "a": 1}}
        for _ in range(2):
            answer = await other.ask(
                "function_result", conversation_id=conversation, call_id=first["call_id"], result=result
            )
            assert answer["type"] == "accepted"
        async with http.post(url, json=same) as response:
            assert (response.status, await response.json()) == (200, {"accepted": True})
        for different in ({"result": {"a": 2}}, {"error": "x"}, {"result": None}):
            answer = await client.ask(
                "function_result", conversation_id=conversation, call_id=first["call_id"], **different
            )
            assert (answer["error"]["code"], answer["error"]["retryable"]) == ("CALL_CLOSED", False)
            assert "turn_id" not in answer
            async with http.post(url, json={"call_id": first["call_id"], **different}) as response:
                assert response.status == 409
                assert (await response.json())["error"]["code"] == "CALL_CLOSED"
        await other.ask("function_result", conversation_id=conversation, call_id=second["call_id"], result=1)
        await client.until(is_end)
        async with http.post(url, json=same) as response:
            assert response.status == 200, "the same again is no harm, also when the turn is over"
    assert sum(is_("function_result")(frame) for frame in client.frames) == 2


@pytest.mark.parametrize(("given", "other"), [(1, True), (0, False), ([1], [True]), ({"x": 0}, {"x": False}), ("1", 1)])
async def test_json_values_that_are_not_equal(connect: Connect, new_id: Any, given: Any, other: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        (call,) = await calls_of(client, conversation, "/fast /call f", 1)
        fields = {"conversation_id": conversation, "call_id": call["call_id"]}
        assert (await client.ask("function_result", **fields, result=given))["type"] == "accepted"
        assert (await client.ask("function_result", **fields, result=other))["error"]["code"] == "CALL_CLOSED"
        assert (await client.ask("function_result", **fields, result=given))["type"] == "accepted"


async def test_a_late_result_is_closed_and_an_unknown_call_is_not_found(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        (call,) = await calls_of(client, conversation, "/fast /call f", 1)
        await client.ask("cancel", conversation_id=conversation)
        late = await client.ask("function_result", conversation_id=conversation, call_id=call["call_id"], result=1)
        assert late["error"]["code"] == "CALL_CLOSED"
        unknown = await client.ask("function_result", conversation_id=conversation, call_id="call_x", result=1)
        assert unknown["error"]["code"] == "NOT_FOUND"
        elsewhere = await client.ask("function_result", conversation_id=new_id(), call_id=call["call_id"], result=1)
        assert elsewhere["error"]["code"] == "NOT_FOUND"
        after = await client.turn("/fast /echo fine", conversation)
        assert text(after) == "fine"


async def test_a_turn_that_waits_survives_a_reconnect(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        (call,) = await calls_of(client, conversation, "/fast /call f", 1)
    async with connect() as later:
        await later.ask("subscribe", conversation_id=conversation, after=call["seq"])
        await later.send("function_result", conversation_id=conversation, call_id=call["call_id"], result="ok")
        rest = await later.until(is_end)
    assert kinds([frame for frame in rest if is_logged(frame)]) == ["function_result", "token", "done"]


async def test_arguments_that_are_no_object_fail_the_turn_clearly(connect: Connect, new_id: Any) -> None:
    async with connect() as client:
        turn = await client.turn('/fast /call f {"broken', new_id())
        assert "function_call" not in kinds(turn) or is_end(turn[-1])
        assert is_end(turn[-1])
