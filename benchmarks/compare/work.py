"""The load client's words for the kinds of work that several scenarios have in common."""

from __future__ import annotations

import time

PER_CONNECTION = 4
"""Conversations."""
RAMP_S, WARM_UP_S = 1.0, 1.0
SPARE_S = 1.5


def streaming(
    streams: int,
    rate: float,
    seconds: float,
    *,
    per_connection: int = PER_CONNECTION,
    size: int = 6,
    ramp_s: float = RAMP_S,
    warm_up_s: float = WARM_UP_S,
    together_s: float = 0.0,
) -> list[object]:
    """Answers of `rate` tokens a second that are longer than the measurement, so that it sees tokens only.

    What a question costs is a figure of its own (the scenario `first-token`). `size`: characters of a token.
    `together_s`: no token flows before so much time has passed from now on, so that a server which is then flooded
    has taken all questions.
    """
    tokens = int(rate * (ramp_s + warm_up_s + seconds + SPARE_S)) + 1
    start = f" start={time.monotonic() + together_s:.6f}" if together_s else ""
    return [
        "--connections", max(1, streams // per_connection), "--conversations", min(streams, per_connection),
        "--ramp", ramp_s, "--warmup", warm_up_s,
        "--message", f"tokens={tokens} rate={rate:g} size={size} stamp=1{start}",
    ]  # fmt: skip
