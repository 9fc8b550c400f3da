"""The source's end: lock, journal, let vmx send; give the VM back to itself or away for good.

    start:    check ─ lock ─ owner record ─ journal BEGUN ─ vmx sends ─ journal RUNNING
    then      vmx says FAILED      the record names us: lock freed, the VM runs as before, journal FAILED
              vmx says SUCCEEDED   journal HANDED_OVER: the lock stays until complete
              vmx ends             by the owner record (vmotion/resolve.py)
    complete: the guest's process ended, the VM unregistered (its files stay), lock freed, journal COMPLETED

A failure is told to watchers only when this end is as it was.
"""

import asyncio
import contextlib
from contextlib import AsyncExitStack

import structlog

from hostd.host.process import ProcessHandle
from hostd.vm import home as home_files
from hostd.vm.config_lock import EMIGRATING
from hostd.vm.machine import AttachedVmx, Machine
from hostd.vm.power import abandon, end_or_kill, force_off, place_of
from hostd.vmotion.ends import (
    HostParts,
    close_failed,
    find_owner,
    find_owner_for_certain,
    holder_of,
    home_of,
    move_or_log,
    relay_status,
    tell_if_gone,
)
from hostd.vmotion.journal import Migration, Role, Stage
from hostd.vmotion.moved_files import MovedFiles
from hostd.vmotion.resolve import Owner, Resolution, resolve
from hostd.vmotion.spec_check import check_source, moves_home
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import (
    FileLocked,
    GuestDied,
    HostNotReachable,
    InvalidArgument,
    InvalidPowerState,
    ManagedObjectNotFound,
    MigrationFault,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    TimedOut,
    VimFault,
)
from runtime.ondisk import owner_record
from runtime.rpc.faults import fault_from_proto, fault_to_proto

_log = structlog.get_logger(__name__)
_CLOSE_TIMEOUT_S = 20.0
_VMX_END_S = 5.0
_TAKE_BACK_EVERY_S = 0.05


