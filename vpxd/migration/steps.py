"""The steps of one migration, each a method that does one thing to the hosts or the inventory.

The order of the steps is vpxd/migration/workflow.py.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
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
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.changes import record_of
from vpxd.inventory.records import Host, MigrationEntry, Vm
from vpxd.inventory.values import VmState
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.spec import MigrationSpec
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
T = TypeVar("T")
AsyncExit = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None],
    Coroutine[object, object, bool],
]


@dataclass(frozen=True)
class Migration:
    """One migration under way, and those it speaks to."""

    entry: MigrationEntry
    vm: Vm
    source: Host
    destination: Host
    task: Task
    started_s: float  # on the event loop's clock
    prepared_s: float = 0.0  # the same; 0.0 where an earlier vpxd prepared it

    @property
    def id(self) -> int:
        """The migration's id."""
        return self.entry.migration_id


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


async def cancel_on(parts: WorkflowParts, migration: Migration, host: Host) -> None:
    """Undoes the host's side; safe at any time: after the hand-over the host refuses."""
    await client_of(parts, host).cancel_migration(migration.id)


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


async def complete_destination(parts: WorkflowParts, migration: Migration) -> VmState | None:
    """The destination closes its lock and journal. After the point of no return: nothing here fails the migration.

    Answers the VM's state there, or None when the destination didn't answer within `Patience.complete_s`.
    """
    client = client_of(parts, migration.destination)
    return await _patiently(
        lambda: client.complete_migration(migration.id),
        parts.patience.complete_s,
        parts.patience.pause_s,
        migration.destination.name,
    )


async def complete_source(parts: WorkflowParts, entry: MigrationEntry, source: Host) -> bool:
    """The source ends the stunned guest and forgets the VM; answers whether it has done so.

    It is given less time than the destination: meanwhile the VM, which runs, can't be worked with.
    """

    async def complete() -> bool:
        try:
            await client_of(parts, source).complete_migration(entry.migration_id)
        except ManagedObjectNotFound:
            _log.info("source_forgot_migration", host=source.name, migration_id=entry.migration_id)
        return True

    patience = parts.patience
    return bool(await _patiently(complete, patience.complete_source_s, patience.pause_s, source.name))


async def commit(
    parts: WorkflowParts, migration: Migration, state: VmState | None, source_done: bool
) -> None:
    """The VM is at the destination: inventory, journal and event in one transaction."""
    destination, source = migration.destination, migration.source
    present = parts.store.inventory.vms.get(migration.vm.id, migration.vm)
    moved = replace(present, host=destination.id)
    if state is not None and state.uuid == present.uuid:
        moved = record_of(present.id, destination.id, state)
    text = f"{moved.name} was migrated from {source.name} to {destination.name}"
    async with parts.store.transaction() as transaction:
        transaction.put(moved)
        if source_done:
            transaction.delete(migration.entry)
        else:
            transaction.put(replace(migration.entry, completing=True))
        transaction.emit(
            EventDraft(EventType.VM_MIGRATED, text, moved.id, moved.name, task=migration.entry.task)
        )
    now_s = time.monotonic()
    if state is not None and state.uuid == present.uuid:
        parts.live.learned(destination.id, state, now_s)
    else:
        parts.live.forgotten(present.uuid, now_s)


async def move_registration(parts: WorkflowParts, migration: Migration) -> VmState:
    """A cold migration: the source forgets the VM, the destination registers it; on a fault the source has it again.

    The source goes first because the files may have one owner only. What is lost when vpxd ends in between is
    only the registration; `restore_registration` brings it back.
    """
    task, vm = migration.entry.task, migration.vm
    await client_of(parts, migration.source).unregister_vm(vm.uuid, task)
    try:
        return await client_of(parts, migration.destination).register_vm(vm.home, task)
    except VimFault:
        await _log_failure(restore_registration(parts, migration), "restore_registration")
        raise


async def restore_registration(parts: WorkflowParts, migration: Migration) -> None:
    """The source registers the VM again, once the destination doesn't have it."""
    task, vm = migration.entry.task, migration.vm
    live = parts.live.host(migration.destination.id)
    if vm.uuid in live.vms:
        await client_of(parts, migration.destination).unregister_vm(vm.uuid, task)
    state = await client_of(parts, migration.source).register_vm(vm.home, task)
    parts.live.learned(migration.source.id, state, time.monotonic())


async def _log_failure(step: Awaitable[None], name: str) -> None:
    try:
        await step
    except VimFault as fault:
        _log.error("undo_failed", step=name, fault=type(fault).__name__, reason=fault.message)


async def _patiently(call: Callable[[], Awaitable[T]], limit_s: float, pause_s: float, host: str) -> T | None:
    """The call's answer, tried again while the host is silent or not ready; None when patience ends."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + limit_s
    while True:
        try:
            return await call()
        except VimFault as fault:
            transient = isinstance(fault, HostNotReachable | TimedOut | MigrationNotReady)
            if not transient or loop.time() >= deadline_s:
                _log.error("complete_failed", host=host, fault=type(fault).__name__, reason=fault.message)
                return None
        # The host's own state can't be waited for from here: it is asked again.
        await asyncio.sleep(pause_s)
