"""What one run does: the whole of it as a record, which the command line makes and each process gets its part of."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

Transport = Literal["json", "msgpack", "sse"]


class Plan(Struct, frozen=True, kw_only=True):
    """Times in seconds, rates a second over all processes, shares from 0 to 1."""

    url: str
    run_id: str
    """In every id that the run makes, so that two runs never meet in one conversation."""
    transport: Transport = "json"
    connections: int = 50
    conversations: int = 1
    """On each connection. With SSE each of them has a connection of its own while it is answered."""
    rate: float = 0.0
    """Messages a second, whether or not those before are answered (an open loop); 0: as `in_flight` says."""
    in_flight: int = -1
    """Messages that are unanswered at one time (a closed loop); -1: one in every conversation, 0: only connect."""
    think_s: float = 0.0
    """From an answer's end to the next message in the same conversation, on average: 0.5 to 1.5 times as much."""
    ramp_s: float = 5.0
    """Over which the connections are opened. The figures begin after it."""
    duration_s: float = 30.0
    drain_s: float = 30.0
    """How long running answers may take after the last message was sent."""
    answer_within_s: float = 120.0
    """A turn without its end after so long counts as unended, and its conversation is given up."""
    connect_within_s: float = 10.0
    prompts: list[str] = []
    turns: int = 10
    """Messages in one conversation; then a new one takes its place."""
    fields: dict[str, Any] = {}
    """More fields of every `chat_message`: `model`, `system`, `tools`, `metadata`."""
    tokens: list[str] = []
    """Credentials; connections take them in turn."""
    token_frame: bool = False
    """Send the token in an `auth` frame, not in the `Authorization` header."""
    storm_every_s: float = 0.0
    """0: no storms."""
    storm_share: float = 0.5
    """Of the open connections, cut at the same moment."""
    storm_spread_s: float = 0.0
    """Over which those come back, evenly at random; 0: all at once."""
    slow_share: float = 0.0
    """Of the connections: these read slowly."""
    slow_bytes_per_s: int = 0
    """0: they stop reading at the first token of an answer, for `slow_stop_s`, and then read on."""
    slow_stop_s: float = 15.0
    ca: str | None = None
    """PEM file of the authorities to trust instead of the system's."""
    insecure: bool = False
    """Trust any certificate."""
    delete: bool = False
    """Erase the run's conversations at its end."""
    processes: int = 1

    @property
    def sockets(self) -> int:
        """Connections that may be open at once."""
        return self.connections * (self.conversations if self.transport == "sse" else 1)

    @property
    def only_connects(self) -> bool:
        return self.in_flight == 0 and not self.rate

    def part(self, number: int) -> Plan:
        """What process `number` of `processes` does. The parts add up to the whole."""

        def share(whole: int) -> int:
            return whole * (number + 1) // self.processes - whole * number // self.processes

        return msgspec.structs.replace(
            self,
            connections=share(self.connections),
            rate=self.rate / self.processes,
            in_flight=share(self.in_flight) if self.in_flight > 0 else self.in_flight,
        )
