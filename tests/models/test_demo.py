import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.demo import Demo
from gateway.models.demo_calls import asked_calls, fitting_calls
from gateway.models.demo_script import script_for, topic_of
from gateway.models.demo_steps import FAILURES, Pause, tokens_of
from gateway.models.model import CallFragment, Event, Finish, ModelError, ModelRequest
from protocol.codes import ErrorCode
from protocol.frames import FunctionSpec, Tool, Usage

STOP = Finish("stop")
WEATHER = Tool(
    FunctionSpec(
        "get_weather",
        "Get the current weather for a city",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    )
)
EMAIL = Tool(FunctionSpec("sendEmail", "Send a message to a person", {"type": "object", "properties": {}}))


class Sleeps:
    def __init__(self) -> None:
        self.waits_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await asyncio.sleep(0)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def request(*messages: dict[str, Any], **fields: Any) -> ModelRequest:
    return ModelRequest(messages=messages, model="demo", **fields)


async def say(*messages: dict[str, Any], **fields: Any) -> list[Event]:
    events: list[Event] = []
    async for batch in Demo(sleep=Sleeps()).stream(request(*messages, **fields)):
        assert batch
        events += batch
    return events


def text(events: list[Event]) -> str:
    return "".join(event for event in events if isinstance(event, str))


def calls(events: list[Event]) -> dict[str, str]:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for event in events:
        if isinstance(event, CallFragment):
            if event.name is not None:
                assert event.id
                names[event.index] = event.name
            arguments[event.index] = arguments.get(event.index, "") + event.arguments
    return {names[index]: arguments[index] for index in names}


async def test_prose_about_the_question() -> None:
    events = await say(user("Explain quantum computing to me"))
    assert "quantum computing" in text(events)
    assert "\n\n" in text(events)
    assert events[-2] == STOP
    assert events[-1] == Usage(5, sum(isinstance(event, str) for event in events))


async def test_the_same_conversation_gets_the_same_answer() -> None:
    one, again = await say(user("Tell me of the sea")), await say(user("Tell me of the sea"))
    assert one == again
    others = {text(await say(user(f"Tell me of the sea, {n}"))) for n in range(5)}
    assert len(others) > 1


async def test_it_pretends_to_remember() -> None:
    told = [user("My name is Zoë, hello"), assistant("Hi!")]
    assert "**Zoë**" in text(await say(told[0]))
    assert "**Zoë**" in text(await say(*told, user("What's my name?")))
    assert "You have not told me" in text(await say(user("What's my name?")))


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": "the sea"}, {"type": "image_url"}]])
async def test_odd_contents(content: Any) -> None:
    assert (await say(user(content)))[-2] == STOP


async def test_no_messages() -> None:
    assert (await say())[-2] == STOP


@given(st.text(st.characters(codec="utf-8")))
def test_echo_is_exact(said: str) -> None:
    steps = list(script_for(request(user("/echo " + said))).steps)
    assert steps[-1] == STOP
    assert "".join(step for step in steps if isinstance(step, str)) == said
    assert "" not in steps


@given(st.text(st.characters(codec="utf-8")))
def test_tokens_add_up(prose: str) -> None:
    assert "".join(tokens_of(prose)) == prose


@pytest.mark.parametrize(("said", "count"), [("/long 1234", 1234), ("/fast /long 1000", 1000), ("/long", 500)])
async def test_long(said: str, count: int) -> None:
    events = await say(user(said))
    assert sum(isinstance(event, str) for event in events) == count
    assert events[-1] == Usage(len(said.split()), count)


async def test_help_names_every_command_and_failure() -> None:
    shown = text(await say(user("/help")))
    for word in ("echo", "long", "slow", "fast", "length", "call", "fail", "silent", "stall"):
        assert f"/{word}" in shown
    for code in FAILURES:
        assert f"`{code}`" in shown


async def test_length() -> None:
    assert (await say(user("/length the sea")))[-2] == Finish("length")
    events = await say(user("the sea"), max_tokens=3)
    assert events[3:] == [Finish("length"), Usage(2, 3)]


@pytest.mark.parametrize(
    ("word", "code", "transient"),
    [
        ("rejected", ErrorCode.UPSTREAM_REJECTED, False),
        ("rate_limited", ErrorCode.UPSTREAM_RATE_LIMITED, True),
        ("unavailable", ErrorCode.UPSTREAM_UNAVAILABLE, True),
        ("context_too_large", ErrorCode.CONTEXT_TOO_LARGE, False),
        ("UPSTREAM_REJECTED", ErrorCode.UPSTREAM_REJECTED, False),
    ],
)
async def test_refusals(word: str, code: ErrorCode, transient: bool) -> None:
    with pytest.raises(ModelError) as caught:
        await anext(Demo(sleep=Sleeps()).stream(request(user(f"/fail {word}"))))
    assert (caught.value.code, caught.value.transient) == (code, transient)


@pytest.mark.parametrize("word", ["stream_error", "truncated"])
async def test_breaks_in_the_middle(word: str) -> None:
    seen: list[Event] = []

    async def read() -> None:
        async for batch in Demo(sleep=Sleeps()).stream(request(user(f"/fail {word}"))):
            seen.extend(batch)

    with pytest.raises(ModelError) as caught:
        await read()
    assert len(seen) > 3
    assert caught.value.code is ErrorCode.STREAM_ERROR


