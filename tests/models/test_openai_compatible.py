"""Against llmock, a real server that we did not write, and a raw one for the faults that it can't produce."""

import asyncio
import gc
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trustme
from llmock.pytest_plugin import LLMock

from gateway.models.model import CallFragment, Event, Finish, ModelError, ModelRequest
from gateway.models.openai_compatible import OpenAICompatible
from protocol.codes import ErrorCode
from protocol.frames import FunctionSpec, Tool, Usage
from tests.models.fault_server import HEAD, Exchange, Upstream

KEY = "sk-test-0123456789"
A, B = (json.dumps({"choices": [{"delta": {"content": c}}]}).encode() for c in "ab")
STOP = b'{"choices":[{"delta":{},"finish_reason":"stop"}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
WHOLE = (A, B, STOP, USAGE, b"[DONE]")
EVENTS = ["a", "b", Finish("stop"), Usage(1, 2)]


def request(content: str = "Hello", **fields: Any) -> ModelRequest:
    return ModelRequest(messages=[{"role": "user", "content": content}], model="gpt-4o-mini", **fields)


class Taken:
    """A `Sink` that remembers. `first` is set by the first events."""

    def __init__(self, hold_s: float = 0.0) -> None:
        self.events: list[Event] = []
        self.reads: list[list[Event]] = []
        self.since: list[float] = []
        self.first = asyncio.Event()
        self.hold_s = hold_s
        self.more_room = asyncio.Event()

    def take(self, events: list[Event], since: float) -> float:
        assert events
        self.events += events
        self.reads.append(events)
        self.since.append(since)
        self.first.set()
        return self.hold_s

    async def room(self) -> None:
        self.hold_s = 0.0
        await self.more_room.wait()


async def collect(model: OpenAICompatible, asked: ModelRequest) -> tuple[list[Event], ModelError | None]:
    taken = Taken()
    try:
        await model.answer(asked, taken)
    except ModelError as error:
        return taken.events, error
    return taken.events, None


def text(events: list[Event]) -> str:
    return "".join(event for event in events if isinstance(event, str))


@pytest.fixture
async def model_at() -> AsyncIterator[Callable[..., OpenAICompatible]]:
    models: list[OpenAICompatible] = []

    def make(base_url: str, api_key: str | None = KEY) -> OpenAICompatible:
        models.append(OpenAICompatible(api_key=api_key, base_url=base_url))
        return models[-1]

    yield make
    for model in models:
        await model.close()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """What was not closed would warn when it is collected, and a warning is an error."""
    yield
    gc.collect()


Make = Callable[..., OpenAICompatible]

# ---------------------------------------------------------------- a server that we did not write


async def test_text(llmock: LLMock, model_at: Make) -> None:
    llmock.reply("Žluťoučký kůň 🧭 東京, in several words")
    events, error = await collect(model_at(llmock.base_url()), request())
    assert error is None
    assert text(events) == "Žluťoučký kůň 🧭 東京, in several words"
    assert Finish("stop") in events
    assert isinstance(events[-1], Usage)
    assert events[-1].completion_tokens > 0


async def test_function_call(llmock: LLMock, model_at: Make) -> None:
    llmock.call_tool("get_weather", {"city": "Zürich"})
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [Tool(FunctionSpec("get_weather", "Weather of a city", schema))]
    events, error = await collect(model_at(llmock.base_url()), request(tools=tools))
    assert error is None
    fragments = [event for event in events if isinstance(event, CallFragment)]
    assert fragments[0].name == "get_weather"
    assert fragments[0].id
    assert json.loads("".join(f.arguments for f in fragments)) == {"city": "Zürich"}
    assert Finish(None) in events


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (400, ErrorCode.UPSTREAM_REJECTED, False),
        (401, ErrorCode.UPSTREAM_REJECTED, False),
        (403, ErrorCode.UPSTREAM_REJECTED, False),
        (404, ErrorCode.UPSTREAM_REJECTED, False),
        (422, ErrorCode.UPSTREAM_REJECTED, False),
        (408, ErrorCode.UPSTREAM_UNAVAILABLE, True),
        (409, ErrorCode.UPSTREAM_UNAVAILABLE, True),
        (500, ErrorCode.UPSTREAM_UNAVAILABLE, True),
        (503, ErrorCode.UPSTREAM_UNAVAILABLE, True),
    ],
)
async def test_refused(llmock: LLMock, model_at: Make, status: int, code: ErrorCode, transient: bool) -> None:
    llmock.fail(status, message=f"Incorrect API key provided: {KEY}")
    events, error = await collect(model_at(llmock.base_url()), request())
    assert events == []
    assert error is not None
    assert (error.code, error.transient) == (code, transient)
    assert KEY not in error.message
    assert len(llmock.requests) == 1


