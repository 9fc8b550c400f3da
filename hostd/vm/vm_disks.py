"""A VM's disks in its life: planned, made, attached, extended and deleted with it. Methods that touch the disk block.

plan    what is wanted, completed: which disks are there to be attached, which are to be made, which to grow
apply   does it; everything it did is on the `undo` stack that it is given
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from hostd.datastore.disk_descriptor import THIN
from hostd.datastore.mount import Datastores
from hostd.datastore.virtual_disk import VirtualDisk, VirtualDisks
from hostd.vm.device_defaults import Surroundings, with_device_defaults
from hostd.vm.files_in_use import FilesInUse
from hostd.vm.machine import Machine
from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidVmConfig,
    ResourceInUse,
    VimFault,
)
from runtime.ondisk.datastore_path import DatastorePath

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DiskPlan:
    """A configuration whose disks are complete, and what has to be done for it to be true."""

    config: vm_config_pb2.VmConfig
    attached: tuple[DatastorePath, ...] = ()
    made: tuple[vm_config_pb2.VirtualDisk, ...] = ()
    grown: tuple[vm_config_pb2.VirtualDisk, ...] = ()

    @property
    def new_paths(self) -> list[DatastorePath]:
        """Descriptors that become the VM's."""
        return [*self.attached, *(DatastorePath.parse(disk.path) for disk in self.made)]


class VmDisks:
    """The disks of this host's VMs."""

    def __init__(self, datastores: Datastores, files: FilesInUse) -> None:
        self._datastores = datastores
        self._disks = VirtualDisks(datastores)
        self._files = files

    def plan(
        self,
        wanted: vm_config_pb2.VmConfig,
        home: DatastorePath,
        macs: Iterable[str],
        present: vm_config_pb2.VmConfig | None = None,
    ) -> DiskPlan:
        """Complete `wanted`; nothing is changed yet. `present`: what the VM has; `home`: its folder.

        A disk that the VM doesn't have is attached where its path is a disk's, else it is to be made.

        :raises InvalidVmConfig: a disk's path, format or capacity can't be so, or would change to what it can't.
        :raises FileNotFound: a disk without a capacity isn't there. :raises InvalidDiskFormat: it isn't one that can be
            used. :raises InaccessibleDatastore: :raises InvalidDatastorePath: :raises CannotAccessFile:
        """
        present = present or vm_config_pb2.VmConfig()
        folder = self._datastores.resolve_plain(home)
        names = os.listdir(folder) if folder.is_dir() else []
        config = with_device_defaults(
            wanted, Surroundings(home, names, set(macs), secrets.token_bytes, present)
        )
        had = {disk.key: disk for disk in present.disks}
        attached, made, grown = [], [], []
        for disk in config.disks:
            path = _path_of(disk)
            if disk.key in had:
                if _check_kept(had[disk.key], disk):
                    grown.append(disk)
            elif self._disks.exists(path):
                _adopt(disk, self._disks.inspect(path))
                attached.append(path)
            elif not disk.capacity_bytes:
                raise FileNotFound(f"There is no disk {path}.", path=str(path))
            else:
                disk.format = disk.format or THIN
                made.append(disk)
        return DiskPlan(config, tuple(attached), tuple(made), tuple(grown))

    def require_unregistered(self, paths: Iterable[DatastorePath], vm_uuid: str) -> None:
        """:raises ResourceInUse: a disk is another VM's of this host. Doesn't block."""
        for path in paths:
            user = self._files.vm_of(path, but=vm_uuid)
            if user:
                message = f"The disk {path} is the VM {user}'s."
                raise ResourceInUse(message, kind="VirtualDisk", name=str(path))

    def apply(self, plan: DiskPlan, undo: contextlib.ExitStack, stop: threading.Event) -> None:
        """Make and extend what is planned.

        :raises NoDiskSpace: :raises FileAlreadyExists: :raises FileLocked: And as `VirtualDisks.create`, `extend`. What
            was done before is on `undo`.
        """
        for disk in plan.made:
            path = _path_of(disk)
            try:
                self._disks.create(path, disk.capacity_bytes, disk.format, stop)
            except InvalidArgument as error:
                raise InvalidVmConfig(str(error), f"disks[{disk.key}]") from error
            undo.callback(_logged, self._disks.delete, path, disk.format)
        for disk in plan.grown:
            path = _path_of(disk)
            try:
                before = self._disks.extend(path, disk.capacity_bytes, stop)
            except InvalidArgument as error:
                raise InvalidVmConfig(str(error), f"disks[{disk.key}]") from error
            if before.capacity_bytes != disk.capacity_bytes:
                undo.callback(_logged, self._disks.shrink_back, path, before)

    def inspect_all(self, config: vm_config_pb2.VmConfig) -> list[VirtualDisk]:
        """All disks of a configuration, as they are. Faults as `VirtualDisks.inspect`."""
        return [self._disks.inspect(_path_of(disk)) for disk in config.disks]

    def deletable(self, machine: Machine) -> list[vm_config_pb2.VirtualDisk]:
        """The VM's disks that no other VM of this host has. Doesn't block."""
        return [
            disk for disk in machine.config.disks if not self._files.vm_of(_path_of(disk), but=machine.uuid)
        ]

    def require_deletable(self, disks: Iterable[vm_config_pb2.VirtualDisk]) -> None:
        """:raises FileLocked: something has one open. :raises InaccessibleDatastore: :raises InvalidDatastorePath:"""
        for disk in disks:
            self._disks.require_unlocked(_path_of(disk), disk.format)

    def delete(self, disks: Iterable[vm_config_pb2.VirtualDisk]) -> None:
        """Delete disks; one that has gone is deleted.

        :raises FileLocked: :raises CannotAccessFile: one can't be; those before it are gone.
        """
        for disk in disks:
            self._disks.delete(_path_of(disk), disk.format)

    def refresh(self, config: vm_config_pb2.VmConfig, home: DatastorePath) -> None:
        """The space of the datastores that the VM lies on has changed: look at it."""
        for name in {home.datastore, *(_path_of(disk).datastore for disk in config.disks)}:
            self._datastores.refresh_one(name)


