"""Requests between nodes: over a real server, and what each side remembers."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from gateway.logs import redis_asking, redis_serving
from gateway.logs.log import LogUnavailable
from gateway.logs.nodes import NodeGone, RequestFailed
from gateway.logs.redis_asking import Asking
from gateway.logs.redis_post import PAYLOAD_BYTES, Message, Outcome, ReplyMessage, RequestMessage, decode
from gateway.logs.redis_serving import KEEP_S, SERVED_UP_S, Serving
from gateway.logs.redis_wire import Answered
from tests.support.nodes import die, eventually, node
from tests.support.valkey import Valkey, cluster_url

# ------------------------------------------------------------ over a real server


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "one":
        base = request.getfixturevalue("redis_server").url
    else:
        base = cluster_url(request.getfixturevalue("redis_cluster"))
    return f"{base}?prefix={request.node.name.split('[')[0]}"


class Executes:
    """A handler that remembers what it did. It waits while `gate` is closed."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, payload: bytes) -> bytes:
        self.done.append(payload)
        await self.gate.wait()
        if payload == b"breaks":
            raise RuntimeError("the user's secret")
        return b"did " + payload


async def test_requests_go_both_ways_at_once(url: str) -> None:
    handlers = Executes(), Executes()
    async with node(url, "a", handlers[0]) as a, node(url, "b", handlers[1]) as b:
        texts = [b"%d" % number for number in range(500)]
        replies = await asyncio.gather(
            *(a.request("b", text, 5.0) for text in texts), *(b.request("a", text, 5.0) for text in texts)
        )
        assert replies == [b"did " + text for text in texts] * 2
        assert sorted(handlers[0].done) == sorted(handlers[1].done) == sorted(texts)
        assert await a.request("a", b"itself", 5.0) == b"did itself"
        whole = b"x" * (PAYLOAD_BYTES - 10)
        assert await a.request("b", whole, 10.0) == b"did " + whole
        with pytest.raises(ValueError, match="are possible"):
            await a.request("b", b"x" * (PAYLOAD_BYTES + 1), 5.0)


async def test_a_handler_that_breaks_or_is_slow_and_a_node_that_is_not_there(url: str) -> None:
    handler = Executes()
    async with node(url, "a", handler) as a, node(url, "b", handler):
        with structlog.testing.capture_logs() as lines, pytest.raises(RequestFailed) as failed:
            await a.request("b", b"breaks", 5.0)
        assert "secret" not in str(failed.value)
        assert [line["event"] for line in lines] == ["a request of another node failed"]
        with structlog.testing.capture_logs(), pytest.raises(RequestFailed):
            await a.request("b", b"x" * PAYLOAD_BYTES, 10.0)  # the reply is larger
        with pytest.raises(NodeGone):
            await a.request("nobody", b"", 0.05)
        handler.gate.clear()
        with pytest.raises(TimeoutError):
            await a.request("b", b"slow", 0.05)
        asked = asyncio.create_task(a.request("b", b"given up", 5.0))
        await eventually(lambda: b"given up" in handler.done)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        handler.gate.set()
        assert a._asking._waiting == a._asking._of_node == {}


async def test_a_request_whose_reply_is_lost_is_executed_once(
    redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_asking, "AGAIN_S", 0.1)  # so that copies come while it is served, too
    url = f"{redis_server.url}?prefix=lost-reply"
    handler = Executes()
    handler.gate.clear()
    async with node(url, "a", handler) as a, node(url, "b", handler):
        replies = [asyncio.create_task(a.request("b", b"%d" % number, 10.0)) for number in range(20)]
        await eventually(lambda: len(handler.done) == 20)
        for _ in range(2):
            redis_server.ask("CLIENT", "KILL", "TYPE", "PUBSUB")
            handler.gate.set()  # the replies go nowhere, at first
            await asyncio.sleep(0.1)
        assert await asyncio.gather(*replies) == [b"did %d" % number for number in range(20)]
        assert len(handler.done) == 20