async def test_rate_limited(llmock: LLMock, model_at: Make) -> None:
    llmock.rate_limit(retry_after=3)
    _, error = await collect(model_at(llmock.base_url()), request())
    assert error is not None
    assert (error.code, error.transient, error.retry_after_s) == (ErrorCode.UPSTREAM_RATE_LIMITED, True, 3)


async def test_quota_used_up(llmock: LLMock, model_at: Make) -> None:
    llmock.fail(429, code="insufficient_quota")
    _, error = await collect(model_at(llmock.base_url()), request())
    assert error is not None
    assert (error.code, error.transient, error.retryable) == (ErrorCode.UPSTREAM_RATE_LIMITED, False, False)


async def test_context_overflow(llmock: LLMock, model_at: Make) -> None:
    llmock.context_overflow()
    _, error = await collect(model_at(llmock.base_url()), request())
    assert error is not None
    assert error.code is ErrorCode.CONTEXT_TOO_LARGE


@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt"])
async def test_broken_streams(llmock: LLMock, model_at: Make, fault: str) -> None:
    llmock.reply("one two three four five six seven eight")
    getattr(llmock, fault)(after_chunks=4)
    events, error = await collect(model_at(llmock.base_url()), request())
    assert error is not None
    assert (error.code, error.transient) == (ErrorCode.STREAM_ERROR, True)
    assert text(events)
    assert "one two three four five six seven eight".startswith(text(events))


# ---------------------------------------------------------------- the request


async def test_what_is_sent(upstream: Upstream, model_at: Make) -> None:
    def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        exchange.events(*WHOLE)
        exchange.end()

    upstream.play = play
    asked = request("Grüße", tools=[Tool(FunctionSpec("f"))], max_tokens=7)
    assert await collect(model_at(upstream.base_url), asked) == (EVENTS, None)
    exchange = upstream.exchanges[0]
    assert b"POST /v1/chat/completions " in exchange.headers
    assert b"authorization: bearer " + KEY.encode() in exchange.headers.lower()
    assert b"content-type: application/json" in exchange.headers.lower()
    assert json.loads(exchange.body) == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Grüße"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "max_tokens": 7,
    }


