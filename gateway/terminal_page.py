"""An answer in the terminal, drawn while it grows."""

from __future__ import annotations

import re

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.text import Text

_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


class Page:
    """An answer as it grows. Whole blocks of Markdown are printed for good; the last one, which still changes, is
    drawn live below them, so that text of any length scrolls well. Not live: plain text at the end of each part."""

    def __init__(self, console: Console, *, live: bool) -> None:
        self._console = console
        self._wanted = live
        self._live: Live | None = None
        self._text = ""
        self._printed = 0

    def show(self, text: str) -> None:
        self._text = text
        if not self._wanted:
            return
        end = text.rfind("\n\n", self._printed)
        # A blank line inside a code block ends nothing.
        if end > 0 and len(_FENCE.findall(text[self._printed : end])) % 2 == 0:
            self.print(text[self._printed : end])
            self._printed = end
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=15)
            self._live.start()
        self._live.update(_block(text[self._printed :]))

    def rewind(self, text: str) -> None:
        """Only `text` stands of what was shown; what is on paper stays there."""
        self.flush()
        self._text, self._printed = text, min(self._printed, len(text))

    def flush(self) -> None:
        """Prints what was shown, and draws nothing below it until more comes."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        rest, self._printed = self._text[self._printed :], len(self._text)
        if rest.strip():
            self.print(rest)

    def print(self, text: str) -> None:
        self._console.print(_block(text) if self._wanted else Text(text.strip("\n")), soft_wrap=not self._wanted)


def _block(text: str) -> Padding:
    return Padding(Markdown(text.strip("\n")), (0, 0, 0, 2))
