"""Event-stream framing (SPEC.md section 3.4), after the HTML standard's section 9.2 "Server-sent events"."""

from __future__ import annotations

import re
from typing import NamedTuple

HEARTBEAT = b":\n\n"
"""A comment: it keeps proxies from closing a silent stream, and no reader sees it."""


def event(frame_json: bytes, cursor: str | None) -> bytes:
    """One frame as an event. `frame_json` is one line, as `codec.JSON.encode` makes it; without a `cursor` the
    reader's last id stays what it was."""
    if cursor is None:
        return b"data: %b\n\n" % frame_json
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), frame_json)


class Event(NamedTuple):
    id: str
    """The last id that the stream has named up to and with this event; empty before the first."""
    data: str
    event: str = "message"


class EventTooLarge(ValueError):
    """An event, or a single line, is longer than the parser may hold."""


_EOL = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
# Longer numbers than this in `retry` are no delay that anybody meant (278 hours).
_RETRY = re.compile(rb"[0-9]{1,9}")


class EventParser:
    """An incremental parser: the events don't depend on where the reads were cut.

    At most `max_event_bytes` (the data of an event so far plus the line being read) are held. Past that the events
    that were whole are still handed out, and then `feed` raises `EventTooLarge` for good.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self.max_event_bytes = max_event_bytes
        self.last_event_id = ""
        self.retry_ms: int | None = None
        """The server's last word on how long to wait before a reconnect."""
        self._line = bytearray()
        self._data = bytearray()
        self._event = ""
        self._at_start = True
        self._after_cr = False
        self._too_large = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. What the end of a stream leaves incomplete is never an event."""
        events: list[Event] = []
        if self._after_cr and data:
            # The line has ended at CR already; an LF in the next read belongs to it.
            data = data.removeprefix(b"\n")
            self._after_cr = False
        start = 0
        for end in _EOL.finditer(data):
            if self._too_large:
                break
            self._line += data[start : end.start()]
            start = end.end()
            self._after_cr = start == len(data) and end[0] == b"\r"
            self._end_line(events)
        if not self._too_large:
            self._line += data[start:]
            self._check_bound()
        if self._too_large and not events:
            raise EventTooLarge(f"an event of the stream is larger than {self.max_event_bytes} bytes")
        return events

    def _check_bound(self) -> None:
        if len(self._line) + len(self._data) > self.max_event_bytes:
            self._too_large = True
            self._line.clear()
            self._data.clear()

    def _end_line(self, events: list[Event]) -> None:
        self._check_bound()
        if self._too_large:
            return
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if line:
            self._take_field(line)
            return
        if self._data:
            # Every data line was followed by a newline; the last one isn't part of the data.
            text = self._data[:-1].decode("utf-8", "replace")
            events.append(Event(self.last_event_id, text, self._event or "message"))
        self._data.clear()
        self._event = ""

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data += value + b"\n"
            case b"id" if b"\0" not in value:
                self.last_event_id = value.decode("utf-8", "replace")
            case b"event":
                self._event = value.decode("utf-8", "replace")
            case b"retry" if _RETRY.fullmatch(value):
                self.retry_ms = int(value)
            case _:  # a comment (its name is empty) or a field that this version doesn't know
                pass
