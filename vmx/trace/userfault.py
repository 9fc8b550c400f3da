"""The userfaultfd of a guest's address space: how vmx gets it, finds it again, and what it asks of the kernel.

The descriptor is made once, at power-on, before the guest runs; from then on no migration touches QEMU by ptrace.
A copy stays open in QEMU itself, so that a vmx which adopts the guest later finds it in /proc/PID/fd and takes it
from there. An armed userfaultfd costs the guest nothing as long as no memory is registered with it.

Write protection is asynchronous (WP_ASYNC): a write to a protected page is let through by the kernel itself, which
notes it in the page table. Nothing ever waits for vmx, and a vmx that dies can't hang the guest.

Sources: userfaultfd(2), ioctl_userfaultfd(2), pidfd_getfd(2), Linux Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from vmx.trace.errors import TargetCallError, TargetGoneError, TracerUnavailable
from vmx.trace.remote_call import call_in_process

_SYS_USERFAULTFD: Final = 323  # x86-64
_SYS_PIDFD_GETFD: Final = 438  # all architectures
_UFFD_USER_MODE_ONLY: Final = 1
_LINK: Final = "anon_inode:[userfaultfd]"

_API_VERSION: Final = 0xAA
_FEATURES: Final = {
    1 << 0: "PAGEFAULT_FLAG_WP",
    1 << 12: "WP_HUGETLBFS_SHMEM",
    1 << 13: "WP_UNPOPULATED",
    1 << 15: "WP_ASYNC",
}
_FEATURE_MASK: Final = sum(_FEATURES)
_MODE_WRITE_PROTECT_REGISTER: Final = 1 << 1
_MODE_WRITE_PROTECT: Final = 1 << 0
_STEP_BYTES: Final = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _API_VERSION << 8 | number


_UFFDIO_API: Final = _ioctl_number(3, 0x3F, 24)
_UFFDIO_REGISTER: Final = _ioctl_number(3, 0x00, 32)
_UFFDIO_UNREGISTER: Final = _ioctl_number(2, 0x01, 16)
_UFFDIO_WRITEPROTECT: Final = _ioctl_number(3, 0x06, 24)


def obtain_userfaultfd(pid: int) -> int:
    """Make process `pid` open a userfaultfd on itself, arm it for tracing, and return our descriptor of it, which
    the caller owns. Call it once, before the guest runs; see `call_in_process` for what must hold meanwhile.

    :raises TargetGoneError: the process has ended.
    :raises TargetCallError: ptrace or userfaultfd isn't permitted (Yama, seccomp) or possible; nothing changed.
    :raises TracerUnavailable: the kernel lacks a feature that tracing needs; the process keeps a useless descriptor.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    answer = call_in_process(pid, _SYS_USERFAULTFD, flags)
    if answer == -errno.EPERM:
        # Without privileges only faults of user mode may be handled. Tracing loses nothing by it: an asynchronous
        # write-protect fault is resolved by the kernel, whoever caused it.
        answer = call_in_process(pid, _SYS_USERFAULTFD, flags | _UFFD_USER_MODE_ONLY)
    if answer < 0:
        raise TargetCallError(pid, "userfaultfd", -answer)
    fd = _take_descriptor(pid, answer)
    try:
        arm(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def find_userfaultfd(pid: int) -> int | None:
    """The userfaultfd that `obtain_userfaultfd` once left in process `pid`: our own descriptor of it, which the
    caller owns, or None if the process has none fit for tracing.

    :raises TargetGoneError: the process has ended.
    :raises TargetCallError: not permitted to look into it or to take it.
    """
    folder = f"/proc/{pid}/fd"
    try:
        numbers = sorted(int(name) for name in os.listdir(folder))
    except (FileNotFoundError, ProcessLookupError) as gone:
        raise TargetGoneError(pid) from gone
    except OSError as refused:
        raise TargetCallError(pid, "listing its descriptors", refused.errno or errno.EIO) from refused
    for number in numbers:
        try:
            link = os.readlink(f"{folder}/{number}")
        except OSError:
            continue  # closed since the listing
        if link != _LINK:
            continue
        fd = _take_descriptor(pid, number)
        try:
            arm(fd)
        except TracerUnavailable:
            os.close(fd)  # somebody else's, armed for something else
        else:
            return fd
    return None


def arm(fd: int) -> None:
    """See to it that the userfaultfd has the features tracing needs. UFFDIO_API may be called only once in its life,
    so one that is armed already is judged by /proc/self/fdinfo.

    :raises TracerUnavailable: it can't have them.
    """
    block = bytearray(struct.pack("=QQQ", _API_VERSION, _FEATURE_MASK, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_API, block)
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise TracerUnavailable("UFFDIO_API", refused.errno) from refused
        armed = _armed_features(fd)
        missing = _FEATURE_MASK & ~(armed or _supported_features(fd))
        if missing:
            names = ", ".join(name for bit, name in _FEATURES.items() if bit & missing)
            raise TracerUnavailable(f"this kernel's userfaultfd lacks {names}") from refused


def register(fd: int, start: int, length: int) -> None:
    """Have writes to [start, start + length) of the target traced once they are protected.

    :raises OSError: the kernel's reason, unchanged; ENOMEM or ESRCH also when the target has ended.
    """
    fcntl.ioctl(
        fd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", start, length, _MODE_WRITE_PROTECT_REGISTER, 0))
    )


def protect(fd: int, start: int, length: int) -> None:
    """Protect every page of [start, start + length), those not populated too.

    :raises OSError: as for `register`; some of it may be protected.
    """
    for at, step in _steps(start, length):
        block = bytearray(struct.pack("=QQQ", at, step, _MODE_WRITE_PROTECT))
        while True:
            try:
                fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, block)
            except OSError as refused:
                # The target is just changing its memory map; the kernel asks to be called again.
                if refused.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
            else:
                break


def unregister(fd: int, start: int, length: int) -> None:
    """Lift protection and tracing from [start, start + length).

    :raises OSError: as for `register`; some of it may be traced still.
    """
    for at, step in _steps(start, length):
        fcntl.ioctl(fd, _UFFDIO_UNREGISTER, bytearray(struct.pack("=QQ", at, step)))


def _steps(start: int, length: int) -> Iterator[tuple[int, int]]:
    """[start, start + length) in pieces. The kernel locks the target's memory map while it works through one, and a
    guest that faults meanwhile waits: 2 GiB at once would stall it for 60 ms or more."""
    for at in range(start, start + length, _STEP_BYTES):
        yield at, min(_STEP_BYTES, start + length - at)


def _armed_features(fd: int) -> int:
    """The features a userfaultfd was armed with, 0 if it never was: "API: aa:FEATURES:IOCTLS" in hex."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("API:"):
                return int(line.split(":")[2], 16)
    return 0


def _supported_features(fd: int) -> int:
    """What this kernel can do, by arming the userfaultfd with nothing, which spends it."""
    block = bytearray(struct.pack("=QQQ", _API_VERSION, 0, 0))
    fcntl.ioctl(fd, _UFFDIO_API, block)
    return int(struct.unpack("=QQQ", block)[1])


def _take_descriptor(pid: int, number: int) -> int:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError as gone:
        raise TargetGoneError(pid) from gone
    try:
        fd = int(_libc.syscall(_SYS_PIDFD_GETFD, process, number, 0))
        code = ctypes.get_errno()
    finally:
        os.close(process)
    if fd < 0:
        if code == errno.ESRCH:
            raise TargetGoneError(pid)
        raise TargetCallError(pid, "pidfd_getfd", code)
    return fd
