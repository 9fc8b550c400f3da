"""Descriptors of another process: which it has, and duplicates of them for this one.

A vmx that adopts a running QEMU has lost everything but the process itself. What it needs again (guest RAM, the
userfaultfd, the run lock) is open in QEMU, and pidfd_getfd(2) duplicates it: the same open file, so the same
memory, the same tracing, the same lock. It asks for the right to ptrace the process: same user and, under Yama's
ptrace_scope 1, an ancestor or CAP_SYS_PTRACE.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["list_descriptors", "take_descriptor"]

_SYS_PIDFD_GETFD = 438  # the same number on every architecture (added after the tables were unified)

_libc = ctypes.CDLL(None, use_errno=True)


def list_descriptors(pid: int) -> dict[int, str]:
    """Every descriptor that is open in process `pid`, with what it points at: as proc(5) shows it.

    :raises OSError: no such process (FileNotFoundError), or no right to look into it.
    """
    folder = f"/proc/{pid}/fd"
    descriptors = {}
    for name in os.listdir(folder):
        try:
            descriptors[int(name)] = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue  # closed since the folder was read
    return descriptors


def take_descriptor(pidfd: int, descriptor: int) -> int:
    """A duplicate of `descriptor` of the process behind `pidfd`, close-on-exec, owned by the caller.

    :raises OSError: EBADF where the process has no such descriptor, EPERM without the right, ESRCH after its end.
    """
    duplicate: int = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(descriptor), ctypes.c_uint(0)
    )
    if duplicate < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pidfd_getfd of descriptor {descriptor}: {os.strerror(code)}")
    return duplicate
