"""What to do about what went wrong. Every line names the thing that was seen first, then the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.load.plan import Plan
from benchmarks.load.tally import LOST_END, UNREADABLE, Counts
from benchmarks.load.totals import BUSY_SHARE, LATE_MS, Totals

_UNREACHABLE = {
    "connection refused": "Nothing listens there. Is the gateway running, and is the port right?",
    "name not known": "The host name can't be looked up. Is it spelled right?",
    "host unreachable": "There is no route to the host.",
    "network unreachable": "There is no route to the host's network.",
    "no answer in time": "Connecting took longer than --connect-timeout: the gateway or something before it has no "
    "room for so many at once. Try a longer --ramp, or look at its listen backlog and its CPU.",
    "connection reset": "The other side hung up while connecting: often a proxy's or the gateway's connection limit.",
    "certificate not trusted": "Give the authority's certificate with --ca FILE, or --insecure for a test system.",
    "TLS failed": "Does the port speak TLS? For plain text the address begins with ws:// or http://.",
    "too many open files": "Raise the limit of this shell (`ulimit -n`), or use fewer connections or more --processes.",
    "no local port left": "One machine has about 28,000 ports towards one address. Use several machines or addresses.",
    "closed with 4429": "The gateway is over a connection limit (MAX_CONNECTIONS or MAX_CONNECTIONS_PER_USER).",
    "closed with 4401": "The token isn't accepted: give a good one with --token or --token-file.",
    "closed with 4408": "The gateway waits for credentials: give them with --token (and --token-frame).",
    "closed with 1012": "The gateway is draining: it is about to stop.",
    "HTTP 401": "The gateway wants credentials: give them with --token or --token-file.",
    "HTTP 403": "The gateway refuses this host name or origin: see ALLOWED_ORIGINS, or use its address.",
    "HTTP 404": "There is no gateway at this path. The address is the one in front of /chat, or with it.",
    "HTTP 400": "What answers there doesn't take it for a WebSocket: does a proxy in between pass upgrades on?",
    "HTTP 426": "What answers there doesn't take it for a WebSocket: does a proxy in between pass upgrades on?",
    "HTTP 429": "Too many requests: the gateway's or a proxy's rate limit.",
    "HTTP 502": "A proxy answers, but can't reach the gateway behind it.",
    "HTTP 503": "The gateway has no room or is stopping, or a proxy can't reach it.",
    "HTTP 504": "A proxy waits for the gateway in vain.",
    "not HTTP": "What answers there doesn't speak HTTP. Is the port right, and does it want TLS (wss://)?",
}
_WHILE = {
    **_UNREACHABLE,
    "connection refused": "Nothing listened there for a while: the gateway was stopped or restarted.",
    "connection reset": "The gateway went away, or it or a proxy had too many connections.",
}
"""In a run that could connect at other times."""
_CODES = {
    "RATE_LIMITED": "MESSAGES_PER_MINUTE is reached: fewer messages a user, or more users (--token-file).",
    "QUOTA_EXCEEDED": "TOKENS_PER_DAY of the gateway is used up.",
    "TOO_MANY_CONVERSATIONS": "MAX_CONVERSATIONS_PER_CONNECTION is smaller than --conversations.",
    "UPSTREAM_RATE_LIMITED": "The model's provider limits the gateway, so this measures the provider.",
    "UPSTREAM_REJECTED": "The model's provider refuses the requests: look at the gateway's key, model and log.",
    "UPSTREAM_UNAVAILABLE": "The gateway can't reach the model's provider.",
    "UPSTREAM_TIMEOUT": "The model took longer than FIRST_TOKEN_TIMEOUT_S or TOKEN_TIMEOUT_S.",
    "OVERLOADED": "The gateway has no room (MAX_STREAMS), is stopping, or can't use its log.",
    "UNAUTHORIZED": "The token isn't accepted: give a good one with --token or --token-file.",
    "CONTEXT_TOO_LARGE": "The prompt doesn't fit into the model's window.",
    "INTERNAL": "A bug of the gateway: its log has the trace.",
    "FUNCTION_TIMEOUT": "A function call got no result in FUNCTION_TIMEOUT_S.",
    "NODE_LOST": "Nodes were lost while they were answering, more than three times for one turn.",
}
_CLOSES = {
    "1006": "Connections broke without a close frame: a proxy's idle or read time-out, a crash, or the network.",
    "1009": "A message was larger than MAX_FRAME_BYTES.",
    "1011": "A bug of the gateway: its log has the trace.",
    "1012": "The gateway drained: it was stopped or replaced, and the clients came back.",
    "4429": _UNREACHABLE["closed with 4429"],
    "4401": _UNREACHABLE["closed with 4401"],
    "silent": "Connections said nothing any more, not even a ping: something in between has forgotten them.",
}


def about(reason: str, remedies: dict[str, str] = _UNREACHABLE) -> str:
    """The remedy for one reason for which a connection couldn't be made; empty when there is none to tell."""
    for known, words in remedies.items():
        if reason.startswith(known):
            return words
    return ""


def advice(totals: Totals, plan: Plan) -> list[str]:
    """For a whole run, the most telling first."""
    counts = totals.counts()
    return list(dict.fromkeys([*_about_us(totals, plan), *_about_them(counts, plan)]))


def _about_us(totals: Totals, plan: Plan) -> Iterator[str]:
    tools = totals.tools()
    if any(tool.cpu_share >= BUSY_SHARE for tool in tools):
        busiest = max(tool.cpu_share for tool in tools)
        yield (
            f"The load test itself was the bottleneck: a process of it used {busiest:.0%} of a core, so the gateway "
            f"may be faster than these figures. Use --processes {plan.processes * 2}, or another machine."
        )
    elif any(tool.often_late for tool in tools):
        yield (
            f"The load test often got no CPU in time (timers up to {max(tool.late_ms for tool in tools):.0f} ms late, "
            f"often more than {LATE_MS:.0f}): this machine is too busy, and the durations contain that."
        )
    counts = totals.counts()
    if counts.late > counts.messages / 100:
        yield (
            f"{counts.late:,} messages had to wait for a free conversation; their durations are counted from when "
            "they were due. If that isn't meant: more --connections or --conversations."
        )


def _about_them(counts: Counts, plan: Plan) -> Iterator[str]:
    for reason, number in _by_number(counts.unreachable):
        if words := about(reason, _WHILE if counts.connects else _UNREACHABLE):
            yield f"{reason} ({number:,}): {words}"
    for code, number in _by_number(counts.errors):
        if code in _CODES:
            yield f"{code} ({number:,}): {_CODES[code]}"
    for code, number in _by_number(counts.closes):
        if words := _CLOSES.get(code, ""):
            if code == "1006" and plan.slow_share:
                words = "Connections broke, as is right for readers that stop for longer than WRITE_DEADLINE_S."
            yield f"{code} ({number:,}): {words}"
    if counts.violations.get(UNREADABLE):
        yield "Frames couldn't be read: something in between changes them, or the gateway is of another version."
    if counts.violations.get(LOST_END) or counts.unended:
        yield "Turns without an end: raise --answer-timeout or --drain if answers are that long; else it is a bug."


def _by_number(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])