async def test_a_node_that_dies_while_it_is_asked(redis_server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_asking, "AGAIN_S", 0.1)
    monkeypatch.setattr(redis_asking, "GONE_S", 0.2)
    handler = Executes()
    handler.gate.clear()
    url = f"{redis_server.url}?prefix=dies-asked"
    async with node(url, "a", handler) as a, node(url, "b", handler) as b:
        asked = asyncio.create_task(a.request("b", b"x", 10.0))
        await eventually(lambda: handler.done)
        await die(b)
        handler.gate.set()
        with pytest.raises(NodeGone):
            await asked


async def test_a_node_that_connects_anew_is_not_gone(redis_server: Valkey) -> None:
    handler = Executes()
    url = f"{redis_server.url}?prefix=anew"
    async with node(url, "a", handler) as a, node(url, "b", handler) as b:
        await b._hub.close()
        asked = asyncio.create_task(a.request("b", b"x", 5.0))
        await asyncio.sleep(redis_asking.UNREAD_AGAIN_S)
        assert handler.done == []
        b._hub.start()
        await b._hub.subscribe(b._channel_of("b"), b._slot, b)
        assert await asked == b"did x"


async def test_a_node_that_leaves_replies_to_what_it_had_begun(redis_server: Valkey) -> None:
    handler = Executes()
    handler.gate.clear()
    url = f"{redis_server.url}?prefix=leaves"
    async with node(url, "a", handler) as a, node(url, "b", handler) as b:
        asked = asyncio.create_task(a.request("b", b"begun", 10.0))
        await eventually(lambda: handler.done)
        leaving = asyncio.create_task(b.close())
        await asyncio.sleep(0)
        with pytest.raises(NodeGone):
            await a.request("b", b"too late", 5.0)
        handler.gate.set()
        assert await asked == b"did begun"
        await leaving
        assert handler.done == [b"begun"]


async def test_what_no_node_sent_is_ignored(redis_server: Valkey) -> None:
    handler = Executes()
    async with node(f"{redis_server.url}?prefix=ignored", "a", handler) as a:
        with structlog.testing.capture_logs() as lines:
            for payload in (b"", b"\x93\x01\x02\x03", b"\x90"):
                redis_server.ask("SPUBLISH", "ignored:{nodes}:n:a", payload)
            assert await a.request("a", b"x", 5.0) == b"did x"
        assert [line["log_level"] for line in lines] == ["warning"] * 3


# ------------------------------------------------------------ what each side remembers


class Box:
    """A post that keeps what is posted, and reaches nobody."""

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.answers: list[Answered] = []
        self.down: LogUnavailable | None = None
        self.connected = True

    def post(self, node_id: str, message: bytes, answered: Answered) -> None:
        if not self.connected:
            raise LogUnavailable("connecting")
        self.posted.append(decode(message))
        self.answers.append(answered)

    def problem(self) -> LogUnavailable | None:
        return self.down


def request(id_: int, settled: int = 0, payload: bytes = b"x", sender: str = "s") -> RequestMessage:
    return RequestMessage(id_, sender, settled, payload)


async def served(serving: Serving) -> None:
    while serving._tasks:
        await asyncio.wait(serving._tasks)


async def test_a_copy_gets_the_same_reply_until_its_sender_has_settled_it() -> None:
    box, handler = Box(), Executes()
    serving = Serving(box, handler)
    serving.requested(request(1))
    serving.requested(request(1))
    await served(serving)
    serving.requested(request(1))
    assert box.posted == [ReplyMessage(1, Outcome.DONE, b"did x")] * 2
    serving.requested(request(3, settled=2))
    await served(serving)
    serving.requested(request(1, settled=0))
    assert len(box.posted) == 3, "a late copy is known by its id"
    assert handler.done == [b"x", b"x"]


