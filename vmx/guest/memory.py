"""Guest RAM as a memfd that vmx and the guest's process share.

vmx makes the memfd before QEMU starts; QEMU inherits the descriptor (pass it in `pass_fds`, it is
close-on-exec otherwise) and maps it as its RAM. A vmx that adopts a running guest takes the descriptor again
and wraps it with `GuestMemory.from_fd`. vmx itself maps the memory only while a migration needs it, so an idle
vmx stays small.

Its size is sealed (F_SEAL_SHRINK, F_SEAL_GROW): nobody, not even a guest that broke out into its process, can
shorten the file and make vmx die of SIGBUS in the middle of a copy.

Pages nobody has touched are holes in the file. They read as zeros, but reading one through a mapping fills it,
so readers ask `populated_runs` first and leave holes alone.

Errors:

    GuestMemoryError
    ├── MemoryAllocationError    the kernel refused to make, size, map or punch the memory
    ├── MemoryAdoptionError      a descriptor is not a guest RAM of the expected size
    ├── MemoryStillViewedError   the mapping was left while somebody held a view of it
    └── MemoryClosedError        used after close(), or a mapping used after its context was left
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from vmx.guest.pages import PAGE_BYTES, PageRuns, empty_runs, runs_from_bounds

# fcntl(2), fallocate(2): not in Python's os module.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x1, 0x2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


class GuestMemoryError(Exception):
    """Base of all that can go wrong with guest RAM."""


class MemoryAllocationError(GuestMemoryError):
    """The kernel refused `operation` on guest RAM of `ram_bytes`; `errno` is its reason."""

    def __init__(self, operation: str, ram_bytes: int, code: int) -> None:
        super().__init__(f"guest RAM of {ram_bytes} bytes: {operation} failed: {os.strerror(code)}")
        self.operation = operation
        self.ram_bytes = ram_bytes
        self.errno = code


class MemoryAdoptionError(GuestMemoryError):
    """A descriptor offered as guest RAM of `ram_bytes` is something else."""

    def __init__(self, ram_bytes: int, reason: str) -> None:
        super().__init__(f"this descriptor is not guest RAM of {ram_bytes} bytes: {reason}")
        self.ram_bytes = ram_bytes
        self.reason = reason


class MemoryStillViewedError(GuestMemoryError):
    """A mapping's context was left while a memoryview or array of it was alive. The mapping stays until the
    last of them is gone; no view ever points at unmapped memory."""

    def __init__(self) -> None:
        super().__init__("guest RAM can't be unmapped: a view of it is still held")


class MemoryClosedError(GuestMemoryError):
    """Guest RAM, or a mapping of it, was used after it had been closed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed")
        self.what = what


