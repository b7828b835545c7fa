"""Who says something when: open and closed loops, and what is counted from when."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from benchmarks.load.conversation import Conversation
from benchmarks.load.dispatch import Dispatcher
from benchmarks.load.plan import Plan
from benchmarks.load.tally import Tally


class Line:
    """A carrier that remembers what was asked, and when."""

    def __init__(self, *, online: bool = True) -> None:
        self.number = 0
        self.online = online
        self.asked: list[Conversation] = []
        self.left: list[str] = []
        self.times: list[float] = []

    def ask(self, conversation: Conversation) -> None:
        self.asked.append(conversation)
        self.times.append(time.monotonic())

    def leave(self, conversation: Conversation) -> None:
        self.left.append(conversation.id)

    def adopt(self, conversation: Conversation) -> None: ...


def dispatcher(**plan: Any) -> tuple[Dispatcher, Tally]:
    tally = Tally()
    made = Plan(url="http://gateway", run_id="r", **{"ramp_s": 0.0, **plan})
    return Dispatcher(made, 0, tally, random.Random(1)), tally


async def test_one_in_every_conversation() -> None:
    lines = [Line(), Line()]
    house, tally = dispatcher()
    for line in lines:
        house.adopt(line, timed=True)
    assert [len(line.asked) for line in lines] == [1, 1]
    house.free(lines[0].asked[0], refused=False)
    assert [len(line.asked) for line in lines] == [2, 1]
    assert tally.counts.messages == 3


async def test_so_many_in_flight() -> None:
    line = Line()
    house, _ = dispatcher(in_flight=2)
    for _ in range(5):
        house.adopt(line, timed=True)
    assert len(line.asked) == 2
    house.free(line.asked[0], refused=False)
    assert [each.id for each in line.asked] == ["load-r-0-1", "load-r-0-2", "load-r-0-3"], "those idle longest first"


async def test_nobody_is_asked_on_a_broken_line() -> None:
    line = Line(online=False)
    house, _ = dispatcher()
    house.adopt(line, timed=True)
    assert line.asked == []
    line.online = True
    house.back(line)
    assert len(line.asked) == 1


async def test_after_enough_turns_a_new_conversation_takes_its_place() -> None:
    line = Line()
    house, _ = dispatcher(turns=2)
    house.adopt(line, timed=True)
    for _ in range(3):
        house.free(line.asked[-1], refused=False)
    assert [each.id for each in line.asked] == ["load-r-0-1", "load-r-0-1", "load-r-0-2", "load-r-0-2"]
    assert line.left == ["load-r-0-1"]
    assert house.made == [("load-r-0-1", 0), ("load-r-0-2", 0)]


async def test_a_refused_one_is_quiet_for_a_while() -> None:
    line = Line()
    house, _ = dispatcher()
    house.adopt(line, timed=True)
    house.free(line.asked[0], refused=True)
    await asyncio.sleep(0.05)
    assert len(line.asked) == 1


async def test_an_open_loop_counts_from_when_a_message_was_due() -> None:
    line = Line()
    house, tally = dispatcher(rate=50.0)
    house.adopt(line, timed=True)
    began = time.monotonic()
    house.start(began)
    await asyncio.sleep(0.25)  # one conversation, which isn't answered: the rest waits
    assert len(line.asked) == 1
    assert len(house.waiting) == pytest.approx(12, abs=3)
    assert tally.counts.late == len(house.waiting)
    house.free(line.asked[0], refused=False)
    second = line.asked[1].asked
    assert second is not None
    assert second.due_at == pytest.approx(began + 1 / 50, abs=0.001)
    house.stop()
    house.free(line.asked[1], refused=False)
    assert len(line.asked) == 2


async def test_the_rate_grows_with_the_ramp() -> None:
    house, _ = dispatcher(rate=100.0, ramp_s=2.0)
    house.stop()
    house.start(0.0)
    due = [house._due_at(number) for number in range(301)]
    assert due == sorted(due)
    assert due[100] == pytest.approx(2.0), "half as many as at the full rate"
    assert due[200] == pytest.approx(3.0)
    assert sum(at < 1.0 for at in due) == 25


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_parts_of_a_plan_add_up(processes: int) -> None:
    plan = Plan(url="u", run_id="r", connections=10, in_flight=8, rate=5.0, processes=processes)
    parts = [plan.part(number) for number in range(processes)]
    assert sum(part.connections for part in parts) == 10
    assert sum(part.in_flight for part in parts) == 8
    assert sum(part.rate for part in parts) == pytest.approx(5.0)


async def test_what_isnt_answered_in_time_is_given_up() -> None:
    line = Line()
    house, tally = dispatcher()
    house.adopt(line, timed=True)
    house.give_up(time.monotonic() - 10)
    assert tally.counts.unended == 0
    house.give_up(time.monotonic() + 1)
    assert tally.counts.unended == 1
    assert line.left == ["load-r-0-1"]
    assert not house.running


async def test_prompts_are_filled_in() -> None:
    line = Line()
    house, _ = dispatcher(prompts=["{n}/{turn} in {conversation}: {unknown}"])
    house.adopt(line, timed=True)
    asked = line.asked[0].asked
    assert asked is not None
    assert asked.text == "1/1 in load-r-0-1: {unknown}"
