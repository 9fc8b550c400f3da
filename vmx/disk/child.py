"""A program that works on a disk's image beside QEMU (qemu-img, qemu-storage-daemon), as a child process.

It is started by `subprocess` in a thread, not by the event loop: that one forks, and gRPC's fork handlers may crash the
child before it has become the program; `subprocess` uses vfork(2), which runs none.

It dies with this process, however that ends: setpriv(1), PR_SET_PDEATHSIG in prctl(2). The kernel means the thread that
started it; those of the event loop's pool live as long as the loop.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Final

from vmx.disk.errors import NbdClosed

__all__ = ["Child"]

_COMPLAINT_BYTES: Final = 64 << 10
_READ_BYTES: Final = 4096


class Child:
    """One run of a program: `start`, then `end` in any case. All methods block but `kill`; any thread may call that."""

    def __init__(self, arguments: Sequence[str], inherited: Sequence[int] = ()) -> None:
        """`inherited`: descriptors that it finds open under their numbers."""
        self._arguments = tuple(arguments)
        self._inherited = tuple(inherited)
        self._process: subprocess.Popen[bytes] | None = None
        # A file, since nobody would have to read it lest the child waits.
        self._complaints: IO[bytes] | None = None

    def start(self) -> None:
        """Starts it, once. :raises NbdClosed: it can't be."""
        try:
            self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                pass_fds=self._inherited,
            )
        except OSError as error:
            raise NbdClosed(f"the start of {self._arguments[0]}", str(error)) from error

    def read(self) -> bytes:
        """The next piece of what it writes; empty at its end."""
        assert self._process is not None, "started"
        assert self._process.stdout is not None, "a pipe"
        return os.read(self._process.stdout.fileno(), _READ_BYTES)

    def wait(self) -> int:
        """Its exit status, as `subprocess` tells it."""
        assert self._process is not None, "started"
        return self._process.wait()

    def complaint(self) -> str:
        """What it wrote to its standard error."""
        assert self._complaints is not None, "started"
        self._complaints.seek(0)
        return self._complaints.read(_COMPLAINT_BYTES).decode(errors="replace").strip()

    def kill(self) -> None:
        """Makes it end soon."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def end(self) -> None:
        """Kills it, waits for its end, and frees what it had. Idempotent; also for one that never started."""
        self.kill()
        if self._process is not None:
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._complaints is not None:
            self._complaints.close()
