"""Processes that aren't (or aren't any more) our children, named so that a reused pid is never taken for them.

A process is its pid together with its start time (field 22 of /proc/PID/stat, proc(5)); a handle on it is a pidfd
(pidfd_open(2)), which stays that process's whatever becomes of the number.
"""

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from runtime.faults import CannotAccessFile, FileNotFound
from runtime.ondisk.durable import read_bounded


@dataclass(frozen=True)
class ProcessId:
    """Which process, for ever: pid and start time in clock ticks since boot."""

    pid: int
    start_time: int


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None if there is none or only its remains (a zombie).

    A process whose first thread has ended and others haven't looks like a zombie and isn't one: until its last thread
    ends it has its memory, its files and their locks (of a large guest for a while).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()  # the name in parentheses may hold anything
    if fields[0] in "ZX" and int(fields[17]) <= 1:  # num_threads
        return None
    return ProcessId(pid, int(fields[19]))


def children_of(pid: int) -> list[ProcessId]:
    """The living children of a process (/proc/PID/task/TID/children)."""
    pids: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, path.read_text(encoding="ascii").split())
    return [process for process in map(identify, pids) if process is not None]


def read_pid_file(path: Path) -> ProcessId | None:
    """What a pid file names: the first two numbers in it, pid and start time. None: no file, or not such a one."""
    try:
        numbers = re.findall(rb"[0-9]{1,18}", read_bounded(path, 256))
    except (FileNotFound, CannotAccessFile):
        return None
    return ProcessId(int(numbers[0]), int(numbers[1])) if len(numbers) >= 2 else None


class ProcessHandle:
    """One living process: waits for its end and can end it."""

    def __init__(self, process: ProcessId, pidfd: int) -> None:
        self.process = process
        self._pidfd = pidfd
        self._ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @classmethod
    def open(cls, process: ProcessId) -> "ProcessHandle | None":
        """A handle; None if that process is no more."""
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            return None
        if identify(process.pid) != process:  # checked after the open: the pidfd can't change its process
            os.close(pidfd)
            return None
        return cls(process, pidfd)

    @property
    def alive(self) -> bool:
        """Whether it hasn't ended yet."""
        return not self._ended.done()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end. False: `timeout_s` went by."""
        done, _ = await asyncio.wait([self._ended], timeout=timeout_s)
        return bool(done)

    def kill(self) -> None:
        """End it at once (SIGKILL); its end is seen by `wait`."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; it lives on."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # not our child: its parent reaps it
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if not self._ended.done():
            self._ended.set_result(None)
