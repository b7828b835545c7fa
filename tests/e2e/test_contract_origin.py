"""No website may drive a gateway on localhost: Origin and Host (SPEC.md section 3.2)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus

from tests.support.process import GatewayProcess
from tests.support.wire import wire

PORT = "PORT"
"""Stands for the gateway's own."""

REFUSED = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": f"http://127.0.0.1.evil.example:{PORT}"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": f"http://localhost:{PORT}"},
    {"Origin": f"file://127.0.0.1:{PORT}"},
    {"Host": f"evil.example:{PORT}"},
    {"Host": "evil.example"},
    {"Host": f"localhost.evil.example:{PORT}"},
    {"Host": f"evil.example:{PORT}", "Origin": f"http://evil.example:{PORT}"},
    {"Host": ""},
]
ALLOWED: list[dict[str, str]] = [
    {},
    {"Origin": f"http://127.0.0.1:{PORT}"},
    {"Origin": f"https://127.0.0.1:{PORT}"},
    {"Host": f"localhost:{PORT}"},
    {"Host": "LOCALHOST"},
    {"Host": f"[::1]:{PORT}"},
    {"Host": "192.168.7.7:8080"},
    {"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"},
]


def named(headers: dict[str, str], gateway: GatewayProcess) -> dict[str, str]:
    return {name: value.replace(PORT, str(gateway.port)) for name, value in headers.items()}


def assert_forbidden(body: dict[str, Any]) -> None:
    assert (body["error"]["code"], body["error"]["retryable"]) == ("FORBIDDEN_ORIGIN", False)


async def handshake(gateway: GatewayProcess, headers: dict[str, str]) -> tuple[int, bytes]:
    """The status of a handshake with exactly these headers, and the body of a refusal."""
    lines = {"Host": f"127.0.0.1:{gateway.port}", **named(headers, gateway)}
    lines |= {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    lines |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(("GET /chat HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ")[1])
    body = b"" if status == 101 else await reader.read()
    writer.close()
    await writer.wait_closed()
    return status, body


@pytest.mark.parametrize("headers", REFUSED, ids=str)
async def test_others_are_refused(
    gateway: GatewayProcess, http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    sent = named(headers, gateway)
    for method, path in (
        ("POST", "/api/chat"), ("POST", "/api/chat/stream"), ("GET", "/api/chat/stream?conversation_id=c"),
        ("DELETE", "/api/conversations/c"), ("GET", "/api/conversations/c"), ("GET", "/"), ("GET", "/metrics"),
    ):  # fmt: skip
        async with http.request(method, path, headers=sent) as answer:
            assert answer.status == 403, (method, path)
            assert_forbidden(await answer.json())
            assert "Access-Control-Allow-Origin" not in answer.headers
    status, body = await handshake(gateway, headers)
    assert status == 403
    assert_forbidden(json.loads(body))


@pytest.mark.parametrize("headers", ALLOWED, ids=str)
async def test_its_own_page_and_this_machine_are_let_in(
    gateway: GatewayProcess, http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with http.post("/api/chat", json={"message": "/fast /echo a"}, headers=named(headers, gateway)) as answer:
        assert answer.status == 200
    assert (await handshake(gateway, headers))[0] == 101


async def test_origins_and_names_that_are_allowed(start: Any) -> None:
    origin = "https://chat.example.com"
    async with start(allowed_origins=f"{origin},http://Localhost:5173") as gateway:
        async with aiohttp.ClientSession(gateway.base) as http:
            for allowed in (origin, "http://localhost:5173"):
                body = {"message": "/fast /echo a"}
                async with http.post("/api/chat", json=body, headers={"Origin": allowed}) as answer:
                    assert answer.status == 200
                    assert answer.headers["Access-Control-Allow-Origin"] == allowed
                preflight = {"Origin": allowed, "Access-Control-Request-Method": "DELETE"}
                async with http.options("/api/conversations/c", headers=preflight) as answer:
                    assert answer.status == 200
                    assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
                async with http.post("/api/chat", json={}, headers={"Origin": allowed}) as answer:
                    assert answer.status == 400
                    assert answer.headers["Access-Control-Allow-Origin"] == allowed, "errors can be read, too"
                async with wire(gateway.chat, origin=allowed) as client:
                    await client.ask("ping")
            async with http.get("/healthz", headers={"Host": "chat.example.com"}) as answer:
                assert answer.status == 200, "a name that a setting allows"
            async with http.get("/healthz", headers={"Origin": "https://chat.example.com.evil.example"}) as answer:
                assert answer.status == 403
        with pytest.raises(InvalidStatus):
            async with ws_connect(gateway.chat, proxy=None, origin="https://other.example"):  # type: ignore[arg-type]
                pass
