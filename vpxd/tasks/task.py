"""A task under way: its present record, those who watch it, and the wish to cancel it.

Watchers see the present record at once and then the newest one whenever they come back for more: records in
between may be left out, the last one never is. Everything runs on the event loop; nothing here needs a lock.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

from runtime.faults import NotSupported, PastPointOfNoReturn, RequestCanceled
from vpxd.tasks.state import TaskRecord

T = TypeVar("T")


class Task:
    """A task that hasn't ended yet. `record` is replaced by `publish` only."""

    def __init__(self, record: TaskRecord, begin: Callable[["Task"], Awaitable[None]]) -> None:
        self.record = record
        self.past_point_of_no_return = False
        self._begin = begin
        self._changed = asyncio.Event()
        self._cancel = asyncio.Event()
        if record.cancel_requested:
            self._cancel.set()

    @property
    def id(self) -> str:
        """Its id, e.g. "task-7"."""
        return self.record.id

    def publish(self, record: TaskRecord) -> None:
        """Replaces the record and wakes the watchers."""
        if record == self.record:
            return
        self.record = record
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def begin(self) -> None:
        """Queued -> running, written down before it is told. For work that decides itself when it begins."""
        await self._begin(self)

    def advance(self, percent: int, description: str | None = None) -> None:
        """Tells progress; it never goes back."""
        self.publish(self.record.advanced(percent, description))

    def set_migration(self, status: bytes) -> None:
        """The last status of its migration, serialized."""
        self.publish(self.record.with_migration(status))

    def set_queue(self, position: int, reason: str) -> None:
        """Where it stands in line and what for; nothing to tell once it has ended."""
        if self.record.ended:
            return
        text = f"waiting, number {position} in line: {reason}" if position else None
        self.publish(self.record.queued_at(position, reason).advanced(0, text))

    def pass_point_of_no_return(self) -> None:
        """From now on a cancel is refused with PastPointOfNoReturn."""
        self.past_point_of_no_return = True
        self.publish(self.record.with_cancelable(False))

    async def watch(self) -> AsyncGenerator[TaskRecord, None]:
        """The record now, and the newest one at each look, down to the last one."""
        seen: TaskRecord | None = None
        while True:
            changed, record = self._changed, self.record
            if record is not seen:
                seen = record
                yield record
                continue
            if record.ended:
                return
            await changed.wait()

    def request_cancel(self) -> None:
        """Asks it to stop; idempotent; a task that has ended stays as it is.

        :raises PastPointOfNoReturn: its migration has handed the VM over.
        :raises NotSupported: this kind of task can't be canceled.
        """
        if self.record.ended or self.record.cancel_requested:
            return
        if self.past_point_of_no_return:
            raise PastPointOfNoReturn(f"{self.id} can't be canceled any more: the VM has been handed over")
        if not self.record.cancelable:
            raise NotSupported(f"{self.id} ({self.record.operation}) can't be canceled", feature="cancel")
        self.publish(self.record.with_cancel_requested())
        self._cancel.set()

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._cancel.is_set()

    async def canceled(self) -> None:
        """Waits until somebody asks it to stop."""
        await self._cancel.wait()

    def refuse_cancel_wish(self, phase: str) -> None:
        """:raises RequestCanceled: somebody asked it to stop."""
        if self._cancel.is_set():
            raise RequestCanceled(f"{self.id} was canceled", phase=phase)

    async def unless_canceled(self, work: Coroutine[object, object, T], phase: str) -> T:
        """The work's result, unless a cancel comes first: then the work is canceled and awaited.

        :raises RequestCanceled: a cancel came first, or had come before.
        """
        if self._cancel.is_set():
            work.close()
            self.refuse_cancel_wish(phase)
        worker = asyncio.ensure_future(work)
        wish = asyncio.ensure_future(self._cancel.wait())
        try:
            await asyncio.wait({worker, wish}, return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                return worker.result()
            raise RequestCanceled(f"{self.id} was canceled", phase=phase)
        finally:
            for helper in (worker, wish):
                if not helper.done():
                    helper.cancel()
                    with suppress(asyncio.CancelledError):
                        await helper
