"""Waiting to the end: a cancellation never leaves a thread, or an undoing, behind."""

import asyncio
import threading

import pytest

from vmx.threads import in_thread, to_the_end


async def test_in_thread_returns_the_result_and_raises_the_error() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_in_thread_cancelled_tells_the_thread_and_waits_for_it() -> None:
    started, told, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        told.wait(10)
        ended.set()

    working = asyncio.create_task(in_thread(work, on_cancel=told.set))
    await asyncio.to_thread(started.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()


async def test_in_thread_cancelled_again_and_again_still_waits_and_tells_once() -> None:
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    told = []

    def work() -> None:
        started.set()
        may_end.wait(10)
        ended.set()

    working = asyncio.create_task(in_thread(work, on_cancel=lambda: told.append(1)))
    await asyncio.to_thread(started.wait)
    for _ in range(5):
        working.cancel()
        await asyncio.sleep(0.01)
        assert not working.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended.is_set()
    assert told == [1]


async def test_in_thread_cancelled_before_it_started_runs_and_is_waited_for() -> None:
    ran = threading.Event()
    working = asyncio.create_task(in_thread(ran.set))
    await asyncio.sleep(0)  # it has been handed to the pool, no more
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ran.is_set()


async def test_in_thread_cancelled_hides_the_threads_own_error() -> None:
    started, told = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        told.wait(10)
        raise ValueError("aborted")

    working = asyncio.create_task(in_thread(work, on_cancel=told.set))
    await asyncio.to_thread(started.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_to_the_end_of_work_that_was_itself_cancelled_is_a_cancellation() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(60))
    outer = asyncio.create_task(to_the_end(inner))
    await asyncio.sleep(0)
    inner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer


async def test_deadline_around_in_thread_is_a_timeout_after_the_thread_has_ended() -> None:
    told, ended = threading.Event(), threading.Event()

    def work() -> None:
        told.wait(10)
        ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_thread(work, on_cancel=told.set)
    assert ended.is_set()
