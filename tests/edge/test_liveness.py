from __future__ import annotations

import pytest

from gateway.edge.liveness import Liveness

HEARTBEAT_S = 20.0
DEADLINE_S = 10.0


def test_a_silent_peer_is_pinged_once_and_given_one_more_heartbeat() -> None:
    peer = Liveness(100.0)
    assert peer.silence_deadline(HEARTBEAT_S) == 120.0
    assert not peer.ping_is_due(119.9, HEARTBEAT_S)
    assert peer.ping_is_due(120.5, HEARTBEAT_S)
    assert not peer.ping_is_due(130.0, HEARTBEAT_S)
    assert peer.silence_deadline(HEARTBEAT_S) == 140.5


@pytest.mark.parametrize("heard_at", [120.5, 139.0])
def test_any_byte_answers_a_ping_even_in_the_tick_of_the_ping(heard_at: float) -> None:
    peer = Liveness(100.0)
    assert peer.ping_is_due(120.5, HEARTBEAT_S)
    peer.heard_at = heard_at
    assert peer.silence_deadline(HEARTBEAT_S) == heard_at + HEARTBEAT_S
    assert peer.ping_is_due(heard_at + HEARTBEAT_S, HEARTBEAT_S)


# (buffered, unsent) at the seconds 0, 1, 2 …, and the deadline after the last look.
@pytest.mark.parametrize(
    ("looks", "deadline"),
    [
        pytest.param([(90, 50)], 10.0, id="the first look starts the clock"),
        pytest.param([(90, 50)] * 4, 10.0, id="nothing moves"),
        pytest.param([(90, 50), (90, 50), (89, 50), (89, 50)], 12.0, id="ours shrinks"),
        pytest.param([(90, 50), (90, 50), (90, 49), (90, 49)], 12.0, id="the kernel's shrinks"),
        pytest.param([(90, 50), (95, 50), (99, 60)], 10.0, id="growth is not progress"),
        pytest.param([(90, 50), (95, 50), (94, 50)], 12.0, id="growth that drains is"),
        pytest.param([(90, 0)] * 3, 10.0, id="where the kernel's is unknown"),
    ],
)
def test_stuck_is_what_takes_nothing(looks: list[tuple[int, int]], deadline: float) -> None:
    peer = Liveness(0.0)
    peer.stuck_from_now()
    assert [peer.write_deadline(float(now), DEADLINE_S, *look) for now, look in enumerate(looks)][-1] == deadline


def test_the_clock_starts_anew_each_time_the_mark_is_passed() -> None:
    peer = Liveness(0.0)
    peer.stuck_from_now()
    assert peer.write_deadline(0.0, DEADLINE_S, 90, 50) == 10.0
    peer.stuck_from_now()
    assert peer.write_deadline(30.0, DEADLINE_S, 90, 50) == 40.0
