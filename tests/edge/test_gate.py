"""Which Host and Origin are let in."""

from __future__ import annotations

import pytest

from gateway.edge.gate import Gate
from gateway.edge.principal import NoAuthentication, Principal
from protocol.codes import ErrorCode, Refusal

LOCAL = Gate((), any_host=False)
NAMED = Gate(("https://chat.example.com", "http://dev.example.com:3000"), any_host=False)
BEHIND_AUTH = Gate((), any_host=True)


@pytest.mark.parametrize(
    ("gate", "host", "origin"),
    [
        (LOCAL, None, None),
        (LOCAL, "localhost:8080", None),
        (LOCAL, "LOCALHOST", None),
        (LOCAL, "app.localhost:8080", None),
        (LOCAL, "127.0.0.1:8080", "http://127.0.0.1:8080"),
        (LOCAL, "192.168.1.5", "http://192.168.1.5"),
        (LOCAL, "[::1]:8080", "http://[::1]:8080"),
        (LOCAL, "localhost:8080", "https://LOCALHOST:8080"),
        (NAMED, "chat.example.com", "https://chat.example.com"),
        (NAMED, "dev.example.com:1234", None),
        (NAMED, "localhost:8080", "https://Chat.Example.com"),
        (BEHIND_AUTH, "anything.example.org", None),
        (BEHIND_AUTH, "anything.example.org", "https://anything.example.org"),
    ],
)
def test_let_in(gate: Gate, host: str | None, origin: str | None) -> None:
    gate.check(host, origin)


@pytest.mark.parametrize(
    ("gate", "host", "origin"),
    [
        (LOCAL, "rebound.example.com:8080", None),
        (LOCAL, "rebound.example.com:8080", "http://rebound.example.com:8080"),
        (LOCAL, "", None),
        (LOCAL, "[", None),
        (LOCAL, "2130706433", None),
        (LOCAL, "notlocalhost", None),
        (LOCAL, "localhost.example.com", None),
        (LOCAL, "localhost:8080", "http://localhost:3000"),
        (LOCAL, "localhost:8080", "http://evil.example.com"),
        (LOCAL, "localhost:8080", "null"),
        (LOCAL, "localhost:8080", ""),
        (LOCAL, "localhost:8080", "http://["),
        (LOCAL, "localhost:8080", "http://evil@localhost:8080"),
        (LOCAL, "localhost:8080", "file://localhost:8080"),
        (LOCAL, None, "http://localhost:8080"),
        (NAMED, "other.example.com", "https://chat.example.com"),
        (NAMED, "chat.example.com.evil.org", None),
        (BEHIND_AUTH, "gateway.example.org", "https://evil.example.org"),
    ],
)
def test_kept_out(gate: Gate, host: str | None, origin: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        gate.check(host, origin)
    assert refused.value.code is ErrorCode.FORBIDDEN_ORIGIN
    assert "ALLOWED_ORIGINS" in refused.value.message


def test_words_for_people_stay_short() -> None:
    with pytest.raises(Refusal) as refused:
        LOCAL.check("x" * 10_000, None)
    assert len(refused.value.message) < 300


def test_conversations_belong_to_tenant_and_subject() -> None:
    owners = [("a", "b/c"), ("a/b", "c"), ("", "a/b/c"), ("3:a", "b"), ("a", "b")]
    assert len({Principal(*owner).key("c1") for owner in owners}) == len(owners)
    anybody = NoAuthentication()
    assert anybody.authenticate(None) == anybody.authenticate("token")
