from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gateway.edge.messages import PING, Fragments, pack, without_pongs

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 511, 512, 65535, 65536])
def test_pack_writes_what_the_library_would(opcode: Opcode, length: int) -> None:
    payload = b"x" * length
    assert pack(opcode, [payload]) == Frame(opcode, payload).serialize(mask=False)


@given(st.lists(st.binary(max_size=300)))
def test_pack_joins_frames(payloads: list[bytes]) -> None:
    assert pack(TEXT, payloads) == b"".join(Frame(TEXT, payload).serialize(mask=False) for payload in payloads)


def test_ping_is_an_empty_ping() -> None:
    assert Frame(Opcode.PING, b"").serialize(mask=False) == PING


def assembled(opcode: Opcode, pieces: list[bytes]) -> list[bytes | None]:
    fragments = Fragments(opcode)
    return [
        fragments.add(Frame(opcode if number == 0 else CONT, piece, fin=number == len(pieces) - 1))
        for number, piece in enumerate(pieces)
    ]


@given(st.text(), st.lists(st.integers(0, 400)))
def test_text_may_be_cut_anywhere(text: str, cuts: list[int]) -> None:
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert assembled(TEXT, pieces) == [None] * (len(pieces) - 1) + [data]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"\xff"], id="never a byte of UTF-8"),
        pytest.param([b"ab\xc3"], id="ends within a character"),
        pytest.param([b"a", b"\xc3"], id="the last fragment does"),
        pytest.param([b"\xc3", b"("], id="a character broken off"),
        pytest.param([b"\xed\xa0\x80"], id="a surrogate"),
        pytest.param([b"a\xff", b"b", b"c"], id="before the last fragment"),
    ],
)
def test_invalid_text_is_refused_at_the_fragment_that_breaks_it(pieces: list[bytes]) -> None:
    with pytest.raises(UnicodeDecodeError):
        assembled(TEXT, pieces)
    assert assembled(BINARY, pieces)[-1] == b"".join(pieces)


def test_text_is_refused_before_its_end_is_known() -> None:
    with pytest.raises(UnicodeDecodeError):
        Fragments(TEXT).add(Frame(TEXT, b"\xff", fin=False))


def test_without_pongs() -> None:
    close, first, last = b"\x88\x02\x03\xe8", b"\x8a\x01a", b"\x8a\x01b"
    assert without_pongs([first, close, last, b""]) == ([close, b""], last)
    assert without_pongs([close]) == ([close], b"")
