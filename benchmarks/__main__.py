"""`python -m benchmarks`: the comparison, and the commands beside it, each loaded only when it is wanted."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {"load": "benchmarks.load.__main__", "profile": "benchmarks.profile"}
"""Modules with a `main(argv)` that returns an exit code."""


def main(argv: list[str]) -> int:
    module = COMMANDS.get(argv[0]) if argv else None
    if module is not None:
        return int(import_module(module).main(argv[1:]))
    from benchmarks.compare.cli import main as compare  # noqa: PLC0415 - `load` needs none of it

    return compare(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