class MappedMemory:
    """All of guest RAM in this process, good until its context is left.

    `view` and `pages` are the same bytes in two shapes. Slices taken from either must be gone before the
    context ends.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._view: memoryview | None = memoryview(mapping)
        self._pages: npt.NDArray[np.uint8] | None = np.frombuffer(mapping, dtype=np.uint8).reshape(
            -1, PAGE_BYTES
        )

    @property
    def view(self) -> memoryview:
        """All RAM as bytes, page p at [p * PAGE_BYTES, (p + 1) * PAGE_BYTES).

        :raises MemoryClosedError: the context has been left.
        """
        if self._view is None:
            raise MemoryClosedError("the mapping of guest RAM")
        return self._view

    @property
    def pages(self) -> npt.NDArray[np.uint8]:
        """All RAM as an array of shape (page_count, PAGE_BYTES).

        :raises MemoryClosedError: the context has been left.
        """
        if self._pages is None:
            raise MemoryClosedError("the mapping of guest RAM")
        return self._pages

    def unmap(self) -> None:
        """Drop both shapes and unmap. Called by the context that made the mapping.

        :raises MemoryStillViewedError: a slice of `view` or `pages` is still held somewhere.
        """
        view, self._view, self._pages = self._view, None, None
        try:
            if view is not None:
                view.release()
            self._mapping.close()
        except BufferError as held:
            raise MemoryStillViewedError from held


class GuestMemory:
    """The RAM of one guest: owner of one descriptor of its memfd."""

    def __init__(self, fd: int, ram_bytes: int) -> None:
        """Take over a descriptor known to be right; use `create` or `from_fd`."""
        self._fd = fd
        self.ram_bytes = ram_bytes
        self.page_count = ram_bytes // PAGE_BYTES

    @classmethod
    def create(cls, name: str, ram_bytes: int) -> GuestMemory:
        """New guest RAM, all zeros, nothing populated. `name` shows in /proc/PID/maps as memfd:NAME.

        :raises ValueError: `ram_bytes` is not a positive multiple of the page size.
        :raises MemoryAllocationError: the kernel refuses; nothing is left behind.
        """
        _check_size(ram_bytes)
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as refused:
            raise MemoryAllocationError("memfd_create", ram_bytes, _code(refused)) from refused
        try:
            os.ftruncate(fd, ram_bytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        except OSError as refused:
            os.close(fd)
            raise MemoryAllocationError("ftruncate", ram_bytes, _code(refused)) from refused
        return cls(fd, ram_bytes)

    @classmethod
    def from_fd(cls, fd: int, ram_bytes: int) -> GuestMemory:
        """Wrap a descriptor of an existing guest's RAM. On success the new object owns `fd`; on failure the
        caller still does.

        :raises ValueError: `ram_bytes` is not a positive multiple of the page size.
        :raises MemoryAdoptionError: `fd` isn't a sealed memfd of ordinary pages of exactly `ram_bytes`.
        """
        _check_size(ram_bytes)
        try:
            status = os.fstat(fd)
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError as refused:
            raise MemoryAdoptionError(ram_bytes, f"not a memfd: {refused.strerror}") from refused
        if not stat.S_ISREG(status.st_mode) or status.st_size != ram_bytes:
            raise MemoryAdoptionError(ram_bytes, f"it holds {status.st_size} bytes")
        if status.st_blksize != PAGE_BYTES:
            raise MemoryAdoptionError(ram_bytes, f"it has pages of {status.st_blksize} bytes")
        if seals & _SEALS != _SEALS:
            raise MemoryAdoptionError(ram_bytes, "its size isn't sealed")
        return cls(fd, ram_bytes)

    @property
    def fd(self) -> int:
        """The memfd's descriptor: for QEMU to inherit; it stays owned here.

        :raises MemoryClosedError: after close().
        """
        if self._fd < 0:
            raise MemoryClosedError("guest RAM")
        return self._fd

    @contextmanager
    def mapped(self, *, writable: bool = True) -> Iterator[MappedMemory]:
        """Map all of guest RAM for the length of a `with` block.

        A source maps with `writable=False`: writes through this mapping are invisible to the page tracer, so
        the kernel had better refuse them. If the block raises and its frames still hold views, its own
        exception goes on with a note, and the mapping ends with the last view.

        :raises MemoryAllocationError: the kernel refuses to map it.
        :raises MemoryStillViewedError: the block ended well but a view is still held.
        """
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            mapping = mmap.mmap(self.fd, self.ram_bytes, flags=mmap.MAP_SHARED, prot=access)
        except OSError as refused:
            raise MemoryAllocationError("mmap", self.ram_bytes, _code(refused)) from refused
        memory = MappedMemory(mapping)
        try:
            yield memory
        except BaseException as failed:
            try:
                memory.unmap()
            except MemoryStillViewedError as held:
                failed.add_note(str(held))
            raise
        memory.unmap()

    def populated_runs(self) -> PageRuns:
        """The pages that were ever touched, from the kernel's own list (lseek(2) SEEK_DATA, SEEK_HOLE): memory
        is neither read nor filled. Two system calls per run; pages that are missing read as zeros."""
        fd, starts, ends, at = self.fd, [], [], 0
        while at < self.ram_bytes:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as end:
                if end.errno == errno.ENXIO:
                    break
                raise
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            starts.append(begin)
            ends.append(at)
        if not starts:
            return empty_runs()
        return runs_from_bounds(
            np.array(starts, dtype=np.int64) // PAGE_BYTES, np.array(ends, dtype=np.int64) // PAGE_BYTES
        )

    def clear(self) -> None:
        """Give every page back: all reads as zeros, nothing is populated. For a destination before the first
        page arrives; a tracer does not see it (fallocate(2) FALLOC_FL_PUNCH_HOLE).

        :raises MemoryAllocationError: the kernel refuses; what the memory then holds is unknown.
        """
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        while _libc.fallocate(self.fd, mode, 0, self.ram_bytes) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise MemoryAllocationError("fallocate", self.ram_bytes, code)

    def close(self) -> None:
        """Give up the descriptor; idempotent. The memory lives on while the guest's process has it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _check_size(ram_bytes: int) -> None:
    if ram_bytes <= 0 or ram_bytes % PAGE_BYTES:
        raise ValueError(f"guest RAM must be a positive multiple of {PAGE_BYTES} bytes, not {ram_bytes}")


def _code(error: OSError) -> int:
    return error.errno or errno.EIO
