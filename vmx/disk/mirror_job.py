"""QEMU's job behind a mirror: started, watched from then on, and ended, with its events turned into one outcome.

    created -> running -> ready  ==>  concluded -> null       BLOCK_JOB_COMPLETED (with or without an error)
                                                              or BLOCK_JOB_CANCELLED comes just before `null`

Job states and events: QEMU's QMP reference (jobs, block-core).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from vmx.disk.errors import MirrorFailed
from vmx.guest.errors import QmpConnectionLost, QmpError, QmpTimeout
from vmx.guest.qmp import EventSubscription, QmpConnection, QmpEvent

__all__ = ["MirrorJob"]

_EVENTS: Final = (
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_ERROR",
    "BLOCK_JOB_READY",
    "JOB_STATUS_CHANGE",
)
# How long QEMU may take for one step: draining waits for the guest's writes under way.
_DEADLINE_S: Final = 30.0
# A job may have nothing to say for as long as the copy lasts; the wait for its next word is begun anew then.
_WATCH_S: Final = 3600.0


class MirrorJob:
    """One `blockdev-mirror`. `on_failure` is called with the reason when it ends without having been told to."""

    def __init__(self, qmp: QmpConnection, job_id: str, on_failure: Callable[[str], None]) -> None:
        self._qmp = qmp
        self._id = job_id
        self._on_failure = on_failure
        self._exists = False
        self._told: str | None = None
        self._is_ready = False
        self._ended = asyncio.Event()
        self._news = asyncio.Event()
        self._reason: str | None = None
        self._lost: str | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def has_completed(self) -> bool:
        """Whether it was told to complete and did: the guest's device stands on the target."""
        return self._ended.is_set() and self._told == "job-complete" and self._reason is None

    async def start(self, source_node: str, target_node: str) -> None:
        """Starts the job; returns when it mirrors. After a failure `abort` must be called.

        :raises QmpFailure: QEMU refused, or is gone. :raises MirrorFailed: it ended at once.
        """
        subscribed = contextlib.ExitStack()
        events = subscribed.enter_context(self._qmp.subscribe(*_EVENTS))
        self._watch = asyncio.create_task(self._follow(subscribed, events), name=self._id)
        order = {
            "job-id": self._id,
            "filter-node-name": self._id,
            "device": source_node,
            "target": target_node,
            "sync": "none",
            "copy-mode": "write-blocking",
            "on-source-error": "report",
            "on-target-error": "report",
        }
        await self._qmp.execute("blockdev-mirror", order, deadline_s=_DEADLINE_S)
        await self._wait(self._news)
        if not self._is_ready:
            self._raise_if_lost()
            raise MirrorFailed(source_node, self._reason or "it ended at once")

    async def complete(self) -> str | None:
        """Moves the guest onto the target and ends. Returns why it did not (it has ended all the same), or None.

        :raises QmpFailure: QEMU refused, did not do it in time, or is gone.
        """
        return await self._end("job-complete", {"id": self._id})

    async def finish(self) -> str | None:
        """Ends the job when all is mirrored; the guest stays on the source. Returns and raises as `complete`."""
        return await self._end("block-job-cancel", {"device": self._id, "force": False})

    async def abort(self) -> None:
        """Ends the job in whatever state it is; there is none afterwards. Idempotent; a QEMU that is gone is no error.

        :raises QmpFailure: QEMU lives but did not do it.
        """
        try:
            await self._end("block-job-cancel", {"device": self._id, "force": True})
        except QmpConnectionLost:
            pass  # and the job is gone with QEMU
        except QmpError:
            # There is no such job: it never was, or is ending this moment.
            if self._exists:
                await self._wait(self._ended)
        finally:
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.wait([self._watch])

    async def _end(self, command: str, arguments: dict[str, object]) -> str | None:
        if not self._ended.is_set():
            self._told = self._told or command
            await self._qmp.execute(command, arguments, deadline_s=_DEADLINE_S)
            await self._wait(self._ended)
        self._raise_if_lost()
        return self._reason

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise QmpConnectionLost(f"job {self._id}", self._lost)

    async def _wait(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await event.wait()
        except TimeoutError:
            raise QmpTimeout(f"job {self._id}", _DEADLINE_S) from None

    async def _follow(self, subscribed: contextlib.ExitStack, events: EventSubscription) -> None:
        with subscribed:
            while not self._ended.is_set():
                try:
                    self._take(await events.next(deadline_s=_WATCH_S))
                except QmpTimeout:
                    continue
                except QmpConnectionLost as error:
                    self._lost = error.reason
                    self._set_ended(str(error))

    def _take(self, event: QmpEvent) -> None:
        if self._id not in (event.data.get("id"), event.data.get("device")):
            return
        match event.name:
            case "BLOCK_JOB_READY":
                self._is_ready = True
                self._news.set()
            case "BLOCK_JOB_ERROR":
                self._reason = f"{event.data.get('operation')} error"
            case "BLOCK_JOB_COMPLETED" if event.data.get("error"):
                self._reason = str(event.data.get("error"))
            case "BLOCK_JOB_CANCELLED":
                self._reason = self._reason or "it was cancelled"
            case "JOB_STATUS_CHANGE":
                self._exists = True
                if event.data.get("status") == "null":
                    self._set_ended(self._reason)

    def _set_ended(self, reason: str | None) -> None:
        self._reason = reason
        self._ended.set()
        self._news.set()
        if self._told is None:
            self._on_failure(reason or "the job ended")