class SourceMigrations:
    """All migrations away from this host."""

    def __init__(self, parts: HostParts) -> None:
        self._parts = parts
        self._files = MovedFiles(parts.datastores)

    async def start(self, spec: spec_pb2.MigrationSpec, ticket: spec_pb2.DestinationTicket) -> None:
        """Lock the VM and start to send it; returns when it's under way. On any fault the VM is as before.

        :raises ManagedObjectNotFound: :raises InvalidPowerState: :raises InvalidArgument: spec or ticket.
        :raises VMotionNotConfigured: :raises TaskInProgress: :raises NotOwner: the owner record names another host.
        """
        parts = self._parts
        machine = parts.registry.get(spec.vm.uuid)
        check_source(spec, ticket, parts.host, machine.config, machine.vmx_path)
        holder = holder_of(Migration(Role.SOURCE, spec), EMIGRATING)
        async with AsyncExitStack() as undo:
            parts.locks.acquire(machine.uuid, holder)
            undo.callback(parts.locks.release, machine.uuid, holder)
            _require_power_state(machine, powered_off=spec.powered_off)
            await asyncio.to_thread(self._require_owner, machine)
            migration = await parts.journal.begin(Role.SOURCE, spec)
            undo.push_async_callback(move_or_log, parts, migration, Stage.FAILED)
            vmx, place = machine.vmx, None
            if vmx is None:
                place = await asyncio.to_thread(
                    place_of, machine.config, machine.vmx_path, parts.datastores, parts.host
                )
                vmx = await parts.supervisor.start(machine)
                undo.push_async_callback(abandon, machine, vmx)
            try:
                await vmx.client.start_source(spec, ticket, place)
            except (TimedOut, HostNotReachable):  # it may have begun: it's followed, and so found out
                undo.pop_all()
                self._follow(migration, machine, vmx)
                raise
            except asyncio.CancelledError:  # hostd stops: the next one finds it in the journal
                undo.pop_all()
                raise
            undo.pop_all()
        await move_or_log(parts, migration, Stage.RUNNING)
        self._follow(migration, machine, vmx)

    async def cancel(self, migration: Migration) -> None:
        """Undo it; returns when the VM is as before. Idempotent.

        :raises PastPointOfNoReturn: the hand-over has happened.
        :raises TimedOut: vmx doesn't come to an end.
        """
        await _begun(migration)
        if _is_undone(migration):
            return
        machine = self._parts.registry.find(migration.spec.vm.uuid)
        if machine is not None and machine.vmx is not None:
            with contextlib.suppress(
                ManagedObjectNotFound
            ):  # it has just ended: its last status is on its way
                await machine.vmx.client.cancel_migration(migration.id)
        if not await migration.closed(_CLOSE_TIMEOUT_S):
            _is_undone(migration)
            message = f"The migration didn't end within {_CLOSE_TIMEOUT_S:.0f} s."
            raise TimedOut(message, operation="cancelMigration", timeout_s=_CLOSE_TIMEOUT_S)

    async def complete(self, migration: Migration) -> None:
        """After success: end the stunned guest, unregister the VM, free all. Idempotent.

        :raises MigrationNotReady: it hasn't succeeded, or the owner record names this host.
        :raises TimedOut: something of the VM doesn't end.
        """
        if migration.stage is Stage.COMPLETED:
            return
        if migration.stage is not Stage.HANDED_OVER:
            message = f"The migration isn't ready to be completed: it is {migration.stage.value}."
            raise MigrationNotReady(message, reason=migration.stage.value)
        parts = self._parts
        machine = parts.registry.find(migration.spec.vm.uuid)
        heard = migration.destination_has_vm or migration.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
        if moves_home(migration.spec) and not heard:
            message = "Nobody has said yet that the destination has the VM: the source isn't let go."
            raise MigrationNotReady(message, reason="destination's word")
        if machine is not None:
            if machine.active and await find_owner(parts, machine.vmx_path) is not Owner.ELSEWHERE:
                message = "The owner record doesn't name the destination: the source isn't let go."
                raise MigrationNotReady(message, reason="owner record")
            await self._end_source(migration, machine)
            if moves_home(migration.spec) and not migration.destination_has_vm:
                await parts.journal.note_destination_has_vm(migration)  # the record goes with the files
            await asyncio.to_thread(self._files.drop_source, migration.spec)
            await parts.registry.remove(machine)
        await parts.journal.move(migration, Stage.COMPLETED)
        parts.locks.release(migration.spec.vm.uuid, holder_of(migration, EMIGRATING))

    async def settle(self, migration: Migration, *, destination_has_vm: bool) -> None:
        """The destination's last word, where the two hosts share no home: written into the record here, which decides.
        If the VM is ours again, returns when it is as before. Idempotent.

        :raises InvalidArgument: this isn't the source of a migration whose home moves.
        :raises MigrationNotReady: the VM isn't given away. :raises NotOwner: the record has changed meanwhile.
        :raises TimedOut: the guest doesn't go on.
        """
        if migration.role is not Role.SOURCE or not moves_home(migration.spec):
            raise InvalidArgument("This isn't the source of a migration whose home moves.", "migration_id")
        if not migration.open:
            return
        given = await asyncio.to_thread(self._settle_record, migration, destination_has_vm)
        if destination_has_vm:
            await self._parts.journal.note_destination_has_vm(migration)
        if destination_has_vm or not given:
            return
        machine = self._parts.registry.find(migration.spec.vm.uuid)
        _log.warning("migration_given_back", migration_id=migration.id)
        if machine is not None and migration.stage is Stage.HANDED_OVER:
            await self._take_back(migration, machine)

    def _settle_record(self, migration: Migration, destination_has_vm: bool) -> bool:
        """Whether the VM was given away, and the word has been written; False: it is ours. Blocks."""
        home = home_of(self._parts, migration.home)
        present = home_files.read_owner(home)
        here, there = migration.spec.source.host_uuid, migration.spec.destination.host_uuid
        if present is None or present.owner_host_uuid != there:
            if destination_has_vm:
                message = "The owner record doesn't give the VM to the destination."
                raise MigrationNotReady(message, reason="owner record")
            return False
        owner_record.swap(home.owner_path, present, there if destination_has_vm else here)
        return True

    async def _take_back(self, migration: Migration, machine: Machine) -> None:
        """vmx, where it lives, sees the record and lets its guest go on."""
        deadline_s = asyncio.get_running_loop().time() + _CLOSE_TIMEOUT_S
        while machine.vmx is not None and machine.execution_state == host_pb2.EXECUTION_STATE_STUNNED:
            if asyncio.get_running_loop().time() > deadline_s:
                message = f"The guest didn't go on within {_CLOSE_TIMEOUT_S:.0f} s."
                raise TimedOut(message, operation="settleMigration", timeout_s=_CLOSE_TIMEOUT_S)
            await asyncio.sleep(_TAKE_BACK_EVERY_S)
        machine.observer = None
        fault = _kept_fault(migration) or MigrationFault("The destination gave the VM back.")
        await close_failed(self._parts, migration, EMIGRATING, fault)

    async def recover(
        self, migration: Migration, vmx: ProcessHandle | None, guest: ProcessHandle | None
    ) -> None:
        """Take up an open migration at hostd's start, with what was found of its VM."""
        parts = self._parts
        machine = parts.registry.find(migration.spec.vm.uuid)
        if machine is None:  # it was unregistered by a completion that wasn't finished, or never begun
            over = Stage.COMPLETED if migration.stage is Stage.HANDED_OVER else Stage.FAILED
            await move_or_log(parts, migration, over)
            return
        parts.locks.acquire(machine.uuid, holder_of(migration, EMIGRATING))
        if vmx is not None or guest is not None:
            parts.admission.adopt(machine.reservation)
        if vmx is None:
            parts.tasks.start(self._recover_dead(migration, machine, guest), f"migration {migration.id}")
            return
        attached = parts.supervisor.attach(machine, vmx)
        self._follow(migration, machine, attached)
        await parts.supervisor.settled(machine)

    async def state_changed(self, machine: Machine) -> None:
        """Nothing: what happens to a source is told by its migration's status."""

    async def vmx_ended(self, machine: Machine, guest: ProcessHandle | None) -> None:
        """Its vmx is gone: resolve by the owner record."""
        migration = self._migration_of(machine)
        if migration is None:
            return
        # Its files are deleted only after the destination's word: a completion that hostd's end has interrupted.
        missing = Owner.ELSEWHERE if migration.destination_has_vm else Owner.UNKNOWN
        owner = await find_owner_for_certain(self._parts, machine.vmx_path, missing)
        alive = guest is not None and guest.alive
        resolution = resolve(Role.SOURCE, owner, seen_running=False, guest_alive=alive)
        _log.info("migration_resolved", migration_id=migration.id, role="source", by=resolution.value)
        if resolution is Resolution.KEEP:
            what = "vmx has ended" if alive else machine.state.failure or "the guest has ended"
            fault = _kept_fault(migration) or GuestDied(f"The migration failed at the source: {what}.")
            machine.observer = None
            await close_failed(self._parts, migration, EMIGRATING, fault)
            return
        if guest is not None:
            guest.kill()
            await guest.wait()
        await self._given(migration)

    def _require_owner(self, machine: Machine) -> None:
        home = home_of(self._parts, machine.vmx_path)
        try:
            home_files.require_owner(home, machine.uuid, self._parts.host.uuid)
        except FileLocked as error:
            record = home_files.read_owner(home)
            epoch = record.epoch if record is not None else 0
            raise NotOwner("The owner record names another host.", owner=error.owner, epoch=epoch) from error

    def _follow(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        machine.observer = self
        relay = relay_status(migration, machine, vmx, self._on_last_status)
        self._parts.tasks.start(relay, f"status of migration {migration.id}")
        tell_if_gone(self._parts, self, machine, vmx)

    async def _on_last_status(
        self, migration: Migration, machine: Machine, last: operations_pb2.WatchMigrationResponse
    ) -> None:
        fault = last.fault if last.HasField("fault") else None
        if last.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
            await move_or_log(self._parts, migration, Stage.HANDED_OVER)
            migration.publish(last.status, fault)
            return
        migration.fault = fault or migration.fault
        owner = await find_owner_for_certain(self._parts, machine.vmx_path)
        if not migration.open:
            return
        if owner is Owner.ELSEWHERE:
            await self._given(migration)
            return
        machine.observer = None
        if last.status.phase == status_pb2.MIGRATION_PHASE_FAILED:
            status = status_pb2.MigrationStatus()
            status.CopyFrom(last.status)
            status.phase = migration.status.phase  # told as failed only when the lock is free
            migration.publish(status)
        if migration.spec.powered_off:  # its vmx only moved files, and ends with it
            machine.ending = True
            await machine.idle.wait()
        failure = last.status.failure or "The source's vmx doesn't know the migration any more."
        kept = _kept_fault(migration) or MigrationFault(failure)
        await close_failed(self._parts, migration, EMIGRATING, kept)

    async def _given(self, migration: Migration) -> None:
        """The VM is the destination's, though this end didn't see a success: locked until it is completed."""
        if migration.fault is None:
            fault = MigrationFault("The source lost the migration after the hand-over.")
            migration.fault = fault_to_proto(fault, f"hostd@{self._parts.host.name}")
        await move_or_log(self._parts, migration, Stage.HANDED_OVER)
        migration.publish_failure(migration.fault)

    async def _end_source(self, migration: Migration, machine: Machine) -> None:
        machine.observer = None
        machine.ending = True
        vmx = machine.vmx
        if vmx is not None:
            try:
                await vmx.client.complete_migration(migration.id)
            except VimFault as fault:  # the record names the destination: nothing here may go on
                _log.error("vmx_complete_failed", migration_id=migration.id, reason=str(fault))
                await force_off(machine, vmx)
            await end_or_kill(vmx.process, after_s=_VMX_END_S)
        elif machine.unmanaged is not None:
            machine.unmanaged.kill()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await machine.idle.wait()
        except TimeoutError as error:
            message = f"The source VM's processes didn't end within {_CLOSE_TIMEOUT_S:.0f} s."
            raise TimedOut(message, operation="completeMigration", timeout_s=_CLOSE_TIMEOUT_S) from error

    async def _recover_dead(
        self, migration: Migration, machine: Machine, guest: ProcessHandle | None
    ) -> None:
        machine.observer = self
        await self.vmx_ended(machine, guest)
        if guest is not None and guest.alive:
            self._parts.supervisor.attach_unmanaged(machine, guest)
        elif guest is not None:
            self._parts.admission.release(machine.uuid)

    def _migration_of(self, machine: Machine) -> Migration | None:
        for migration in self._parts.journal.open_migrations():
            if migration.role is Role.SOURCE and migration.spec.vm.uuid == machine.uuid:
                return migration
        return None


def _require_power_state(machine: Machine, *, powered_off: bool) -> None:
    """:raises InvalidPowerState: it isn't as the spec says."""
    state = "poweredOn" if machine.powered_on else "poweredOff"
    if powered_off and machine.active:
        message = "Something of the VM runs: its files can't be moved as those of one that is off."
        raise InvalidPowerState(message, state=state, required="poweredOff")
    running = machine.vmx is not None and machine.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    if not powered_off and not running:
        message = "Only a VM whose guest runs under its vmx can be sent."
        raise InvalidPowerState(message, state=state, required="poweredOn")


def _is_undone(migration: Migration) -> bool:
    """:raises PastPointOfNoReturn: it is handed over."""
    if migration.stage in (Stage.HANDED_OVER, Stage.COMPLETED):
        raise PastPointOfNoReturn("The VM has been handed over to the destination.")
    return migration.stage is Stage.FAILED


def _kept_fault(migration: Migration) -> VimFault | None:
    return fault_from_proto(migration.fault) if migration.fault is not None else None


async def _begun(migration: Migration) -> None:
    """Wait a little for a migration that is just being started: vmx doesn't know it yet."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            while migration.stage is Stage.BEGUN:
                await migration.published.wait_past(migration.published.version)
