"""`python -m benchmarks.peers`: see the package's page."""

from __future__ import annotations

import argparse
import asyncio
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.peers import __doc__ as page
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.check import check
from benchmarks.peers.environments import Unavailable, interpreter
from benchmarks.peers.process import become

COMMANDS = ("list", "setup", "check")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=page, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="list", choices=[*COMMANDS, *PEERS], metavar="COMMAND|NAME")
    parser.add_argument("names", nargs="*", metavar="NAME", help="with a command: only these peers")
    parser.add_argument("--port", type=int, help="to serve on, on 127.0.0.1")
    parser.add_argument("--upstream", help="the OPENAI_BASE_URL to ask, as http://127.0.0.1:9000/v1")
    parser.add_argument("--redis", help="the Redis of a peer that needs one, as redis://127.0.0.1:6379")
    options = parser.parse_args()
    console = Console()
    if unknown := set(options.names) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    names = options.names or list(PEERS)
    try:
        match options.what:
            case "list":
                _list(console)
            case "setup":
                _setup(names, console)
            case "check":
                sys.exit(0 if asyncio.run(check(names, console)) else 1)
            case name:
                if options.port is None or options.upstream is None:
                    parser.error("a peer needs --port and --upstream")
                become(PEERS[name], options.port, options.upstream, options.redis)
    except Unavailable as missing:
        sys.exit(str(missing))


def _list(console: Console) -> None:
    table = Table()
    for column in ("name", "what", "environment", "speaks"):
        table.add_column(column)
    for peer in PEERS.values():
        speaks = [dialect.value for dialect in peer.dialects] + ["fan-out"] * peer.fans_out
        table.add_row(peer.name, peer.what, peer.environment, ", ".join(speaks))
    console.print(table)


def _setup(names: list[str], console: Console) -> None:
    for environment in dict.fromkeys(PEERS[name].environment for name in names):
        try:
            console.print(f"{environment}: ready, {interpreter(environment)}", soft_wrap=True)
        except Unavailable as missing:
            console.print(f"{environment}: skipped. {missing}", soft_wrap=True)


if __name__ == "__main__":
    main()
