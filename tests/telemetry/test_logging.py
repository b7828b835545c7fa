"""Logs: one event a line, ids on every line, no secret in any."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway.telemetry.logging import HIDDEN, Format, configure

LIBRARIES = (
    "aiohttp",
    "asyncio",
    "httpcore2",
    "httpx2",
    "openai",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "websockets",
)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    yield
    root.handlers[:], root.level = handlers, level
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
        logging.getLogger(name).disabled = False
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def start(format: Format, level: str = "info") -> io.StringIO:  # noqa: A002  # the setting's name
    stream = io.StringIO()
    configure(level, format, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ids_stand_on_every_line() -> None:
    stream = start("json")
    structlog.contextvars.bind_contextvars(conversation_id="c1")
    structlog.get_logger().info("turn ended", tokens=3)
    logging.getLogger("uvicorn.error").warning("slow %s", "peer")
    own, library = lines(stream)
    assert (own["event"], own["tokens"], own["level"], own["conversation_id"]) == ("turn ended", 3, "info", "c1")
    assert (library["event"], library["logger"], library["conversation_id"]) == ("slow peer", "uvicorn.error", "c1")
    assert own["timestamp"].endswith("Z")


def test_a_workers_lines_say_which() -> None:
    stream = io.StringIO()
    configure("info", "json", stream, worker=2)
    structlog.get_logger().info("ours")
    structlog.get_logger().info("about another one", worker=1)
    logging.getLogger("uvicorn.error").warning("a library's")
    assert [line["worker"] for line in lines(stream)] == [2, 1, 2]


@pytest.mark.parametrize("kind", ["console", "json"])
def test_level(kind: Format) -> None:
    stream = start(kind, "warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("anything").info("quiet")
    assert stream.getvalue() == ""


def test_access_lines_and_frames_are_never_written() -> None:
    stream = start("json", "debug")
    logging.getLogger("uvicorn.access").info("GET /chat?ticket=hush")
    logging.getLogger("websockets.server").debug("< TEXT 'what somebody said'")
    logging.getLogger("httpx2").info("HTTP Request: POST …")
    structlog.get_logger().debug("seen")
    assert [line["event"] for line in lines(stream)] == ["seen"]


def test_a_second_call_replaces_the_first() -> None:
    logger = structlog.get_logger()
    first = start("json")
    logger.info("one")
    second = start("json")
    logger.info("two")
    logging.getLogger("x").warning("three")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two", "three"]


def test_an_exception_is_one_field() -> None:
    stream = start("json")
    for logger in (structlog.get_logger(), logging.getLogger("library")):
        try:
            raise ValueError("no\nway")
        except ValueError:
            logger.exception("failed")
    for line in lines(stream):
        assert line["event"] == "failed"
        assert line["exception"].endswith("ValueError: no\nway")


def test_the_console_shows_a_plain_traceback() -> None:
    stream = start("console")
    hush = "local variables stay where they are"
    try:
        raise ValueError("no")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError: no" in stream.getvalue()
    assert hush not in stream.getvalue()


@pytest.mark.parametrize("kind", ["console", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "hush"},
        {"Authorization": "hush"},
        {"header": "Bearer hush.hush-hush"},
        {"path": "/chat?ticket=hush&x=1"},
        {"path": "/chat?x=1&token=hush"},
        {"url": "redis://user:hush@host/0"},
        {"error": "Incorrect API key provided: sk-proj-hush_hush"},
    ],
)
def test_secrets_are_hidden(kind: Format, fields: dict[str, str]) -> None:
    stream = start(kind)
    structlog.get_logger().info("here", **fields)
    logging.getLogger("library").warning("%s", " ".join(fields.values()) if "header" in fields else "Bearer hush")
    assert "hush" not in stream.getvalue()
    assert stream.getvalue().count(HIDDEN) == 2


def test_a_secret_in_a_traceback_is_hidden() -> None:
    stream = start("json")
    try:
        raise ValueError("401 for sk-hushhushhush")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "hush" not in json.loads(stream.getvalue())["exception"].replace('sk-hushhushhush")', "")


def test_text_from_outside_starts_no_line_of_its_own() -> None:
    stream = start("console")
    structlog.get_logger().info("said", text="one\ntwo\x1b[2J\u2028\ud800")
    logging.getLogger("library").warning("one\r\ntwo")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    stream.getvalue().encode()


def test_json_writes_whatever_it_is_given() -> None:
    stream = start("json")
    structlog.get_logger().info("odd", lone="\ud800", big=2**80, thing=object, keys={1: 2})
    (line,) = lines(stream)
    assert (line["lone"], line["big"], line["thing"], line["keys"]) == ("\ud800", 2**80, "<class 'object'>", {"1": 2})


def test_warnings_are_lines_too() -> None:
    stream = start("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(stream)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