async def test_what_is_settled_is_forgotten_and_the_rest_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(Box(), Executes())
    for number in range(1, 1001):
        serving.requested(request(number, settled=number))
        await served(serving)
    assert serving._served == len(serving._senders["s"].served) <= 128
    now_s = asyncio.get_running_loop().time()
    serving.requested(request(1, sender="other"))
    await served(serving)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s + KEEP_S + 1)
    serving.tick()
    assert (serving._served, serving._kept_bytes, serving._senders) == (0, 0, {})


async def test_beyond_its_bound_replies_are_forgotten_but_not_that_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_serving, "KEPT_BYTES", 10_000)
    box, handler = Box(), Executes()
    serving = Serving(box, handler)
    for number in range(1, 31):
        serving.requested(request(number, payload=b"x" * 1000))
        await served(serving)
        assert serving._kept_bytes <= 10_000
    box.posted.clear()
    serving.requested(request(1, payload=b"x" * 1000))
    serving.requested(request(30, payload=b"x" * 1000))
    await served(serving)
    assert box.posted == [ReplyMessage(1, Outcome.FAILED, b""), ReplyMessage(30, Outcome.DONE, b"did " + b"x" * 1000)]
    assert len(handler.done) == 30


async def test_too_many_at_once_are_refused_and_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_serving, "MOST_SERVED", 2)
    box, handler = Box(), Executes()
    serving = Serving(box, handler)
    with structlog.testing.capture_logs() as lines:
        for number in (1, 2, 3):
            serving.requested(request(number))
    assert box.posted == [ReplyMessage(3, Outcome.FAILED, b"")]
    assert [line["log_level"] for line in lines] == ["error"]
    await served(serving)
    assert len(handler.done) == 2


async def test_one_that_hangs_does_not_keep_a_node_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_serving, "SERVED_UP_S", SERVED_UP_S / 50)
    handler = Executes()
    handler.gate.clear()
    serving = Serving(Box(), handler)
    serving.requested(request(1))
    await serving.close()
    assert not serving._tasks


async def test_a_request_waits_for_a_connection_that_is_being_made_but_not_for_one_that_fails() -> None:
    box = Box()
    asking = Asking("me", box, lambda node_id: None)
    box.connected = False
    first = asyncio.create_task(asking.request("b", b"1", 5.0))
    await asyncio.sleep(0)
    assert box.posted == []
    box.connected = True
    asking.tick()
    assert box.posted == [RequestMessage(1, "me", 1, b"1")]
    asking.tick()
    assert len(box.posted) == 1, "it was sent just now"
    box.answers[0](LogUnavailable("the connection was lost"))
    asking.tick()
    assert len(box.posted) == 2
    box.down = LogUnavailable("down")
    box.answers[1](LogUnavailable("the connection was lost"))
    asking.tick()
    with pytest.raises(LogUnavailable, match="down"):
        await first
    with pytest.raises(LogUnavailable, match="down"):
        await asking.request("b", b"2", 5.0)


async def test_every_request_tells_what_is_settled() -> None:
    box = Box()
    asking = Asking("me", box, lambda node_id: None)
    tasks = [asyncio.create_task(asking.request("b", b"%d" % number, 5.0)) for number in range(3)]
    other = asyncio.create_task(asking.request("c", b"other", 5.0))
    await asyncio.sleep(0)
    asking.replied(ReplyMessage(1, Outcome.DONE, b"one"))
    asking.replied(ReplyMessage(99, Outcome.DONE, b"nobody waits for it"))
    assert await tasks[0] == b"one"
    asking.again()
    assert [(message.id, message.settled) for message in box.posted] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 4),
        (2, 2),
        (3, 2),
        (4, 4),
    ]
    asking.gone("b")
    with pytest.raises(NodeGone):
        await tasks[1]
    with pytest.raises(NodeGone):
        await tasks[2]
    other.cancel()
