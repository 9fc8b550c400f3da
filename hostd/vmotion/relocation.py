"""A move of a VM's files to other datastores of this host, while its guest runs or not.

    start:    check ─ lock ─ owner record ─ journal BEGUN ─ empty files ─ vmx copies ─ journal RUNNING
    then      vmx says FAILED       new files dropped, lock freed, the VM as before, journal FAILED
              both copies equal     journal HANDED_OVER: the new files count ─ registry ─ vmx switches
              vmx says SUCCEEDED    the lock stays until complete
    complete: the old files deleted, lock freed, journal COMPLETED

Up to HANDED_OVER the old files count. The guest's writes go to both until its vmx switches, disk by disk, so at every
moment each disk has one file that is whole: the new one where vmx says that it was switched, else the old one.
"""

import asyncio
import contextlib
from contextlib import AsyncExitStack

import structlog

from hostd.host.process import ProcessHandle
from hostd.vm import home as home_files
from hostd.vm.config_lock import RELOCATING
from hostd.vm.machine import AttachedVmx, Machine
from hostd.vm.power import abandon, end_or_kill, place_of
from hostd.vmotion.ends import HostParts, close_failed, holder_of, home_of, move_or_log, tell_if_gone
from hostd.vmotion.journal import LAST_PHASES, Migration, Role, Stage
from hostd.vmotion.moved_files import MovedFiles
from hostd.vmotion.spec_check import check_relocation, destination_config, destination_home, moves_home
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import (
    GuestDied,
    HostNotReachable,
    InvalidPowerState,
    ManagedObjectNotFound,
    MigrationFault,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    RequestCanceled,
    TimedOut,
    VimFault,
)
from runtime.ondisk.datastore_path import DatastorePath
from runtime.rpc.faults import fault_from_proto

_log = structlog.get_logger(__name__)
_CLOSE_TIMEOUT_S = 20.0
_STATUS_RETRY_S = 0.3
_VMX_END_S = 5.0


