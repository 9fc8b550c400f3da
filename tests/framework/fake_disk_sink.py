"""A fake disk at the destination: a DiskSink in memory that can be told to fail or to stall, and notes its calls."""

import errno
import threading

import numpy as np

from vmx.disk.contract import SECTOR_BYTES
from vmx.disk.errors import DiskError, DiskFull, DiskWriteFailed


class FakeDiskSink:
    """Bulk data never covers mirrored sectors. `durable` is what the last flush found.

    `fail_with` is raised by every write from then on, `fail_flush_with` by every flush; while `flow` is cleared,
    flushes wait for it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.data = bytearray(capacity_bytes)
        self.durable = bytes(capacity_bytes)
        self.fail_with: DiskError | None = None
        self.fail_flush_with: DiskError | None = None
        self.flow = threading.Event()
        self.flow.set()
        self.flushing = threading.Event()
        self.calls: list[tuple[str, int, int]] = []
        self._mirrored = np.zeros(capacity_bytes // SECTOR_BYTES, dtype=np.bool_)
        self._lock = threading.Lock()

    def write_bulk(self, offset: int, data: memoryview) -> None:
        with self._lock:
            self._begin("bulk", offset, len(data))
            sectors = np.flatnonzero(~self._mirrored[offset // SECTOR_BYTES :][: len(data) // SECTOR_BYTES])
            for at in (sectors * SECTOR_BYTES).tolist():
                self.data[offset + at : offset + at + SECTOR_BYTES] = data[at : at + SECTOR_BYTES]

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        with self._lock:
            self._begin("write", offset, len(data))
            self._note(offset, len(data))
            self.data[offset : offset + len(data)] = data

    def zero_mirrored(self, offset: int, length: int) -> None:
        with self._lock:
            self._begin("zero", offset, length)
            self._note(offset, length)
            self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        with self._lock:
            found = bytes(self.data)
        self.flushing.set()
        assert self.flow.wait(30)
        with self._lock:
            self.calls.append(("flush", 0, 0))
            if self.fail_flush_with is not None:
                raise self.fail_flush_with
            self.durable = found

    def count(self, name: str) -> int:
        """How often a call of this name came."""
        return sum(1 for called, _, _ in self.calls if called == name)

    def _begin(self, name: str, offset: int, length: int) -> None:
        self.calls.append((name, offset, length))
        if self.fail_with is not None:
            raise self.fail_with

    def _note(self, offset: int, length: int) -> None:
        self._mirrored[offset // SECTOR_BYTES :][: length // SECTOR_BYTES] = True


def disk_full() -> DiskFull:
    """What a full datastore says."""
    return DiskFull("/fake/web01-flat.vmdk", 0, errno.ENOSPC, 4096)


def broken_disk() -> DiskWriteFailed:
    """What a broken datastore says."""
    return DiskWriteFailed("/fake/web01-flat.vmdk", 0, errno.EIO, "Input/output error")
