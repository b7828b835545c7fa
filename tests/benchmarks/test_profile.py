"""Which group a program's share belongs to."""

from __future__ import annotations

from benchmarks.profile import GROUPS, OTHER, shares

# Some versions of `perf` write a blank after the percent sign.
REPORT = """
# Total Lost Samples: 0
#
# Overhead;Shared Object
    51.69% ;libpython3.11.so.1.0
    30.10%;[kernel.kallsyms]
     4.00%;loop.cpython-311-x86_64-linux-gnu.so
     3.00%;_core.cpython-311-x86_64-linux-gnu.so
     2.00%;_sqlite3.cpython-311-x86_64-linux-gnu.so
     1.50%;libsqlite3.so.0.8.6
     1.21%;libc.so.6
     0.50%;something-else.so
"""


def test_shares_of_groups() -> None:
    found = shares(REPORT)
    assert set(found) == {*GROUPS, OTHER}
    assert found["Python: our code"] == 51.69
    assert found["system calls, network, waking"] == 30.10
    assert found["log (SQLite)"] == 3.5
    assert found[OTHER] == 0.5
    assert round(sum(found.values()), 2) == 94.0


def test_a_report_without_rows() -> None:
    assert not any(shares("# nothing\n").values())
