"""HTTP tools against a real server: what is sent, what comes back, and everything that can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from yarl import URL

from gateway.tools.failure import ToolFailed
from gateway.tools.http import filled_url, with_query

PARAMETERS = {"type": "object", "properties": {name: {} for name in ("id", "q", "n", "flag", "many", "deep")}}


async def seen(request: web.Request) -> web.Response:
    body = await request.text()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "body": orjson.loads(body) if body else None,
            "headers": {name: request.headers.get(name) for name in ("Idempotency-Key", "Authorization", "X-Fixed")},
        }
    )


@pytest.mark.parametrize(
    ("method", "path", "args", "sent", "body"),
    [
        ("GET", "/x", {}, "/x", None),
        ("GET", "/x", {"q": "a b&c", "n": 2, "flag": True}, "/x?q=a+b%26c&n=2&flag=true", None),
        ("GET", "/x?k=1", {"many": ["a", "b"], "q": None}, "/x?k=1&many=a&many=b", None),
        ("GET", "/x", {"deep": {"a": 1}}, "/x?deep=%7B%22a%22%3A1%7D", None),
        ("GET", "/u/{id}/x", {"id": "a/../b?c#d", "q": "ü"}, "/u/a%2F..%2Fb%3Fc%23d/x?q=%C3%BC", None),
        ("GET", "/x?key={id}", {"id": "a&b=c"}, "/x?key=a%26b%3Dc", None),
        ("post", "/u/{id}", {"id": 7, "q": "ü"}, "/u/7", {"q": "ü"}),
        ("PUT", "/x", {}, "/x", {}),
        ("PATCH", "/x", {"deep": {"a": [1]}}, "/x", {"deep": {"a": [1]}}),
        ("DELETE", "/x", {"n": 1}, "/x", {"n": 1}),
    ],
)
async def test_what_is_sent(
    method: str, path: str, args: dict[str, Any], sent: str, body: Any, serve: Any, opened: Any
) -> None:
    base = await serve(seen)
    headers = {"Authorization": SecretStr("Bearer hush"), "X-Fixed": "1"}
    tool = {"url": base + path, "method": method, "headers": headers, "parameters": PARAMETERS}
    async with opened(http={"t": tool}) as toolbox:
        got = await toolbox.run("t", args, call_id="call_1")
    assert got == {
        "method": method.upper(),
        "path": sent,
        "body": body,
        "headers": {"Idempotency-Key": "call_1", "Authorization": "Bearer hush", "X-Fixed": "1"},
    }


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"body": b'{"a": [1, null]}', "content_type": "application/json"}, {"a": [1, None]}),
        ({"body": b"[1]", "content_type": "application/vnd.api+json"}, [1]),
        ({"body": "grüße".encode("latin-1"), "headers": {"Content-Type": "text/plain; charset=latin-1"}}, "grüße"),
        ({"body": b"hi", "headers": {"Content-Type": "text/plain; charset=nonsense"}}, "hi"),
        ({"body": b"<a/>", "content_type": "application/xml"}, "<a/>"),
        ({"status": 204}, None),
        ({"body": b" \n", "content_type": "application/json"}, None),
    ],
)
async def test_answers(answer: dict[str, Any], value: Any, serve: Any, opened: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(**answer)

    async with opened(http={"t": {"url": await serve(handler)}}) as toolbox:
        assert await toolbox.run("t", {}, call_id="c") == value


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 500, "body": b"Traceback: hush", "content_type": "text/plain"}, "the tool's server answered 500"),
        (
            {"status": 500, "body": b'{"error": "hush"}', "content_type": "application/json"},
            "the tool's server answered 500",
        ),
        (
            {"status": 401, "body": b'{"error": "bad key hush"}', "content_type": "application/json"},
            "the tool's server answered 401",
        ),
        ({"status": 404, "body": b"<h1>hush</h1>", "content_type": "text/html"}, "the tool's server answered 404"),
        (
            {"status": 404, "body": b'{"error": {"message": "no such\\n city"}}', "content_type": "application/json"},
            "the tool's server answered 404: no such city",
        ),
        (
            {"status": 422, "body": b'{"title": "Bad date"}', "content_type": "application/problem+json"},
            "the tool's server answered 422: Bad date",
        ),
        ({"status": 400, "body": b"[", "content_type": "application/json"}, "the tool's server answered 400"),
        ({"status": 304}, "the tool's server answered 304"),
        ({"body": b"{", "content_type": "application/json"}, "the tool's server answered with broken JSON"),
        (
            {"body": b"\x89PNG", "content_type": "image/png"},
            "the tool's server answered with image/png, which is neither JSON nor text",
        ),
        (
            {"body": b"x" * 5000, "content_type": "text/plain"},
            "the answer is larger than the 1000 bytes that a result may have",
        ),
        (
            {"body": b"x" * 1000, "content_type": "text/plain"},
            "the result has 1002 bytes of JSON, more than the 1000 that it may have",
        ),
        (
            {"status": 302, "headers": {"Location": "http://other.invalid/"}},
            "the tool's server sends the call to another one, which isn't followed",
        ),
        ({"status": 302, "headers": {"Location": "/again"}}, "the tool's server redirects without end"),
    ],
)
async def test_failures(answer: dict[str, Any], message: str, serve: Any, opened: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(**answer)

    async with opened(http={"t": {"url": await serve(handler), "max_result_bytes": 1000}}) as toolbox:
        with pytest.raises(ToolFailed) as failed:
            await toolbox.run("t", {}, call_id="c")
    assert str(failed.value) == message


async def test_a_body_without_length_is_not_read_to_its_end(serve: Any, opened: Any) -> None:
    stopped = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 10_000)
                await asyncio.sleep(0)
        finally:
            stopped.set()

    async with opened(http={"t": {"url": await serve(handler)}}) as toolbox:
        with pytest.raises(ToolFailed, match="larger than the 65536 bytes"):
            await toolbox.run("t", {}, call_id="c")
        async with asyncio.timeout(10):
            await stopped.wait()


async def test_a_redirect_on_the_same_host_is_followed(serve: Any, opened: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/old":
            return web.Response(status=307, headers={"Location": "/new"})
        return await seen(request)

    base = await serve(handler)
    async with opened(http={"t": {"url": base + "/old", "method": "POST", "parameters": PARAMETERS}}) as toolbox:
        got = await toolbox.run("t", {"q": 1}, call_id="c")
    assert (got["method"], got["path"], got["body"]) == ("POST", "/new", {"q": 1})


async def test_a_post_does_not_become_a_get(serve: Any, opened: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=303, headers={"Location": "/new"})

    async with opened(http={"t": {"url": await serve(handler), "method": "POST"}}) as toolbox:
        with pytest.raises(ToolFailed, match="answered 303"):
            await toolbox.run("t", {}, call_id="c")


async def test_nobody_there(serve: Any, opened: Any, unused_tcp_port_factory: Any) -> None:
    async with opened(http={"t": {"url": f"http://127.0.0.1:{unused_tcp_port_factory()}/"}}) as toolbox:
        with pytest.raises(ToolFailed, match=r"^the tool's server can't be reached$"):
            await toolbox.run("t", {}, call_id="c")


async def test_a_connection_that_breaks(serve: Any, opened: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with opened(http={"t": {"url": await serve(handler)}}) as toolbox:
        with pytest.raises(ToolFailed, match=r"^the connection to the tool's server broke$"):
            await toolbox.run("t", {}, call_id="c")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "`id` is missing"),
        ({"id": ""}, "`id` is missing"),
        ({"id": ["a"]}, "`id` has to be a text or a number"),
        ({"id": ".."}, "an argument that is part of the address can't be . or .."),
        ({"id": "."}, "an argument that is part of the address can't be . or .."),
    ],
)
def test_placeholders_that_can_not_be_filled(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolFailed) as failed:
        filled_url("http://h/u/{id}", args)
    assert str(failed.value) == message


@given(st.text(min_size=1).filter(lambda text: text not in (".", "..") and text.isprintable()))
def test_an_argument_never_leaves_its_place(text: str) -> None:
    url, rest = filled_url("http://h:81/u/{id}/x?k={id}", {"id": text, "q": text})
    parsed = URL(with_query(url, rest), encoded=True)
    assert (parsed.host, parsed.port, parsed.fragment) == ("h", 81, "")
    assert parsed.raw_path.split("/")[1::2] == ["u", "x"]
    assert dict(parsed.query) == {"k": text, "q": text}


def slow(entered: asyncio.Event, left: asyncio.Event) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return web.Response()

    return handler


async def test_time_out(serve: Any, opened: Any) -> None:
    handler = slow(asyncio.Event(), asyncio.Event())
    async with opened(http={"t": {"url": await serve(handler), "timeout_s": 0.05}}) as toolbox:
        with pytest.raises(ToolFailed, match=r"^the tool took longer than 0\.05 s$"):
            await toolbox.run("t", {}, call_id="c")


async def test_cancelling_a_call_is_passed_on_and_frees_its_place(serve: Any, opened: Any) -> None:
    entered = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/fast":
            return web.json_response(1)
        entered.set()
        await asyncio.Event().wait()
        return web.Response()

    base = await serve(handler)
    async with opened(
        http={"slow": {"url": base + "/slow"}, "fast": {"url": base + "/fast"}}, concurrency=1
    ) as toolbox:
        call = asyncio.create_task(toolbox.run("slow", {}, call_id="c"))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await toolbox.run("fast", {}, call_id="d") == 1


async def test_no_more_run_at_once_than_allowed(serve: Any, opened: Any) -> None:
    running = most = 0
    full, go = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await go.wait()
        running -= 1
        return web.json_response(None)

    async with opened(http={"t": {"url": await serve(handler)}}, concurrency=3) as toolbox:
        calls = [asyncio.create_task(toolbox.run("t", {}, call_id=str(number))) for number in range(10)]
        await full.wait()
        go.set()
        await asyncio.gather(*calls)
    assert most == 3
