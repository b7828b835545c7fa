"""What happened, as numbers: counted in each process, added up over all."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from benchmarks.load.latency import Stopwatches

MAX_EXAMPLES = 20

GAP, DUPLICATE, ORDER, EPOCH, TEXT, UNREADABLE, EARLY, TWICE, LOST_END, STRAY = (
    "gap", "duplicate", "order", "epoch", "text", "unreadable", "early", "twice", "lost_end", "stray",
)  # fmt: skip
VIOLATIONS = {
    GAP: "entries missing",
    DUPLICATE: "entries that came twice",
    ORDER: "entries out of order",
    EPOCH: "entries of an epoch that was over",
    TEXT: "answers whose text isn't as long as `done` says",
    UNREADABLE: "frames that can't be read",
    EARLY: "entries before the answer to `subscribe`",
    TWICE: "messages in the log twice",
    LOST_END: "turns that were over without their end being told",
    STRAY: "entries of a turn that isn't open",
}
"""Each breaks the promise of SPEC.md section 2.7 or 10.1."""


class Counts(Struct, kw_only=True):
    messages: int = 0
    """Sent, each once."""
    resent: int = 0
    """Sent again after a cut, before they were acknowledged."""
    lost: int = 0
    """Acknowledged, and then gone from a `snapshot`: the log lost its tail. They are sent again."""
    acknowledged: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    """Turns that ended with `done`, by `finish_reason`."""
    failed: int = 0
    """Turns that ended with `error`."""
    refused: int = 0
    """Messages that were refused."""
    unended: int = 0
    """Turns without their end when their time was up."""
    deleted: int = 0
    """Conversations that somebody else erased under us."""
    errors: dict[str, int] = field(default_factory=dict)
    """By code: of failed turns, refused messages, and refused frames of other kinds."""
    frames: int = 0
    """Logged ones, each checked."""
    tokens: int = 0
    """Token entries; the gateway's batching joins several tokens of the model into one."""
    token_frames: int = 0
    characters: int = 0
    bytes: int = 0
    """Received, in WebSocket frames or event streams; without TLS and HTTP heads."""
    model_tokens: int = 0
    """`completion_tokens` of the ends that told them."""
    calls: int = 0
    """Function calls, each answered with an error: nobody is here to answer them."""
    connects: int = 0
    unreachable: dict[str, int] = field(default_factory=dict)
    """Attempts to connect that failed, by reason."""
    closes: dict[str, int] = field(default_factory=dict)
    """Connections that ended without our doing, by close code; 1006: without a close frame."""
    cuts: int = 0
    """Connections that we cut."""
    resumes: int = 0
    """Conversations that were gone on with by their cursor on a new connection."""
    snapshots: int = 0
    restarts: int = 0
    goaways: int = 0
    late: int = 0
    """Messages that were due while every conversation was busy, and waited for one."""
    violations: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    """Of violations and of turns without an end, in words."""

    @property
    def completed(self) -> int:
        return sum(self.ends.values())

    @property
    def mistakes(self) -> int:
        """Messages that didn't get a whole answer."""
        return self.failed + self.refused + self.unended + self.deleted

    @property
    def broken(self) -> int:
        """Violations of all kinds."""
        return sum(self.violations.values())

    def violation(self, kind: str, words: str, number: int = 1) -> None:
        plus(self.violations, kind, number)
        self.example(f"{kind}: {words}")

    def example(self, words: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(words)

    def add(self, other: Counts) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, _sum(getattr(self, name), getattr(other, name)))
        del self.examples[MAX_EXAMPLES:]


class Tally:
    """Where a process counts at present; `counts` and `watches` are replaced when a phase of the run ends."""

    __slots__ = ("counts", "watches")

    def __init__(self) -> None:
        self.counts = Counts()
        self.watches = Stopwatches()


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
    return a + b


def plus(counts: dict[str, int], key: str, number: int = 1) -> None:
    counts[key] = counts.get(key, 0) + number
