"""Virtual disks on datastores: a descriptor and the extent beside it, made, looked at, extended and deleted together.

    web01.vmdk        the descriptor (disk_descriptor.py): the disk is there when it is
    web01-flat.vmdk   raw: a sparse file (thin), all blocks taken (lazy zeroed), or zeros written to all (eager zeroed)
    web01.qcow2       or an image, as it was imported

The extent gets its name first and the descriptor last, and they go in the same order, so a descriptor is never without
what it names for longer than a kill in between. Nothing is ever made over a file that is there. All methods block.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hostd.datastore import disk_descriptor
from hostd.datastore.disk_descriptor import EAGER, FORMATS, QCOW2, THICK_FORMATS, DiskDescriptor, DiskFormat
from hostd.datastore.mount import Datastores
from hostd.datastore.new_file import NewFile, file_faults, remove, reserve, write_zeros
from runtime.faults import (
    CannotAccessFile,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidDiskFormat,
)
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import read_bounded, write_durably

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are (inode(7))


@dataclass(frozen=True)
class DiskFiles:
    """A disk's two files, as this host's absolute paths."""

    descriptor_path: Path
    extent_path: Path


@dataclass(frozen=True)
class VirtualDisk:
    """A disk that was looked at. `allocated_bytes`: what both files take now."""

    path: DatastorePath
    files: DiskFiles
    descriptor: DiskDescriptor
    allocated_bytes: int


class VirtualDisks:
    """The virtual disks on this host's datastores."""

    def __init__(self, datastores: Datastores) -> None:
        self._datastores = datastores

    def create(
        self,
        path: DatastorePath,
        capacity_bytes: int,
        disk_format: DiskFormat,
        stop: threading.Event | None = None,
    ) -> DiskFiles:
        """Make an empty disk, durable on return. On any fault nothing is left.

        :raises InvalidArgument: path, capacity or format can't be. :raises FileNotFound: the folder isn't there.
        :raises FileAlreadyExists: :raises NoDiskSpace: a thick disk's space is asked for before anything is made.
        :raises InaccessibleDatastore: :raises InvalidDatastorePath: :raises CannotAccessFile:
        :raises Interrupted: `stop` was set.
        """
        if disk_format == QCOW2:
            raise InvalidArgument("A qcow2 disk is made by importing an image.", "format")
        return self._make(path, capacity_bytes, disk_format, stop or threading.Event())

    def create_like(
        self,
        source: DiskDescriptor,
        path: DatastorePath,
        disk_format: DiskFormat,
        stop: threading.Event | None = None,
    ) -> DiskFiles:
        """Make an empty disk for a copy of another: the same capacity and content id, in the format given.

        A qcow2 one's extent is an empty file: whoever copies the image fills it. Faults as `create`.
        """
        return self._make(
            path, source.capacity_bytes, disk_format, stop or threading.Event(), source.content_id
        )

    def adopt(
        self, path: DatastorePath, descriptor: DiskDescriptor, extent: NewFile, extent_path: Path
    ) -> DiskFiles:
        """Publish a finished extent, opened in the folder of `extent_path`, and then its descriptor. On any fault
        nothing is left.

        :raises FileAlreadyExists: :raises NoDiskSpace: :raises CannotAccessFile:
        """
        folder = extent_path.parent
        with file_faults(path, folder=folder), contextlib.ExitStack() as undo:
            try:
                extent.publish(extent_path.name)
            except FileExistsError as error:
                shown = path.parent.child(extent_path.name)
                raise FileAlreadyExists(f"There is a file {shown} already.", path=str(shown)) from error
            undo.callback(remove, extent_path)
            with NewFile(folder) as file:
                file.write(disk_descriptor.render(descriptor))
                file.publish(path.name)
            undo.pop_all()
        return DiskFiles(folder / path.name, extent_path)

    def exists(self, path: DatastorePath) -> bool:
        """Whether something is there under a descriptor's name. Faults as `Datastores.resolve_plain`."""
        return os.path.lexists(self._datastores.resolve_plain(path))

    def inspect(self, path: DatastorePath) -> VirtualDisk:
        """What a disk is: descriptor and extent read, and found to agree.

        :raises FileNotFound: descriptor or extent. :raises InvalidDiskFormat: they aren't a disk that can be used here.
        :raises InaccessibleDatastore: :raises InvalidDatastorePath: :raises CannotAccessFile:
        """
        descriptor_path = self._datastores.resolve_plain(path)
        descriptor = self._read(path, descriptor_path)
        files = DiskFiles(descriptor_path, descriptor_path.with_name(descriptor.extent_name))
        shown = path.parent.child(descriptor.extent_name)
        with file_faults(shown), _opened_extent(files.extent_path, shown) as extent:
            status = os.fstat(extent)
            if descriptor.format == QCOW2:
                header = os.pread(extent, disk_descriptor.QCOW2_HEADER_BYTES, 0)
                size_bytes = disk_descriptor.qcow2_capacity(header, str(shown))
            else:
                size_bytes = status.st_size
        if size_bytes != descriptor.capacity_bytes:
            message = f"The extent has {size_bytes} bytes, its descriptor says {descriptor.capacity_bytes}."
            raise InvalidDiskFormat(message, path=str(path))
        with file_faults(path):
            allocated = (status.st_blocks + descriptor_path.lstat().st_blocks) * _BLOCK_BYTES
        return VirtualDisk(path, files, descriptor, allocated)

    def require_unlocked(self, path: DatastorePath, disk_format: DiskFormat) -> None:
        """:raises FileLocked: a process on any host (as far as the file system tells) has the extent open as a disk."""
        name = disk_descriptor.extent_name(path.name, disk_format)
        extent_path = self._datastores.resolve_plain(path.parent.child(name))
        with file_faults(path.parent.child(name)):
            if is_locked(extent_path):
                raise FileLocked(f"The disk {path} is in use by a process.", path=str(path))

    def delete(self, path: DatastorePath, disk_format: DiskFormat | None = None) -> None:
        """Delete a disk: extent, then descriptor. `disk_format`: the extent is this one's even without a descriptor.

        :raises FileNotFound: there is no such disk. :raises FileLocked: something has it open; nothing was deleted.
        :raises InvalidDiskFormat: the descriptor can't be read, and no format was given.
        :raises CannotAccessFile: a file can't be deleted. :raises InaccessibleDatastore: :raises InvalidDatastorePath:
        """
        descriptor_path = self._datastores.resolve_plain(path)
        try:
            found = self._read(path, descriptor_path).format
        except (InvalidDiskFormat, FileNotFound):
            if disk_format is None:
                raise
            found = disk_format
        self.require_unlocked(path, found)
        with file_faults(path):
            remove(descriptor_path.with_name(disk_descriptor.extent_name(path.name, found)))
            remove(descriptor_path)

    def extend(
        self, path: DatastorePath, capacity_bytes: int, stop: threading.Event | None = None
    ) -> DiskDescriptor:
        """Make a raw disk larger, in its format; done already is done. Returns what the descriptor said before.

        :raises InvalidArgument: it would shrink, the capacity can't be, or it's a qcow2 image.
        :raises NoDiskSpace: :raises FileLocked: On any fault the disk is as before. Others as `inspect`.
        """
        stop = stop or threading.Event()
        descriptor_path = self._datastores.resolve_plain(path)
        before = self._read(path, descriptor_path)
        if capacity_bytes == before.capacity_bytes:
            return before
        if capacity_bytes < before.capacity_bytes or not disk_descriptor.check_capacity(capacity_bytes):
            raise InvalidArgument(
                "A disk's capacity can only grow, by whole MiB, up to 62 TiB.", "capacity_bytes"
            )
        if before.format == QCOW2:
            raise InvalidArgument("A qcow2 disk's capacity can't be changed.", "capacity_bytes")
        self.require_unlocked(path, before.format)
        added = capacity_bytes - before.capacity_bytes
        if before.format in THICK_FORMATS:
            self._datastores.require_space(path.datastore, added)
        folder = descriptor_path.parent
        shown = path.parent.child(before.extent_name)
        after = replace(before, capacity_bytes=capacity_bytes)
        with (
            file_faults(shown, added, folder),
            _opened_extent(folder / before.extent_name, shown, os.O_RDWR) as extent,
        ):
            try:
                fill(extent, after, stop, before.capacity_bytes)
                os.fsync(extent)
                write_durably(descriptor_path, disk_descriptor.render(after))
            except BaseException:
                os.ftruncate(extent, before.capacity_bytes)
                raise
        return before

    def shrink_back(self, path: DatastorePath, before: DiskDescriptor) -> None:
        """Undo `extend` on a disk that nothing has used since. Faults as `extend`."""
        descriptor_path = self._datastores.resolve_plain(path)
        extent_path = descriptor_path.with_name(before.extent_name)
        with file_faults(path), _opened_extent(extent_path, path, os.O_RDWR) as extent:
            write_durably(descriptor_path, disk_descriptor.render(before))
            os.ftruncate(extent, before.capacity_bytes)

    def folder_of_new(self, path: DatastorePath, disk_format: DiskFormat) -> Path:
        """The host's folder in which a new disk can be made; neither descriptor nor extent are there yet.

        :raises InvalidArgument: the path isn't a descriptor's. :raises FileNotFound: there's no such folder.
        :raises FileAlreadyExists: And as `Datastores.resolve_plain`.
        """
        if not path.name.endswith(disk_descriptor.SUFFIX) or path.name == disk_descriptor.SUFFIX:
            raise InvalidArgument(f"A disk's path ends in {disk_descriptor.SUFFIX}.", "path")
        try:
            extent = path.parent.child(disk_descriptor.extent_name(path.name, disk_format))
        except InvalidDatastorePath as error:
            raise InvalidArgument("The disk's name is too long for its extent's.", "path") from error
        folder = self._datastores.resolve_plain(path.parent)
        if not folder.is_dir():
            raise FileNotFound(f"There is no folder {path.parent}.", path=str(path.parent))
        for taken in (path, extent):
            if os.path.lexists(folder / taken.name):
                raise FileAlreadyExists(f"There is a file {taken} already.", path=str(taken))
        return folder

    def _make(
        self,
        path: DatastorePath,
        capacity_bytes: int,
        disk_format: DiskFormat,
        stop: threading.Event,
        content_id: int | None = None,
    ) -> DiskFiles:
        if disk_format not in FORMATS:
            raise InvalidArgument("There is no such disk format.", "format")
        if not disk_descriptor.check_capacity(capacity_bytes):
            message = f"A capacity of {capacity_bytes} bytes isn't a multiple of 1 MiB up to 62 TiB."
            raise InvalidArgument(message, "capacity_bytes")
        folder = self.folder_of_new(path, disk_format)
        if disk_format in THICK_FORMATS:
            self._datastores.require_space(path.datastore, capacity_bytes)
        name = disk_descriptor.extent_name(path.name, disk_format)
        content_id = secrets.randbits(32) if content_id is None else content_id
        descriptor = DiskDescriptor(capacity_bytes, disk_format, name, content_id)
        needed = capacity_bytes if disk_format in THICK_FORMATS else 0
        with file_faults(path, needed, folder), NewFile(folder) as extent:
            if disk_format != QCOW2:
                fill(extent.descriptor, descriptor, stop)
            return self.adopt(path, descriptor, extent, folder / name)

    def _read(self, path: DatastorePath, descriptor_path: Path) -> DiskDescriptor:
        """The descriptor, whose extent must have the name that belongs to it."""
        try:
            content = read_bounded(descriptor_path, disk_descriptor.MAX_FILE_BYTES)
        except FileNotFound as error:
            raise FileNotFound(f"There is no disk {path}.", path=str(path)) from error
        except CannotAccessFile as error:
            if descriptor_path.is_file() and descriptor_path.stat().st_size > disk_descriptor.MAX_FILE_BYTES:
                raise InvalidDiskFormat(f"{path} isn't a disk's descriptor.", path=str(path)) from error
            raise
        descriptor = disk_descriptor.parse(content, str(path))
        expected = disk_descriptor.extent_name(path.name, descriptor.format)
        if descriptor.extent_name != expected:
            message = f"The descriptor names the extent {descriptor.extent_name}; here it must be {expected}."
            raise InvalidDiskFormat(message, path=str(path))
        return descriptor


