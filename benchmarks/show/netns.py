"""Machines on one machine: network namespaces on a bridge, each with an address, between which packets can be dropped.

It needs root (CAP_NET_ADMIN), `ip` and `nft`. Everything it makes carries `cbshow` in its name and goes at the end;
what an earlier run left behind is removed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BRIDGE = "cbshow"
NETWORK = "10.77.31"
OURS = f"{NETWORK}.1"
"""The bridge's own address: of whoever isn't in a namespace."""


class Machine:
    """A namespace with an address that all others and we reach."""

    def __init__(self, number: int) -> None:
        self.name = f"{BRIDGE}{number}"
        self.host = f"{NETWORK}.{10 + number}"
        self.prefix = ("ip", "netns", "exec", self.name)
        """Before a command that shall run there."""

    async def drop_to(self, host: str) -> None:
        """From now on its packets to `host` are lost, without a word to either side."""
        await self._nft("add rule inet cut out ip daddr", host, "drop")

    async def drop_from(self, host: str) -> None:
        await self._nft("add rule inet cut in ip saddr", host, "drop")

    async def heal(self) -> None:
        await self._nft("flush chain inet cut in")
        await self._nft("flush chain inet cut out")

    async def make(self) -> None:
        inside, outside = "eth0", f"{self.name}v"
        await run(f"ip netns add {self.name}")
        await run(f"ip link add {outside} type veth peer name {inside} netns {self.name}")
        await run(f"ip link set {outside} master {BRIDGE} up")
        for command in (f"ip addr add {self.host}/24 dev {inside}", f"ip link set {inside} up", "ip link set lo up"):
            await run(" ".join((*self.prefix, command)))
        await self._nft("add table inet cut")
        for chain, hook in (("in", "input"), ("out", "output")):
            await self._nft(f"add chain inet cut {chain} {{ type filter hook {hook} priority 0 ; }}")

    async def _nft(self, *words: str) -> None:
        await run(" ".join((*self.prefix, "nft", *words)))


async def run(command: str) -> None:
    """Raises `RuntimeError` with what it said."""
    process = await asyncio.create_subprocess_exec(
        *command.split(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command}: {said.decode().strip()}")


async def _clear(machines: list[Machine]) -> None:
    for command in (*(f"ip netns del {machine.name}" for machine in machines), f"ip link del {BRIDGE}"):
        with contextlib.suppress(RuntimeError):  # it isn't there
            await run(command)


@asynccontextmanager
async def machines(count: int) -> AsyncIterator[list[Machine]]:
    """Raises `RuntimeError` where that isn't allowed."""
    missing = [name for name in ("ip", "nft") if not shutil.which(name)]
    if missing:
        raise RuntimeError(f"this show needs {' and '.join(missing)} (Debian: apt-get install iproute2 nftables)")
    if os.geteuid() != 0:
        raise RuntimeError("this show makes network namespaces, for which it has to be root")
    made = [Machine(number) for number in range(1, count + 1)]
    await _clear(made)
    try:
        await run(f"ip link add {BRIDGE} type bridge")
        await run(f"ip addr add {OURS}/24 dev {BRIDGE}")
        await run(f"ip link set {BRIDGE} up")
        for machine in made:
            await machine.make()
        yield made
    finally:
        await _clear(made)
