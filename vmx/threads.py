"""Blocking work off the event loop, without leaving it running behind a cancellation."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(
    function: Callable[..., T], *arguments: object, on_cancel: Callable[[], None] | None = None
) -> T:
    """Run `function` in a thread and wait for it, cancelled or not.

    A thread can't be interrupted, and what it works on (mapped memory, a socket) mustn't go away under it: a
    cancellation first calls `on_cancel`, which should make `function` return soon, waits for the thread, and is then
    raised.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # told to nobody: the cancellation is what the caller asked for
        raise
