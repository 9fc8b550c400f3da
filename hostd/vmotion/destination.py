"""The destination's end: reserve, create masked, wait; the VM becomes visible when its guest runs here.

    prepare:  check ─ lock ─ reserve ─ journal BEGUN ─ vmx, masked ─ journal RUNNING ─ ticket
    then      guest runs here      de-masked, registered, journal HANDED_OVER; the lock stays
              complete             lock freed, journal COMPLETED
              cancel, vmx ends     by the owner record (vmotion/resolve.py): dropped, given back, or arrived

Each step of prepare has its undo registered behind it: on any fault nothing is left.
"""

import asyncio
import contextlib
from contextlib import AsyncExitStack

import structlog

from hostd.host.process import ProcessHandle
from hostd.vm import home as home_files
from hostd.vm.config_lock import IMMIGRATING
from hostd.vm.machine import AttachedVmx, Machine
from hostd.vm.power import abandon, end_or_kill, place_of
from hostd.vmotion.ends import (
    HostParts,
    close_failed,
    find_owner,
    find_owner_for_certain,
    give_back,
    holder_of,
    home_of,
    move_or_log,
    relay_status,
    tell_if_gone,
)
from hostd.vmotion.journal import LAST_PHASES, Migration, Role, Stage
from hostd.vmotion.moved_files import MovedFiles
from hostd.vmotion.resolve import Owner, Resolution, resolve
from hostd.vmotion.spec_check import check_destination, destination_config, moves_home
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import (
    GuestDied,
    InaccessibleDatastore,
    MigrationFault,
    MigrationNotReady,
    PastPointOfNoReturn,
    RequestCanceled,
    TimedOut,
    VimFault,
)
from runtime.ondisk.datastore_path import DatastorePath
from runtime.rpc.faults import fault_from_proto, fault_to_proto

_log = structlog.get_logger(__name__)

# The protection timer: a source that hasn't connected by then never will (the real system's is 90 s, too).
PROTECTION_S = 90.0
_CLOSE_TIMEOUT_S = 20.0
_ARRIVE_TIMEOUT_S = 5.0
_NOT_CONNECTED = frozenset({status_pb2.MIGRATION_PHASE_UNSPECIFIED, status_pb2.MIGRATION_PHASE_PREPARE})


