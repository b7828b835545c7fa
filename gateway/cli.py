"""The command line: `convobase serve` runs a gateway, `convobase chat` talks to one."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Literal, NoReturn

import uvloop
from cyclopts import App, Parameter

from gateway.app import gateway_version, listen, serve
from gateway.logs.log import LogUnavailable
from gateway.settings import SettingsError, load_settings
from gateway.telemetry.logging import configure
from gateway.terminal import chat

USAGE_EXIT = 2

app = App(
    name="convobase",
    help="Convobase Gateway: streaming chat between many clients and any OpenAI-compatible model.",
    version=gateway_version,
)


@app.command(name="serve")
def serve_command(
    *,
    host: str | None = None,
    port: int | None = None,
    model: str | None = None,
    log_url: str | None = None,
    workers: int | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    drain_s: float | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    log_format: Literal["console", "json"] | None = None,
    insecure: Annotated[bool | None, Parameter(negative="")] = None,
) -> None:
    """Run the gateway. Every setting is also an environment variable CONVOBASE_<NAME>, or a line in convobase.toml.

    Parameters
    ----------
    host
        Address to listen on (127.0.0.1).
    port
        Port to listen on (8080); 0: any free one.
    model
        The upstream model; `demo` needs no key and no network.
    log_url
        Where conversations are kept: sqlite:convobase.db, or memory:.
    workers
        Processes (1).
    tls_cert
        Certificate chain (PEM), for https and wss.
    tls_key
        Its private key (PEM).
    drain_s
        How long running turns may go on after SIGTERM (30).
    log_level
        How much is logged (info).
    log_format
        For people or for machines (console).
    insecure
        Listen beyond this machine although nobody has to authenticate.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = load_settings(**flags)
    except SettingsError as problem:
        _stop(str(problem))
    configure(settings.serving.log_level, settings.serving.log_format)
    serving = settings.serving
    try:
        listener = listen(serving.host, serving.port)
    except OSError as problem:
        _stop(f"Can't listen on {serving.host}:{serving.port} ({problem.strerror}). Choose another one with --port.")
    try:
        uvloop.run(serve(settings, listener))
    except LogUnavailable as problem:
        _stop(str(problem))
    except asyncio.CancelledError:
        _stop("stopped before it was ready.")


@app.command(name="chat")
def chat_command(url: str = "ws://127.0.0.1:8080/chat") -> int:
    """Chat in the terminal, over the WebSocket of a running gateway.

    Parameters
    ----------
    url
        The gateway's WebSocket address.
    """
    return uvloop.run(chat(url))


def _stop(line: str) -> NoReturn:
    print(f"convobase: {line}", file=sys.stderr)
    raise SystemExit(USAGE_EXIT)


def main() -> None:
    """Entry point of the `convobase` command."""
    app()


if __name__ == "__main__":
    main()
