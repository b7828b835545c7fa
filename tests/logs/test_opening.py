"""Which engine a `LOG_URL` names, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import cli
from gateway.logs.memory import MemoryLog
from gateway.logs.opening import open_log
from gateway.logs.redis_log import RedisLog
from gateway.logs.sqlite import SqliteLog


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:convobase.db", "convobase.db"),
        ("SQLite:./a b/x.db", "a b/x.db"),
        ("sqlite:/var/lib/x.db?synchronous=full", "/var/lib/x.db"),
    ],
)
def test_log_url_names_a_file(url: str, path: str) -> None:
    log = open_log(url)
    assert isinstance(log, SqliteLog)
    assert log._path == Path(path)


def test_log_url_names_the_memory() -> None:
    assert isinstance(open_log("memory:"), MemoryLog)


@pytest.mark.parametrize(
    "url",
    ["redis://u:hush@h", "rediss://h,i/0?ssl_ca_certs=ca.pem", "Redis+Sentinel://h/my/0", "rediss+sentinel://h/my"],
)
def test_log_url_names_a_redis(url: str) -> None:
    log = open_log(url, retention_s=60)
    assert isinstance(log, RedisLog)
    assert "hush" not in str(log.link)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "names no log engine"),
        ("convobase.db", "names no log engine"),
        ("memory", "names no log engine"),
        ("memory:x", "memory: takes nothing after the colon"),
        ("postgres://user:hush@host/db", "postgres: is no log engine"),
        ("redis:", "give redis://host:6379/0"),
        ("redis://:hush@localhost/hush", "the database is a number"),
        ("rediss://:hush@localhost?speed=hush", "there is no option 'speed'"),
        ("redis+sentinel://:hush@localhost", "the name of the primary"),
        ("sqlite:", "needs the path of a file"),
        ("sqlite::memory:", "needs the path of a file"),
        ("sqlite://x.db", "needs the path of a file"),
        ("sqlite:folder/", "needs the path of a file"),
        ("sqlite:x.db?synchronous=never", "'never' isn't one of auto, full, normal, off"),
        ("sqlite:x.db?mode=ro", "no option 'mode'"),
    ],
)
def test_a_wrong_log_url_is_explained(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^LOG_URL: ") as raised:
        open_log(url)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


def test_a_wrong_log_url_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVOBASE_LOG_URL", "sqlite:x.db?mode=ro")
    with pytest.raises(SystemExit) as stopped:
        cli.serve_command()
    assert stopped.value.code == cli.USAGE_EXIT
    printed = capsys.readouterr().err
    assert printed == "convobase: LOG_URL: sqlite: has no option 'mode'; the only one is ?synchronous=\n"
