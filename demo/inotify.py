"""Waiting until a file is written to: inotify(7), of which Python has no binding."""

import ctypes
import os
import select
from pathlib import Path

_IN_MODIFY = 0x00000002  # linux/inotify.h
_BUFFER_BYTES = 4096


class FileWatch:
    """Tells when a file, or one of several, grows."""

    def __init__(self, path: Path) -> None:
        """:raises OSError: the file isn't there, or inotify's limits are reached."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self.add(path)
        except OSError:
            os.close(self._descriptor)
            raise
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def add(self, path: Path) -> None:
        """Watches one more file. :raises OSError: it isn't there, or inotify's limits are reached."""
        if self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))

    def wait(self, timeout_s: float) -> bool:
        """Waits for the next write since the last call. False: none came in time."""
        if not self._poll.poll(timeout_s * 1000):
            return False
        os.read(self._descriptor, _BUFFER_BYTES)
        return True

    def close(self) -> None:
        os.close(self._descriptor)
