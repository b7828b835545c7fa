"""Conversations without a model: what the stand-in for a gateway knows, and says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from protocol.frames import AnyServerFrame, ChatMessage, Done, Entry, Message, Metadata, Token, Usage

Mangle = Callable[[list[AnyServerFrame]], list[AnyServerFrame]]
"""What becomes of the frames that are about to be sent at one moment."""

WORDS = ("the ", "log ", "is ", "all ", "there ", "is, ", "and ", "a ", "reader ", "is ", "a ", "cursor. ")


class Log:
    """One conversation: its entries, and who follows it."""

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.entries: list[Entry] = []
        self.readers: dict[Reader, None] = {}
        self.turns: dict[str, int] = {}
        """`message_id` -> `seq` of its message."""
        self.open = False

    def add(self, kind: Any, turn_id: str, **fields: Any) -> Entry:
        made: Entry = kind(
            conversation_id=self.conversation_id,
            turn_id=turn_id,
            seq=len(self.entries) + 1,
            metadata=Metadata(int(time.time() * 1000)),
            **fields,
        )
        self.entries.append(made)
        return made


class Reader:
    """A connection, as far as the house cares."""

    def __init__(self) -> None:
        self.logs: set[Log] = set()

    def follow(self, log: Log) -> None:
        log.readers[self] = None
        self.logs.add(log)

    def leave(self, log: Log) -> None:
        log.readers.pop(self, None)
        self.logs.discard(log)

    def tell(self, frames: list[AnyServerFrame]) -> None:
        raise NotImplementedError


class House:
    """All conversations. Each answer has `tokens` tokens, `rate` a second; 0: all at once."""

    def __init__(self, tokens: int = 20, rate: float = 0.0, mangle: Mangle = lambda frames: frames) -> None:
        self.tokens = tokens
        self.rate = rate
        self.mangle = mangle
        self.logs: dict[str, Log] = {}
        self.peers: set[Reader] = set()
        self.refuse: tuple[int, bytes] | None = None
        """Status and body for every request."""

    def log(self, conversation_id: str) -> Log:
        return self.logs.setdefault(conversation_id, Log(conversation_id))

    def ask(self, reader: Reader, asked: ChatMessage) -> Log:
        """Logs a message, unless it is there already, and begins its turn; the reader follows it."""
        log = self.log(asked.conversation_id or f"made-{len(self.logs)}")
        message_id = asked.message_id or f"made-{len(log.entries)}"
        known = log.turns.get(message_id)
        if known is not None:
            if reader not in log.readers:
                reader.follow(log)
                reader.tell(list(log.entries[known - 1 :]))
            return log
        reader.follow(log)
        turn_id = f"t{len(log.turns)}"
        message = log.add(Message, turn_id, content=asked.message, message_id=message_id)
        log.turns[message_id] = message.seq
        log.open = True
        self._tell(log, [message])
        if self.rate:
            asyncio.get_running_loop().call_later(1 / self.rate, self._go_on, log, turn_id, 0)
        else:
            self._tell(log, [self._token(log, turn_id, number) for number in range(self.tokens)])
            self._finish(log, turn_id)
        return log

    def _go_on(self, log: Log, turn_id: str, number: int) -> None:
        if number == self.tokens:
            self._finish(log, turn_id)
            return
        self._tell(log, [self._token(log, turn_id, number)])
        asyncio.get_running_loop().call_later(1 / self.rate, self._go_on, log, turn_id, number + 1)

    @staticmethod
    def _token(log: Log, turn_id: str, number: int) -> Entry:
        return log.add(Token, turn_id, content=WORDS[number % len(WORDS)])

    def _finish(self, log: Log, turn_id: str) -> None:
        length = sum(len(WORDS[number % len(WORDS)]) for number in range(self.tokens))
        log.open = False
        done = log.add(Done, turn_id, finish_reason="stop", usage=Usage(1, self.tokens), text_length=length)
        self._tell(log, [done])

    def _tell(self, log: Log, entries: list[Entry]) -> None:
        frames = self.mangle(list(entries))
        for reader in list(log.readers):
            reader.tell(frames)
