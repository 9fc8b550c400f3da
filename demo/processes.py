"""Processes by identity: ended only if they are the very ones that are meant, and waited for through their pidfd.

A pid alone may have been given to another process meanwhile; a pid with its start time (field 22 of /proc/PID/stat,
proc(5)) can't. Signals go through a pidfd (pidfd_open(2)), which never changes the process it stands for.
"""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """Which process, for ever: pid and start time in clock ticks since boot."""

    pid: int
    start_time: int


def identify(pid: int) -> ProcessId | None:
    """The process with this pid now; None if there is none, or only its remains (a zombie).

    One whose first thread has ended and others haven't looks like a zombie, but still has its files and ports.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()
    is_over = fields[0] in "ZX" and int(fields[17]) <= 1  # num_threads
    return None if is_over else ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Whether this very process runs."""
    return identify(process.pid) == process


def started_for(path: Path) -> list[ProcessId]:
    """Our own processes that were started for a folder that nobody else uses: it is in their settings.

    Daemons carry it in their environment, and QEMU in its command line. It's how those are found whose pid files are
    missing; somebody's editor or socat on a file there is none of them.
    """
    needle = os.fsencode(path) + b"/"
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # gone meanwhile, or not ours
            if entry.stat().st_uid == os.getuid() and _is_for(Path(entry.path), needle):
                process = identify(int(entry.name))
                if process is not None:
                    found.append(process)
    return found


def _is_for(folder: Path, needle: bytes) -> bool:
    """:raises OSError: the process is gone."""
    settings = (folder / "environ").read_bytes().split(b"\0")
    own = tuple(name + needle for name in (b"HOST_RUN_DIR=", b"VMX_RUN_DIR=", b"VSWITCH_DIR="))
    if any(setting.startswith(own) for setting in settings):
        return True
    command = (folder / "cmdline").read_bytes().split(b"\0")
    return b"qemu" in os.path.basename(command[0]) and any(needle in word for word in command[1:])


def command_of(process: ProcessId) -> list[str]:
    """Its command line; empty if it is gone."""
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in words if word]


def end(processes: Iterable[ProcessId], grace_s: float = 10.0) -> list[ProcessId]:
    """Ends them: SIGTERM to all, `grace_s` for all together, then SIGKILL; answers those that had to be killed.

    Returns when all are gone.
    """
    handles = [(process, pidfd) for process in processes if (pidfd := _open(process)) is not None]
    try:
        for _, pidfd in handles:
            _signal(pidfd, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        killed = [process for process, pidfd in handles if not _wait(pidfd, deadline - time.monotonic())]
        left = [(process, pidfd) for process, pidfd in handles if process in killed]
        for _, pidfd in left:
            _signal(pidfd, signal.SIGKILL)
        for process, pidfd in left:
            if not _wait(pidfd, 10.0):
                raise TimeoutError(f"process {process.pid} doesn't end, not even by SIGKILL")
        return killed
    finally:
        for _, pidfd in handles:
            os.close(pidfd)


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Sends a signal to this very process; False: it is gone."""
    pidfd = _open(process)
    if pidfd is None:
        return False
    try:
        _signal(pidfd, number)
    finally:
        os.close(pidfd)
    return True


def rss_mib(process: ProcessId) -> float:
    """Resident memory now; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def _open(process: ProcessId) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if is_alive(process):  # checked after the open: the pidfd can't change its process
        return pidfd
    with suppress(ChildProcessError):  # it has ended: if it was our child, its remains are taken
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)
    return None


def _signal(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _wait(pidfd: int, timeout_s: float) -> bool:
    """Waits for the process's end and takes its remains if it is our child."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(max(0.0, timeout_s) * 1000):
        return False
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    return True
