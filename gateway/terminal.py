"""`convobase chat`: a conversation in the terminal, over the WebSocket of a running gateway."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from msgspec import UNSET
from rich.console import Console
from rich.text import Text

from gateway.terminal_page import Page
from protocol.client import (
    Client,
    ClientError,
    Connected,
    Event,
    Reconnecting,
    RequestError,
    Turn,
    Unreachable,
    get_conversation,
)
from protocol.client.tokens import TokenSource
from protocol.frames import AnyServerFrame, FunctionCall, Goaway, Restart, Snapshot, Token, Tool

HELP = """\
Type a message and press Enter. Ctrl-C stops the answer, Ctrl-D leaves.

  /new          begin another conversation
  /switch ID    go on with the conversation ID
  /list         the conversations of this session
  /history      what was said in this one
  /tool NAME …  offer the model a function NAME, with a description; you answer its calls
  /help         this text (other /words go to the model: ask the demo model with " /help")
  /quit         leave"""

APPROVALS = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}


async def chat(url: str, *, token: TokenSource = None, console: Console | None = None) -> int:
    """Talks to the gateway at `url` until the person leaves; returns the exit status (1: no gateway there).

    Without a terminal on standard input each line is a message (or a command), answered in plain text; a function
    call takes the next line as its result.
    """
    console = console or Console()
    try:
        async with Client(url, token=token, on_event=lambda event: _tell(console, event)) as client:
            return await Conversation(client, console, url, token).run()
    except ValueError as problem:
        console.print(Text(str(problem), "red"))
    except Unreachable:
        console.print(Text(f"No gateway answers at {url}.", "bold red"))
        console.print(Text("Start one with `make run` (or `convobase serve`), or name another address: "
                           "`convobase chat ws://HOST:PORT/chat`."))  # fmt: skip
    except ClientError as problem:
        console.print(Text(f"The gateway and this program can't go on: {problem}", "red"))
    return 1


def _tell(console: Console, event: Event) -> None:
    match event:
        case Reconnecting():
            console.print(Text(f"· {event.reason}; reconnecting in {event.delay_s:.1f} s …", "yellow"))
        case Connected(again=True):
            console.print(Text("· connected again; nothing is lost", "green"))
        case Goaway():
            console.print(Text(f"· the gateway says goodbye ({event.reason})", "yellow"))
        case _:
            pass


class Conversation:
    """The loop of questions and answers. One conversation is current; others are kept by their ids."""

    def __init__(self, client: Client, console: Console, url: str, token: TokenSource) -> None:
        self._client = client
        self._console = console
        self._url = url
        self._token = token
        self._current = uuid.uuid4().hex
        self._titles: dict[str, str] = {}
        """First message of each conversation of this session, by id."""
        self._tools: dict[str, Tool] = {}
        self._person = sys.stdin.isatty() and console.is_terminal
        self._sending: asyncio.Task[Turn] | None = None
        self._turn: Turn | None = None
        self._shown_calls: set[str] = set()
        """Of the turn that runs: a call that comes again was approved."""
        self._stopping: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        with suppress(EOFError), self._ctrl_c():
            self._note("Hello! Type a message, or /help.")
            while (line := (await self._read("you › ")).rstrip()) != "/quit":
                try:
                    await self._obey(line)
                except RequestError as problem:
                    again = " Trying again may help." if problem.retryable else ""
                    self._console.print(Text(f"{problem.message}{again}", "red"))
                except (Unreachable, msgspec.ValidationError) as problem:
                    self._console.print(Text(str(problem), "red"))
        for task in self._stopping:
            task.cancel()
        return 0

    async def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "" if not rest:
                return
            case "/new":
                self._current = uuid.uuid4().hex
                self._note("A new conversation.")
            case "/switch" if rest:
                self._current = rest.strip()
                await self._history()
            case "/list":
                for name, title in self._titles.items() or [(self._current, "nothing said yet")]:
                    self._console.print(Text(f"{'*' if name == self._current else ' '} {name}  {title}"))
            case "/history":
                await self._history()
            case "/tool" if rest:
                name, _, about = rest.strip().partition(" ")
                tool = {"type": "function", "function": {"name": name, "description": about or f"Calls {name}."}}
                self._tools[name] = msgspec.convert(tool, Tool)
                self._note(f"From now on the model may call {name}, and you are the one who answers.")
            case "/help" | "/switch" | "/tool":
                self._console.print(Text(HELP))
            case _:  # other words with a slash are the model's: the demo model has some
                self._titles.setdefault(self._current, line[:50])
                await self._answer(line.strip())

    async def _answer(self, message: str) -> None:
        sending = self._client.send(message, conversation_id=self._current, tools=list(self._tools.values()) or None)
        self._sending = task = asyncio.create_task(sending)
        await asyncio.wait([task])
        self._sending = None
        if task.cancelled():
            self._note("given up; it may have been heard all the same")
            return
        self._turn = turn = task.result()
        page = Page(self._console, live=self._person)
        try:
            async for frame in turn:
                await self._show(frame, turn, page)
                if isinstance(frame, FunctionCall):
                    self._shown_calls.add(frame.call_id)
        finally:
            page.flush()
            self._turn = None
            self._shown_calls.clear()
        if turn.error is not None:
            self._console.print(Text(f"{turn.error.message} ({turn.error.code})", "red"))
        elif turn.finish_reason != "stop":
            self._note({"cancelled": "stopped", "length": "cut: it grew too long"}.get(turn.finish_reason or "", "…"))

    async def _show(self, frame: AnyServerFrame, turn: Turn, page: Page) -> None:
        match frame:
            case FunctionCall() if frame.call_id in self._shown_calls:
                self._note(f"{frame.name} is approved, and the gateway runs it")
            case FunctionCall():
                page.flush()
                self._console.print(
                    Text.assemble(("ƒ ", "magenta"), (frame.name, "bold magenta"), f" {json.dumps(frame.args)}")
                )
                if frame.runs != "gateway":
                    await self._call(frame)
            case Restart() | Snapshot():
                page.rewind(turn.text)
                self._note("the answer was interrupted, and goes on from what stands of it")
            case Token():
                page.show(turn.text)
            case _:
                pass

    async def _call(self, call: FunctionCall) -> None:
        """Asks the person for the result. A turn that ends meanwhile is told by the gateway's refusal."""
        prompt, parse = ("its result, as JSON › ", self._parse)
        if call.runs == "approval":
            prompt, parse = ("may the gateway run it? yes or no › ", self._parse_approval)
        while (result := parse(await self._read(prompt))) is UNSET:
            pass
        with suppress(RequestError):
            await self._client.function_result(call.conversation_id, call.call_id, result=result)

    def _parse(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError:
            self._console.print(Text('That isn\'t JSON: numbers as they are, text "in quotes", {"or": "an object"}.'))
            return UNSET

    def _parse_approval(self, line: str) -> Any:
        word = APPROVALS.get(line.strip().lower(), UNSET)
        if word is UNSET:
            self._console.print(Text("Type yes or no."))
        return word

    async def _history(self) -> None:
        try:
            conversation = await get_conversation(self._url, self._current, token=self._token)
        except RequestError as problem:
            if problem.code != "NOT_FOUND":
                raise
            self._note("Nothing was said here yet.")
            return
        for line in conversation.messages:
            if line.role == "user":
                self._titles.setdefault(self._current, line.content[:50])
                self._console.print(Text(f"you › {line.content}", "bold"))
            else:
                Page(self._console, live=False).print(line.content)

    def _note(self, words: str) -> None:
        if self._person:
            self._console.print(Text(f"· {words}", "dim"))

    async def _read(self, prompt: str) -> str:
        """Raises `EOFError` when there is nothing more to read."""
        if self._person:
            return await asyncio.to_thread(input, prompt)
        line: str = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            raise EOFError
        return line

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Ctrl-C stops the answer that runs, and never the program."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may ask for signals
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def _interrupted(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        elif self._turn is None:
            self._note("Nothing runs. /quit or Ctrl-D leaves.")
        else:
            task = asyncio.get_running_loop().create_task(self._stop(self._turn))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop(self, turn: Turn) -> None:
        with suppress(ClientError):
            await turn.cancel()
