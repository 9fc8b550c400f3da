"""The steps of one migration, each a function that does one thing to the hosts.

The order of the steps is vpxd/migration/workflow.py; what its end makes of the inventory, vpxd/migration/commit.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import structlog

from runtime.faults import (
    HostNotConnected,
    HostNotReachable,
    ManagedObjectNotFound,
    MigrationNotReady,
    TimedOut,
    VimFault,
)
from vpxd.agents.vpxa_client import VpxaClient
from vpxd.inventory.records import Host, MigrationEntry, Vm
from vpxd.inventory.values import VmState
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.spec import MigrationSpec
from vpxd.migration.way import Way, way_of
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
T = TypeVar("T")
AsyncExit = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None],
    Coroutine[object, object, bool],
]


@dataclass(frozen=True)
class Migration:
    """One migration under way, and those it speaks to. `unheard`: ids of hosts that didn't answer a cancel."""

    entry: MigrationEntry
    vm: Vm
    source: Host
    destination: Host
    task: Task
    started_s: float  # on the event loop's clock
    prepared_s: float = 0.0  # the same; 0.0 where an earlier vpxd prepared it
    unheard: list[str] = field(default_factory=list)

    @property
    def id(self) -> int:
        """The migration's id."""
        return self.entry.migration_id

    @property
    def way(self) -> Way:
        """How it is carried out."""
        return way_of(self.entry)

    @property
    def moves_memory(self) -> bool:
        """Whether a guest's memory goes to another host."""
        return self.entry.live and self.way is Way.BETWEEN_HOSTS

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The source and, where it is another one, the destination."""
        return (self.source,) if self.way is Way.WITHIN_HOST else (self.source, self.destination)


@dataclass(frozen=True)
class Completed:
    """What a host said to the order to complete. `state`: the VM as it is there, where it has it."""

    done: bool
    state: VmState | None = None


def client_of(parts: WorkflowParts, host: Host) -> VpxaClient:
    """The host's client, whether it answers or not. :raises HostNotConnected: it was removed."""
    client = parts.agents.client(host.id)
    if client is None:
        raise HostNotConnected(f"{host.name} was removed", host=host.name, state="removed")
    return client


async def prepare_destination(parts: WorkflowParts, migration: Migration, spec: MigrationSpec) -> bytes:
    """The destination reserves, creates the VM masked and listens; answers its ticket."""
    client = client_of(parts, migration.destination)
    return await migration.task.unless_canceled(client.prepare_destination(spec), phase="prepare")


async def start_source(
    parts: WorkflowParts, migration: Migration, spec: MigrationSpec, ticket: bytes
) -> None:
    """The source locks the VM and begins to send."""
    client = client_of(parts, migration.source)
    await migration.task.unless_canceled(client.start_source(spec, ticket), phase="prepare")


async def start_relocation(parts: WorkflowParts, migration: Migration, spec: MigrationSpec) -> None:
    """The host locks the VM, makes the new files and begins to copy."""
    client = client_of(parts, migration.source)
    await migration.task.unless_canceled(client.start_relocation(spec), phase="prepare")


async def cancel_on(parts: WorkflowParts, migration: Migration, host: Host) -> None:
    """Undoes the host's side; safe at any time: after the hand-over the host refuses.

    A host that doesn't answer within `Patience.cancel_s` is noted in `Migration.unheard`: it is told later.
    """
    try:
        async with asyncio.timeout(parts.patience.cancel_s):
            await client_of(parts, host).cancel_migration(migration.id)
    except (TimeoutError, HostNotReachable, TimedOut) as error:
        _log.warning("cancel_unheard", host=host.name, migration_id=migration.id, reason=str(error))
        migration.unheard.append(host.id)


def undoing(step: Callable[[], Awaitable[None]], name: str) -> AsyncExit:
    """An exit for AsyncExitStack that undoes a step when a fault passes; failing to undo never hides that fault.

    When vpxd itself is stopped nothing is undone: the migration goes on without it, and its next start takes it up.
    """

    async def undo(
        _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        try:
            await step()
        except VimFault as fault:
            _log.warning("undo_failed", step=name, fault=type(fault).__name__, reason=fault.message)
        return False

    return undo


async def complete_destination(parts: WorkflowParts, migration: Migration) -> Completed:
    """The destination closes its lock and journal. After the point of no return: nothing here fails the migration.

    Not done where it didn't answer within `Patience.complete_s`.
    """
    patience = parts.patience
    return await complete_on(parts, migration.entry, migration.destination, patience.complete_s)


async def complete_source(parts: WorkflowParts, migration: Migration) -> Completed:
    """The source ends the stunned guest and forgets the VM.

    It is given less time than the destination: meanwhile the VM, which runs, can't be worked with.
    """
    patience = parts.patience
    return await complete_on(parts, migration.entry, migration.source, patience.complete_source_s)


async def complete_on(parts: WorkflowParts, entry: MigrationEntry, host: Host, limit_s: float) -> Completed:
    """Tells one host, again while it is silent or not ready; one that has forgotten the migration has nothing to do."""

    async def complete() -> Completed:
        try:
            return Completed(True, await client_of(parts, host).complete_migration(entry.migration_id))
        except ManagedObjectNotFound:
            _log.info("host_forgot_migration", host=host.name, migration_id=entry.migration_id)
            return Completed(True)

    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + limit_s
    while True:
        try:
            return await complete()
        except VimFault as fault:
            transient = isinstance(fault, HostNotReachable | TimedOut | MigrationNotReady)
            if not transient or loop.time() >= deadline_s:
                _log.error(
                    "complete_failed", host=host.name, fault=type(fault).__name__, reason=fault.message
                )
                return Completed(False)
        # The host's own state can't be waited for from here: it is asked again.
        await asyncio.sleep(parts.patience.pause_s)
