"""The limit of open files is raised as far as a run needs, and what can't be is said."""

from __future__ import annotations

import resource

import pytest

from benchmarks.load.limits import SPARE, TooManyFiles, raise_file_limit

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "sockets", "asked"),
    [
        (1024, 4096, 100, None),
        (1024, 4096, 2000, (2000 + SPARE, 4096)),
        (1024, NONE, 2000, (2000 + SPARE, NONE)),
        (NONE, NONE, 1_000_000, None),
        (1024, 4096, 10_000, (10_000 + SPARE, 10_000 + SPARE)),
    ],
)
def test_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, sockets: int, asked: tuple[int, int] | None
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    words = raise_file_limit(sockets)
    assert calls == ([asked] if asked else [])
    assert bool(words) is (asked is not None)


def test_what_cant_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(TooManyFiles, match=r"10,064 open files for 10,000 connections, and this machine allows 4,096"):
        raise_file_limit(10_000)
