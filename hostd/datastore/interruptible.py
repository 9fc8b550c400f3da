"""Blocking work that ends when nobody wants it any more.

A thread can't be canceled: it's told by an event, and whoever is canceled waits for its end, so that what it undoes is
undone before the caller goes on.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def interruptible(
    work: Callable[[threading.Event], _T], interrupt: Callable[[], None] | None = None
) -> _T:
    """What `work` returns, done in a thread. It looks at the event it is given and raises when that is set.

    Canceled: the event is set, `interrupt` called (for work that waits for something else than the event), and the
    thread waited for; work that was done by then stays done.
    """
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        if interrupt is not None:
            interrupt()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the caller has left
        raise