def disk_places(config: vm_config_pb2.VmConfig, datastores: Datastores) -> list[service_pb2.DiskPlace]:
    """Where a VM's disks are on this host, for its vmx; blocks.

    :raises InvalidVmConfig: a descriptor says another capacity or format than the configuration.
    And as `VirtualDisks.inspect`.
    """
    places = []
    for disk in config.disks:
        found = VirtualDisks(datastores).inspect(_path_of(disk))
        if (found.descriptor.capacity_bytes, found.descriptor.format) != (disk.capacity_bytes, disk.format):
            message = f"The disk {disk.path} isn't of the capacity and format that the configuration says."
            raise InvalidVmConfig(message, f"disks[{disk.key}]")
        places.append(
            service_pb2.DiskPlace(
                key=disk.key,
                extent_path=str(found.files.extent_path),
                format=disk.format,
                capacity_bytes=disk.capacity_bytes,
            )
        )
    return places


def _path_of(disk: vm_config_pb2.VirtualDisk) -> DatastorePath:
    """:raises InvalidVmConfig: it isn't a datastore path."""
    try:
        return DatastorePath.parse(disk.path)
    except InvalidDatastorePath as error:
        raise InvalidVmConfig("A disk's path isn't a datastore path.", f"disks[{disk.key}]") from error


def _check_kept(had: vm_config_pb2.VirtualDisk, wanted: vm_config_pb2.VirtualDisk) -> bool:
    """Whether a disk that the VM keeps is to grow. :raises InvalidVmConfig: it would change in another way."""
    field = f"disks[{wanted.key}]"
    if wanted.path != had.path:
        raise InvalidVmConfig("A disk's path can't be changed: move the disk, or take it out first.", field)
    if wanted.format != had.format:
        raise InvalidVmConfig("A disk's format can't be changed where it is: move the disk.", field)
    if wanted.capacity_bytes < had.capacity_bytes:
        raise InvalidVmConfig("A disk can't shrink.", field)
    return wanted.capacity_bytes > had.capacity_bytes


def _adopt(disk: vm_config_pb2.VirtualDisk, found: VirtualDisk) -> None:
    """Take capacity and format from the disk that is there. :raises InvalidVmConfig: others are wanted."""
    field = f"disks[{disk.key}]"
    if disk.capacity_bytes not in (0, found.descriptor.capacity_bytes):
        message = f"The disk {disk.path} is there and has {found.descriptor.capacity_bytes} bytes."
        raise InvalidVmConfig(message, field)
    if disk.format not in (0, found.descriptor.format):
        raise InvalidVmConfig(f"The disk {disk.path} is there and has another format.", field)
    disk.capacity_bytes, disk.format = found.descriptor.capacity_bytes, found.descriptor.format


def _logged(undo: object, *arguments: object) -> None:
    """An undo that fails doesn't hide the fault that it is for."""
    assert callable(undo)
    try:
        undo(*arguments)
    except VimFault as fault:
        _log.error("disk_not_undone", disk=str(arguments[0]), reason=str(fault))
