"""Putting pieces where they belong: fragments to their calls, halves of characters to each other. Pure."""

from __future__ import annotations

from gateway.models.model import CallFragment


class Calls:
    """Which call a fragment belongs to. Servers number calls from 0 by `index`; some leave it out, some give all 0."""

    __slots__ = ("_by_key", "_ids", "_named")

    def __init__(self) -> None:
        self._by_key: dict[object, int] = {}
        self._ids: list[str | None] = []
        self._named: list[bool] = []

    @property
    def any(self) -> bool:
        return bool(self._ids)

    def fragment(self, key: object, call_id: str | None, name: str | None, arguments: str) -> CallFragment:
        index = self._place(key, call_id, name)
        if index == len(self._ids):
            self._ids.append(None)
            self._named.append(False)
        if key is not None:
            self._by_key[key] = index
        new_id = call_id if self._ids[index] is None else None
        new_name = None if self._named[index] else name
        self._ids[index] = self._ids[index] or call_id
        self._named[index] = self._named[index] or name is not None
        return CallFragment(index, new_id, new_name, arguments)

    def _place(self, key: object, call_id: str | None, name: str | None) -> int:
        fresh = len(self._ids)
        if key is not None:
            index = self._by_key.get(key, fresh)
            another = index < fresh and name and call_id and self._ids[index] not in (None, call_id)
            return fresh if another else index
        if call_id is not None:
            return self._ids.index(call_id) if call_id in self._ids else fresh
        return fresh if name or not fresh else fresh - 1


class Halves:
    """Joins surrogate halves (Unicode 16.0, section 3.9), also across the pieces of one running text; a half without
    a partner becomes U+FFFD. Running texts are told apart by `index`."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[int, str] = {}

    def mend(self, index: int, piece: str) -> str:
        """`piece` with the half that the piece before ended in, without the one that it ends in itself."""
        text = self._waiting.pop(index, "") + piece
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._waiting[index] = text[-1]
            text = text[:-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def left(self) -> list[int]:
        """The running texts that ended in a half. They are forgotten."""
        indexes = list(self._waiting)
        self._waiting.clear()
        return indexes
