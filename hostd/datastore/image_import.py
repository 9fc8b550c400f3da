"""Virtual disks made of image files, by `qemu-img` as a child process.

An image comes from anywhere, and formats can name other files: a qcow2 or vmdk image with a backing file, an external
data file or extents elsewhere would make a host's file readable through a guest. So the image is opened here and
qemu-img gets only its descriptor; what could name another file is refused by its header before qemu-img sees it, and by
what qemu-img tells before it converts. It is then told the format, and never guesses again.

The new disk has no name until it is whole: a child that is killed, a full datastore or a caller who leaves leaves
nothing.
"""

import asyncio
import contextlib
import errno
import json
import os
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostd.datastore import disk_descriptor
from hostd.datastore.disk_descriptor import QCOW2, THICK_FORMATS, DiskDescriptor, DiskFormat
from hostd.datastore.interruptible import interruptible
from hostd.datastore.mount import Datastores
from hostd.datastore.new_file import Interrupted, NewFile, file_faults, free_bytes
from hostd.datastore.qemu_img import QemuImg
from hostd.datastore.virtual_disk import VirtualDisk, VirtualDisks, fill
from runtime.faults import (
    CannotAccessFile,
    InvalidArgument,
    InvalidDiskFormat,
    NoDiskSpace,
    VimFault,
)
from runtime.ondisk.datastore_path import DatastorePath

_INFO_TIMEOUT_S = 60.0
_HEAD_BYTES = 4096
_COPY_BYTES = 16 << 20
# Formats that hold all their data in the one file, or are refused by their header where they don't.
_IMAGE_FORMATS = frozenset({"raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"})


@dataclass(frozen=True)
class ImportOrder:
    """What to make of which image. `capacity_bytes` 0: the image's, rounded up to whole MiB."""

    image: DatastorePath
    path: DatastorePath
    format: DiskFormat
    capacity_bytes: int = 0


@dataclass(frozen=True)
class _Image:
    """An opened image and what is known of it."""

    descriptor: int
    shown: str
    format: str
    capacity_bytes: int
    allocated_bytes: int


