"""Background tasks with an owner: none is forgotten, none fails unseen."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class OwnedTasks:
    """Tasks that live until they end or until `close`. What escapes one is logged: it is a defect."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(
        self, work: Coroutine[Any, Any, None], name: str, *, detached: bool = False
    ) -> asyncio.Task[None]:
        """Run `work` in the background. `detached`: it isn't part of the operation that starts it, nor logs as such."""
        context = contextvars.Context() if detached else None
        task = asyncio.create_task(self._guarded(work, name), name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._closed:
            task.cancel()
        return task

    async def close(self) -> None:
        """Cancel all that still run and wait for their end."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guarded(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 the outer edge of a task: nobody else would see it
            _log.error("background_task_failed", task=name, exc_info=error)
