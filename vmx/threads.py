"""Waiting for work to its end: for threads, which can't be interrupted, and for undoing, which mustn't be."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T], on_cancel: Callable[[], None] | None = None) -> T:
    """Wait until `work` has ended, however often the caller is cancelled meanwhile.

    The first cancellation calls `on_cancel`, which may make `work` end soon. A cancellation is raised when `work` has
    ended; what became of it is then told to nobody, since the cancellation is what the caller asked for.
    """
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            if cancelled is None and on_cancel is not None:
                on_cancel()
            cancelled = error
    if cancelled is None:
        return running.result()
    if not running.cancelled():
        running.exception()
    raise cancelled


async def in_thread(
    function: Callable[..., T], *arguments: object, on_cancel: Callable[[], None] | None = None
) -> T:
    """Run `function` in a thread and wait for it, cancelled or not.

    What a thread works on (mapped memory, a socket) mustn't go away under it, so a cancellation waits for it too;
    `on_cancel` should make `function` return soon.
    """
    return await to_the_end(asyncio.to_thread(function, *arguments), on_cancel)
