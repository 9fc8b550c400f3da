"""A migration, from the order to the end, as a list of steps read from top to bottom.

    plan -> slot -> plan again -> journal
    -> prepare destination -> start source -> follow  |  -> complete both -> commit
       <------- undone in reverse on any fault ---->  |  the point of no return

The journal entry is written before anything is asked of a host and deleted in the transaction that ends the
migration. When vpxd ends in between, `resume` takes the migration up from the entry.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from runtime.faults import InvalidState, ManagedObjectNotFound, RequestCanceled, VimFault
from runtime.rpc.operation_id import current_operation_id
from vpxd.events.event import EventDraft, EventType, Severity
from vpxd.inventory.records import Host, MigrationEntry, Vm
from vpxd.inventory.vm_lock import Holder
from vpxd.migration import spec, steps
from vpxd.migration.follow import Follower
from vpxd.migration.limits import Claim
from vpxd.migration.parts import MigrationOrder, Plan, WorkflowParts
from vpxd.migration.plan import plan
from vpxd.migration.status import Times, with_times
from vpxd.migration.steps import Migration
from vpxd.tasks.manager import TaskManager, TaskSpec
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
OPERATION = "VirtualMachine.migrate"
COMPLETE_OPERATION = "VirtualMachine.completeMigration"


class MigrationWorkflow:
    """Runs migrations as the work of tasks."""

    def __init__(self, parts: WorkflowParts, tasks: TaskManager) -> None:
        self._parts = parts
        self._tasks = tasks

    async def run(self, task: Task, order: MigrationOrder) -> str:
        """Does what was ordered; answers the VM's id. On any fault the VM is where it was."""
        parts = self._parts
        first = plan(parts.store.inventory, parts.facts, order)
        parts.locks.share(Holder(task.id, OPERATION), first.destination.id, first.destination.name)
        async with AsyncExitStack() as slot:
            if first.live:
                claim = Claim(task.id, first.source.name, first.destination.name)
                await slot.enter_async_context(parts.limits.slot(task, claim))
            # Things may have changed while it waited; the destination stays the one whose slot it has.
            checked = plan(
                parts.store.inventory, parts.facts, replace(order, destination=first.destination.id)
            )
            planned = replace(checked, reason=first.reason)
            await task.begin()
            migration = await self._open(task, planned)
            try:
                await (self._move_live(migration, planned) if planned.live else self._move_cold(migration))
            except Exception as error:
                await self._close_failed(migration, error)
                raise
        return planned.vm.id

    async def resume(self, task: Task, entry: MigrationEntry) -> str:
        """Goes on with a migration that an earlier life of vpxd began."""
        inventory = self._parts.store.inventory
        vm, source = inventory.vms.get(entry.vm), inventory.hosts.get(entry.source)
        destination = inventory.hosts.get(entry.destination)
        if vm is None or source is None or destination is None:
            await self._forget(entry)
            raise ManagedObjectNotFound(
                "the VM or a host of the migration was removed", kind="vm", key=entry.vm
            )
        migration = self._migration(task, entry, vm, source, destination)
        _log.info("migration_resumed", migration_id=entry.migration_id)
        async with self._parts.limits.taken(Claim(task.id, source.name, destination.name)):
            try:
                await (self._resume_live(migration) if entry.live else self._resume_cold(migration))
            except Exception as error:
                await self._close_failed(migration, error)
                raise
        return vm.id

    async def complete_later(self, entry: MigrationEntry) -> None:
        """A task of its own tells a source that was silent at the end to let go, until it has heard it."""
        vm = self._parts.store.inventory.vms.get(entry.vm)
        name = vm.name if vm is not None else entry.vm

        async def work(task: Task) -> str:
            hosts = self._parts.store.inventory.hosts
            while (source := hosts.get(entry.source)) is not None:
                task.advance(0, f"waiting for {source.name}")
                if await steps.complete_source(self._parts, entry, source):
                    break
                await asyncio.sleep(self._parts.patience.pause_s)
            await self._forget(entry)
            return entry.vm

        await self._tasks.submit(TaskSpec(COMPLETE_OPERATION, entry.vm, name, user="vpxd"), work)

    async def _move_live(self, migration: Migration, planned: Plan) -> None:
        parts, task = self._parts, migration.task
        parties = spec.Parties(
            parts.facts.vm(migration.vm),
            parts.facts.host(migration.source),
            parts.facts.host(migration.destination),
        )
        specification = spec.build(migration.id, task.id, current_operation_id(), parties, planned.options)
        async with AsyncExitStack() as undo:
            # Registered before its step: an order whose answer is lost may have been carried out.
            task.advance(1, f"preparing {migration.destination.name} ({planned.reason})")
            undo.push_async_exit(self._cancel_on(migration, migration.destination))
            ticket = await steps.prepare_destination(parts, migration, specification)
            migration = replace(migration, prepared_s=asyncio.get_running_loop().time())

            undo.push_async_exit(self._cancel_on(migration, migration.source))
            await steps.start_source(parts, migration, specification, ticket)

            await Follower(parts, migration).follow()
            undo.pop_all()  # the point of no return: from here on nothing is undone and nothing fails
        await self._finish_live(migration)

    async def _resume_live(self, migration: Migration) -> None:
        async with AsyncExitStack() as undo:
            undo.push_async_exit(self._cancel_on(migration, migration.destination))
            undo.push_async_exit(self._cancel_on(migration, migration.source))
            await Follower(self._parts, migration).follow()
            undo.pop_all()
        await self._finish_live(migration)

    async def _finish_live(self, migration: Migration) -> None:
        parts, task = self._parts, migration.task
        task.pass_point_of_no_return()
        task.advance(99, f"letting {migration.source.name} go")
        clock = asyncio.get_running_loop().time
        handed_over_s = clock()
        state = await steps.complete_destination(parts, migration)
        source_done = await steps.complete_source(parts, migration.entry, migration.source)
        await steps.commit(parts, migration, state, source_done)
        if not source_done:
            await self.complete_later(replace(migration.entry, completing=True))
        times = Times(
            total_ms=(clock() - migration.started_s) * 1000,
            prepare_ms=(migration.prepared_s - migration.started_s) * 1000 if migration.prepared_s else 0.0,
            complete_ms=(clock() - handed_over_s) * 1000,
        )
        task.set_migration(with_times(task.record.migration, times))

    async def _move_cold(self, migration: Migration) -> None:
        migration.task.refuse_cancel_wish("queued")
        migration.task.pass_point_of_no_return()
        migration.task.advance(20, f"registering on {migration.destination.name}")
        state = await steps.move_registration(self._parts, migration)
        await steps.commit(self._parts, migration, state, source_done=True)

    async def _resume_cold(self, migration: Migration) -> None:
        parts, uuid = self._parts, migration.vm.uuid
        await self._wait_reported(migration)
        state = parts.live.host(migration.destination.id).vms.get(uuid)
        if state is not None:
            await steps.commit(parts, migration, state, source_done=True)
            return
        if uuid not in parts.live.host(migration.source.id).vms:
            await steps.restore_registration(parts, migration)
        raise restarted(migration.task.record.operation)

    async def _wait_reported(self, migration: Migration) -> None:
        """Until both hosts have told their VMs; what they told before a break counts."""
        live = self._parts.live
        while not all(live.host(host.id).reported for host in (migration.source, migration.destination)):
            migration.task.advance(0, "waiting for both hosts")
            await asyncio.sleep(self._parts.patience.pause_s)

    async def _open(self, task: Task, planned: Plan) -> Migration:
        vm, source, destination = planned.vm, planned.source, planned.destination
        entry = MigrationEntry(
            task.id, spec.new_migration_id(), vm.id, source.id, destination.id, planned.live
        )
        kind = EventType.VM_BEING_HOT_MIGRATED if planned.live else EventType.VM_BEING_MIGRATED
        text = f"{vm.name} is being migrated from {source.name} to {destination.name} ({planned.reason})"
        async with self._parts.store.transaction() as transaction:
            transaction.put(entry)
            transaction.emit(EventDraft(kind, text, vm.id, vm.name, task=task.id))
        _log.info(
            "migration_begin",
            migration_id=entry.migration_id,
            source=source.name,
            destination=destination.name,
            live=planned.live,
        )
        return self._migration(task, entry, vm, source, destination)

    async def _close_failed(self, migration: Migration, error: Exception) -> None:
        severity = Severity.WARNING if isinstance(error, RequestCanceled) else Severity.ERROR
        reason = error.message if isinstance(error, VimFault) else "a defect in vpxd"
        text = (
            f"{migration.vm.name} was not migrated from {migration.source.name} to "
            f"{migration.destination.name}: {reason}"
        )
        event = EventDraft(
            EventType.VM_FAILED_MIGRATE,
            text,
            migration.vm.id,
            migration.vm.name,
            migration.entry.task,
            severity,
        )
        async with self._parts.store.transaction() as transaction:
            transaction.delete(migration.entry)
            transaction.emit(event)

    async def _forget(self, entry: MigrationEntry) -> None:
        async with self._parts.store.transaction() as transaction:
            transaction.delete(entry)

    def _cancel_on(self, migration: Migration, host: Host) -> steps.AsyncExit:
        return steps.undoing(lambda: steps.cancel_on(self._parts, migration, host), f"cancel on {host.name}")

    def _migration(
        self, task: Task, entry: MigrationEntry, vm: Vm, source: Host, destination: Host
    ) -> Migration:
        ran_s = 0.0
        if task.record.start_time is not None:
            ran_s = (datetime.now(UTC) - task.record.start_time).total_seconds()
        return Migration(entry, vm, source, destination, task, asyncio.get_running_loop().time() - ran_s)


def restarted(operation: str) -> InvalidState:
    """The end of a task that was under way when vpxd ended and that can't be taken up."""
    return InvalidState(
        f"vpxd was restarted while {operation} was under way; look at the object's state and order it again if needed",
        state="interrupted",
        required="running",
    )
