"""Whether a peer is still there, and still taking what it is sent. Pure: time and measurements are arguments."""

from __future__ import annotations


class Liveness:
    """What is known of one peer. All times are those of one monotonic clock, in seconds.

    There are two ways to be gone. *Silent*: a ping is due after a heartbeat without a byte, and if another one passes
    without a byte, the peer is dead; any byte counts, not only the pong, which may be queued behind a long message.
    *Stuck*: it was over the high-water mark for the whole write deadline and took nothing. A peer that is slow but
    takes something is neither, however long that lasts.
    """

    __slots__ = ("_buffered_bytes", "_moved_at", "_pinged_at", "_unsent_bytes", "heard_at")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        """Of the last sign of life. The shell sets it; it may be older than the truth by less than a heartbeat."""
        self._pinged_at = -1.0
        self._moved_at: float | None = None
        self._buffered_bytes = self._unsent_bytes = 0

    def ping_is_due(self, now: float, heartbeat_s: float) -> bool:
        """When True, the caller pings, and this is remembered."""
        if self._pinged_at > self.heard_at or now < self.heard_at + heartbeat_s:
            return False
        self._pinged_at = now
        return True

    def silence_deadline(self, heartbeat_s: float) -> float:
        """When the next ping is due, or when an unanswered one has been waited for long enough."""
        return max(self._pinged_at, self.heard_at) + heartbeat_s

    def stuck_from_now(self) -> None:
        """The peer has just come over the high-water mark."""
        self._moved_at = None

    def write_deadline(self, now: float, deadline_s: float, buffered_bytes: int, unsent_bytes: int) -> float:
        """When a peer that goes on like this is stuck, given what our buffer and the kernel's hold for it.

        Progress is what shrinks between two looks; what is added meanwhile must not look like it. Ours alone won't
        do: the kernel takes from it in steps of 64 KiB, which may be minutes apart for a slow reader.
        """
        shrunk = buffered_bytes < self._buffered_bytes or unsent_bytes < self._unsent_bytes
        if self._moved_at is None or shrunk:
            self._moved_at = now
        self._buffered_bytes, self._unsent_bytes = buffered_bytes, unsent_bytes
        return self._moved_at + deadline_s
