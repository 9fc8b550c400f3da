"""All that exists of a guest while its process does: how it comes to be, and what follows it when its files move."""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import InvalidArgument, NotOwner
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.config import Config
from vmx.files import VmFiles
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.memory import GuestMemory
from vmx.guest.new_home import hold_run_lock, move_logs
from vmx.guest.process import GuestProcess, Launch
from vmx.messages import disk_places, guest_spec
from vmx.messages import vm_files as files_of
from vmx.migration.disk_copy import SourceDisk
from vmx.migration.order import MigrationOrder
from vmx.migration.relocation import RelocatedVm
from vmx.threads import in_thread


@dataclass
class RunningGuest:
    """A guest's process, and what makes it this VM's. `disks`: where each of them is now."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    started_at: float
    disks: tuple[SourceDisk, ...]

    def moved_disks(self, order: MigrationOrder) -> tuple[SourceDisk, ...]:
        """The disks that the order moves.

        :raises InvalidArgument: the guest hasn't one of them.
        """
        moved = {disk.key for disk in order.disks}
        disks = tuple(disk for disk in self.disks if disk.key in moved)
        if len(disks) != len(moved):
            raise InvalidArgument("The guest hasn't all the disks that move.", argument="moved_disks")
        return disks


async def spawn(
    own: Config,
    config: vm_config_pb2.VmConfig,
    place: service_pb2.VmPlace,
    *,
    incoming: MigrationOrder | None = None,
) -> RunningGuest:
    """QEMU, stopped; `incoming`: a shell for the guest of that migration.

    A guest of our own takes the run lock first; a shell inherits it without the lock: QEMU holds it from the moment we
    take it, at the hand-over.

    :raises InvalidArgument: the configuration is another VM's. :raises NotOwner: the record doesn't name this host.
    :raises FileLocked: another process may run the guest. :raises GuestError: QEMU didn't come up.
    On any fault nothing is left.
    """
    if config.uuid != own.vm_uuid:
        raise InvalidArgument("The configuration is another VM's.", argument="config.uuid")
    spec = guest_spec(config, place, own.run_dir, own.accelerator, incoming is not None)
    if incoming is not None:
        spec = replace(spec, disks=await asyncio.to_thread(_awaited, spec.disks, incoming))
    files = files_of(config, place)
    record = await asyncio.to_thread(owner_record.read, files.owner_record)
    here = incoming is not None or record.owner_host_uuid == own.host_uuid
    if record.vm_uuid != own.vm_uuid or not here:
        message = "The owner record doesn't name this host for this VM."
        raise NotOwner(message, owner=record.owner_host_uuid, epoch=record.epoch)
    with contextlib.ExitStack() as undo:
        run_lock = RunLock.open(files.run_lock)
        undo.callback(run_lock.close)
        if incoming is None:
            run_lock.acquire()
        memory = await in_thread(GuestMemory.create, config.name, config.ram_bytes)
        undo.callback(memory.close)
        launch = Launch(own.qemu_binary, files.qemu_log, run_lock.descriptor)
        process = await GuestProcess.spawn(spec, memory, launch)
        undo.pop_all()
    return RunningGuest(process, files, record, run_lock, time.monotonic(), disk_places(place))


def _awaited(disks: tuple[DiskDevice, ...], order: MigrationOrder) -> tuple[DiskDevice, ...]:
    """The disks of a guest that is on its way here. Blocking.

    Of those that stay where they are, what this host may still have in its page cache from an earlier time is dropped
    now: QEMU has to drop it at the resume, and then finds little.

    :raises InvalidArgument: a disk isn't there.
    """
    moved = {disk.key for disk in order.disks}
    for disk in disks:
        if disk.key in moved:
            continue
        try:
            with disk.extent_path.open("rb") as extent:
                os.posix_fadvise(extent.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            message = f"A disk's extent can't be opened: {error.strerror}."
            raise InvalidArgument(message, argument="place.disks") from error
    return tuple(replace(disk, arrives=disk.key in moved) for disk in disks)


class GuestMove:
    """A running guest's files on the way to another place of its host."""

    def __init__(
        self, order: MigrationOrder, guest: RunningGuest, place: service_pb2.VmPlace, run_dir: Path
    ) -> None:
        """:raises InvalidArgument: the place lacks a disk. :raises FileLocked: :raises NotOwner: of the new home."""
        self._order = order
        self._guest = guest
        self._run_dir = run_dir
        self._files = VmFiles(Path(place.home_directory), order.vm_name)
        moved = {disk.key for disk in order.disks}
        self._targets = tuple(disk for disk in disk_places(place) if disk.key in moved)
        if len(self._targets) != len(moved):
            raise InvalidArgument("The place hasn't all the disks that move.", argument="destination.disks")
        self._sources = guest.moved_disks(order)
        self._run_lock: RunLock | None = None
        self._record: OwnerRecord | None = None
        self._has_new_home = False
        if order.moves_home:
            self._open_new_home()

    def relocated_vm(self) -> RelocatedVm:
        """For the session."""
        return RelocatedVm(
            self._sources, self._targets, self._guest.process, self._run_dir, self._take_new_home
        )

    def conclude(self, switched: set[int]) -> None:
        """It is over: from now on the guest is where it is. A new home that wasn't taken is let go."""
        guest = self._guest
        now = {disk.key: disk for disk in guest.disks}
        now.update({disk.key: disk for disk in self._targets if disk.key in switched})
        guest.disks = tuple(now[key] for key in sorted(now))
        if self._run_lock is None or self._record is None:
            return
        if self._has_new_home:
            guest.run_lock.close()
            guest.files, guest.record, guest.run_lock = self._files, self._record, self._run_lock
        else:
            self._run_lock.close()

    def _open_new_home(self) -> None:
        self._record = owner_record.read(self._files.owner_record)
        if self._record.owner_host_uuid != self._order.source.host_uuid:
            message = "The new home's owner record names another host."
            raise NotOwner(message, owner=self._record.owner_host_uuid, epoch=self._record.epoch)
        self._run_lock = RunLock.open(self._files.run_lock)
        try:
            self._run_lock.acquire()
        except BaseException:
            self._run_lock.close()
            raise

    async def _take_new_home(self) -> None:
        """QEMU holds the new home's run lock and writes its logs there."""
        if self._run_lock is None or self._record is None:
            return
        qmp = self._guest.process.qmp
        await hold_run_lock(qmp, self._run_lock.descriptor, self._record.epoch)
        self._has_new_home = True
        await move_logs(qmp, self._files, self._run_dir, self._order.migration_id % 1000)