class Relocations:
    """All moves within this host."""

    def __init__(self, parts: HostParts) -> None:
        self._parts = parts
        self._files = MovedFiles(parts.datastores)
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._canceled: set[int] = set()  # of those that are being started
        self._ordered: set[int] = set()  # of those: vmx has its order, and only its answer tells what it does

    async def start(self, spec: spec_pb2.MigrationSpec) -> None:
        """Lock the VM and start to copy; returns when it's under way. On any fault the VM is as before.

        :raises ManagedObjectNotFound: :raises InvalidArgument: the spec. :raises TaskInProgress:
        :raises InvalidPowerState: it isn't as the spec says. :raises NotOwner: the record names another host.
        :raises FileAlreadyExists: :raises NoDiskSpace: :raises InaccessibleDatastore: :raises GuestStartFailed: of vmx.
        :raises RequestCanceled: `cancel` came meanwhile.
        :raises TimedOut: :raises HostNotReachable: vmx didn't answer; whether it has begun is found out.
        """
        task = asyncio.create_task(self._start(spec))
        self._starting.setdefault(spec.migration_id, task)
        try:
            await task
        except asyncio.CancelledError:
            if spec.migration_id not in self._canceled:
                task.cancel()
                await asyncio.wait([task])
                raise
            raise RequestCanceled("The move was canceled.", phase="prepare") from None
        finally:
            if self._starting.get(spec.migration_id) is task:
                del self._starting[spec.migration_id]
                self._canceled.discard(spec.migration_id)
                self._ordered.discard(spec.migration_id)

    async def _start(self, spec: spec_pb2.MigrationSpec) -> None:
        parts = self._parts
        machine = parts.registry.get(spec.vm.uuid)
        check_relocation(spec, parts.host, machine.config, machine.vmx_path)
        holder = holder_of(Migration(Role.RELOCATION, spec), RELOCATING)
        async with AsyncExitStack() as undo:
            parts.locks.acquire(machine.uuid, holder)
            undo.callback(parts.locks.release, machine.uuid, holder)
            running = machine.execution_state == host_pb2.EXECUTION_STATE_RUNNING
            if machine.active if spec.powered_off else not running:
                state = "poweredOn" if machine.active else "poweredOff"
                required = "poweredOff" if spec.powered_off else "poweredOn"
                raise InvalidPowerState(f"The VM is {state}.", state=state, required=required)
            await asyncio.to_thread(self._check_files, spec, machine)
            migration = await parts.journal.begin(Role.RELOCATION, spec)
            undo.push_async_callback(move_or_log, parts, migration, Stage.FAILED)
            await self._files.made(spec)
            undo.push_async_callback(asyncio.to_thread, self._files.drop_destination, spec)
            vmx = await self._start_vmx(machine, undo)
            await self._order(migration, machine, vmx, undo)
            undo.pop_all()
        await move_or_log(parts, migration, Stage.RUNNING)
        self._follow(migration, machine, vmx)

    async def cancel(self, migration: Migration) -> None:
        """Undo it; returns when the VM is as before. Idempotent.

        :raises PastPointOfNoReturn: the new files count already. :raises TimedOut: vmx doesn't come to an end.
        """
        starting = self._starting.get(migration.id)
        if starting is not None:
            if (
                migration.id not in self._ordered | self._canceled
            ):  # a second cancel would interrupt the undoing
                self._canceled.add(migration.id)
                starting.cancel()
            await asyncio.wait([starting], timeout=_CLOSE_TIMEOUT_S)
        if migration.stage in (Stage.HANDED_OVER, Stage.COMPLETED):
            raise PastPointOfNoReturn("The VM's new files count already.")
        machine = self._parts.registry.find(migration.spec.vm.uuid)
        if migration.open and machine is not None and machine.vmx is not None:
            with contextlib.suppress(ManagedObjectNotFound):  # it has just ended
                await machine.vmx.client.cancel_migration(migration.id)
        if not await migration.closed(_CLOSE_TIMEOUT_S):
            message = f"The move didn't end within {_CLOSE_TIMEOUT_S:.0f} s."
            raise TimedOut(message, operation="cancelMigration", timeout_s=_CLOSE_TIMEOUT_S)

    async def complete(self, migration: Migration) -> Machine:
        """After success: delete the old files. Idempotent.

        :raises MigrationNotReady: it hasn't succeeded.
        """
        machine = self._parts.registry.get(migration.spec.vm.uuid)
        if migration.stage is Stage.COMPLETED:
            return machine
        succeeded = migration.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
        if migration.stage is not Stage.HANDED_OVER or not succeeded:
            message = f"The move isn't ready to be completed: it is {migration.stage.value}."
            raise MigrationNotReady(message, reason=migration.stage.value)
        await self._let_vmx_go(migration, machine)
        await asyncio.to_thread(self._files.drop_source, migration.spec)
        await self._parts.journal.move(migration, Stage.COMPLETED)
        self._parts.locks.release(machine.uuid, holder_of(migration, RELOCATING))
        return machine

    async def recover(
        self, migration: Migration, vmx: ProcessHandle | None, guest: ProcessHandle | None
    ) -> None:
        """Take up an open move at hostd's start, with what was found of its VM."""
        parts = self._parts
        machine = parts.registry.find(migration.spec.vm.uuid)
        if machine is None:
            await move_or_log(parts, migration, Stage.FAILED)
            return
        parts.locks.acquire(machine.uuid, holder_of(migration, RELOCATING))
        if vmx is not None or guest is not None:
            parts.admission.adopt(machine.reservation)
        if vmx is not None:
            attached = parts.supervisor.attach(machine, vmx)
            self._follow(migration, machine, attached)
            return
        if guest is not None:
            parts.supervisor.attach_unmanaged(machine, guest)
        await self._end_without_vmx(migration, machine)

    async def state_changed(self, machine: Machine) -> None:
        """Nothing: what happens is told by the move's status."""

    async def vmx_ended(self, machine: Machine, guest: ProcessHandle | None) -> None:
        """Its vmx is gone."""
        for migration in self._parts.journal.open_migrations():
            if migration.role is Role.RELOCATION and migration.spec.vm.uuid == machine.uuid:
                await self._end_without_vmx(migration, machine)

    # ---- inside

    def _check_files(self, spec: spec_pb2.MigrationSpec, machine: Machine) -> None:
        self._files.require_free(spec)
        home = home_of(self._parts, machine.vmx_path)
        record = home_files.read_owner(home)
        if record is None or record.owner_host_uuid != self._parts.host.uuid:
            owner = record.owner_host_uuid if record is not None else ""
            raise NotOwner("The owner record doesn't name this host.", owner=owner)

    async def _start_vmx(self, machine: Machine, undo: AsyncExitStack) -> AttachedVmx:
        parts = self._parts
        vmx = machine.vmx
        if vmx is None:
            vmx = await parts.supervisor.start(machine)
            undo.push_async_callback(abandon, machine, vmx)
        return vmx

    async def _order(
        self, migration: Migration, machine: Machine, vmx: AttachedVmx, undo: AsyncExitStack
    ) -> None:
        parts, spec = self._parts, migration.spec
        here = await asyncio.to_thread(
            place_of, machine.config, machine.vmx_path, parts.datastores, parts.host
        )
        there = await asyncio.to_thread(
            place_of, destination_config(spec), destination_home(spec), parts.datastores, parts.host
        )
        self._ordered.add(migration.id)
        try:
            await vmx.client.start_relocation(spec, here, there)
        except (TimedOut, HostNotReachable):  # it may have begun: it's followed, and so found out
            undo.pop_all()
            self._follow(migration, machine, vmx)
            raise
        except asyncio.CancelledError:  # hostd stops: the next one finds it in the journal
            undo.pop_all()
            raise

    def _follow(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        machine.observer = self
        self._parts.tasks.start(self._relay(migration, machine, vmx), f"status of migration {migration.id}")
        tell_if_gone(self._parts, self, machine, vmx)

    async def _relay(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        while vmx.process.alive and migration.open:
            try:
                async for response in vmx.client.watch_migration(migration.id):
                    if response.status.phase in LAST_PHASES:
                        await self._on_last_status(migration, machine, response)
                        return
                    migration.publish(response.status)
                    if response.status.phase == status_pb2.MIGRATION_PHASE_SWITCHOVER:
                        await self._commit(migration, machine, vmx)
            except ManagedObjectNotFound:
                if migration.spec.powered_off:  # it was started for this
                    await abandon(machine, vmx)
                await self._end_without_vmx(migration, machine)
                return
            except VimFault as fault:
                _log.info("migration_status_broken", migration_id=migration.id, reason=str(fault))
            await vmx.process.wait(timeout_s=_STATUS_RETRY_S)

    async def _commit(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        """Both copies are equal: from here on the new files count. Safe to be done again."""
        if not migration.open:
            return
        if migration.stage is Stage.BEGUN:  # vmx's answer to the order was lost
            await self._parts.journal.move(migration, Stage.RUNNING)
        await self._parts.journal.move(migration, Stage.HANDED_OVER)
        spec = migration.spec
        await self._point_to(machine, destination_config(spec), destination_home(spec))
        try:
            await vmx.client.commit_relocation(migration.id)
        except VimFault as fault:  # its last status tells what became of it
            _log.error("relocation_commit_failed", migration_id=migration.id, reason=str(fault))

    async def _point_to(
        self, machine: Machine, config: vm_config_pb2.VmConfig, vmx_path: DatastorePath
    ) -> None:
        """The VM is where these say: .vmx file and registry."""
        guest_cpu = machine.config.guest_cpu
        after = vm_config_pb2.VmConfig()
        after.CopyFrom(config)
        after.change_version = machine.config.change_version
        after.ClearField("guest_cpu")
        if machine.config.HasField("guest_cpu"):
            after.guest_cpu.CopyFrom(guest_cpu)
        machine.config, machine.vmx_path = after, vmx_path
        try:
            await asyncio.to_thread(lambda: home_files.write_config(home_of(self._parts, vmx_path), after))
            await self._parts.registry.save()
        except VimFault as fault:  # the journal says it as well: a restart does it again
            _log.error("relocated_config_not_written", vm_uuid=machine.uuid, reason=str(fault))

    async def _on_last_status(
        self, migration: Migration, machine: Machine, last: operations_pb2.WatchMigrationResponse
    ) -> None:
        machine.observer = None
        fault = last.fault if last.HasField("fault") else None
        if last.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
            migration.publish(last.status, fault)
            return
        migration.fault = fault or migration.fault
        switched = {disk.key for disk in last.status.disks if disk.switched}
        await self._undo(migration, machine, switched)

    async def _undo(self, migration: Migration, machine: Machine, switched: set[int]) -> None:
        """It failed. Disks that were switched stay on their new files, all else is as before."""
        spec = migration.spec
        if migration.stage is Stage.HANDED_OVER:
            kept = vm_config_pb2.VmConfig()
            kept.CopyFrom(spec.vm)
            for disk, moved in zip(kept.disks, destination_config(spec).disks, strict=True):
                if disk.key in switched:
                    disk.CopyFrom(moved)
            await self._point_to(machine, kept, DatastorePath.parse(spec.vm_home))
            old = [disk for disk in spec.vm.disks if disk.key in switched]
            await asyncio.to_thread(self._files.drop_disks, old)
        left = spec_pb2.MigrationSpec()
        left.CopyFrom(spec)
        left.ClearField("moved_disks")
        left.moved_disks.extend(key for key in spec.moved_disks if key not in switched)
        if spec.powered_off:
            machine.ending = True
            await machine.idle.wait()
        await asyncio.to_thread(self._files.drop_destination, left)
        kept_fault = fault_from_proto(migration.fault) if migration.fault is not None else None
        fault = kept_fault or MigrationFault("The move of the VM's files failed.")
        await close_failed(self._parts, migration, RELOCATING, fault)

    async def _end_without_vmx(self, migration: Migration, machine: Machine) -> None:
        """vmx is gone. Before the commit the old files count; after it the new ones, which are whole: vmx had told of
        both copies being equal, and QEMU writes to them without vmx."""
        machine.observer = None
        spec = migration.spec
        if migration.stage is not Stage.HANDED_OVER:
            fault = GuestDied("The VM's vmx process ended while its files were copied.")
            await asyncio.to_thread(self._files.drop_destination, spec)
            await close_failed(self._parts, migration, RELOCATING, fault)
            return
        await self._point_to(machine, destination_config(spec), destination_home(spec))
        status = status_pb2.MigrationStatus()
        status.CopyFrom(migration.status)
        status.phase = status_pb2.MIGRATION_PHASE_SUCCEEDED
        _log.warning("relocation_ended_without_vmx", migration_id=migration.id, moves_home=moves_home(spec))
        migration.publish(status)

    async def _let_vmx_go(self, migration: Migration, machine: Machine) -> None:
        vmx = machine.vmx
        if vmx is None:
            return
        machine.ending = migration.spec.powered_off
        try:
            await vmx.client.complete_migration(migration.id)
        except VimFault as fault:
            _log.warning("vmx_complete_failed", migration_id=migration.id, reason=str(fault))
        if migration.spec.powered_off:
            await end_or_kill(vmx.process, after_s=_VMX_END_S)
            await machine.idle.wait()
