"""Request and response: `POST /api/chat`, conversations, operation (SPEC.md sections 3.5, 3.6 and 7.8)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import is_, is_end, is_token, text, wire

CALL = '/fast /call weather {"city": "Zürich"} clock {}'


def assert_error(body: dict[str, Any], code: str, *, retryable: bool = False) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "retryable"}
    assert (body["error"]["code"], body["error"]["retryable"]) == (code, retryable)
    assert body["error"]["message"]


async def test_the_whole_reply(http: aiohttp.ClientSession) -> None:
    async with http.post("/api/chat", json={"message": "/fast /echo Grüße 👋", "ref": "ignored"}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        reply = await answer.json()
    assert set(reply) == {"reply", "conversation_id", "turn_id", "status", "function_calls", "usage"}
    assert (reply["reply"], reply["status"], reply["function_calls"]) == ("Grüße 👋", "completed", [])
    assert set(reply["usage"]) == {"prompt_tokens", "completion_tokens"}
    async with http.get(f"/api/conversations/{reply['conversation_id']}") as answer:
        question, said = (await answer.json())["messages"]
    assert (said["content"], said["turn_id"], said["usage"]) == ("Grüße 👋", reply["turn_id"], reply["usage"])
    assert question["status"] == said["status"] == "completed"


async def test_calls_are_answered_by_requests_alone(http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()
    body = {"message": CALL, "conversation_id": conversation, "message_id": "m"}
    async with http.post("/api/chat", json=body) as answer:
        waiting = await answer.json()
    assert (answer.status, waiting["status"], waiting["usage"]) == (200, "function_call", None)
    first, second = waiting["function_calls"]
    assert set(first) == {"call_id", "name", "args", "runs", "round", "offset"}
    assert (first["name"], first["args"], first["runs"], first["round"]) == (
        "weather", {"city": "Zürich"}, "client", 1,
    )  # fmt: skip
    assert first["offset"] == second["offset"] == len(waiting["reply"])
    url = f"/api/conversations/{conversation}/function_results"
    async with http.post(url, json={"call_id": second["call_id"], "error": "no clock"}) as answer:
        assert await answer.json() == {"accepted": True}
    async with http.post("/api/chat", json=body) as answer:
        half = await answer.json()
    assert half["status"] == "function_call"
    assert half["function_calls"] == [first, {**second, "error": "no clock"}]
    async with http.post(url, json={"call_id": first["call_id"], "result": {"sky": "blue"}}) as answer:
        assert answer.status == 200
    async with http.post("/api/chat", json=body) as answer:
        rest = await answer.json()
    assert rest["status"] == "completed"
    assert rest["turn_id"] == waiting["turn_id"]
    assert rest["reply"].startswith(waiting["reply"])
    assert "blue" in rest["reply"]
    assert [call.get("result", call.get("error")) for call in rest["function_calls"]] == [{"sky": "blue"}, "no clock"]


async def test_a_cancelled_turn_answers_with_what_was_said(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("subscribe", conversation_id=conversation)
        asking = asyncio.ensure_future(
            http.post("/api/chat", json={"message": "/stall", "conversation_id": conversation})
        )
        seen = await client.until(is_token)
        async with http.post(f"/api/conversations/{conversation}/cancel", json={"ref": "x"}) as answer:
            assert await answer.json() == {"outcome": "stopped", "turn_id": seen[0]["turn_id"]}
        async with await asking as answer:
            reply = await answer.json()
        seen += await client.until(is_end)
    assert (answer.status, reply["status"], reply["usage"]) == (200, "cancelled", None)
    assert reply["reply"] == text(seen) != ""


@pytest.mark.parametrize(
    ("failure", "status", "code", "retryable"),
    [
        ("/fail rejected", 502, "UPSTREAM_REJECTED", False),
        ("/fail rate_limited", 429, "UPSTREAM_RATE_LIMITED", True),
        ("/fail unavailable", 503, "UPSTREAM_UNAVAILABLE", True),
        ("/fail context_too_large", 422, "CONTEXT_TOO_LARGE", False),
        ("/fast /fail stream_error", 502, "STREAM_ERROR", True),
        ("/fast /fail truncated", 502, "STREAM_ERROR", True),
        ("/silent", 504, "UPSTREAM_TIMEOUT", True),
        ("/fast /stall", 504, "UPSTREAM_TIMEOUT", True),
        ("/fast /call f", 504, "FUNCTION_TIMEOUT", True),
    ],
)
async def test_a_failed_turn_answers_with_its_errors_status(
    impatient: GatewayProcess, new_id: Any, failure: str, status: int, code: str, *, retryable: bool
) -> None:
    conversation = new_id()
    body = {"message": failure, "conversation_id": conversation, "message_id": "m"}
    async with aiohttp.ClientSession(impatient.base) as http:
        if "call" in failure:
            async with wire(impatient.chat) as client:
                turn = await client.turn(failure, conversation, message_id="m")
                assert turn[-1]["error"]["code"] == code
        async with http.post("/api/chat", json=body) as answer:
            assert answer.status == status
            assert_error(await answer.json(), code, retryable=retryable)
            assert ("Retry-After" in answer.headers) is (status in (429, 503))
            if status in (429, 503):
                assert int(answer.headers["Retry-After"]) >= 1
        async with http.get(f"/api/conversations/{conversation}") as answer:
            question, said = (await answer.json())["messages"]
    assert question["status"] == said["status"] == "failed"
    assert said["error"]["code"] == code
    async with wire(impatient.chat) as client:
        await client.ask("subscribe", conversation_id=conversation, after=0)
        seen = await client.until(is_end)
        frame = seen[-1]
        assert (frame["type"], frame["error"]["code"]) == ("error", code)
        assert {"turn_id", "seq", "metadata", "conversation_id"} <= set(frame)
        assert text(seen) == said["content"], "what was said before it stands"
        again = await client.turn("/fast /echo fine", conversation)
        assert again[-1]["type"] == "done", "the next turn isn't disturbed"
    assert "Traceback" not in impatient.log_lines


async def test_the_fold_of_a_busy_conversation(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        done = await client.turn("/fast /echo one", conversation, message_id="q1", metadata={"k": [1]})
        running = await client.ask("chat_message", conversation_id=conversation, message="/stall", message_id="q2")
        await client.until(is_token)
        queued = [
            await client.ask("chat_message", conversation_id=conversation, message=f"/echo {n}", message_id=f"q{n}")
            for n in (3, 4)
        ]
        async with http.get(f"/api/conversations/{conversation}") as answer:
            fold = await answer.json()
        assert set(fold) == {"conversation_id", "seq", "epoch", "messages", "turn"}
        await client.ask("subscribe", conversation_id=conversation, after=0)
        seen = await client.until(lambda frame: frame["seq"] >= fold["seq"])
        upto = [frame for frame in seen if frame["seq"] <= fold["seq"] and frame["turn_id"] == running["turn_id"]]
        await client.ask("cancel", conversation_id=conversation)
    messages = fold["messages"]
    assert [(m["role"], m["status"]) for m in messages] == [
        ("user", "completed"), ("assistant", "completed"), ("user", "running"), ("assistant", "running"),
        ("user", "queued"), ("user", "queued"),
    ]  # fmt: skip
    assert [m["message_id"] for m in messages if m["role"] == "user"] == ["q1", "q2", "q3", "q4"]
    assert messages[0]["metadata"] == {"k": [1]}
    assert messages[0]["timestamp"] == done[0]["metadata"]["timestamp"]
    assert messages[1]["timestamp"] == done[-1]["metadata"]["timestamp"]
    assert (messages[1]["content"], messages[1]["finish_reason"]) == ("one", "stop")
    assert text(upto).startswith(messages[3]["content"]) or messages[3]["content"].startswith(text(upto))
    assert messages[3]["content"]
    assert [m["turn_id"] for m in messages[4:]] == [frame["turn_id"] for frame in queued]
    assert fold["turn"] == {
        "turn_id": running["turn_id"], "status": "running", "message_id": "q2", "seq": running["seq"],
    }  # fmt: skip


async def test_open_calls_in_the_fold(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("chat_message", conversation_id=conversation, message=CALL)
        await client.get("function_call", name="clock")
        async with http.get(f"/api/conversations/{conversation}") as answer:
            fold = await answer.json()
        await client.ask("cancel", conversation_id=conversation)
        async with http.get(f"/api/conversations/{conversation}") as answer:
            ended = await answer.json()
    assert [m["status"] for m in fold["messages"]] == ["function_call"] * 2
    assert fold["turn"]["status"] == "function_call"
    assert [call["name"] for call in fold["messages"][1]["function_calls"]] == ["weather", "clock"]
    assert [m["status"] for m in ended["messages"]] == ["cancelled"] * 2
    assert ended["turn"] is None
    assert not any("result" in call or "error" in call for call in ended["messages"][1]["function_calls"])


async def test_what_does_not_exist(http: aiohttp.ClientSession, new_id: Any) -> None:
    async with http.get(f"/api/conversations/{new_id()}") as answer:
        assert answer.status == 404
        assert_error(await answer.json(), "NOT_FOUND")
    async with http.post(f"/api/conversations/{new_id()}/cancel") as answer:
        assert (answer.status, await answer.json()) == (200, {"outcome": "not_found", "turn_id": None})
    result = {"call_id": "x", "result": 1}
    async with http.post(f"/api/conversations/{new_id()}/function_results", json=result) as answer:
        assert answer.status == 404
        assert_error(await answer.json(), "NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/nope", "/api", "/api/chat/", "/api/conversations", "/api/conversations/", "/api/conversations/a/b"]
)
async def test_unknown_paths_are_404(http: aiohttp.ClientSession, path: str) -> None:
    for method in ("GET", "POST"):
        async with http.request(method, path, allow_redirects=False) as answer:
            assert answer.status == 404, (method, path)
            assert_error(await answer.json(), "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/chat", "POST"),
        ("PUT", "/api/chat/stream", "GET"),
        ("POST", "/api/conversations/c", "DELETE"),
        ("GET", "/api/conversations/c/cancel", "POST"),
        ("DELETE", "/api/conversations/c/function_results", "POST"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/", "GET"),
    ],
)
async def test_unserved_methods_are_405(http: aiohttp.ClientSession, method: str, path: str, allowed: str) -> None:
    async with http.request(method, path) as answer:
        assert answer.status == 405
        assert_error(await answer.json(), "BAD_FRAME")
        assert allowed in answer.headers["Allow"]


async def test_operation(http: aiohttp.ClientSession) -> None:
    for path in ("/healthz", "/readyz"):
        async with http.get(path) as answer:
            assert answer.status == 200
            assert isinstance((await answer.json())["status"], str)
    async with http.get("/metrics") as answer:
        assert answer.content_type == "text/plain"
        lines = (await answer.text()).splitlines()
    assert any(line.startswith("convobase_") for line in lines)
    assert not any("conversation_id" in line or "turn_id" in line for line in lines), "ids are no labels"
    async with http.get("/") as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")


async def test_schemas(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        openapi = await answer.json()
    async with http.get("/asyncapi.json") as answer:
        asyncapi = await answer.json()
    assert openapi["openapi"].startswith("3.")
    assert asyncapi["asyncapi"].startswith("3.")
    assert {
        "/api/chat", "/api/chat/stream", "/api/conversations/{conversation_id}",
        "/api/conversations/{conversation_id}/cancel", "/api/conversations/{conversation_id}/function_results",
        "/healthz", "/readyz", "/metrics",
    } <= {path.replace("{id}", "{conversation_id}") for path in openapi["paths"]}  # fmt: skip
    assert "/chat" in str(asyncapi["channels"])


async def test_answers_of_head_and_keep_alive(http: aiohttp.ClientSession) -> None:
    async with http.head("/healthz") as answer:
        assert answer.status == 200
        assert await answer.read() == b""


async def test_a_queued_request_gets_its_own_reply(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("chat_message", conversation_id=conversation, message="/stall")
        asking = asyncio.ensure_future(
            http.post("/api/chat", json={"message": "/fast /echo mine", "conversation_id": conversation})
        )
        await client.until(is_("message", content="/fast /echo mine"))
        await client.ask("cancel", conversation_id=conversation)
        async with await asking as answer:
            assert (await answer.json())["reply"] == "mine"