class ImageImport:
    """Imports images."""

    def __init__(self, datastores: Datastores, disks: VirtualDisks, qemu_img: QemuImg) -> None:
        self._datastores = datastores
        self._disks = disks
        self._qemu_img = qemu_img

    async def run(self, order: ImportOrder) -> VirtualDisk:
        """Make the disk; whoever leaves before its end leaves nothing behind.

        :raises FileNotFound: :raises FileAlreadyExists: :raises InvalidDiskFormat: the image can't be used.
        :raises NoDiskSpace: known before, or met on the way. :raises InvalidArgument: path, format or capacity.
        :raises NotSupported: this host has no qemu-img. :raises InaccessibleDatastore: :raises InvalidDatastorePath:
        :raises CannotAccessFile: :raises TimedOut: the image can't be understood in time.
        """
        if order.format not in disk_descriptor.FORMATS:
            raise InvalidArgument("There is no such disk format.", "format")
        closing = contextlib.ExitStack()
        try:
            return await self._run(order, closing)
        finally:  # the last reference of a large file gives its blocks back: that takes time
            await asyncio.shield(asyncio.to_thread(closing.close))

    async def _run(self, order: ImportOrder, closing: contextlib.ExitStack) -> VirtualDisk:
        folder = await asyncio.to_thread(self._disks.folder_of_new, order.path, order.format)
        opened, shown, known_format = await interruptible(lambda _: self._open(order.image, closing))
        image = await self._understood(opened, shown, known_format)
        descriptor = self._described(order, image)
        await asyncio.to_thread(self._require_space, order.path, descriptor, image)

        def publish(_: threading.Event) -> VirtualDisk:
            self._disks.adopt(order.path, descriptor, extent, folder / descriptor.extent_name)
            try:
                return self._disks.inspect(order.path)
            except VimFault:
                self._disks.delete(order.path, order.format)
                raise

        with file_faults(order.path, descriptor.capacity_bytes, folder):
            extent = await interruptible(lambda _: closing.enter_context(NewFile(folder)))
            await self._filled(extent, descriptor, image, order.path, folder)
            return await interruptible(publish)

    def _open(self, path: DatastorePath, closing: contextlib.ExitStack) -> tuple[int, str, str]:
        """The opened image, the path of what was opened, and its format where a descriptor says it; blocks."""
        resolved, shown, known_format = self._datastores.resolve_file(path), path, ""
        with file_faults(path):
            opened = _open_plain(resolved, path, closing)
            head = os.pread(opened, _HEAD_BYTES, 0)
        if head.startswith(disk_descriptor.SIGNATURE):  # a disk of ours: its extent is the image
            disk = self._disks.inspect(path)
            known_format = "qcow2" if disk.descriptor.format == QCOW2 else "raw"
            shown = path.parent.child(disk.descriptor.extent_name)
            with file_faults(shown):
                opened = _open_plain(disk.files.extent_path, shown, closing)
                head = os.pread(opened, _HEAD_BYTES, 0)
        if known_format != "raw":
            _check_head(head, str(shown))
        return opened, str(shown), known_format

    async def _understood(self, opened: int, shown: str, known_format: str) -> _Image:
        told = ("-f", known_format) if known_format else ()
        arguments = ("info", "--force-share", "--output=json", *told, _name_of(opened))
        answer = await self._qemu_img.run(arguments, (opened,), shown, _INFO_TIMEOUT_S)
        try:
            info = json.loads(answer)
            found, capacity, used = str(info["format"]), int(info["virtual-size"]), int(info["actual-size"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDiskFormat("qemu-img can't tell what the image is.", path=shown) from error
        if found not in _IMAGE_FORMATS:
            raise InvalidDiskFormat(f"Images of the format {found[:20]} aren't imported.", path=shown)
        if any(name in info for name in ("backing-filename", "full-backing-filename")):
            raise InvalidDiskFormat("The image has a backing file: it can't be used by itself.", path=shown)
        if info.get("encrypted") or "data-file" in str(info.get("format-specific", "")):
            raise InvalidDiskFormat("The image is encrypted or has an external data file.", path=shown)
        return _Image(opened, shown, found, capacity, used)

    def _described(self, order: ImportOrder, image: _Image) -> DiskDescriptor:
        step = disk_descriptor.CAPACITY_STEP_BYTES
        least = max(-(-image.capacity_bytes // step) * step, step)
        capacity = order.capacity_bytes or least
        if capacity < least or not disk_descriptor.check_capacity(capacity):
            message = (
                f"The image has {image.capacity_bytes} bytes; the disk's capacity must be a multiple of "
                f"1 MiB, not less than {least} and not more than 62 TiB."
            )
            raise InvalidArgument(message, "capacity_bytes")
        name = disk_descriptor.extent_name(order.path.name, order.format)
        content_id = struct.unpack("I", os.urandom(4))[0]
        return DiskDescriptor(capacity, order.format, name, content_id)

    def _require_space(self, path: DatastorePath, descriptor: DiskDescriptor, image: _Image) -> None:
        """A thick disk needs its capacity, another at least what the image has; blocks."""
        thick = descriptor.format in THICK_FORMATS
        needed = descriptor.capacity_bytes if thick else min(image.allocated_bytes, descriptor.capacity_bytes)
        self._datastores.require_space(path.datastore, needed)

    async def _filled(
        self,
        extent: NewFile,
        descriptor: DiskDescriptor,
        image: _Image,
        path: DatastorePath,
        folder: Path,
    ) -> None:
        """:raises OSError: And as `run`."""
        target, source = _name_of(extent.descriptor), _name_of(image.descriptor)
        both = (extent.descriptor, image.descriptor)
        try:
            if descriptor.format != QCOW2:
                await interruptible(lambda stop: fill(extent.descriptor, descriptor, stop))
                # -n: the file is there; --target-is-zero: and reads as zeros, so zeros of the image aren't written.
                arguments = (
                    "convert",
                    "-n",
                    "--target-is-zero",
                    "-f",
                    image.format,
                    "-O",
                    "raw",
                    source,
                    target,
                )
                await self._qemu_img.run(arguments, both, image.shown)
                return
            if image.format == "qcow2":
                await interruptible(lambda stop: _copy(image.descriptor, extent.descriptor, stop))
            else:
                await self._qemu_img.run(
                    ("convert", "-f", image.format, "-O", "qcow2", source, target), both, image.shown
                )
            if descriptor.capacity_bytes > image.capacity_bytes:
                size = str(descriptor.capacity_bytes)
                await self._qemu_img.run(("resize", "-f", "qcow2", target, size), both, image.shown)
        except InvalidDiskFormat as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            message = f"Datastore {path.datastore} has no space for {path}."
            needed, free = descriptor.capacity_bytes, await asyncio.to_thread(free_bytes, folder)
            raise NoDiskSpace(message, path.datastore, needed, free) from error


def _check_head(head: bytes, shown: str) -> None:
    """:raises InvalidDiskFormat: by its first bytes the image names, or may name, another file."""
    if head.startswith(b"QFI\xfb"):
        if head[4:8] == b"\0\0\0\x01":
            raise InvalidDiskFormat("Images of the first version of qcow aren't imported.", path=shown)
        disk_descriptor.qcow2_capacity(head[: disk_descriptor.QCOW2_HEADER_BYTES], shown)
    # A sparse vmdk extent that says capacity 0 is only a wrapper of a descriptor, whose extents are other files.
    if head.startswith(b"KDMV") and not any(head[12:20]):
        raise InvalidDiskFormat("The vmdk image has its data in other files.", path=shown)
    # What qemu-img takes for a vmdk descriptor: comments and blank lines, then its version.
    if head.startswith((b"#", b" ", b"version=")) and b"version=" in head:
        raise InvalidDiskFormat("The vmdk descriptor has its data in other files.", path=shown)


def _open_plain(path: Path, shown: DatastorePath, closing: contextlib.ExitStack) -> int:
    """:raises OSError: :raises CannotAccessFile: it isn't a plain file."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    closing.callback(os.close, opened)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        raise CannotAccessFile(f"{shown} isn't a plain file.", path=str(shown))
    return opened


def _name_of(descriptor: int) -> str:
    """A name by which a child that has the descriptor can open its file."""
    return f"/proc/self/fd/{descriptor}"


def _copy(source: int, target: int, stop: threading.Event) -> None:
    """A file's data without its holes; blocks. :raises OSError: :raises Interrupted: `stop` was set."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in _data_ranges(source, size):
        offset = start
        while offset < end:
            if stop.is_set():
                raise Interrupted
            data = os.pread(source, min(_COPY_BYTES, end - offset), offset)
            if not data:
                return  # it was cut meanwhile: the image's header is checked again at the end
            view = memoryview(data)
            while view:
                written = os.pwrite(target, view, offset)
                offset, view = offset + written, view[written:]


def _data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
