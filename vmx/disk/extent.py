"""The target's extent: a raw file that takes bulk data and mirrored writes in any order.

    write_mirrored / zero_mirrored   written as they come, and their sectors noted
    write_bulk                       only the sectors that are not noted

One lock makes "look at the map, then write" one step. It costs no throughput: the kernel, too, lets one thread at a
time write to a file (the inode's lock).

All writes go through the page cache and never around it: at the destination QEMU has the same file open already, and
reads it through the page cache when the guest resumes.

Offsets and lengths may come from a peer. They are checked before anything is touched.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmx.disk.contract import SECTOR_BYTES, DiskFormat, DiskLayout, check_range
from vmx.disk.errors import DiskError, DiskFull, DiskSpecError, DiskWriteFailed
from vmx.disk.sector_map import SectorMap

__all__ = ["ExtentWriter"]

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_FALLOC_FL_ZERO_RANGE: Final = 0x10
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_OFFERED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
# Real zeros are written in pieces of this size, so that the lock is never held for long.
_ZEROS: Final = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ExtentWriter:
    """A DiskSink over a raw extent that exists, is as long as the disk, and reads as zeros where not written yet.

    A thin extent gives up its blocks where the guest zeroes; a thick one keeps them.
    """

    def __init__(self, path: Path, layout: DiskLayout) -> None:
        """Opens the extent. `layout.capacity_bytes` must be its length.

        :raises DiskSpecError: the format is not a raw one, or the file isn't as long as the disk.
        :raises DiskWriteFailed: it can't be opened for writing.
        """
        if not layout.format.is_raw:
            raise DiskSpecError("format", f"{layout.format} is not a raw format")
        self._path = str(path)
        self._capacity_bytes = layout.capacity_bytes
        self._keeps_blocks = layout.format is not DiskFormat.THIN
        self._lock = threading.Lock()
        self._mirrored: SectorMap | None = SectorMap()
        self._can_fallocate = True
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure(error, 0, 0) from error
        length = os.fstat(self._fd).st_size
        if length != layout.capacity_bytes:
            self.close()
            raise DiskSpecError(
                "capacity_bytes", f"{path} has {length} bytes, the disk {layout.capacity_bytes}"
            )

    def write_bulk(self, offset: int, data: memoryview) -> None:
        """See DiskSink. :raises DiskRangeError, DiskFull, DiskWriteFailed: some of the data may be written."""
        check_range(offset, len(data), self._capacity_bytes)
        with self._lock:
            if self._mirrored is None:
                raise DiskWriteFailed(self._path, offset, 0, "bulk data after the end of the bulk copy")
            first, count = offset // SECTOR_BYTES, len(data) // SECTOR_BYTES
            for run_first, run_count in self._mirrored.missing(first, count):
                start = (run_first - first) * SECTOR_BYTES
                self._write(offset + start, data[start : start + run_count * SECTOR_BYTES])

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        """See DiskSink. :raises DiskRangeError, DiskFull, DiskWriteFailed: some of the data may be written."""
        check_range(offset, len(data), self._capacity_bytes)
        with self._lock:
            self._note(offset, len(data))
            self._write(offset, data)

    def zero_mirrored(self, offset: int, length: int) -> None:
        """See DiskSink. :raises DiskRangeError, DiskFull, DiskWriteFailed: some of it may be zeroed."""
        check_range(offset, length, self._capacity_bytes)
        if length == 0:
            return
        with self._lock:
            if self._zero_by_fallocate(offset, length):
                self._note(offset, length)
                return
        end = offset + length
        while offset < end:
            piece = min(end - offset, len(_ZEROS))
            self.write_mirrored(offset, memoryview(_ZEROS)[:piece])
            offset += piece

    def flush(self) -> None:
        """See DiskSink. :raises DiskFull, DiskWriteFailed: the kernel could not write everything back."""
        try:
            with self._lock:
                if self._fd < 0:
                    raise DiskWriteFailed(self._path, 0, errno.EBADF, "it is closed")
                # Of its own: the wait must neither hold up writes nor lose its descriptor to `close`.
                descriptor = os.dup(self._fd)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure(error, 0, 0) from error

    def bulk_finished(self) -> None:
        """No bulk data comes any more: the map of mirrored sectors is given up. Idempotent."""
        with self._lock:
            self._mirrored = None

    def close(self) -> None:
        """Closes the extent; nothing may be written any more. Idempotent. Doesn't make anything durable."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, offset: int, length: int) -> None:
        # Noted before it is written: a write that fails half-way must not be covered by older bulk data either.
        if self._mirrored is not None:
            self._mirrored.add(offset // SECTOR_BYTES, length // SECTOR_BYTES)

    def _write(self, offset: int, data: memoryview) -> None:
        while data:
            try:
                written = os.pwrite(self._fd, data, offset)
            except OSError as error:
                raise self._failure(error, offset, len(data)) from error
            offset += written
            data = data[written:]

    def _zero_by_fallocate(self, offset: int, length: int) -> bool:
        """False where the file system doesn't offer it: nothing has happened then."""
        if not self._can_fallocate:
            return False
        mode = _FALLOC_FL_ZERO_RANGE if self._keeps_blocks else _FALLOC_FL_PUNCH_HOLE
        if _libc.fallocate(self._fd, mode | _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
            return True
        number = ctypes.get_errno()
        if number in _NOT_OFFERED:
            self._can_fallocate = False
            return False
        raise self._failure(OSError(number, os.strerror(number)), offset, length)

    def _failure(self, error: OSError, offset: int, needed_bytes: int) -> DiskError:
        number = error.errno or 0
        if number in _NO_ROOM:
            return DiskFull(self._path, offset, number, needed_bytes)
        return DiskWriteFailed(self._path, offset, number, error.strerror or str(error))
