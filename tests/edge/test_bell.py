"""The bell: heard once rung, whenever that was; and not waited for longer than was asked."""

import asyncio

from gateway.edge.bell import Bell


async def later(seconds: float, bell: Bell) -> None:
    await asyncio.sleep(seconds)
    bell.ring()


async def test_rung_before_it_is_listened_to() -> None:
    bell = Bell()
    bell.ring()
    assert await bell.heard(0)
    assert await bell.heard(0)
    bell.hush()
    assert not await bell.heard(0)
    bell.close()


async def test_rung_while_it_is_listened_to() -> None:
    bell = Bell()
    ringing = asyncio.create_task(later(0.01, bell))
    assert await bell.heard(5)
    await ringing
    bell.close()


async def test_the_time_counts_from_each_listening() -> None:
    bell, loop = Bell(), asyncio.get_running_loop()
    for _ in range(4):
        bell.hush()
        ringing = asyncio.create_task(later(0.03, bell))
        assert await bell.heard(0.05)
        await ringing
    bell.hush()
    began = loop.time()
    assert not await bell.heard(0.05)
    assert 0.045 <= loop.time() - began < 0.2
    bell.close()


async def test_a_shorter_time_than_the_last_one() -> None:
    bell = Bell()
    bell.ring()
    await bell.heard(60)
    bell.hush()
    ringing = asyncio.create_task(later(0.01, bell))
    assert await bell.heard(60)
    await ringing
    bell.hush()
    async with asyncio.timeout(1):
        assert not await bell.heard(0.01)
    bell.close()


async def test_cancelled_it_can_be_listened_to_again() -> None:
    bell = Bell()
    listening = asyncio.create_task(bell.heard(5))
    await asyncio.sleep(0)
    listening.cancel()
    await asyncio.wait([listening])
    bell.ring()
    assert await bell.heard(5)
    bell.close()