def fill(extent: int, descriptor: DiskDescriptor, stop: threading.Event, start: int = 0) -> None:
    """Give a raw extent its size and, by its format, its blocks from `start` on; blocks.

    :raises OSError: :raises Interrupted: `stop` was set. Either way the extent is half done.
    """
    os.ftruncate(extent, descriptor.capacity_bytes)
    if descriptor.format in THICK_FORMATS:
        reserve(extent, start, descriptor.capacity_bytes, stop)
    if descriptor.format == EAGER:
        write_zeros(extent, start, descriptor.capacity_bytes, stop)


def is_locked(extent_path: Path) -> bool:
    """Whether a process has the file locked, as QEMU does with its images (fcntl(2), F_OFD_GETLK); blocks.

    :raises OSError: it can't be opened.
    """
    try:
        extent = os.open(extent_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer: bytes = fcntl.fcntl(extent, fcntl.F_OFD_GETLK, request)
    finally:
        os.close(extent)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def _opened_extent(extent_path: Path, shown: DatastorePath, access: int = os.O_RDONLY) -> Iterator[int]:
    """The opened extent. :raises CannotAccessFile: it isn't a plain file. :raises OSError: it can't be opened."""
    extent = os.open(extent_path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(extent).st_mode):
            raise CannotAccessFile(f"{shown} isn't a plain file.", path=str(shown))
        yield extent
    finally:
        os.close(extent)
