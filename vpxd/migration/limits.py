"""How many live migrations a host takes part in at once, in and out together; the rest waits in order.

The choice (`startable`) is pure. A waiter never overtakes an earlier one that wants the same host, so none
starves; one that wants other hosts does.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vpxd.tasks.task import Task

PER_HOST = 2


@dataclass(frozen=True)
class Claim:
    """A migration's wish for both its hosts."""

    task: str
    source: str
    destination: str

    @property
    def hosts(self) -> frozenset[str]:
        """Both."""
        return frozenset({self.source, self.destination})


def startable(running: Sequence[Claim], waiting: Sequence[Claim], per_host: int) -> list[Claim]:
    """Which of the waiting ones, first come first, can start now."""
    used = Counter(host for claim in running for host in claim.hosts)
    chosen = []
    for claim in waiting:
        if all(used[host] < per_host for host in claim.hosts):
            chosen.append(claim)
        # Also for one that can't start: its place on its hosts is kept from those behind it.
        used.update(claim.hosts)
    return chosen


def obstacle(claim: Claim, running: Sequence[Claim], per_host: int) -> str:
    """Why it waits, in host ids and task ids."""
    for host in sorted(claim.hosts):
        tasks = [other.task for other in running if host in other.hosts]
        if len(tasks) >= per_host:
            return f"{host} already takes part in {len(tasks)} migrations ({', '.join(tasks)})"
    return "others wait for the same hosts"


@dataclass
class _Waiter:
    claim: Claim
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class MigrationLimits:
    """The slots of all hosts."""

    def __init__(self, per_host: int = PER_HOST) -> None:
        self._per_host = per_host
        self._running: list[Claim] = []
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def slot(self, task: Task, claim: Claim) -> AsyncIterator[None]:
        """Holds a place on both hosts. While it waits, the task's description says why, and it can be canceled.

        :raises RequestCanceled: it was canceled while it waited.
        """
        waiter = _Waiter(claim)
        self._waiting.append(waiter)
        self._start_what_can()
        try:
            if not waiter.turn.is_set():
                task.advance(0, f"waiting: {obstacle(claim, self._running, self._per_host)}")
                await task.unless_canceled(_wait(waiter.turn), phase="queued")
            yield
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._running.remove(claim)
            self._start_what_can()

    @asynccontextmanager
    async def taken(self, claim: Claim) -> AsyncIterator[None]:
        """A place for a migration that runs already, whatever the limit says."""
        self._running.append(claim)
        try:
            yield
        finally:
            self._running.remove(claim)
            self._start_what_can()

    def _start_what_can(self) -> None:
        claims = [waiter.claim for waiter in self._waiting]
        for claim in startable(self._running, claims, self._per_host):
            waiter = next(waiter for waiter in self._waiting if waiter.claim is claim)
            self._waiting.remove(waiter)
            self._running.append(claim)
            waiter.turn.set()


async def _wait(turn: asyncio.Event) -> None:
    await turn.wait()
