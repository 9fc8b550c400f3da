"""Tells hosts of a migration's end that were silent when it came, in a task of its own, until they have heard it.

    succeeded, a host silent   -> completing: the source's stunned guest is ended, the destination's journal closed
    undone, a host silent      -> canceling: a destination that was frozen frees what it has prepared
        canceling, but the host says PastPointOfNoReturn -> it had succeeded after all: both hosts are completed

The journal entry names those that are left; a restart of vpxd goes on with them. The VM isn't held meanwhile: on the
host in question the host's own lock holds it.
"""

import asyncio
from dataclasses import replace

import structlog

from runtime.faults import HostNotReachable, PastPointOfNoReturn, RequestFault, TimedOut, VimFault
from vpxd.inventory.records import Host, MigrationEntry
from vpxd.migration import commit, steps
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.settle import settle
from vpxd.migration.way import Way, way_of
from vpxd.tasks.manager import TaskManager, TaskSpec
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
COMPLETE_OPERATION = "VirtualMachine.completeMigration"
CANCEL_OPERATION = "VirtualMachine.cancelMigration"
_LONGEST_PAUSES = 20


class Aftermath:
    """Starts those tasks, one for each migration."""

    def __init__(self, parts: WorkflowParts, tasks: TaskManager) -> None:
        self._parts = parts
        self._tasks = tasks

    async def tell(self, entry: MigrationEntry) -> None:
        """Tells the hosts that the entry names, until each has heard it; then the entry is deleted."""
        vm = self._parts.store.inventory.vms.get(entry.vm)
        name = vm.name if vm is not None else entry.vm
        if not entry.terms.unheard:  # written by an earlier version: only the source could be silent
            entry = replace(entry, terms=replace(entry.terms, unheard=(entry.source,)))

        async def work(task: Task) -> str:
            await self._tell_all(task, entry)
            return entry.vm

        operation = COMPLETE_OPERATION if entry.completing else CANCEL_OPERATION
        try:
            await self._tasks.submit(TaskSpec(operation, entry.vm, name, user="vpxd"), work)
        except RequestFault as fault:  # vpxd is stopping: its next start finds the entry
            _log.info("aftermath_left", migration_id=entry.migration_id, reason=fault.message)

    async def _tell_all(self, task: Task, entry: MigrationEntry) -> None:
        pause_s = self._parts.patience.pause_s
        longest_s = pause_s * _LONGEST_PAUSES
        while entry.terms.unheard:
            entry = await self._round(task, entry)
            if entry.terms.unheard:
                # A host that is silent can't be waited for from here: it is asked again.
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, longest_s)
        await commit.forget(self._parts, entry)

    async def _round(self, task: Task, entry: MigrationEntry) -> MigrationEntry:
        """Asks each host once; the entry with those that are left, written down."""
        left = []
        for host_id in entry.terms.unheard:
            host = self._parts.store.inventory.hosts.get(host_id)
            if host is None:
                continue  # removed: nobody is there to be told
            task.advance(0, f"waiting for {host.name}")
            try:
                heard = await self._heard(entry, host)
            except PastPointOfNoReturn:
                _log.warning("canceled_migration_had_succeeded", migration_id=entry.migration_id)
                both = tuple(dict.fromkeys((entry.destination, entry.source)))
                return await self._write(entry, replace(entry, completing=True, canceling=False), both)
            if not heard:
                left.append(host_id)
        return await self._write(entry, entry, tuple(left))

    async def _heard(self, entry: MigrationEntry, host: Host) -> bool:
        if entry.completing:
            await self._settle(entry, host)
            return (await steps.complete_on(self._parts, entry, host, 0.0)).done
        try:
            await steps.client_of(self._parts, host).cancel_migration(entry.migration_id)
        except PastPointOfNoReturn:
            if _is_parted_source(entry, host) and await self._settle(entry, host) is not True:
                return False  # given away, but not taken: it is asked again when it has been told so
            raise
        except (HostNotReachable, TimedOut):
            return False
        except VimFault as fault:
            _log.warning("cancel_refused", host=host.name, fault=type(fault).__name__, reason=fault.message)
            return False
        return True

    async def _settle(self, entry: MigrationEntry, host: Host) -> bool | None:
        """The source hears the destination's last word, where it can't read it by itself."""
        destination = self._parts.store.inventory.hosts.get(entry.destination)
        if destination is None or not _is_parted_source(entry, host):
            return None
        return await settle(self._parts, entry.migration_id, host, destination)

    async def _write(
        self, before: MigrationEntry, after: MigrationEntry, unheard: tuple[str, ...]
    ) -> MigrationEntry:
        left = replace(after, terms=replace(after.terms, unheard=unheard))
        if unheard and left != before:
            async with self._parts.store.transaction() as transaction:
                transaction.put(left)
        return left


def _is_parted_source(entry: MigrationEntry, host: Host) -> bool:
    """Whether the host is a source whose VM gets another home on another host."""
    between = way_of(entry) is Way.BETWEEN_HOSTS
    return between and bool(entry.terms.home) and host.id == entry.source