class DestinationMigrations:
    """All migrations to this host."""

    def __init__(self, parts: HostParts) -> None:
        self._parts = parts
        self._files = MovedFiles(parts.datastores)
        self._machines: dict[int, Machine] = {}  # of prepared and open migrations, by id
        self._preparing: dict[int, asyncio.Task[spec_pb2.DestinationTicket]] = {}
        self._canceled: set[int] = set()  # of those that are being prepared

    async def prepare(self, spec: spec_pb2.MigrationSpec) -> spec_pb2.DestinationTicket:
        """Make the masked VM; returns where it listens. On any fault nothing is left.

        :raises InvalidArgument: the spec. :raises VMotionNotConfigured: :raises VirtualHardwareVersionNotSupported:
        :raises FeatureRequirementsNotMet: :raises InaccessibleDatastore: :raises FileNotFound:
        :raises MigrationNotReady: the VM's files or owner record aren't as the spec says.
        :raises DuplicateName: :raises TaskInProgress: the VM is locked on this host.
        :raises InsufficientMemoryResources: :raises InsufficientCpuResources:
        :raises GuestStartFailed: :raises TimedOut: vmx didn't come up.
        :raises RequestCanceled: `cancel` came meanwhile.
        """
        task = asyncio.create_task(self._prepare(spec))
        self._preparing.setdefault(spec.migration_id, task)
        try:
            return await task
        except asyncio.CancelledError:
            if spec.migration_id not in self._canceled:
                task.cancel()
                await asyncio.wait([task])
                raise
            raise RequestCanceled("The migration was canceled.", phase="prepare") from None
        finally:
            if self._preparing.get(spec.migration_id) is task:
                del self._preparing[spec.migration_id]
                self._canceled.discard(spec.migration_id)

    async def _prepare(self, spec: spec_pb2.MigrationSpec) -> spec_pb2.DestinationTicket:
        parts = self._parts
        vmx_path = check_destination(spec, parts.host)
        migration = Migration(Role.DESTINATION, spec)
        holder = holder_of(migration, IMMIGRATING)
        async with AsyncExitStack() as undo:
            parts.locks.acquire(spec.vm.uuid, holder)
            undo.callback(parts.locks.release, spec.vm.uuid, holder)
            await asyncio.to_thread(self._check_files, spec, vmx_path)
            await self._forget_stale(spec, vmx_path)
            machine = Machine(destination_config(migration.spec), vmx_path, masked=True)
            if not spec.powered_off:
                parts.admission.reserve(machine.reservation)
                undo.callback(parts.admission.release, machine.uuid)
            migration = await parts.journal.begin(Role.DESTINATION, spec)
            undo.push_async_callback(move_or_log, parts, migration, Stage.FAILED)
            await self._files.made(spec)
            undo.push_async_callback(asyncio.to_thread, self._files.drop_destination, spec)
            place = await asyncio.to_thread(place_of, machine.config, vmx_path, parts.datastores, parts.host)
            vmx = await parts.supervisor.start(machine)
            undo.push_async_callback(abandon, machine, vmx)
            ticket = await vmx.client.prepare_destination(spec, place)
            # The masked guest came after the state that vmx told last: without its pid nobody would end it after vmx.
            await parts.supervisor.note_guest(machine, await vmx.client.get_state())
            await parts.journal.move(migration, Stage.RUNNING)
            self._follow(migration, machine, vmx)
            undo.pop_all()
        parts.tasks.start(self._protect(migration), f"protection timer of migration {migration.id}")
        return ticket

    async def cancel(self, migration: Migration) -> None:
        """Undo it; returns when this host is as it was. Idempotent.

        :raises PastPointOfNoReturn: the VM is this host's, or about to be.
        :raises TimedOut: the shell VM doesn't end.
        """
        preparing = self._preparing.get(migration.id)
        if preparing is not None:
            if migration.id not in self._canceled:  # a second cancel would interrupt the undoing
                self._canceled.add(migration.id)
                preparing.cancel()
            await asyncio.wait([preparing], timeout=_CLOSE_TIMEOUT_S)
        machine = self._machines.get(migration.id)
        if not migration.open:
            if migration.stage is not Stage.FAILED:
                raise PastPointOfNoReturn("The migration has been completed.")
            return
        if migration.stage is Stage.HANDED_OVER:
            raise PastPointOfNoReturn("The VM runs on this host already.")
        if machine is not None and machine.vmx is not None:
            await self._cancel_vmx(migration, machine, machine.vmx)
        if not await migration.closed(_CLOSE_TIMEOUT_S):
            message = f"The masked VM didn't end within {_CLOSE_TIMEOUT_S:.0f} s."
            raise TimedOut(message, operation="cancelMigration", timeout_s=_CLOSE_TIMEOUT_S)

    async def complete(self, migration: Migration) -> Machine:
        """After success: the VM is one like any other. Idempotent.

        :raises MigrationNotReady: its guest wasn't seen running here, or vmx isn't done.
        """
        machine = self._machines.get(migration.id)
        if migration.stage is Stage.COMPLETED:
            return self._parts.registry.get(migration.spec.vm.uuid)
        if machine is not None:  # the source may have told of the success before our vmx has
            await _arrived(migration, machine)
        if migration.stage is not Stage.HANDED_OVER or machine is None or machine.masked:
            message = f"The migration isn't ready to be completed: it is {migration.stage.value}."
            raise MigrationNotReady(message, reason=migration.stage.value)
        if machine.vmx is not None:
            machine.ending = migration.spec.powered_off  # its vmx only moved files
            try:
                await machine.vmx.client.complete_migration(migration.id)
            except MigrationNotReady as fault:
                if migration.status.phase not in LAST_PHASES:
                    raise
                # Its status ended badly after the guest was running here: the VM is ours, and stays usable.
                _log.warning("vmx_complete_refused", migration_id=migration.id, reason=str(fault))
            except VimFault as fault:  # the VM is ours in any case: a vmx in trouble doesn't keep its lock
                _log.warning("vmx_complete_failed", migration_id=migration.id, reason=str(fault))
        machine.observer = None
        if migration.spec.powered_off and machine.vmx is not None:
            await end_or_kill(machine.vmx.process, after_s=5.0)
            await machine.idle.wait()
        await self._parts.journal.move(migration, Stage.COMPLETED)
        self._machines.pop(migration.id, None)
        self._parts.locks.release(machine.uuid, holder_of(migration, IMMIGRATING))
        return machine

    async def recover(
        self, migration: Migration, vmx: ProcessHandle | None, guest: ProcessHandle | None
    ) -> None:
        """Take up an open migration at hostd's start, with what was found of its VM."""
        parts = self._parts
        registered = parts.registry.find(migration.spec.vm.uuid)
        machine = registered or Machine(destination_config(migration.spec), migration.home, masked=True)
        self._machines[migration.id] = machine
        parts.locks.acquire(machine.uuid, holder_of(migration, IMMIGRATING))
        if registered is not None:  # it's registered only when it has arrived
            await move_or_log(parts, migration, Stage.HANDED_OVER)
        if vmx is None:
            if guest is not None:
                parts.admission.adopt(machine.reservation)
            parts.tasks.start(self._recover_dead(migration, machine, guest), f"migration {migration.id}")
            return
        parts.admission.adopt(machine.reservation)
        attached = parts.supervisor.attach(machine, vmx)
        self._follow(migration, machine, attached)
        await parts.supervisor.settled(machine)
        if migration.stage is Stage.BEGUN:  # nobody has its ticket
            parts.tasks.start(self._cancel_or_log(migration), f"cancel of migration {migration.id}")
        elif migration.stage is Stage.RUNNING:
            parts.tasks.start(self._protect(migration), f"protection timer of migration {migration.id}")

    async def state_changed(self, machine: Machine) -> None:
        """The moment of de-masking."""
        if machine.masked and machine.execution_state == host_pb2.EXECUTION_STATE_RUNNING:
            migration = self._migration_of(machine)
            if migration is not None:
                await self._arrive(migration, machine)

    async def vmx_ended(self, machine: Machine, guest: ProcessHandle | None) -> None:
        """Its vmx is gone: resolve by the owner record."""
        migration = self._migration_of(machine)
        if migration is None or not machine.masked:
            return
        seen_running = migration.stage is Stage.HANDED_OVER
        # A home of its own that isn't there was not made yet, or is deleted already: hostd ended in between.
        gone = moves_home(migration.spec) and not seen_running
        missing = Owner.ELSEWHERE if gone else Owner.UNKNOWN
        owner = await find_owner_for_certain(self._parts, machine.vmx_path, missing)
        alive = guest is not None and guest.alive
        # Files that the record names as ours have arrived whole: it is swapped only when they have.
        arrived = seen_running or migration.spec.powered_off
        resolution = resolve(Role.DESTINATION, owner, seen_running=arrived, guest_alive=alive)
        _log.info("migration_resolved", migration_id=migration.id, role="destination", by=resolution.value)
        if resolution is Resolution.ARRIVED:
            await self._arrive(migration, machine)
            return
        if guest is not None:
            guest.kill()
            await guest.wait()
        if resolution is Resolution.GIVE_BACK:
            await self._give_back(migration, machine)
        self._parts.tasks.start(self._close_when_idle(migration, machine), f"end of migration {migration.id}")

    def _check_files(self, spec: spec_pb2.MigrationSpec, vmx_path: DatastorePath) -> None:
        """What the datastores must say; blocks."""
        parts = self._parts
        self._files.require_free(spec)
        datastore = parts.datastores.get(vmx_path.datastore)
        wanted = spec.destination_home_datastore_uuid if moves_home(spec) else spec.home_datastore_uuid
        if datastore.uuid != wanted:
            message = f"Datastore {datastore.name} on {parts.host.name} isn't the one that the source has."
            raise InaccessibleDatastore(message, datastore=datastore.name, host=parts.host.name)
        if moves_home(spec):
            return
        home = home_of(parts, vmx_path)
        config = home_files.read_config(home)
        if config.uuid != spec.vm.uuid or config.change_version != spec.vm.change_version:
            message = "The VM's .vmx file isn't the configuration that the spec has."
            raise MigrationNotReady(message, reason="configuration")
        record = home_files.read_owner(home)
        if record is None or record.owner_host_uuid != spec.source.host_uuid:
            message = "The VM's owner record doesn't name the source."
            raise MigrationNotReady(message, reason="owner record")

    async def _forget_stale(self, spec: spec_pb2.MigrationSpec, vmx_path: DatastorePath) -> None:
        """Drop a registration of this VM from before it went elsewhere: the owner record names the source.

        :raises MigrationNotReady: something of the VM runs here. :raises DuplicateName: another VM has its name.
        """
        registry = self._parts.registry
        stale = registry.find(spec.vm.uuid)
        if stale is not None and stale.active:
            message = "Something of the VM is running on this host."
            raise MigrationNotReady(message, reason="active")
        if stale is not None:
            _log.warning("stale_registration_dropped", vm_uuid=stale.uuid, vm=stale.name)
            await registry.remove(stale)
        registry.require_free(destination_config(spec), vmx_path)

    def _follow(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        self._machines[migration.id] = machine
        machine.observer = self
        relay = relay_status(migration, machine, vmx, self._on_last_status)
        self._parts.tasks.start(relay, f"status of migration {migration.id}")
        tell_if_gone(self._parts, self, machine, vmx)

    async def _on_last_status(
        self, migration: Migration, machine: Machine, last: operations_pb2.WatchMigrationResponse
    ) -> None:
        """A failure is told when the masked VM is gone; until then only the fault is kept."""
        failed = last.status.phase != status_pb2.MIGRATION_PHASE_SUCCEEDED
        if failed and machine.masked:
            if last.HasField("fault"):
                migration.fault = last.fault
            return
        if machine.masked and migration.spec.powered_off:  # there is no guest whose start would tell
            await self._arrive(migration, machine)
        migration.publish(last.status, last.fault if last.HasField("fault") else None)

    async def _arrive(self, migration: Migration, machine: Machine) -> None:
        await move_or_log(self._parts, migration, Stage.HANDED_OVER)
        if not moves_home(migration.spec):  # else it was made with its new configuration
            await self._write_config(machine)
        machine.masked = False
        _log.info("vm_demasked", migration_id=migration.id, vm_uuid=machine.uuid, vm=machine.name)
        try:
            await self._parts.registry.adopt(machine)
        except VimFault as fault:  # the journal has the VM as well: a restart finds it
            _log.error("registry_not_written", vm_uuid=machine.uuid, reason=str(fault))
        migration.published.ring()

    async def _write_config(self, machine: Machine) -> None:
        """The home stays where it is: what has changed on the way is written there."""

        def write() -> None:
            home = home_of(self._parts, machine.vmx_path)
            if home_files.read_config(home) != machine.config:
                home_files.write_config(home, machine.config)

        try:
            await asyncio.to_thread(write)
        except VimFault as fault:  # hostd's registry has it as well
            _log.error("config_not_written", vm_uuid=machine.uuid, reason=str(fault))

    async def _give_back(self, migration: Migration, machine: Machine) -> None:
        try:
            await asyncio.to_thread(give_back, self._parts, migration, machine.vmx_path)
        except VimFault as fault:
            _log.error("give_back_failed", migration_id=migration.id, reason=str(fault))

    async def _close_when_idle(self, migration: Migration, machine: Machine) -> None:
        await machine.idle.wait()
        if migration.fault is not None:
            fault = fault_from_proto(migration.fault)
        elif machine.state.failure:
            fault = GuestDied(machine.state.failure)
        else:
            fault = MigrationFault("The masked VM on the destination has ended.")
        self._machines.pop(migration.id, None)
        await asyncio.to_thread(self._files.drop_destination, migration.spec)
        await close_failed(self._parts, migration, IMMIGRATING, fault)

    async def _cancel_vmx(self, migration: Migration, machine: Machine, vmx: AttachedVmx) -> None:
        machine.ending = True
        try:
            await vmx.client.cancel_migration(migration.id)
        except PastPointOfNoReturn:
            machine.ending = False
            raise
        except VimFault as fault:
            _log.error("vmx_cancel_failed", migration_id=migration.id, reason=str(fault))
            if await find_owner(self._parts, machine.vmx_path) is not Owner.ELSEWHERE:
                machine.ending = False
                message = "The VM may be this host's already, and its vmx doesn't answer."
                raise PastPointOfNoReturn(message) from fault
            vmx.process.kill()
        await end_or_kill(vmx.process, after_s=5.0)

    async def _cancel_or_log(self, migration: Migration) -> None:
        try:
            await self.cancel(migration)
        except VimFault as fault:
            _log.error("cancel_failed", migration_id=migration.id, reason=str(fault))

    async def _protect(self, migration: Migration) -> None:
        if await migration.closed(PROTECTION_S):
            return
        if migration.stage is Stage.RUNNING and migration.status.phase in _NOT_CONNECTED:
            _log.error("protection_timer_expired", migration_id=migration.id, timeout_s=PROTECTION_S)
            fault = TimedOut(
                f"The source didn't connect within {PROTECTION_S:.0f} s.", "prepareDestination", PROTECTION_S
            )
            migration.fault = fault_to_proto(fault, f"hostd@{self._parts.host.name}")
            await self._cancel_or_log(migration)

    async def _recover_dead(
        self, migration: Migration, machine: Machine, guest: ProcessHandle | None
    ) -> None:
        await self.vmx_ended(machine, guest)
        if guest is not None and guest.alive:
            self._parts.supervisor.attach_unmanaged(machine, guest)
        elif guest is not None:
            self._parts.admission.release(machine.uuid)

    def _migration_of(self, machine: Machine) -> Migration | None:
        for migration_id, known in self._machines.items():
            if known is machine:
                return self._parts.journal.get(migration_id)
        return None


async def _arrived(migration: Migration, machine: Machine) -> None:
    """Wait a little for an open migration's VM to be visible, or the migration to be closed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ARRIVE_TIMEOUT_S):
            while migration.open and machine.masked:
                await migration.published.wait_past(migration.published.version)
