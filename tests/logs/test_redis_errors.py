"""What is said when Redis can't do what was asked."""

from __future__ import annotations

import pytest
from redis import exceptions
from redis._parsers import BaseParser

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import Refused, explained


def reply(line: str) -> Exception:
    """What redis-py makes of an error reply."""
    return BaseParser.parse_error(line)


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (reply("OOM command not allowed when used memory > 'maxmemory'."), "is out of memory"),
        (reply("READONLY You can't write against a read only replica."), "is a replica, which takes no writes"),
        (reply("LOADING Valkey is loading the dataset in memory"), "is loading its data"),
        (reply("MASTERDOWN Link with MASTER is down"), "is a replica whose primary is gone"),
        (reply("CLUSTERDOWN Hash slot not served"), "belongs to a cluster that is down"),
        (reply("TRYAGAIN Multiple keys request during rehashing of slot"), "is moving these keys to another node"),
        (reply("MOVED 3999 127.0.0.1:6381"), "has handed these keys to another node"),
        (reply("ASK 3999 127.0.0.1:6381"), "is handing these keys to another node"),
        (reply("MISCONF Valkey is configured to save RDB snapshots"), "as it can't save them to its disk"),
        (reply("NOREPLICAS Not enough good replicas to write."), "as it has too few replicas"),
        (reply("BUSY Valkey is busy running a script."), "is busy with a script"),
        (reply("NOAUTH Authentication required."), "refuses the credentials"),
        (reply("WRONGPASS invalid username-password pair or user is disabled."), "refuses the credentials"),
        (reply("ERR max number of clients reached"), "can't be reached: max number of clients reached"),
        (exceptions.TimeoutError("Timeout reading from socket"), "doesn't answer"),
        (TimeoutError(), "doesn't answer"),
        (OSError(111, "Connection refused"), "can't be reached: [Errno 111] Connection refused"),
        (exceptions.ConnectionError("Connection closed by server."), "can't be reached: Connection closed by server."),
        (exceptions.RedisClusterException("two\nlines"), "can't be reached: two lines"),
    ],
)
def test_the_servers_state_is_told_in_one_line(problem: Exception, says: str) -> None:
    told = explained(problem, "h:1")
    assert str(told).startswith("Redis at h:1 ")
    assert says in str(told)
    assert type(told) is LogUnavailable


@pytest.mark.parametrize(
    "line",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOPERM User x has no permissions to run the 'evalsha' command",
        "ERR unknown command 'X'",
        "ERR user_script:1: attempt to index a nil value script: 1234",
    ],
)
def test_a_refused_command_is_told_from_a_state(line: str) -> None:
    assert isinstance(explained(reply(line), "h:1"), Refused)


def test_what_is_explained_already_stays() -> None:
    told = LogUnavailable("so it is")
    assert explained(told, "h:1") is told
