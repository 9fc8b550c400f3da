"""The files of a VM that moves to other datastores: made empty at the new place, dropped there after a failure, deleted
at the old one after a success. All functions but `made` block, and may be called again after a kill in between.
"""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import structlog

from hostd.datastore.interruptible import interruptible
from hostd.datastore.mount import Datastores
from hostd.datastore.virtual_disk import VirtualDisks
from hostd.vm import home as home_files
from hostd.vm.home import Home
from hostd.vmotion.spec_check import destination_config, destination_home, moves_home
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from runtime.faults import FileAlreadyExists, FileNotFound, NotSupported, VimFault
from runtime.ondisk.datastore_path import DatastorePath

_log = structlog.get_logger(__name__)


class MovedFiles:
    """What `spec` moves, on this host's datastores."""

    def __init__(self, datastores: Datastores) -> None:
        self._datastores = datastores
        self._disks = VirtualDisks(datastores)

    def require_free(self, spec: spec_pb2.MigrationSpec) -> None:
        """Nothing is there yet where files are going to be made: so what is found there later was made for this.

        :raises FileAlreadyExists: something is. :raises NotSupported: a target that is no raw disk.
        :raises InaccessibleDatastore: :raises InvalidDatastorePath:
        """
        if moves_home(spec):
            home = self._new_home(spec)  # its folder may be there: disks of the VM may lie in it already
            for taken in (home.vmx_path, home.owner_path, home.run_lock_path):
                if os.path.lexists(taken):
                    shown = destination_home(spec).parent.child(taken.name)
                    raise FileAlreadyExists(f"There is a file {shown} already.", path=str(shown))
        for disk in _moved(spec, destination_config(spec)):
            if disk.format == vm_config_pb2.DISK_FORMAT_QCOW2 and not _may_stay_qcow2(spec):
                message = "A disk becomes or stays qcow2 only within its host and while its VM is off."
                raise NotSupported(message, feature="qcow2 target")
            path = DatastorePath.parse(disk.path)
            folder_exists = self._datastores.resolve(path.parent).is_dir()
            if folder_exists and self._disks.exists(path):
                raise FileAlreadyExists(f"There is a file {path} already.", path=str(path))

    async def made(self, spec: spec_pb2.MigrationSpec) -> None:
        """`make` in a thread. Who is canceled here waits until nothing is left of it: zeroing a disk takes its time.

        :raises VimFault: as `make`.
        """
        done = threading.Event()

        def work(stop: threading.Event) -> None:
            self.make(spec, stop)
            done.set()

        try:
            await interruptible(work)
        except asyncio.CancelledError:
            if done.is_set():
                await asyncio.shield(asyncio.to_thread(self.drop_destination, spec))
            raise

    def make(self, spec: spec_pb2.MigrationSpec, stop: threading.Event) -> None:
        """The new home, whose record names the source, and the empty disks. On any fault nothing is left.

        :raises NoDiskSpace: :raises FileAlreadyExists: :raises CannotAccessFile: And as `require_free`.
        :raises Interrupted: `stop` was set.
        """
        config = destination_config(spec)
        with contextlib.ExitStack() as undo:
            if moves_home(spec):
                home = self._new_home(spec)
                home_files.create(home, config, spec.source.host_uuid, in_folder=home.folder.is_dir())
                undo.callback(home_files.destroy, home)
            for disk in _moved(spec, config):
                path = DatastorePath.parse(disk.path)
                folder = self._datastores.resolve(path.parent)
                if not folder.is_dir():
                    folder.mkdir(mode=0o700)
                    undo.callback(_remove_if_empty, folder)
                self._create(spec, disk, path, stop)
                undo.callback(self._disks.delete, path, disk.format)
            undo.pop_all()

    def drop_destination(self, spec: spec_pb2.MigrationSpec) -> None:
        """After a failure: nothing is left of what `make` has made. What can't be deleted is logged."""
        for disk in _moved(spec, destination_config(spec)):
            self._drop_disk(disk)
        if moves_home(spec):
            self._drop_home(destination_home(spec))

    def drop_source(self, spec: spec_pb2.MigrationSpec) -> None:
        """After a success: what moved isn't at the old place any more. What can't be deleted is logged."""
        for disk in _moved(spec, spec.vm):
            self._drop_disk(disk)
        if moves_home(spec):
            self._drop_home(DatastorePath.parse(spec.vm_home))

    def drop_disks(self, disks: list[vm_config_pb2.VirtualDisk]) -> None:
        """Delete these; what can't be is logged."""
        for disk in disks:
            self._drop_disk(disk)

    def _create(
        self,
        spec: spec_pb2.MigrationSpec,
        disk: vm_config_pb2.VirtualDisk,
        path: DatastorePath,
        stop: threading.Event,
    ) -> None:
        if disk.format != vm_config_pb2.DISK_FORMAT_QCOW2:
            self._disks.create(path, disk.capacity_bytes, disk.format, stop)
            return
        before = next(one for one in spec.vm.disks if one.key == disk.key)
        source = self._disks.inspect(DatastorePath.parse(before.path))
        self._disks.create_like(source.descriptor, path, disk.format)

    def _new_home(self, spec: spec_pb2.MigrationSpec) -> Home:
        vmx_path = destination_home(spec)
        return Home(self._datastores.resolve(vmx_path.parent), vmx_path.stem)

    def _drop_disk(self, disk: vm_config_pb2.VirtualDisk) -> None:
        path = DatastorePath.parse(disk.path)
        try:
            with contextlib.suppress(FileNotFound):
                self._disks.delete(path, disk.format)
            _remove_if_empty(self._datastores.resolve(path.parent))
        except VimFault as fault:
            _log.error("moved_disk_not_deleted", path=str(path), reason=str(fault))

    def _drop_home(self, vmx_path: DatastorePath) -> None:
        try:
            home_files.destroy(Home(self._datastores.resolve(vmx_path.parent), vmx_path.stem))
        except VimFault as fault:
            _log.error("moved_home_not_deleted", home=str(vmx_path), reason=str(fault))


def _may_stay_qcow2(spec: spec_pb2.MigrationSpec) -> bool:
    return spec.powered_off and spec.source.host_uuid == spec.destination.host_uuid


def _moved(spec: spec_pb2.MigrationSpec, config: vm_config_pb2.VmConfig) -> list[vm_config_pb2.VirtualDisk]:
    return [disk for disk in config.disks if disk.key in spec.moved_disks]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it has other files, or is gone
        folder.rmdir()
