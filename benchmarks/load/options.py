"""The command line, and what it makes: a `Plan`, the thresholds, and where the results go."""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load.plan import Plan
from benchmarks.load.verdict import MAX_ERROR_RATE, MAX_GAPS, MIN_CONNECTED, Limits
from protocol.client.addresses import websocket_url

DESCRIPTION = """\
Loads a Convobase gateway as its users do, and checks every frame while doing so: in order, no gap, no duplicate, every
text whole, also across the cuts that it makes itself. Without further options: 50 connections, one message in each at a
time, for 30 seconds. The exit code is 0 when all thresholds hold, 1 when one doesn't, 2 when the run can't be made,
130 after Ctrl-C (twice: at once).
"""
EXAMPLES = """\
  … --url wss://chat.example.com --connections 1000 --rate 100 --duration 5m --token env:TOKEN
  … --url http://127.0.0.1:8080 --storm-every 10 --storm-percent 50 --max-p99-ms 500
  … --url http://127.0.0.1:8080 --connections 10000 --in-flight 100 --processes 2 --json load.json
  … --url http://127.0.0.1:8080 --transport sse --slow-percent 10

Times are seconds, or have a unit (500ms, 30s, 5m, 1h).
"""
_TIME = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class Options(NamedTuple):
    plan: Plan
    limits: Limits
    json: Path | None
    quiet: bool


def parse(argv: list[str]) -> Options:
    """Raises `SystemExit` for `--help` and for what can't be right, after a line that says what would be."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        return Options(_plan(given), _limits(given), given.json, given.quiet)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))


def seconds(text: str) -> float:
    """As in `30`, `500ms`, `2.5m`. Raises `ArgumentTypeError`."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a time like 30, 500ms, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def percent(text: str) -> float:
    """0 to 100, with or without the sign, as a share. Raises `ArgumentTypeError`."""
    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a percentage from 0 to 100")
    return value


