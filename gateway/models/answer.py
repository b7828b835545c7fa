"""One answer of an HTTP/1.1 server (RFC 9112), from its bytes to who reads it.

httptools parses; what is ours is who reads when. A body is handed on from within the transport's own callback, so
that a token costs no future, no task switch and no generator. And its reader says for how long nothing more need be
read: what comes meanwhile is gathered by the kernel, and one read takes all of it.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable
from typing import Protocol, cast

import httptools

UNREAD_BYTES = 65536
"""Of a body that nobody takes: past this no more is read."""
HEAD_BYTES = 65536
"""Of a head, and of anything else between two pieces of a body, such as trailers."""
INFLATED_BYTES = 1 << 20
"""What one read of a compressed body may become."""

Take = Callable[[bytes, float], float]
"""Is given what a read brought of a body, and since when (loop time) that may have been there to be read. Returns
for how many seconds nothing more need be read; `math.inf`: not before the next `Answer.read`."""


class Broken(ConnectionError):
    """A connection ended, or brought something that isn't HTTP, before an answer was whole."""


class Unanswered(Broken):
    """It ended before the first byte of an answer."""


class Wire(Protocol):
    """What an answer asks of its connection."""

    def go_on(self, hold_s: float) -> None:
        """Reads on, but for `hold_s` not yet."""
        ...

    def ended(self, *, keep: bool) -> None:
        """The answer has; the connection can be kept."""
        ...


class Answer:
    """One response: `head` once, then `read` until it returns False, and `close` in any case."""

    __slots__ = ("_began", "_connection", "_ends_with_connection", "_has_head", "_head_bytes", "_inflate",
                 "_inflated_bytes", "_keep", "_parser", "_problem", "_take", "_unread", "_waiter", "_whole", "headers",
                 "status")  # fmt: skip

    def __init__(self, connection: Wire) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection: Wire | None = connection
        """None once the answer has ended, whole or not."""
        self._parser: httptools.HttpResponseParser | None = _parser(self)
        self._began = self._has_head = self._whole = self._keep = False
        self._ends_with_connection = True
        self._head_bytes = 0
        self._inflate: zlib._Decompress | None = None
        self._inflated_bytes = 0
        """By the read that is looked at."""
        self._unread: list[bytes] = []
        self._take: Take | None = None
        self._problem: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ------------------------------------------------------------ for who asked

    async def head(self) -> None:
        """Returns when `status` and `headers` are there. Raises `Broken` or `OSError`. Cancelled: `close`."""
        while not self._has_head:
            await self._change()

    async def read(self, take: Take) -> bool:
        """Has `take` called with the body as it comes, until that returns `math.inf` (True: there may be more) or the
        body is at its end (False). Raises `Broken`, `OSError`, and what `take` raises. Cancelled: `close`."""
        self._take = take
        try:
            hold_s = self._hand_on(asyncio.get_running_loop().time())
            if self._taken and self._connection is not None:
                self._connection.go_on(hold_s)
            while self._taken and not self._whole:
                await self._change()
        finally:
            self._take = None
        return not self._whole

    def close(self) -> None:
        """Closes the connection, unless the answer came to its end. Idempotent."""
        self._end(Broken("the answer was closed"))

    @property
    def _taken(self) -> bool:
        return self._take is not None

    async def _change(self) -> None:
        if self._connection is None:
            raise self._problem or Broken("the answer is over")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------ for the connection

    def received(self, data: bytes, since: float) -> float:
        """As `Take`, for what the connection brought."""
        problem: Exception | None = None
        self._inflated_bytes = 0
        try:
            self._parser.feed_data(data)  # type: ignore[union-attr]  # there is one until the end
            if self._unread:
                self._head_bytes = 0
            else:
                self._check_head_bytes(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, zlib.error, Broken) as error:
            self._keep = False
            problem = Broken("what came is not HTTP")
            problem.__cause__ = error.with_traceback(None)  # it would hold this frame, and with it the answer
        hold_s = self._hand_on(since)
        if self._whole:
            self._end(None)
        elif problem is not None:
            self._end(problem)
        return hold_s

    def lost(self, problem: Exception | None) -> None:
        """The connection has ended, of itself if there is no `problem`."""
        self._keep = False
        if self._has_head and self._ends_with_connection and problem is None:
            self._whole = True
        if self._began:
            self._end(None if self._whole else problem or Broken("the connection ended in the middle of an answer"))
        else:
            unanswered = Unanswered("the connection ended before the answer")
            unanswered.__cause__ = problem
            self._end(unanswered)

    def _hand_on(self, since: float) -> float:
        take, unread = self._take, self._unread
        if take is None:
            return math.inf if sum(map(len, unread)) > UNREAD_BYTES else 0.0
        if not unread:
            return 0.0
        self._unread = []
        try:
            hold_s = take(unread[0] if len(unread) == 1 else b"".join(unread), since)
        except Exception as problem:  # noqa: BLE001 # the reader's own, and raised there
            self._keep = self._whole = False  # whole or not, `read` has to raise it
            self._problem = problem
            self._end(problem)
            return math.inf
        if hold_s == math.inf:
            self._take = None
            self._wake()
        return hold_s

    def _end(self, problem: Exception | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._problem = problem
            # The parser holds our methods, and we hold it.
            self._parser = None
            connection.ended(keep=self._keep and problem is None)
            self._wake()

    def _check_head_bytes(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > HEAD_BYTES:
            raise Broken("an answer brought too much that is no body")

    # ------------------------------------------------------------ for the parser

    def on_message_begin(self) -> None:
        self._began = True
        if self._whole:
            raise Broken("something follows that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:  # a trailer
            return
        self.headers.append((name, value))
        name = name.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and value.lower().endswith(b"chunked")):
            self._ends_with_connection = False
        elif name == b"content-encoding" and value.strip().lower() in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # which of both it finds out itself

    def on_headers_complete(self) -> None:
        parser = cast("httptools.HttpResponseParser", self._parser)
        self.status = parser.get_status_code()
        if self.status in (204, 304):
            self._ends_with_connection = False
        if self.status < 200:  # an interim answer, such as 103
            self.headers = []
            self._ends_with_connection = True
            self._inflate = None
            return
        if self._inflate is not None:
            self.headers = [header for header in self.headers if header[0].lower() != b"content-encoding"]
        self._has_head = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._inflate is not None:
            body = self._inflated(self._inflate, body)
            if not body:
                return
        self._unread.append(body)

    def _inflated(self, inflate: zlib._Decompress, body: bytes) -> bytes:
        if inflate.eof:  # it would gather what follows
            return b""
        room = INFLATED_BYTES - self._inflated_bytes
        if room <= 0:
            raise Broken("a compressed answer is too large")
        body = inflate.decompress(body, room)
        if inflate.unconsumed_tail:
            raise Broken("a compressed answer is too large")
        self._inflated_bytes += len(body)
        return body

    def on_message_complete(self) -> None:
        if self._has_head and not self._whole:
            self._whole = True
            self._keep = cast("httptools.HttpResponseParser", self._parser).should_keep_alive()


def _parser(reader: Answer) -> httptools.HttpResponseParser:
    """As lenient as RFC 9112 permits (section 2.2), and as servers in the field need it: bare line feeds, blanks
    after a chunk's size, odd header values. None of it can be taken for the end of an answer that goes on."""
    parser = httptools.HttpResponseParser(reader)
    parser.set_dangerous_leniencies(
        lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
    )
    return parser
