"""The QEMU process of one guest: started, watched, ended, or found again.

QEMU outlives vmx. It is started in a session of its own, its output goes to files and sockets and never to a pipe
of vmx, and all that a later vmx needs to take the guest over is open in QEMU itself:

    vmx ── spawn ──> QEMU   memfd (guest RAM), run lock, userfaultfd, QMP server socket
     x (dies)         |     the guest runs on; the OFD lock on the run lock is held by QEMU's descriptor
    vmx' ── adopt ────┘     pidfd_open, then pidfd_getfd of each, then a new QMP connection

The process is known by its pidfd, never by its number alone: a signal can't hit a stranger, and the end of the
process makes the pidfd readable, so that nobody has to ask for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import select
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import structlog

from vmx.guest.command_line import GuestDescriptors, GuestSpec, build_command_line
from vmx.guest.descriptors import list_descriptors, take_descriptor
from vmx.guest.errors import (
    GuestDied,
    GuestError,
    GuestStartFailed,
    NotThisGuest,
    QmpFailure,
)
from vmx.guest.exit_status import ExitStatus
from vmx.guest.memory import GuestMemory, GuestMemoryError
from vmx.guest.qmp import QmpConnection
from vmx.trace.errors import TargetCallError, TargetGoneError, TraceError, TracerUnavailable
from vmx.trace.userfault import find_userfaultfd, obtain_userfaultfd

__all__ = ["GuestProcess", "Launch"]

START_DEADLINE_S = 30.0
# A connection that broke because the process died: the pidfd tells within this time.
_DEATH_FOLLOWS_S = 2.0
_LOG_TAIL_BYTES = 8192
_LOG_TAIL_LINES = 10
_MEMORY_PATH = re.compile(rb"(?:^|,)mem-path=/proc/self/fd/(\d+)(?:,|$)")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Launch:
    """How QEMU is started, as opposed to what it runs.

    `run_lock_fd` is inherited and so keeps its OFD lock for as long as QEMU lives.
    """

    qemu_binary: Path
    qemu_log_path: Path
    run_lock_fd: int | None = None
    start_deadline_s: float = START_DEADLINE_S


class GuestProcess:
    """A running QEMU process, with its QMP connection and its RAM. Made by `spawn` or `adopt`.

    It owns `qmp`, `memory` and `userfault_fd`. `userfault_fd` is None where the kernel or its policy refused
    one: then pages can be traced by their contents only.
    """

    def __init__(self, spec: GuestSpec, memory: GuestMemory, watch: _ExitWatch, qemu_log_path: Path) -> None:
        self.spec = spec
        self.memory = memory
        self.userfault_fd: int | None = None
        self._watch = watch
        self._qmp: QmpConnection | None = None
        self._qemu_log_path = qemu_log_path

    @property
    def pid(self) -> int:
        """The process's number: for /proc and for logs."""
        return self._watch.pid

    @property
    def qmp(self) -> QmpConnection:
        """The QMP connection."""
        assert self._qmp is not None, "set before spawn() and adopt() return"
        return self._qmp

    @property
    def exit_status(self) -> ExitStatus | None:
        """How the process ended; None while it lives."""
        return self._watch.status

    @classmethod
    async def spawn(cls, spec: GuestSpec, memory: GuestMemory, launch: Launch) -> GuestProcess:
        """Starts QEMU with its vCPUs stopped; returns when QMP answers and the userfaultfd is here.

        On success the new object owns `memory`. On failure the caller still does, and no process is left.

        :raises GuestStartFailed: QEMU could not be started, ended, or did not answer in time.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(_start_process, spec, memory.fd, launch))
        try:
            pid, pidfd, log_offset = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread can't be cancelled: a process that it has started must not stay behind.
            with contextlib.suppress(OSError):
                await _kill_unwatched(*(await starting)[:2])
            raise
        except OSError as error:
            raise GuestStartFailed(str(error), None) from error
        watch = _ExitWatch(pid, pidfd)
        guest = cls(spec, memory, watch, launch.qemu_log_path)
        try:
            await guest._come_up(launch.start_deadline_s)
            guest.userfault_fd = await guest._make_userfaultfd()
        except BaseException as error:
            await guest._abandon()
            if isinstance(error, GuestError):
                tail = await asyncio.to_thread(_log_tail, launch.qemu_log_path, log_offset)
                raise GuestStartFailed(str(error), watch.status, tail) from error
            raise
        _log.info("guest_process_started", qemu_pid=pid, qemu_version=str(guest.qmp.version))
        return guest

    @classmethod
    async def adopt(cls, pid: int, spec: GuestSpec, qemu_log_path: Path) -> GuestProcess:
        """Takes over the QEMU that a former vmx has left: its RAM, its userfaultfd, its QMP.

        The guest notices nothing. On failure the process is as it was. How it ends will not be known, only
        that it has: its parent was another.

        :raises NotThisGuest: there is no such process, it is not this VM's, or its RAM is not as specified.
        :raises QmpFailure: it is, but its QMP does not answer.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise NotThisGuest(pid, str(error)) from error
        watch = _ExitWatch(pid, pidfd)
        try:
            memory, userfault_fd = await asyncio.to_thread(_take_over, pid, pidfd, spec)
        except BaseException:
            watch.close()
            raise
        guest = cls(spec, memory, watch, qemu_log_path)
        guest.userfault_fd = userfault_fd
        try:
            guest._qmp = await QmpConnection.connect(spec.qmp_socket_path)
        except BaseException:
            await guest.close()
            raise
        _log.info("guest_process_adopted", qemu_pid=pid, has_userfaultfd=userfault_fd is not None)
        return guest

    async def wait_exit(self) -> ExitStatus:
        """Waits for the end of the process and tells how it ended."""
        return await asyncio.shield(self._watch.ended)

    async def kill(self) -> ExitStatus:
        """Ends the process now, by SIGKILL, and waits for its end. Idempotent."""
        self._watch.send_signal(signal.SIGKILL)
        return await self.wait_exit()

    async def cause_of(self, failure: QmpFailure) -> GuestError:
        """What is behind a failure of the QMP connection: GuestDied if QEMU has ended, else `failure` itself."""
        return await self.death_within(_DEATH_FOLLOWS_S if not self.qmp.is_connected else 0) or failure

    async def death_within(self, limit_s: float = _DEATH_FOLLOWS_S) -> GuestDied | None:
        """QEMU's end, if it has ended or does so in time; whatever else it has open may tell of it earlier."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.wait_exit()
        if self._watch.status is None:
            return None
        tail = await asyncio.to_thread(_log_tail, self._qemu_log_path, 0)
        return GuestDied(self.pid, self._watch.status, tail)

    async def reconnect_qmp(self) -> QmpConnection:
        """A new QMP connection in place of the old one, which is closed.

        :raises QmpConnectFailed: QEMU does not answer; `qmp` is the closed one then.
        """
        await self.qmp.close()
        self._qmp = await QmpConnection.connect(self.spec.qmp_socket_path)
        return self._qmp

    def take_descriptor_of(self, path: Path) -> int:
        """A duplicate of QEMU's descriptor of the file `path` (the run lock), owned by the caller.

        It is the same open file: an OFD lock on it is this process's too, to keep or to let go.

        :raises NotThisGuest: the process has no such file open, or may not be looked into.
        """
        wanted = os.path.realpath(path)
        try:
            for descriptor, link in list_descriptors(self.pid).items():
                if link == wanted:
                    return take_descriptor(self._watch.pidfd, descriptor)
        except OSError as error:
            raise NotThisGuest(self.pid, str(error)) from error
        raise NotThisGuest(self.pid, f"it does not have {wanted} open")

    async def close(self) -> None:
        """Lets go of everything held here. A QEMU that lives runs on. Idempotent."""
        if self._qmp is not None:
            await self._qmp.close()
        self._watch.close()
        self.memory.close()
        _close_descriptor(self.userfault_fd)
        self.userfault_fd = None

    async def _come_up(self, deadline_s: float) -> None:
        connecting = asyncio.create_task(QmpConnection.connect(self.spec.qmp_socket_path, deadline_s))
        dying = asyncio.create_task(self.wait_exit())
        try:
            await asyncio.wait((connecting, dying), return_when=asyncio.FIRST_COMPLETED)
            if connecting.done() and connecting.exception() is not None:
                # Most often its end: wait for the status, which says more than a broken connection.
                await asyncio.wait((dying,), timeout=_DEATH_FOLLOWS_S)
            if dying.done():
                raise GuestDied(self.pid, dying.result())
            self._qmp = connecting.result()
            # QEMU has made it with its umask; until here its folder alone keeps others out.
            self.spec.console_socket_path.chmod(0o600)
        finally:
            connecting.cancel()
            dying.cancel()
            await asyncio.wait((connecting, dying))
            if self._qmp is None and not connecting.cancelled() and connecting.exception() is None:
                await connecting.result().close()

    async def _make_userfaultfd(self) -> int | None:
        try:
            return await asyncio.to_thread(obtain_userfaultfd, self.pid)
        except (TargetCallError, TracerUnavailable) as error:
            # Not a reason to refuse power-on: pages can still be traced by their contents.
            _log.warning("userfaultfd_unavailable", qemu_pid=self.pid, reason=str(error))
            return None
        except TargetGoneError as error:
            raise GuestDied(self.pid, await self.wait_exit()) from error

    async def _abandon(self) -> None:
        """Ends a process that did not come up. The caller's memory is not touched."""
        if self._qmp is not None:
            await self._qmp.close()
        await self.kill()
        self._watch.close()
        _close_descriptor(self.userfault_fd)


