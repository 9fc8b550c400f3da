"""The run lock: who may hold a process that can run the guest.

An open-file-description lock (fcntl(2), F_OFD_SETLK) on a file in the VM's home folder. QEMU inherits the descriptor,
so the lock lives exactly as long as anything that can run the guest: it stays when vmx dies and is gone the moment
the last process with the description ends. All processes that inherited the description share one lock; taking or
releasing it through any copy counts for all.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from runtime.faults import CannotAccessFile, FileLocked

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (must be 0 for OFD locks).
_FLOCK = struct.Struct("hhqqi4x")


class RunLock:
    """One open file description on a VM's run lock file; held or not."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def open(cls, path: Path) -> "RunLock":
        """Open (and make) the file without taking the lock.

        :raises CannotAccessFile: the file can't be opened.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            message = f"The run lock can't be opened: {error.strerror}."
            raise CannotAccessFile(message, path=str(path)) from error
        return cls(descriptor, path)

    def acquire(self) -> None:
        """Take the lock, or keep it if this description has it already. Doesn't wait.

        :raises FileLocked: another description holds it; nothing changed.
        """
        try:
            self._set(fcntl.F_WRLCK)
        except (BlockingIOError, PermissionError) as error:
            message = "The VM's run lock is held by another process: the VM runs elsewhere."
            raise FileLocked(message, path=str(self.path)) from error

    def release(self) -> None:
        """Release the lock for every process that shares this description."""
        self._set(fcntl.F_UNLCK)

    def close(self) -> None:
        """Close our copy; the lock stays while another process has one. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _set(self, lock_type: int) -> None:
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(lock_type, os.SEEK_SET, 0, 0, 0))


def is_held(path: Path) -> bool:
    """Whether any description holds the lock now; False where there is no file.

    :raises CannotAccessFile: the file can't be opened.
    """
    if not path.exists():
        return False
    lock = RunLock.open(path)
    with contextlib.closing(lock):
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer: bytes = fcntl.fcntl(lock.descriptor, fcntl.F_OFD_GETLK, request)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