async def test_an_unknown_failure_is_explained() -> None:
    assert "`rejected`" in text(await say(user("/fail me")))


@pytest.mark.parametrize(("said", "tokens"), [("/silent", 0), ("/fail timeout", 0), ("/stall", 5)])
async def test_silence_lasts_until_it_is_cancelled(said: str, tokens: int) -> None:
    steps = list(script_for(request(user(said))).steps)
    assert steps[-1] is Pause.FOREVER
    expected = [step for step in steps if isinstance(step, str)]
    assert len(expected) >= tokens
    seen: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def reader() -> None:
        async for batch in Demo(sleep=Sleeps()).stream(request(user(said))):
            seen.put_nowait(batch)

    task = asyncio.create_task(reader())
    assert [event for _ in expected for event in await seen.get()] == expected
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---------------------------------------------------------------- pace


@pytest.mark.parametrize(
    ("said", "tokens_per_s", "wait_s", "batch"),
    [("/long 640", 40, 1 / 40, 1), ("/slow /long 640", 40, 1 / 4, 1), ("/long 640", 2000, 1 / 200, 10),
     ("/fast /long 640", 40, 0, 64)],
)  # fmt: skip
async def test_pace(said: str, tokens_per_s: float, wait_s: float, batch: int) -> None:
    sleeps = Sleeps()
    sizes = [len(b) async for b in Demo(tokens_per_s=tokens_per_s, sleep=sleeps).stream(request(user(said)))]
    assert set(sizes[:-1]) == {batch}
    assert sleeps.waits_s == [pytest.approx(wait_s)] * len(sizes)


# ---------------------------------------------------------------- calls


async def test_calls_are_fragmented_and_interleaved() -> None:
    events = await say(user('/call get_weather {"city": "Zürich"} search {"q": [1, 2, 3, 4]}'))
    assert isinstance(events[0], str)
    assert calls(events) == {"get_weather": '{"city": "Zürich"}', "search": '{"q": [1, 2, 3, 4]}'}
    assert events[-2] == Finish(None)
    indexes = [event.index for event in events if isinstance(event, CallFragment)]
    assert indexes[:6] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("f", [("f", "{}")]),
        ("f g", [("f", "{}"), ("g", "{}")]),
        ('f{"a":1}g', [("f", '{"a":1}'), ("g", "{}")]),
        ("f {broken", [("f", "{broken")]),
        ("", []),
        ("!", []),
    ],
)
def test_asked_calls(rest: str, expected: list[tuple[str, str]]) -> None:
    assert [tuple(call) for call in asked_calls(rest)] == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What's the weather in New York tomorrow, in F?", {"get_weather": {"city": "New York", "unit": "F"}}),
        ("Please use get_weather for Brno", {"get_weather": {"city": "Brno", "unit": "C"}}),
        ("Write an email message", {"sendEmail": {}}),
        ("Tell me about the sea", {}),
    ],
)
async def test_an_offered_tool_that_fits_is_called(question: str, expected: dict[str, Any]) -> None:
    events = await say(user(question), tools=[WEATHER, EMAIL])
    assert {name: json.loads(args) for name, args in calls(events).items()} == expected
    assert events[-2] == (Finish(None) if expected else STOP)


def test_arguments_follow_the_schema() -> None:
    kinds = {
        "whole": {"type": "integer"},
        "real": {"type": "number"},
        "flag": {"type": "boolean"},
        "many": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": "object", "properties": {"of": {"type": "string"}}},
        "bare": {"type": "object"},
        "any": True,
    }
    tool = Tool(FunctionSpec("book_table", None, {"type": "object", "properties": kinds}))
    (call,) = fitting_calls('book_table at "U Zvonu" for 4.5', [tool])
    assert json.loads(call.arguments) == {
        "whole": 4,
        "real": 4.5,
        "flag": True,
        "many": ["U Zvonu"],
        "deep": {"of": "U Zvonu"},
        "bare": {},
        "any": "U Zvonu",
    }


@pytest.mark.parametrize("schema", [None, {}, {"properties": []}, {"properties": {}, "required": "all"}])
def test_any_schema_will_do(schema: Any) -> None:
    assert fitting_calls("use f please", [Tool(FunctionSpec("f", None, schema))])[0].arguments == "{}"


def results(*contents: Any) -> list[dict[str, Any]]:
    made = [{"id": f"c{n}", "function": {"name": f"f{n}"}} for n in range(len(contents))]
    answered = [{"role": "tool", "tool_call_id": f"c{n}", "content": c} for n, c in enumerate(contents)]
    return [user("/call f0 {}"), assistant(None, tool_calls=made), *answered]


async def test_results_are_used() -> None:
    said = text(await say(*results('{"sky": "jasno", "temp": 21}', "plain words", '{"error": "too far"}', "[1]")))
    for expected in ("`f0`", "- **sky**: jasno", "- **temp**: 21", "`f1`", "> plain words", "too far", "[1]"):
        assert expected in said


async def test_results_end_the_calling() -> None:
    events = await say(*results("{}"), tools=[WEATHER])
    assert calls(events) == {}
    assert events[-2] == STOP


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("Explain quantum computing", "quantum computing"),
        ("", "this very conversation"),
        ("?!", "this very conversation"),
    ],
)
def test_topics(question: str, topic: str) -> None:
    assert topic_of(question) == topic
