"""`python -m benchmarks.native NAME [ARGUMENTS…]`: compiles the tool if needed and becomes it."""

from __future__ import annotations

import os
import sys

from benchmarks.native import TOOLS, NoNativeToolsError, build


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        sys.exit(f"usage: python -m benchmarks.native {'|'.join(TOOLS)} [ARGUMENTS…]")
    try:
        program = build(sys.argv[1])
    except NoNativeToolsError as problem:
        sys.exit(str(problem))
    os.execv(program, [sys.argv[1], *sys.argv[2:]])


if __name__ == "__main__":
    main()
