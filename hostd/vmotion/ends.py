"""What both ends of a migration need: the host's parts, the owner record, and vmx's status relayed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from hostd.datastore.mount import Datastores
from hostd.host.facts import HostFacts
from hostd.owned_tasks import OwnedTasks
from hostd.vm import home as home_files
from hostd.vm.config_lock import ConfigLocks, Holder
from hostd.vm.home import Home
from hostd.vm.machine import AttachedVmx, Machine, MachineObserver
from hostd.vm.registry import VmRegistry
from hostd.vm.supervisor import Supervisor
from hostd.vmotion.admission import Admission
from hostd.vmotion.journal import LAST_PHASES, Journal, Migration, Stage
from hostd.vmotion.resolve import Owner
from proto.host.v1 import operations_pb2
from runtime.faults import CannotAccessFile, ManagedObjectNotFound, VimFault
from runtime.ondisk import owner_record, run_lock
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.owner_record import OwnerRecord
from runtime.rpc.faults import fault_to_proto

_log = structlog.get_logger(__name__)
# The record is on a datastore: nothing tells when it can be read again, so it is tried this often.
_OWNER_RETRY_S = 1.0
_STATUS_RETRY_S = 0.3


@dataclass(frozen=True)
class HostParts:
    """The parts of hostd that a migration works with."""

    host: HostFacts
    registry: VmRegistry
    locks: ConfigLocks
    supervisor: Supervisor
    admission: Admission
    datastores: Datastores
    journal: Journal
    tasks: OwnedTasks


def holder_of(migration: Migration, operation: str) -> Holder:
    """The migration as the holder of its VM's configuration lock."""
    return Holder(operation, migration.spec.task_id, migration.id)


def home_of(parts: HostParts, vmx_path: DatastorePath) -> Home:
    """The VM's home on this host; blocks.

    :raises InaccessibleDatastore: :raises InvalidDatastorePath:
    """
    return Home(parts.datastores.resolve_home(vmx_path), vmx_path.stem)


async def read_owner(parts: HostParts, vmx_path: DatastorePath) -> OwnerRecord | None:
    """The owner record as it is now; None where there is none.

    :raises VimFault: it can't be read.
    """
    return await asyncio.to_thread(lambda: home_files.read_owner(home_of(parts, vmx_path)))


async def find_owner(parts: HostParts, vmx_path: DatastorePath, missing: Owner = Owner.UNKNOWN) -> Owner:
    """Whom the record names. `missing`: what it means where the datastore can be read and has none."""
    try:
        record = await read_owner(parts, vmx_path)
    except VimFault as fault:
        _log.warning("owner_record_unreadable", home=str(vmx_path), reason=str(fault))
        return Owner.UNKNOWN
    if record is None:
        _log.warning("owner_record_missing", home=str(vmx_path), taken_for=missing.value)
        return missing
    return Owner.HERE if record.owner_host_uuid == parts.host.uuid else Owner.ELSEWHERE


async def find_owner_for_certain(
    parts: HostParts, vmx_path: DatastorePath, missing: Owner = Owner.UNKNOWN
) -> Owner:
    """Whom the record names, however long it takes to read it: HERE or ELSEWHERE. `missing` as `find_owner`."""
    while True:
        owner = await find_owner(parts, vmx_path, missing)
        if owner is not Owner.UNKNOWN:
            return owner
        await asyncio.sleep(_OWNER_RETRY_S)


def give_back(parts: HostParts, migration: Migration, vmx_path: DatastorePath) -> None:
    """Name the source in the owner record again, for a destination that is dead; blocks.

    :raises FileLocked: something here can still run the guest. :raises NotOwner: the record isn't ours any more.
    :raises CannotAccessFile: it can't be read or written.
    """
    home = home_of(parts, vmx_path)
    record = home_files.require_owner(home, migration.spec.vm.uuid, parts.host.uuid)
    lock = run_lock.RunLock.open(home.run_lock_path)
    try:
        lock.acquire()
        owner_record.swap(home.owner_path, record, migration.spec.source.host_uuid)
    finally:
        lock.close()
    _log.warning("owner_given_back", migration_id=migration.id, owner=migration.spec.source.host_uuid)


async def relay_status(
    migration: Migration,
    machine: Machine,
    vmx: AttachedVmx,
    on_last: Callable[[Migration, Machine, operations_pb2.WatchMigrationResponse], Awaitable[None]],
) -> None:
    """Publish what vmx says until its last word, which goes to `on_last` instead, or until vmx ends or forgot it."""
    while vmx.process.alive and migration.open:
        try:
            async for response in vmx.client.watch_migration(migration.id):
                if response.status.phase in LAST_PHASES:
                    await on_last(migration, machine, response)
                    return
                migration.publish(response.status)
        except ManagedObjectNotFound:
            response = operations_pb2.WatchMigrationResponse(status=migration.status)
            await on_last(migration, machine, response)
            return
        except VimFault as fault:
            _log.info("migration_status_broken", migration_id=migration.id, reason=str(fault))
        await vmx.process.wait(timeout_s=_STATUS_RETRY_S)


def tell_if_gone(parts: HostParts, observer: MachineObserver, machine: Machine, vmx: AttachedVmx) -> None:
    """A vmx that died before anybody followed its migration has told nobody of its end: tell `observer` now."""
    if machine.vmx is not vmx:
        told = observer.vmx_ended(machine, machine.unmanaged)
        parts.tasks.start(told, f"end of the vmx of {machine.name}")


async def close_failed(parts: HostParts, migration: Migration, operation: str, fault: VimFault) -> None:
    """This end is as it was: free the lock, close the journal, and only then tell it."""
    message = fault_to_proto(fault, f"hostd@{parts.host.name}")
    migration.fault = migration.fault or message
    parts.locks.release(migration.spec.vm.uuid, holder_of(migration, operation))
    await move_or_log(parts, migration, Stage.FAILED)
    migration.publish_failure(migration.fault)


async def move_or_log(parts: HostParts, migration: Migration, stage: Stage) -> None:
    """Move where there's nobody to tell that the journal can't be written: a restart decides again, by the record."""
    try:
        await parts.journal.move(migration, stage)
    except CannotAccessFile as fault:
        _log.error("journal_not_written", migration_id=migration.id, stage=stage.value, reason=str(fault))
