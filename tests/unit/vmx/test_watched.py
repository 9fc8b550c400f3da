"""A watched value: newest to everyone, the last one never lost."""

import asyncio
from contextlib import aclosing

import pytest

from vmx.watched import Watched


async def collect(watched: Watched[int]) -> list[int]:
    return [value async for value in watched.watch()]


async def test_watch_yields_the_value_now_and_each_change_that_is_waited_for() -> None:
    watched = Watched(0)
    watching = asyncio.create_task(collect(watched))
    for value in (1, 2, 3):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watched.set(value)
    await asyncio.sleep(0)
    watched.close()
    assert await watching == [0, 1, 2, 3]


async def test_changes_without_a_pause_coalesce_to_the_newest() -> None:
    watched = Watched(0)
    watching = asyncio.create_task(collect(watched))
    await asyncio.sleep(0)
    for value in range(1, 100):
        watched.set(value)
    watched.close()
    assert await watching == [0, 99]


async def test_last_value_set_just_before_close_is_never_lost_by_any_watcher() -> None:
    watched = Watched(0)
    watching = [asyncio.create_task(collect(watched)) for _ in range(50)]
    await asyncio.sleep(0)
    watched.set(1)
    watched.set(2)
    watched.close()
    for seen in await asyncio.gather(*watching):
        assert seen[-1] == 2


async def test_close_alone_yields_nothing_again() -> None:
    watched = Watched(7)
    watching = asyncio.create_task(collect(watched))
    await asyncio.sleep(0)
    watched.close()
    watched.close()
    assert await watching == [7]


async def test_watch_after_close_yields_the_last_value_and_ends() -> None:
    watched = Watched(0)
    watched.set(5)
    watched.close()
    assert await collect(watched) == [5]


async def test_slow_watcher_misses_some_and_gets_the_last() -> None:
    watched = Watched(0)
    seen = []
    async with aclosing(watched.watch()) as values:
        async for value in values:
            seen.append(value)
            if value == 0:
                for newer in (1, 2, 3):
                    watched.set(newer)
                watched.close()
    assert seen == [0, 3]


async def test_watcher_that_leaves_disturbs_nobody() -> None:
    watched = Watched(0)
    leaving = asyncio.create_task(collect(watched))
    staying = asyncio.create_task(collect(watched))
    await asyncio.sleep(0)
    leaving.cancel()
    watched.set(1)
    watched.close()
    assert await staying == [0, 1]
    with pytest.raises(asyncio.CancelledError):
        await leaving


def test_set_after_close_is_refused() -> None:
    watched = Watched(0)
    watched.close()
    with pytest.raises(RuntimeError):
        watched.set(1)
    assert watched.value == 0
