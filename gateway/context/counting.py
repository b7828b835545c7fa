"""Counts tokens with tiktoken, from vocabularies that ship with the package: never a download.

Measured with tiktoken 0.14: 0.08 µs a character of prose, but up to 0.5 µs for CJK, emoji and long runs of one
character; the cost of a run grows faster than its length, and a run of a million spaces makes the regex engine give
up with an error ("max stack size exceeded"). So a text is counted in pieces of at most `PIECE_CHARS`, cut
before a word where there is one: there the pre-tokeniser cuts anyway, and the count stays exact. A cut inside a
run without spaces can change it by a token or two.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple

import tiktoken

EncodingName = Literal["o200k_base", "cl100k_base"]

PIECE_CHARS = 20_000
INLINE_CHARS = 4_000
"""Texts that together are shorter are counted on the event loop: 2 ms at the very worst."""
LOOK_UP_CHARS = 64_000
"""Texts that together are shorter are looked up on the event loop first: 0.1 ms."""
ENTRY_BYTES = 200
"""What one cached count costs: digest, integer, and their place in an ordered dict (measured: 160)."""

_CL100K_MODELS = re.compile(r"(?:ft:)?gpt-(?:3\.5|35|4(?:-|$))")


class _Vocabulary(NamedTuple):
    sha256: str
    pattern: str
    tokens: int


# The patterns are tiktoken's own (tiktoken_ext/openai_public.py), which can't be had there without a download.
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VOCABULARIES: dict[EncodingName, _Vocabulary] = {
    "cl100k_base": _Vocabulary(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", _CL100K_PATTERN, 100_256
    ),
    "o200k_base": _Vocabulary(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", _O200K_PATTERN, 199_998
    ),
}


class VocabularyDamaged(Exception):
    """A vocabulary file of the package isn't the one that it should be: the installation is broken."""


def encoding_for(model: str) -> EncodingName:
    """The encoding of an OpenAI model; o200k, the current one, also stands in for every other model."""
    return "cl100k_base" if _CL100K_MODELS.match(model) else "o200k_base"


class _Loader:
    """Encodings are immutable and take 20 MB and 0.3 s: each is made once a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[EncodingName, tiktoken.Encoding] = {}

    def get(self, name: EncodingName) -> tiktoken.Encoding:
        made = self._made.get(name)
        if made is None:
            with self._lock:
                made = self._made.get(name)
                if made is None:
                    made = self._made[name] = _read(name)
        return made

    def has(self, name: EncodingName) -> bool:
        return name in self._made


_ENCODINGS = _Loader()


def _read(name: EncodingName) -> tiktoken.Encoding:
    vocabulary = _VOCABULARIES[name]
    packed = files("gateway.context").joinpath("vocab", f"{name}.tiktoken.gz").read_bytes()
    try:
        text = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise VocabularyDamaged(f"{name}: {error}; install the package again") from error
    if hashlib.sha256(text).hexdigest() != vocabulary.sha256:
        raise VocabularyDamaged(f"{name}: wrong SHA-256; install the package again")
    decode = base64.b64decode
    ranks = {decode(token): int(rank) for token, rank in map(bytes.split, text.splitlines())}
    # No special tokens: what a user writes is text, whatever it looks like.
    return tiktoken.Encoding(
        name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=ranks,
        special_tokens={},
        explicit_n_vocab=vocabulary.tokens,
    )


class TokenCounter:
    """Counts tokens as the encoding of one model does, and remembers counts by the text's digest.

    Counters share the encodings. `cache_bytes` bounds this one's memory; when it is full, the count that was not
    asked for the longest is forgotten. Safe to use from several threads.
    """

    def __init__(self, model: str = "", *, cache_bytes: int = 4 << 20) -> None:
        self.encoding: EncodingName = encoding_for(model)
        self._max_entries = cache_bytes // ENTRY_BYTES
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def preload(self) -> None:
        """Starts to load the vocabulary in a thread of its own, and returns at once."""
        if not _ENCODINGS.has(self.encoding):
            threading.Thread(target=_ENCODINGS.get, args=(self.encoding,), name="vocabulary", daemon=True).start()

    def count(self, text: str) -> int:
        """Tokens of `text`; special tokens in it count as the plain text that they are.

        Blocks: 0.3 s for the vocabulary if it isn't loaded, and see the module for long texts. On an event loop
        use `count_many`. Raises `VocabularyDamaged`.
        """
        key = _digest(text)
        known = self._recall(key)
        if known is not None:
            return known
        encoding = _ENCODINGS.get(self.encoding)
        total = sum(len(encoding.encode(piece, disallowed_special=())) for piece in pieces(text))
        self._remember(key, total)
        return total

    async def count_many(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without holding up the event loop: what is new and long is counted in a thread.

        Cancelling it is safe; a count that runs already runs to its end and is remembered.
        """
        if sum(map(len, texts)) > LOOK_UP_CHARS:
            return await asyncio.to_thread(self._count_all, texts)
        counts = [self._recall(_digest(text)) for text in texts]
        unknown = [text for text, count in zip(texts, counts, strict=True) if count is None]
        if not unknown:
            return [count for count in counts if count is not None]
        if _ENCODINGS.has(self.encoding) and sum(map(len, unknown)) <= INLINE_CHARS:
            counted = iter(self._count_all(unknown))
        else:
            counted = iter(await asyncio.to_thread(self._count_all, unknown))
        return [next(counted) if count is None else count for count in counts]

    def _count_all(self, texts: Sequence[str]) -> list[int]:
        return [self.count(text) for text in texts]

    def _recall(self, key: bytes) -> int | None:
        with self._lock:
            known = self._counts.get(key)
            if known is not None:
                self._counts.move_to_end(key)
            return known

    def _remember(self, key: bytes, count: int) -> None:
        with self._lock:
            self._counts[key] = count
            while len(self._counts) > self._max_entries:
                self._counts.popitem(last=False)


def _digest(text: str) -> bytes:
    # 128 bits: two texts of one process never share a digest. Lone surrogates are legal in a str.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pieces(text: str, limit_chars: int = PIECE_CHARS) -> Iterator[str]:
    """`text` cut into parts of at most `limit_chars`, where possible just before ` word`."""
    start = 0
    while len(text) - start > limit_chars:
        end = _cut(text, start, start + limit_chars)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    """The last place in the second half of `text[start:end]` between a letter and one space before a letter, where
    both encodings' patterns always cut; `end` when there is none."""
    at = end
    floor = start + (end - start) // 2
    while (at := text.rfind(" ", floor, at)) > floor:
        if text[at - 1].isalpha() and text[at + 1 : at + 2].isalpha():
            return at
    return end
