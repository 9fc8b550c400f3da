"""Where a process has mapped guest RAM, read from /proc/PID/maps by the memfd's device and inode.

QEMU maps its RAM in one piece, but the kernel may show it as several (a madvise on a part splits it), and nothing
forbids mapping a page twice. Tracing needs them all: a write through any shared, writable mapping counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, page_total, runs_from_bounds
from vmx.trace.errors import TargetGoneError, TargetMappingError

# ioctl PROCMAP_QUERY on /proc/PID/maps, since Linux 6.11: struct procmap_query of linux/fs.h.
_QUERY: Final = struct.Struct("=9Q4I2Q")
_PROCMAP_QUERY: Final = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17
_QUERY_WRITABLE_SHARED: Final = 0x02 | 0x08


@dataclass(frozen=True)
class RamMapping:
    """[start, end) of a process's addresses shows guest RAM from byte `offset` on."""

    start: int
    end: int
    offset: int


class TargetProcess:
    """A process's folder in /proc, held open: should the pid be used again, reads fail instead of showing the
    newcomer."""

    def __init__(self, pid: int) -> None:
        """:raises TargetGoneError: there is no such process."""
        self.pid = pid
        try:
            self._folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as gone:
            raise TargetGoneError(pid) from gone

    def close(self) -> None:
        """Give up the folder; idempotent."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def open_pagemap(self) -> int:
        """A descriptor of the process's pagemap, which the caller owns.

        :raises TargetGoneError: the process has ended.
        :raises TargetMappingError: not permitted.
        """
        return self._open("pagemap")

    def ram_mappings(self, memory: GuestMemory) -> list[RamMapping]:
        """Every shared, writable mapping of `memory`, by address, neighbours that continue each other joined.

        :raises TargetGoneError: the process has ended.
        :raises TargetMappingError: some of the memory isn't mapped.
        """
        lines = self._maps()
        if not lines:
            raise TargetGoneError(self.pid)  # a zombie has no memory
        status = os.fstat(memory.fd)
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}".encode()
        inode = str(status.st_ino).encode()
        found: list[RamMapping] = []
        for line in lines:
            if inode not in line:
                continue
            bounds, access, offset, line_device, line_inode = line.split(maxsplit=5)[:5]
            if (line_device, line_inode) != (device, inode) or access[1:2] != b"w" or access[3:4] != b"s":
                continue
            start, end = (int(bound, 16) for bound in bounds.split(b"-"))
            piece = RamMapping(start, end, int(offset, 16))
            if found and (found[-1].end, _offset_at_end(found[-1])) == (piece.start, piece.offset):
                piece = RamMapping(found[-1].start, piece.end, found.pop().offset)
            found.append(piece)
        self._check_coverage(found, memory)
        return found

    def still_maps(self, pieces: list[RamMapping], memory: GuestMemory) -> bool:
        """Whether guest RAM is still mapped as `ram_mappings` once found it. Quick where the kernel answers for single
        addresses (some microseconds; then a mapping added since isn't noticed), else by reading all of maps.

        :raises TargetGoneError: the process has ended.
        :raises TargetMappingError: some of the memory isn't mapped.
        """
        inode = os.fstat(memory.fd).st_ino
        maps = self._open("maps")
        try:
            return all(_still_maps(maps, piece, inode) for piece in pieces)
        except ProcessLookupError as gone:
            raise TargetGoneError(self.pid) from gone
        except OSError as refused:
            if refused.errno == errno.ENOENT:
                if self.has_ended():
                    raise TargetGoneError(self.pid) from refused
                return False
            if refused.errno != errno.ENOTTY:
                raise TargetMappingError(
                    self.pid, f"can't look into its maps: {refused.strerror}"
                ) from refused
        finally:
            os.close(maps)
        return self.ram_mappings(memory) == pieces

    def has_ended(self) -> bool:
        """Whether the process is gone, or dead and waiting to be reaped."""
        try:
            return not self._maps()
        except TargetGoneError:
            return True

    def _check_coverage(self, mappings: list[RamMapping], memory: GuestMemory) -> None:
        starts = np.array([piece.offset for piece in mappings], dtype=np.int64) // PAGE_BYTES
        ends = np.array([_offset_at_end(piece) for piece in mappings], dtype=np.int64) // PAGE_BYTES
        covered = runs_from_bounds(starts, np.minimum(ends, memory.page_count))
        if page_total(covered) != memory.page_count:
            reason = (
                f"it maps {page_total(covered)} of {memory.page_count} pages of guest RAM shared and writable"
            )
            raise TargetMappingError(self.pid, reason)

    def _maps(self) -> list[bytes]:
        try:
            with open(self._open("maps"), "rb") as maps:
                return maps.read().splitlines()
        except ProcessLookupError as gone:
            raise TargetGoneError(self.pid) from gone

    def _open(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except (FileNotFoundError, ProcessLookupError) as gone:
            raise TargetGoneError(self.pid) from gone
        except OSError as refused:
            raise TargetMappingError(self.pid, f"can't open its {name}: {refused.strerror}") from refused


def _offset_at_end(piece: RamMapping) -> int:
    return piece.offset + piece.end - piece.start


def _still_maps(maps: int, piece: RamMapping, inode: int) -> bool:
    """Whether the kernel's mappings that cover `piece` all show the file as it does.

    :raises OSError: ENOENT: nothing is mapped somewhere in it; ENOTTY: the kernel can't be asked.
    """
    at = piece.start
    while at < piece.end:
        block = bytearray(_QUERY.pack(_QUERY.size, _QUERY_WRITABLE_SHARED, at, *(0,) * 12))
        fcntl.ioctl(maps, _PROCMAP_QUERY, block)
        _, _, _, start, end, _, _, offset, found_inode, *_ = _QUERY.unpack(block)
        if found_inode != inode or offset - start != piece.offset - piece.start:
            return False
        at = end
    return True
