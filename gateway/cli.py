"""The command line: `convobase serve` runs a gateway, `convobase chat` talks to one."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Annotated, Literal, NoReturn

import uvloop
from cyclopts import App, Parameter

from gateway.app import gateway_version
from gateway.logs.log import LogUnavailable
from gateway.logs.opening import open_log
from gateway.server import listen, reserve, serve
from gateway.settings import Settings, SettingsError, load_settings
from gateway.supervisor import StartFailed, supervise
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
        Where conversations are kept: sqlite:convobase.db, memory:, or redis://host for several workers or nodes.
    workers
        Processes that serve together, one for each core (1); several need a log that they share.
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
        open_log(settings.log.url)  # opens nothing yet, but says what is wrong with the URL
    except (SettingsError, ValueError) as problem:
        _stop(str(problem))
    configure(settings.serving.log_level, settings.serving.log_format)
    serving = settings.serving
    bind = listen if serving.workers == 1 else reserve
    try:
        bound = bind(serving.host, serving.port)
    except OSError as problem:
        _stop(f"Can't listen on {serving.host}:{serving.port} ({problem.strerror}). Choose another one with --port.")
    try:
        with bound:
            clean = _serve(settings, bound)
    except (LogUnavailable, StartFailed) as problem:
        _stop(str(problem))
    except asyncio.CancelledError:
        _stop("stopped before it was ready.")
    if not clean:
        raise SystemExit(1)


def _serve(settings: Settings, bound: socket.socket) -> bool:
    """Whether all ended in peace."""
    if settings.serving.workers > 1:
        return supervise(settings, bound)
    uvloop.run(serve(settings, bound))
    return True


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
