"""RFC 6455 by the Autobahn cases, which PyPI's `kosoku` carries and drives.

Cases 12 and 13 are about compression, which we don't speak. Cases 9 are about messages of up to 16 MB, and need limits
that nobody should set.
"""

from __future__ import annotations

import pytest
from kosoku import FailureError, run_fuzzingclient
from websockets.frames import Opcode

from gateway.edge.websocket import ShellLimits
from tests.support.serving import Echo, serving

# NON-STRICT: valid messages that come in one read with a violation aren't answered any more (3.*, 4.*), and a frame
# that can't become valid UTF-8 is refused when it is complete, not octet by octet (6.4.3, 6.4.4).
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}

# A close frame between the fragments of a message: the case wants 1000, the websockets library answers 1002. The
# RFC has no word on it (a close frame is a control frame and may be interleaved, but the message is incomplete).
EXCEPTIONS = {"7.1.5"}


class FaithfulEcho(Echo):
    """Autobahn wants the opcode back that it sent; ours follows from the subprotocol."""

    def received(self, data: bytes, binary: bool) -> None:
        self.shell._opcode = Opcode.BINARY if binary else Opcode.TEXT
        self.shell.write([data])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("chosen", "count", "limits"),
    [
        pytest.param(["1.*", "2.*", "3.*", "4.*", "5.*"], 64, ShellLimits(), id="framing"),
        pytest.param(["6.*"], 145, ShellLimits(), id="utf-8"),
        pytest.param(["7.*", "10.*"], 38, ShellLimits(), id="closing"),
        pytest.param(["9.*"], 54, ShellLimits(max_message_bytes=2**24, high_water_bytes=2**25), id="size"),
    ],
)
async def test_autobahn(chosen: list[str], count: int, limits: ShellLimits) -> None:
    async with serving(FaithfulEcho, limits=limits) as server:
        try:
            results = await run_fuzzingclient(f"127.0.0.1:{server.port}", chosen, None, concurrency=8)
        except FailureError as failure:
            results = failure.results
    assert len(results) == count
    verdicts = {result.case_id: (result.behavior.value, result.behavior_close.value) for result in results}
    failed = {case for case, verdict in verdicts.items() if not PASSED.issuperset(verdict)}
    assert failed <= EXCEPTIONS, {case: verdicts[case] for case in failed}