async def test_the_environment_is_not_read(upstream: Upstream, model_at: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/wrong")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    upstream.play = lambda exchange: exchange.answer(500, b"{}")
    await collect(model_at(upstream.base_url, None), request())
    assert b"sk-from" not in upstream.exchanges[0].headers
    assert OpenAICompatible(api_key=None, base_url=None)._upstream.address == "https://api.openai.com/v1"


def answers(refused: bytes, message: bytes) -> Callable[[Exchange], None]:
    """A server that refuses requests which name `refused`."""

    def play(exchange: Exchange) -> None:
        if refused in exchange.body:
            exchange.answer(400, b'{"error":{"message":"' + message + b'","type":"invalid_request_error"}}')
        else:
            exchange.write(HEAD)
            exchange.events(*WHOLE)
            exchange.end()

    return play


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (b"stream_options", b"Unrecognized request argument supplied: stream_options"),
        (b'"max_tokens"', b"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ],
)
async def test_a_parameter_that_the_server_refuses_is_given_up(
    upstream: Upstream, model_at: Make, refused: bytes, message: bytes
) -> None:
    upstream.play = answers(refused, message)
    model = model_at(upstream.base_url)
    for _ in range(2):
        assert await collect(model, request(max_tokens=5)) == (EVENTS, None)
    assert [refused in e.body for e in upstream.exchanges] == [True, False, False]


@pytest.mark.parametrize("key", ["sk-1\r\nx-injected: 1", "sk-1\n", "sk-1\r"])
async def test_a_key_is_never_a_header_of_its_own(upstream: Upstream, model_at: Make, key: str) -> None:
    upstream.play = lambda exchange: exchange.events(*WHOLE)
    async with asyncio.timeout(2):
        events, error = await collect(model_at(upstream.base_url, key), request())
    assert events == []
    assert error is not None
    assert "sk-1" not in str(error)
    assert upstream.exchanges == []


async def test_another_refusal_is_not_asked_again(upstream: Upstream, model_at: Make) -> None:
    upstream.play = answers(b"messages", b"max_tokens is too large")
    _, error = await collect(model_at(upstream.base_url), request(max_tokens=5))
    assert error is not None
    assert "(max_tokens is too large)" in error.message
    assert len(upstream.exchanges) == 1


# ---------------------------------------------------------------- connections


async def test_a_connection_is_used_again(upstream: Upstream, model_at: Make) -> None:
    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        exchange.events(*WHOLE)
        # The end of the body comes in a read of its own.
        await asyncio.sleep(0.005)
        exchange.end()

    upstream.play = play
    model = model_at(upstream.base_url)
    for _ in range(3):
        assert await collect(model, request()) == (EVENTS, None)
    assert upstream.connections == 1


async def test_a_kept_connection_that_the_server_has_closed(upstream: Upstream, model_at: Make) -> None:
    def play(exchange: Exchange) -> None:
        if upstream.exchanges.index(exchange) == 2:
            # The third request comes over a kept connection and finds it closed.
            exchange.close()
            return
        exchange.write(HEAD)
        exchange.events(*WHOLE)
        exchange.end()

    upstream.play = play
    model = model_at(upstream.base_url)
    for _ in range(3):
        assert await collect(model, request()) == (EVENTS, None)
    assert [e.connection for e in upstream.exchanges] == [0, 0, 0, 1]


async def test_a_fresh_connection_is_not_tried_twice(upstream: Upstream, model_at: Make) -> None:
    upstream.play = Exchange.close
    _, error = await collect(model_at(upstream.base_url), request())
    assert error is not None
    assert (error.code, error.transient) == (ErrorCode.UPSTREAM_UNAVAILABLE, True)
    assert len(upstream.exchanges) == 1


async def test_more_streams_than_a_pool_would_hold(upstream: Upstream, model_at: Make) -> None:
    everyone = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        if len(upstream.exchanges) == 150:
            everyone.set()
        await everyone.wait()
        exchange.write(HEAD)
        exchange.events(*WHOLE)
        exchange.end()

    upstream.play = play
    model = model_at(upstream.base_url)
    assert await asyncio.gather(*(collect(model, request()) for _ in range(150))) == [(EVENTS, None)] * 150


async def test_nothing_listens(upstream: Upstream, model_at: Make, unused_tcp_port: int) -> None:
    _, error = await collect(model_at(f"http://user:pw@127.0.0.1:{unused_tcp_port}/v1?key=x"), request())
    assert error is not None
    assert (error.code, error.transient) == (ErrorCode.UPSTREAM_UNAVAILABLE, True)
    assert error.message == f"Nothing answers at http://127.0.0.1:{unused_tcp_port}/v1: is the server there running?"


async def test_a_redirect_to_what_is_not_http(upstream: Upstream, model_at: Make) -> None:
    upstream.play = lambda exchange: exchange.answer(307, b"", b"location: ftp://somewhere/\r\n")
    _, error = await collect(model_at(upstream.base_url), request())
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_UNAVAILABLE


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
async def test_a_host_that_cannot_be(model_at: Make, host: str) -> None:
    _, error = await collect(model_at(f"http://{host}/v1"), request())
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_UNAVAILABLE


async def test_a_certificate_that_nobody_vouches_for(model_at: Make) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, error = await collect(model_at(f"https://127.0.0.1:{port}/v1"), request())
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_UNAVAILABLE
    assert "TLS certificate" in error.message


# ---------------------------------------------------------------- faults


def raw(*reads: bytes) -> Callable[[Exchange], None]:
    def play(exchange: Exchange) -> None:
        for data in reads:
            exchange.write(data)
        exchange.close()

    return play


def framed(*payloads: bytes) -> bytes:
    body = b"".join(b"data: " + p + b"\n\n" for p in payloads)
    return b"%x\r\n%s\r\n" % (len(body), body)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reads", "events", "code"),
    [
        pytest.param([HEAD, framed(A)], ["a"], ErrorCode.STREAM_ERROR, id="no end of the body"),
        pytest.param([HEAD, framed(A), b"0\r\n\r\n"], ["a"], ErrorCode.STREAM_ERROR, id="no end of the answer"),
        pytest.param([HEAD, framed(A), b"ffff\r\nda"], ["a"], ErrorCode.STREAM_ERROR, id="cut in a chunk"),
        pytest.param([OK, b"content-length: 100\r\n\r\ndata: "], [], ErrorCode.STREAM_ERROR, id="too few bytes"),
        pytest.param([b"garbage\r\n\r\n"], [], ErrorCode.UPSTREAM_UNAVAILABLE, id="garbage for a head"),
        pytest.param([b"HTTP/1.1 200"], [], ErrorCode.UPSTREAM_UNAVAILABLE, id="half a head"),
        pytest.param([OK, b"\r\n<html>"], [], ErrorCode.UPSTREAM_REJECTED, id="a web page"),
        pytest.param(
            [b"HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nx"], [], ErrorCode.UPSTREAM_UNAVAILABLE, id="cut 500"
        ),
        pytest.param(
            [b"HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"],
            [],
            ErrorCode.UPSTREAM_UNAVAILABLE,
            id="a redirect to nowhere",
        ),
    ],
)
async def test_faults(
    upstream: Upstream, model_at: Make, reads: list[bytes], events: list[Event], code: ErrorCode
) -> None:
    upstream.play = raw(*reads)
    seen, error = await collect(model_at(upstream.base_url), request())
    assert seen == events
    assert error is not None
    assert error.code is code


