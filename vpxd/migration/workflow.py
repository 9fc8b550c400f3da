"""A migration, from the order to the end, as a list of steps read from top to bottom. Which way: vpxd/migration/way.py.

    plan -> places (vpxd/migration/limits) -> plan again -> journal ->

    BETWEEN_HOSTS  prepare destination -> start source -> follow  |  -> complete both -> commit
    WITHIN_HOST    start relocation -> follow                     |  -> complete -> commit
                   <------- undone in reverse on any fault ---->  |  the point of no return
    REGISTRATION   unregister -> register -> NICs -> commit          (vpxd/migration/registration.py)

The journal entry is written before anything is asked of a host and deleted in the transaction that ends the
migration, unless a host hasn't heard of the end: then it stays for vpxd/migration/aftermath.py. When vpxd ends in
between, `resume` takes the migration up from the entry.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from runtime.faults import InvalidState, ManagedObjectNotFound
from runtime.rpc.operation_id import current_operation_id
from vpxd.inventory.records import Host, MigrationEntry, Vm
from vpxd.inventory.vm_lock import Holder
from vpxd.migration import charge, commit, registration, spec, steps
from vpxd.migration.aftermath import Aftermath
from vpxd.migration.follow import Follower
from vpxd.migration.order import MigrationOrder, Plan
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.plan import plan
from vpxd.migration.spec import MigrationSpec
from vpxd.migration.status import Times, with_times
from vpxd.migration.steps import Migration
from vpxd.migration.way import Way
from vpxd.tasks.manager import TaskManager
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
OPERATION = "VirtualMachine.migrate"


class MigrationWorkflow:
    """Runs migrations as the work of tasks."""

    def __init__(self, parts: WorkflowParts, tasks: TaskManager) -> None:
        self._parts = parts
        self.aftermath = Aftermath(parts, tasks)

    async def run(self, task: Task, order: MigrationOrder) -> str:
        """Does what was ordered; answers the VM's id. On any fault the VM is where it was, with its files.

        :raises InsufficientCpuResources: of high priority, and a host has no CPU left to reserve for it.
        :raises VimFault: as `plan` says, and the faults of the hosts.
        """
        parts = self._parts
        inventory, facts = parts.store.inventory, parts.facts
        first = plan(inventory, facts, order, task.id)
        if first.relocation.changes_host:
            parts.locks.share(Holder(task.id, OPERATION), first.destination.id, first.destination.name)
        parts.limits.require_cpu(task.id, charge.cpu_rooms(first))
        async with parts.limits.slot(task, charge.claim_of(task.id, first)):
            # Things may have changed while it waited; the destination stays the one whose places it has.
            fixed = replace(order, spec=replace(order.spec, host=first.destination.id, cluster=""))
            planned = replace(plan(inventory, facts, fixed, task.id), reason=first.reason)
            async with parts.limits.cpu(task.id, charge.cpu_rooms(planned)):
                await task.begin()
                migration = await self._open(task, planned)
                await self._carry_out(migration, planned)
        return planned.vm.id

    async def resume(self, task: Task, entry: MigrationEntry) -> str:
        """Goes on with a migration that an earlier life of vpxd began."""
        inventory = self._parts.store.inventory
        vm, source = inventory.vms.get(entry.vm), inventory.hosts.get(entry.source)
        destination = inventory.hosts.get(entry.destination)
        if vm is None or source is None or destination is None:
            await commit.forget(self._parts, entry)
            raise ManagedObjectNotFound(
                "the VM or a host of the migration was removed", kind="vm", key=entry.vm
            )
        migration = self._migration(task, entry, vm, source, destination)
        _log.info("migration_resumed", migration_id=entry.migration_id, way=migration.way.value)
        claim = charge.claim_of_entry(task.id, entry, source, destination)
        async with self._parts.limits.taken(claim, charge.cpu_rooms_of_entry(entry, source, destination)):
            try:
                if migration.way is Way.REGISTRATION:
                    await self._resume_registration(migration)
                else:
                    await self._resume_copy(migration)
            except Exception as error:
                await self._close_failed(migration, error)
                raise
        return vm.id

    async def _carry_out(self, migration: Migration, planned: Plan) -> None:
        names = spec.Names(migration.id, migration.task.id, current_operation_id())
        try:
            if migration.way is Way.REGISTRATION:
                await self._move_registration(migration)
            elif migration.way is Way.WITHIN_HOST:
                await self._move_within(migration, spec.build(names, planned))
            else:
                await self._move_between(migration, spec.build(names, planned), planned.reason)
        except Exception as error:
            await self._close_failed(migration, error)
            raise

    async def _move_between(self, migration: Migration, specification: MigrationSpec, reason: str) -> None:
        parts, task = self._parts, migration.task
        async with AsyncExitStack() as undo:
            # Registered before its step: an order whose answer is lost may have been carried out.
            task.advance(1, f"preparing {migration.destination.name} ({reason})")
            undo.push_async_exit(self._cancel_on(migration, migration.destination))
            ticket = await steps.prepare_destination(parts, migration, specification)
            migration = replace(migration, prepared_s=asyncio.get_running_loop().time())

            undo.push_async_exit(self._cancel_on(migration, migration.source))
            await steps.start_source(parts, migration, specification, ticket)

            await Follower(parts, migration).follow()
            undo.pop_all()  # the point of no return: from here on nothing is undone and nothing fails
        await self._finish(migration)

    async def _move_within(self, migration: Migration, specification: MigrationSpec) -> None:
        parts, task = self._parts, migration.task
        async with AsyncExitStack() as undo:
            task.advance(1, f"preparing {migration.source.name}")
            undo.push_async_exit(self._cancel_on(migration, migration.source))
            await steps.start_relocation(parts, migration, specification)
            migration = replace(migration, prepared_s=asyncio.get_running_loop().time())

            await Follower(parts, migration).follow()
            undo.pop_all()
        await self._finish(migration)

    async def _resume_copy(self, migration: Migration) -> None:
        async with AsyncExitStack() as undo:
            for host in reversed(migration.hosts):
                undo.push_async_exit(self._cancel_on(migration, host))
            await Follower(self._parts, migration).follow()
            undo.pop_all()
        await self._finish(migration)

    async def _finish(self, migration: Migration) -> None:
        """After the point of no return: hosts that are silent hear of it later."""
        parts, task = self._parts, migration.task
        task.pass_point_of_no_return()
        task.advance(99, f"letting {migration.source.name} go")
        clock = asyncio.get_running_loop().time
        handed_over_s = clock()
        there = await steps.complete_destination(parts, migration)
        unheard = [] if there.done else [migration.destination.id]
        if migration.way is Way.BETWEEN_HOSTS and not (await steps.complete_source(parts, migration)).done:
            unheard.append(migration.source.id)
        left = await commit.succeed(parts, migration, there.state, tuple(unheard))
        if left is not None:
            await self.aftermath.tell(left)
        times = Times(
            total_ms=(clock() - migration.started_s) * 1000,
            prepare_ms=(migration.prepared_s - migration.started_s) * 1000 if migration.prepared_s else 0.0,
            complete_ms=(clock() - handed_over_s) * 1000,
        )
        task.set_migration(with_times(task.record.migration, times))

    async def _move_registration(self, migration: Migration) -> None:
        migration.task.refuse_cancel_wish("queued")
        migration.task.pass_point_of_no_return()
        migration.task.advance(20, f"registering on {migration.destination.name}")
        state = await registration.move(self._parts, migration)
        await commit.succeed(self._parts, migration, state, ())

    async def _resume_registration(self, migration: Migration) -> None:
        parts, uuid = self._parts, migration.vm.uuid
        migration.task.pass_point_of_no_return()
        await self._wait_reported(migration)
        state = parts.live.host(migration.destination.id).vms.get(uuid)
        if state is not None:
            state = await registration.plug_nics_or_restore(parts, migration, state)
            await commit.succeed(parts, migration, state, ())
            return
        if uuid not in parts.live.host(migration.source.id).vms:
            await registration.restore(parts, migration)
        raise restarted(migration.task.record.operation)

    async def _wait_reported(self, migration: Migration) -> None:
        """Until both hosts have told their VMs; what they told before a break counts."""
        live = self._parts.live
        while not all(live.host(host.id).reported for host in migration.hosts):
            migration.task.advance(0, "waiting for both hosts")
            await asyncio.sleep(self._parts.patience.pause_s)

    async def _open(self, task: Task, planned: Plan) -> Migration:
        entry = MigrationEntry(
            task=task.id,
            migration_id=spec.new_migration_id(),
            vm=planned.vm.id,
            source=planned.source.id,
            destination=planned.destination.id,
            live=planned.live,
            files=planned.relocation.moves_files,
            terms=charge.terms_of(planned),
        )
        migration = self._migration(task, entry, planned.vm, planned.source, planned.destination)
        await commit.begin(self._parts, migration, planned.reason)
        _log.info(
            "migration_begin",
            migration_id=entry.migration_id,
            source=planned.source.name,
            destination=planned.destination.name,
            live=planned.live,
            way=migration.way.value,
            disks=len(planned.relocation.moved_disks),
        )
        return migration

    async def _close_failed(self, migration: Migration, error: Exception) -> None:
        left = await commit.fail(self._parts, migration, error)
        if left is not None:
            await self.aftermath.tell(left)

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
