"""Messages and the frames that carry them (RFC 6455 sections 5.2 and 5.4)."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Sequence
from typing import Final

from websockets.frames import Frame, Opcode

# Complete headers of unmasked, unfragmented frames under 512 bytes, by length. Most frames are tokens, and a look-up
# costs a third of packing.
_HEADERS: Final = {
    opcode: tuple(
        bytes((0x80 | opcode, length)) if length < 126 else struct.pack("!BBH", 0x80 | opcode, 126, length)
        for length in range(512)
    )
    for opcode in (Opcode.TEXT, Opcode.BINARY)
}

_PONG: Final = bytes((0x80 | Opcode.PONG,))
PING: Final = bytes((0x80 | Opcode.PING, 0))


def pack(opcode: Opcode, payloads: Sequence[bytes]) -> bytes:
    """Each payload as one message in one frame, as a server sends it."""
    headers = _HEADERS[opcode]
    if len(payloads) == 1 and len(payloads[0]) < len(headers):
        return headers[len(payloads[0])] + payloads[0]
    parts: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        if length < len(headers):
            parts.append(headers[length])
        elif length < 65536:
            parts.append(struct.pack("!BBH", 0x80 | opcode, 126, length))
        else:
            parts.append(struct.pack("!BBQ", 0x80 | opcode, 127, length))
        parts.append(payload)
    return b"".join(parts)


def without_pongs(frames: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """Returns the other frames, and the last pong or b"": it answers all pings before it (RFC 6455 section 5.5.3)."""
    pongs = [frame for frame in frames if frame.startswith(_PONG)]
    return [frame for frame in frames if not frame.startswith(_PONG)], pongs[-1] if pongs else b""


class Fragments:
    """A message that may come in several frames. The library bounds its size and checks the order of frames."""

    __slots__ = ("_data", "_decoder", "binary")

    def __init__(self, opcode: Opcode) -> None:
        self.binary = opcode is Opcode.BINARY
        # Not a list of fragments: those may be empty, and any number of them.
        self._data = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None

    def add(self, frame: Frame) -> bytes | None:
        """Returns the whole message when `frame` is the last one. Raises `UnicodeDecodeError` as soon as the text
        can't become valid any more (RFC 6455 section 8.1)."""
        data = bytes(frame.data)
        if not self.binary:
            self._check_text(data, frame.fin)
        if frame.fin and not self._data:
            return data
        self._data += data
        return bytes(self._data) if frame.fin else None

    def _check_text(self, data: bytes, final: bool) -> None:
        if self._decoder is None:
            if final:
                if not data.isascii():
                    data.decode()
                return
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decoder.decode(data, final)