class _ExitWatch:
    """Waits for the end of a process on the event loop, and reaps it if it is our child."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: ExitStatus | None = None
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens where the process has ended."""
        if self.status is None and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Stops watching. Who still waits is cancelled."""
        if self.pidfd >= 0:
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        self.ended.cancel()

    def _on_end(self) -> None:
        self._loop.remove_reader(self.pidfd)
        self.status = _reap(self.pidfd)
        self.ended.set_result(self.status)


def _reap(pidfd: int) -> ExitStatus:
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return ExitStatus()  # adopted: another process is told its status
    return ExitStatus.from_waitid(result) if result is not None else ExitStatus()


def _start_process(spec: GuestSpec, memory_fd: int, launch: Launch) -> tuple[int, int, int]:
    """Starts QEMU; returns its pid, a pidfd, and where its part of the log begins. Blocking.

    :raises OSError: a file or the program could not be opened; no process is left.
    """
    spec.qmp_socket_path.unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qmp_listener,
        open(launch.qemu_log_path, "ab") as log_file,
    ):
        qmp_listener.bind(str(spec.qmp_socket_path))
        os.chmod(spec.qmp_socket_path, 0o600)
        qmp_listener.listen(4)
        descriptors = GuestDescriptors(memory_fd=memory_fd, qmp_listen_fd=qmp_listener.fileno())
        inherited = [memory_fd, qmp_listener.fileno()]
        if launch.run_lock_fd is not None:
            inherited.append(launch.run_lock_fd)
        log_offset = log_file.tell()
        process = subprocess.Popen(
            build_command_line(launch.qemu_binary, spec, descriptors),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=inherited,
            start_new_session=True,
        )
        # The pidfd is the one that waits for this child. Without a return code, Popen would also try to, at the
        # next Popen of this process, and the status would be lost.
        process.returncode = 0
        try:
            return process.pid, os.pidfd_open(process.pid), log_offset
        except OSError:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
            raise


async def _kill_unwatched(pid: int, pidfd: int) -> None:
    watch = _ExitWatch(pid, pidfd)
    watch.send_signal(signal.SIGKILL)
    await watch.ended
    watch.close()


def _take_over(pid: int, pidfd: int, spec: GuestSpec) -> tuple[GuestMemory, int | None]:
    """RAM and userfaultfd of a running guest, after it has proved to be the one. Blocking.

    :raises NotThisGuest: it is not, or it may not be looked into.
    """
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if (b"-uuid", spec.vm_uuid.encode()) not in itertools.pairwise(arguments):
            raise NotThisGuest(pid, f"it is not the process of VM {spec.vm_uuid}")
        memory_fd = next((int(found[1]) for found in map(_MEMORY_PATH.search, arguments) if found), None)
        if memory_fd is None:
            raise NotThisGuest(pid, "its command line names no RAM")
        if select.select([pidfd], [], [], 0)[0]:
            raise NotThisGuest(pid, "it has ended")  # and what was read may be of another process
        own_memory_fd = take_descriptor(pidfd, memory_fd)
        try:
            memory = GuestMemory.from_fd(own_memory_fd, spec.ram_bytes)
        except GuestMemoryError as error:
            os.close(own_memory_fd)
            raise NotThisGuest(pid, str(error)) from error
        try:
            return memory, find_userfaultfd(pid)
        except TraceError:
            memory.close()
            raise
    except (OSError, TraceError) as error:
        raise NotThisGuest(pid, str(error)) from error


def _log_tail(path: Path, start_offset: int) -> list[str]:
    """The last lines of QEMU's log that were written after `start_offset`. Blocking; an unreadable log is empty."""
    try:
        with open(path, "rb") as log_file:
            end = log_file.seek(0, os.SEEK_END)
            log_file.seek(max(start_offset, end - _LOG_TAIL_BYTES))
            text = log_file.read(_LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-_LOG_TAIL_LINES:]


def _close_descriptor(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
