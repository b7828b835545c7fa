"""An MCP server over stdio in plain Python: protocol 2025-11-25, starts at once, and misbehaves when asked.

Run as a script. Its tools: `echo`, `pid`, `crash`, `sleep`, `huge`, `fail`, `picture`, `grow` (adds `grown`), and
`odd.name`. What it was told of cancellations is appended to the file that is its first argument, if there is one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

ANY: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}
TOOLS: list[dict[str, Any]] = [
    {"name": name, "description": f"does {name}", "inputSchema": ANY}
    for name in ("echo", "pid", "crash", "sleep", "huge", "fail", "picture", "grow", "odd.name")
] + [{"name": "broken_schema", "inputSchema": {"type": "object", "properties": {"a": {"type": "strin"}}}}]


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: str, *, error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], "isError": error}


def run(tool: str, args: dict[str, Any]) -> dict[str, Any] | None:
    """None: never answered."""
    match tool:
        case "echo" | "odd.name":
            return text(args.get("text", ""))
        case "pid":
            return text(str(os.getpid()))
        case "crash":
            sys.stderr.write("going down\n")
            sys.stderr.flush()
            os._exit(3)
        case "sleep":
            return None
        case "huge":
            return text("x" * 200_000)
        case "fail":
            return text("that\n  went wrong", error=True)
        case "picture":
            return {"content": [{"type": "image", "data": "QUJD", "mimeType": "image/png"}, *text("a cat")["content"]]}
        case "grow":
            TOOLS.append({"name": "grown", "inputSchema": ANY})
            send({"method": "notifications/tools/list_changed"})
            return text("grown")
        case _:
            return text("no such tool", error=True)


def answer(message: dict[str, Any]) -> None:
    method, params = message["method"], message.get("params") or {}
    if method == "notifications/cancelled" and len(sys.argv) > 1:
        with open(sys.argv[1], "a") as file:  # noqa: PTH123  # a script without imports starts faster
            file.write("cancelled\n")
    if "id" not in message:
        return
    if method == "initialize":
        result: dict[str, Any] | None = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "raw", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        result = run(params["name"], params.get("arguments") or {})
    else:
        send({"id": message["id"], "error": {"code": -32601, "message": f"Method not found: {method}"}})
        return
    if result is not None:
        send({"id": message["id"], "result": result})


def main() -> None:
    if os.environ.get("RAW_MCP") == "deaf":
        threading.Event().wait()
    if os.environ.get("RAW_MCP") == "broken":
        sys.stderr.write("no licence key\n")
        time.sleep(0.05)
        sys.exit(1)
    for line in sys.stdin:
        answer(json.loads(line))


if __name__ == "__main__":
    main()