@pytest.mark.parametrize("breaking", [Exchange.reset, Exchange.close, lambda exchange: exchange.write(b"zz\r\nxx\r\n")])
async def test_broken_in_the_middle(upstream: Upstream, model_at: Make, breaking: Callable[[Exchange], None]) -> None:
    seen = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        exchange.events(A)
        await seen.wait()
        breaking(exchange)

    upstream.play = play
    taken = Taken()
    answer = asyncio.create_task(model_at(upstream.base_url).answer(request(), taken))
    await taken.first.wait()
    seen.set()
    with pytest.raises(ModelError, match="broke in the middle") as caught:
        await answer
    assert taken.events == ["a"]
    assert (caught.value.code, caught.value.transient) == (ErrorCode.STREAM_ERROR, True)


@pytest.mark.parametrize("ending", ["[DONE] and silence", "silence", "reset"])
async def test_an_answer_is_whole_after_its_finish(
    upstream: Upstream, model_at: Make, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.models.openai_compatible.USAGE_S", 0.02)

    def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        exchange.events(A, STOP, *([USAGE, b"[DONE]"] if "[DONE]" in ending else []))
        if ending == "reset":
            exchange.close()

    upstream.play = play
    events, error = await collect(model_at(upstream.base_url), request())
    assert error is None
    assert events == ["a", Finish("stop"), *([Usage(1, 2)] if "[DONE]" in ending else [])]


async def test_an_endless_error_page_is_cut(upstream: Upstream, model_at: Make) -> None:
    def play(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 500 X\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 200_000)

    upstream.play = play
    _, error = await collect(model_at(upstream.base_url), request())
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_UNAVAILABLE
    await asyncio.wait_for(upstream.hung_up.wait(), 5)


async def test_a_whole_completion_from_a_server_that_does_not_stream(upstream: Upstream, model_at: Make) -> None:
    body = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    upstream.play = lambda exchange: exchange.answer(200, body)
    assert await collect(model_at(upstream.base_url), request()) == (["Hi", Finish("stop")], None)


# ---------------------------------------------------------------- cancelling


async def test_cancel_before_the_head(upstream: Upstream, model_at: Make) -> None:
    task = asyncio.create_task(collect(model_at(upstream.base_url), request()))
    await upstream.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.hung_up.wait(), 1)


