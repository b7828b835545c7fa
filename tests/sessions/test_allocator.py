"""When free memory is given back."""

import pytest

from gateway.sessions.allocator import LEAST_EVICTED, LONGEST_S, SETTLE_S, Trimmer


@pytest.mark.parametrize(
    ("counts", "now", "trimmed"),
    [
        pytest.param([LEAST_EVICTED], SETTLE_S, True, id="enough, and settled"),
        pytest.param([LEAST_EVICTED], SETTLE_S - 0.1, False, id="not settled yet"),
        pytest.param([LEAST_EVICTED - 1], 100.0, False, id="too few"),
        pytest.param([LEAST_EVICTED - 1, 0, 1], 100.0, True, id="enough together"),
        pytest.param([], 100.0, False, id="none"),
    ],
)
async def test_trims(counts: list[int], now: float, trimmed: bool) -> None:
    calls: list[int] = []
    trimmer = Trimmer(lambda pad: calls.append(pad) or 1)
    for count in counts:
        trimmer.evicted(count, 0.0)
    assert await trimmer.trim_if_due(now) is trimmed
    assert calls == [0] * trimmed


async def test_counting_starts_anew() -> None:
    trimmer = Trimmer(lambda pad: 1)
    trimmer.evicted(LEAST_EVICTED, 0.0)
    assert await trimmer.trim_if_due(SETTLE_S)
    trimmer.evicted(1, 10.0)
    assert not await trimmer.trim_if_due(20.0)


async def test_evictions_that_never_end_dont_put_it_off() -> None:
    trimmer = Trimmer(lambda pad: 1)
    trimmed = []
    for now in range(int(2 * LONGEST_S) + 10):
        trimmer.evicted(LEAST_EVICTED, now)
        if await trimmer.trim_if_due(now):
            trimmed.append(now)
    assert trimmed == [LONGEST_S, 2 * LONGEST_S + 1]


async def test_a_few_long_ago_dont_spare_many_their_time_to_settle() -> None:
    trimmer = Trimmer(lambda pad: 1)
    trimmer.evicted(1, 0.0)
    now = LONGEST_S + 10
    trimmer.evicted(LEAST_EVICTED, now)
    assert not await trimmer.trim_if_due(now)
    assert await trimmer.trim_if_due(now + SETTLE_S)


async def test_the_platform_s_own() -> None:
    trimmer = Trimmer()
    trimmer.evicted(LEAST_EVICTED, 0.0)
    await trimmer.trim_if_due(SETTLE_S)
