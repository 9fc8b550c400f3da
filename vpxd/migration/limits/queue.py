"""The places of all migrations, and the line of those that wait for theirs.

Accounting and order are vpxd/migration/limits/account.py; here is the waiting: whoever comes, starts or leaves makes
the others' positions and reasons be told anew. Everything runs on the event loop; nothing here needs a lock.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from vpxd.migration.limits.account import Waiting, overtaken_by, place, startable
from vpxd.migration.limits.costs import FAST_LINK_GBPS, Claim, maxima
from vpxd.migration.limits.cpu import CpuRoom, Reservation, require_room
from vpxd.tasks.task import Task


@dataclass(eq=False)
class _Waiter:
    one: Waiting
    task: Task
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class MigrationLimits:
    """The one place where migrations are charged. `link_gbps`: what the vMotion network's links carry."""

    def __init__(self, link_gbps: float = FAST_LINK_GBPS) -> None:
        self.maxima = maxima(link_gbps)
        self._running: list[Claim] = []
        self._waiting: list[_Waiter] = []
        self._reservations: list[Reservation] = []
        self._number = 0

    @asynccontextmanager
    async def slot(self, task: Task, claim: Claim) -> AsyncIterator[None]:
        """Holds the claim's places. While it waits, the task tells its position and reason; it can be canceled.

        :raises RequestCanceled: it was canceled while it waited.
        """
        self._number += 1
        waiter = _Waiter(Waiting(claim, self._number), task)
        self._waiting.append(waiter)
        self._start_what_can()
        try:
            if not waiter.turn.is_set():
                await task.unless_canceled(_wait(waiter.turn), phase="queued")
            yield
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._running.remove(claim)
            self._start_what_can()

    @asynccontextmanager
    async def taken(self, claim: Claim, rooms: tuple[CpuRoom, ...] = ()) -> AsyncIterator[None]:
        """The places and reservations of a migration that runs already, whatever the limits say."""
        held = Reservation(claim.task, rooms)
        self._running.append(claim)
        self._reservations.append(held)
        self._start_what_can()
        try:
            yield
        finally:
            self._running.remove(claim)
            self._reservations.remove(held)
            self._start_what_can()

    def require_cpu(self, task: str, rooms: tuple[CpuRoom, ...]) -> Reservation:
        """What a high-priority migration would reserve; nothing is held yet.

        :raises InsufficientCpuResources: a host can't give it.
        """
        wanted = Reservation(task, rooms)
        require_room(wanted, self._reservations)
        return wanted

    @asynccontextmanager
    async def cpu(self, task: str, rooms: tuple[CpuRoom, ...]) -> AsyncIterator[None]:
        """Holds the reservation. :raises InsufficientCpuResources: a host can't give it; nothing is held."""
        wanted = self.require_cpu(task, rooms)
        self._reservations.append(wanted)
        try:
            yield
        finally:
            self._reservations.remove(wanted)

    def _start_what_can(self) -> None:
        # One by one: each start may lift those that it overtook.
        while starting := startable(self._running, self._line(), self.maxima):
            self._start(starting[0])
        self._tell()

    def _start(self, one: Waiting) -> None:
        waiter = next(waiter for waiter in self._waiting if waiter.one is one)
        self._waiting.remove(waiter)
        self._running.append(one.claim)
        waiter.task.set_queue(0, "")
        waiter.turn.set()
        overtaken = {earlier.number for earlier in overtaken_by(one, self._line())}
        for earlier_waiter in self._waiting:
            earlier = earlier_waiter.one
            if earlier.number in overtaken:
                earlier_waiter.one = replace(earlier, overtaken=earlier.overtaken + 1)

    def _line(self) -> list[Waiting]:
        return [waiter.one for waiter in self._waiting]

    def _tell(self) -> None:
        present = self._line()
        for waiter in self._waiting:
            where = place(waiter.one, self._running, present, self.maxima)
            waiter.task.set_queue(where.position, where.reason)


async def _wait(turn: asyncio.Event) -> None:
    await turn.wait()