async def test_cancel_before_the_first_token(upstream: Upstream, model_at: Make) -> None:
    upstream.play = lambda exchange: exchange.write(HEAD + b"6\r\n: hi\n\n\r\n")
    task = asyncio.create_task(collect(model_at(upstream.base_url), request()))
    await upstream.asked.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.hung_up.wait(), 1)


async def test_cancel_mid_stream(upstream: Upstream, model_at: Make) -> None:
    def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        exchange.events(A)

    upstream.play = play
    taken = Taken()
    task = asyncio.create_task(model_at(upstream.base_url).answer(request(), taken))
    await taken.first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken.events == ["a"]
    await asyncio.wait_for(upstream.hung_up.wait(), 1)


async def test_cancel_in_an_error_page(upstream: Upstream, model_at: Make) -> None:
    upstream.play = lambda exchange: exchange.write(b"HTTP/1.1 500 X\r\ncontent-length: 99\r\n\r\nx")
    task = asyncio.create_task(collect(model_at(upstream.base_url), request()))
    await upstream.asked.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.hung_up.wait(), 1)


async def test_close_of_the_model_ends_its_streams(upstream: Upstream) -> None:
    model = OpenAICompatible(api_key=None, base_url=upstream.base_url)
    task = asyncio.create_task(collect(model, request()))
    await upstream.asked.wait()
    await model.close()
    _, error = await task
    assert error is not None
    await asyncio.wait_for(upstream.hung_up.wait(), 1)


async def test_close_of_the_model_ends_a_request_on_a_kept_connection(upstream: Upstream) -> None:
    """It isn't sent again over another one, as it would be if the server had closed that."""

    def play(exchange: Exchange) -> None:
        if not upstream.exchanges[1:]:
            exchange.write(HEAD)
            exchange.events(*WHOLE)
            exchange.end()

    upstream.play = play
    model = OpenAICompatible(api_key=None, base_url=upstream.base_url)
    await collect(model, request())
    upstream.asked.clear()
    task = asyncio.create_task(collect(model, request()))
    await upstream.asked.wait()
    await model.close()
    async with asyncio.timeout(1):
        _, error = await task
    assert error is not None
    assert upstream.connections == 1


async def test_close_of_the_model_while_it_connects(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, looking, go = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    look_up = loop.getaddrinfo

    async def slow(*args: Any, **options: Any) -> Any:
        looking.set()
        await go.wait()
        return await look_up(*args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", slow)
    model = OpenAICompatible(api_key=None, base_url=upstream.base_url)
    task = asyncio.create_task(collect(model, request()))
    await looking.wait()
    await model.close()
    go.set()
    async with asyncio.timeout(1):
        _, error = await task
    assert error is not None
    assert upstream.exchanges == []


def test_making_one_needs_no_loop() -> None:
    OpenAICompatible(api_key=KEY, base_url="http://127.0.0.1:1/v1")