def _at_least(least: float, kind: type[int | float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not value >= least:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} isn't a {whole}number of at least {least:g}")
        return value

    return read


_ONE, _COUNT, _NUMBER = _at_least(1, int), _at_least(0, int), _at_least(0, float)
_FLAG = object()

# Flag, how it is read, its default, and what it is for. `_FLAG` has no value.
_WHERE = (
    ("--transport", ("json", "msgpack", "sse"), "json", "WebSocket with JSON or MessagePack, or server-sent events"),
    ("--token", str, None, "credentials; env:NAME takes them from the environment"),
    ("--token-file", Path, None, "one token a line, for connections in turn"),
    ("--token-frame", _FLAG, False, "send the token in an `auth` frame, not in a header"),
    ("--ca", str, None, "file (PEM) with the authorities to trust instead of the system's"),
    ("--insecure", _FLAG, False, "trust any certificate"),
    ("--connect-timeout", seconds, "10s", "for one connection, to its `welcome`"),
)
_HOW_MUCH = (
    ("--connections", _ONE, 50, "how many"),
    ("--conversations", _ONE, 1, "on each; over SSE each has its own connection while it is answered"),
    ("--rate", _NUMBER, 0.0, "messages a second, however slow the answers: durations count from when each was due"),
    ("--in-flight", _COUNT, -1, "unanswered messages at one time; -1: one in each conversation, 0: only connect"),
    ("--think", seconds, "0s", "from an answer to the next message, on average"),
    ("--ramp", seconds, "5s", "over which the connections are opened; the figures begin after it"),
    ("--duration", seconds, "30s", "of the load"),
    ("--drain", seconds, "30s", "for the last answers, at most"),
    ("--answer-timeout", seconds, "2m", "a turn that hasn't ended then never will"),
    ("--processes", _ONE, 1, "of the load test: more when it says that it is the bottleneck"),
)
_SAID: tuple[Any, ...] = (
    ("--prompt", str, [], "with {n}, {turn}, {conversation} and {random} filled in; given several times: at random"),
    ("--prompts", Path, None, "a file with one prompt a line"),
    ("--turns", _ONE, 10, "messages in one conversation, before a new one begins"),
    ("--model", str, None, "of every message, instead of the gateway's"),
    ("--system", str, None, "prompt of every message, instead of the gateway's"),
)
_TROUBLES = (
    ("--storm-every", seconds, "0s", "cut connections, all at the same moment, every so often; 0: never"),
    ("--storm-percent", percent, "50%", "of the open ones"),
    ("--storm-spread", seconds, "0s", "over which they come back; 0: all at once"),
    ("--slow-percent", percent, "0%", "of the connections read slowly; their durations aren't counted"),
    ("--slow-bytes-per-s", _COUNT, 0, "0: they stop reading at the first token of an answer"),
    ("--slow-stop", seconds, "15s", "for so long"),
)
_THRESHOLDS = (
    ("--max-p99-ms", _NUMBER, None, "to the first token"),
    ("--max-ack-p99-ms", _NUMBER, None, "until a message is acknowledged"),
    ("--max-between-p99-ms", _NUMBER, None, "between two tokens"),
    ("--max-resume-p99-ms", _NUMBER, None, "from a cut until all that was missed is there"),
    ("--min-tokens-per-s", _NUMBER, None, "token entries received"),
    ("--min-messages-per-s", _NUMBER, None, "messages sent"),
    ("--max-error-rate", percent, f"{MAX_ERROR_RATE:.0%}", "of the messages got no whole answer"),
    ("--max-gaps", _COUNT, MAX_GAPS, "broken promises: entries missing, twice or out of order, wrong texts …"),
    ("--min-connected", percent, f"{MIN_CONNECTED:.0%}", "of the connections were open at once"),
)
_OUTPUT = (
    ("--json", Path, None, "file for the results"),
    ("--quiet", _FLAG, False, "no live display"),
    ("--delete", _FLAG, False, "erase the run's conversations at its end"),
)
_GROUPS = {
    "where": _WHERE,
    "how much": _HOW_MUCH,
    "what is said": _SAID,
    "troubles": _TROUBLES,
    "thresholds (the exit code is 1 when one doesn't hold)": _THRESHOLDS,
    "output": _OUTPUT,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks load",
        usage="%(prog)s --url URL [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--url", required=True, help="the gateway: ws://, wss://, http:// or https://")
    for title, rows in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag, read, default, words in rows:
            _add(group, flag, read, default, words)
    return parser


def _add(group: argparse._ArgumentGroup, flag: str, read: Any, default: Any, words: str) -> None:
    if read is _FLAG:
        group.add_argument(flag, action="store_true", help=words)
        return
    told = f" ({default})".replace("%", "%%") if default not in (None, []) else ""
    kind = {"choices": read} if isinstance(read, tuple) else {"type": read, "metavar": _metavar(read)}
    action = "append" if default == [] else "store"
    group.add_argument(flag, action=action, default=default, help=words + told, **kind)


def _metavar(read: Any) -> str:
    return {seconds: "TIME", percent: "PERCENT", str: "TEXT", Path: "FILE"}.get(read, "N")


def _plan(given: argparse.Namespace) -> Plan:
    websocket_url(given.url)  # says what is wrong with it
    if given.rate and given.in_flight >= 0:
        raise ValueError("either --rate (an open loop) or --in-flight (a closed one)")
    if not given.duration:
        raise ValueError("--duration has to be more than 0")
    if given.processes > given.connections:
        raise ValueError("more --processes than --connections: a connection lives in one process")
    if given.token_frame and given.transport == "sse":
        raise ValueError("--token-frame is for WebSockets; over SSE the token goes into a header")
    fields = {"model": given.model, "system": given.system}
    return Plan(
        url=given.url,
        run_id=secrets.token_hex(4),
        transport=given.transport,
        connections=given.connections,
        conversations=given.conversations,
        rate=given.rate,
        in_flight=given.in_flight,
        think_s=given.think,
        ramp_s=given.ramp,
        duration_s=given.duration,
        drain_s=given.drain,
        answer_within_s=given.answer_timeout,
        connect_within_s=given.connect_timeout,
        prompts=[*given.prompt, *(_lines(given.prompts) if given.prompts else [])],
        turns=given.turns,
        fields={name: value for name, value in fields.items() if value is not None},
        tokens=_tokens(given),
        token_frame=given.token_frame,
        storm_every_s=given.storm_every,
        storm_share=given.storm_percent,
        storm_spread_s=given.storm_spread,
        slow_share=given.slow_percent,
        slow_bytes_per_s=given.slow_bytes_per_s,
        slow_stop_s=given.slow_stop,
        ca=given.ca,
        insecure=given.insecure,
        delete=given.delete,
        processes=given.processes,
    )


def _tokens(given: argparse.Namespace) -> list[str]:
    if given.token_file:
        return _lines(given.token_file)
    if given.token is None:
        return []
    kind, _, name = given.token.partition(":")
    if kind != "env":
        return [given.token]
    if not os.environ.get(name):
        raise ValueError(f"--token {given.token}: the environment has no {name}")
    return [os.environ[name]]


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no lines")
    return lines


def _limits(given: argparse.Namespace) -> Limits:
    return Limits(**{name: getattr(given, name) for name in Limits.__struct_fields__})
