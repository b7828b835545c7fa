"""The table of peers, and the check that decides whether one of them does the whole work."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.peers import check as checking
from benchmarks.peers import process
from benchmarks.peers.catalog import HERE, NODE, PEERS, WEB, Dialect, Peer
from benchmarks.peers.environments import Unavailable

AIOHTTP = (HERE / "apps" / "aiohttp_server.py").read_text()
YIELDS = "                    yield content\n"
SENDS_DONE = '    await socket.send_str(orjson.dumps({"type": "done"'
BROKEN = {
    "drops tokens": (YIELDS, '                    if "t" not in content:\n    ' + YIELDS, "another text"),
    "sends some twice": (YIELDS, YIELDS + '                    if "t" in content:\n    ' + YIELDS, "another text"),
    "cuts them smaller": (YIELDS, YIELDS.replace("content", "content[:1]") + YIELDS.replace("content", "content[1:]"),
                          "80 pieces, the upstream sent 40"),
    "one after another": ("        running.add(task)\n", "        await task\n", "they don't interleave"),
    "never ends": (SENDS_DONE, "    await asyncio.sleep(60)\n" + SENDS_DONE, "TimeoutError"),
    "another frame": (SENDS_DONE, SENDS_DONE.replace("done", "goodbye"), "goodbye"),
}  # fmt: skip
"""What is replaced in a right peer, by what, and what is said of it."""


@pytest.fixture(autouse=True)
def own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI, uvicorn, the SDK and aiohttp are here too, of the same versions: nothing has to be installed."""
    monkeypatch.setattr(process, "interpreter", lambda environment: sys.executable)
    monkeypatch.setattr(checking, "CONVERSATIONS", 3)
    monkeypatch.setattr(checking, "TOKENS", 40)
    monkeypatch.setattr(checking, "TIMEOUT_S", 4.0)


async def checked(name: str) -> tuple[bool, str]:
    out = io.StringIO()
    right = await checking.check([name], Console(file=out, width=500))
    return right, out.getvalue()


@pytest.mark.parametrize("name", ["fastapi", "fastapi-tuned", "aiohttp"])
async def test_a_right_peer_is_found_right(name: str) -> None:
    assert await checked(name) == (True, f"right    {name}: websocket, sse\n")


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_wrong_peer_is_found_out(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, words = BROKEN[fault]
    assert old in AIOHTTP
    script = tmp_path / "broken.py"
    script.write_text(AIOHTTP.replace(old, new))
    command = lambda python, port: [python, str(script), str(port)]  # noqa: E731
    broken = Peer("broken", "", WEB, command, (Dialect.WEBSOCKET,))
    monkeypatch.setitem(PEERS, "broken", broken)
    right, said = await checked("broken")
    assert not right
    assert said.startswith("wrong    broken: ")
    assert words in said


async def test_a_peer_that_the_machine_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(environment: str) -> str:
        raise Unavailable("Node.js 20 or newer is needed.")

    monkeypatch.setattr(process, "interpreter", missing)
    assert await checked("node-ws") == (True, "skipped  node-ws: Node.js 20 or newer is needed.\n")


async def test_a_peer_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Peer("ends", "", WEB, lambda python, port: [python, "-c", "raise SystemExit('no such thing')"], ())
    monkeypatch.setitem(PEERS, "ends", ends)
    right, said = await checked("ends")
    assert not right
    assert "no such thing" in said


def test_every_command_names_files_that_exist() -> None:
    for peer in PEERS.values():
        named = [word for word in peer.command("/python", 1) if word.startswith(str(HERE))]
        assert named, peer.name
        assert all(Path(word).exists() for word in named), named


def test_the_locks_pin_everything_and_name_no_host() -> None:
    for environment in {peer.environment for peer in PEERS.values()} - {NODE}:
        text = (HERE / f"requirements-{environment}.txt").read_text()
        assert "://" not in text
        for pinned in re.split(r"\n(?=[a-z])", text)[1:]:
            assert re.match(r"[a-z0-9-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", pinned, re.DOTALL), pinned
    packages = json.loads((HERE / "node" / "package-lock.json").read_text())["packages"]
    declared = json.loads((HERE / "node" / "package.json").read_text())["dependencies"]
    assert packages[""]["dependencies"] == declared
    for name, locked in packages.items():
        assert "resolved" not in locked
        assert name == "" or locked["integrity"].startswith("sha512-"), name
    for name, version in declared.items():
        assert packages[f"node_modules/{name}"]["version"] == version
