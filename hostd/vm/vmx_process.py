"""Starts vmx processes and finds them again.

    HOST_RUN_DIR/<first 13 characters of the VM's uuid>/
        vmx.sock    its service           made by vmx
        vmx.pid     its pid, start time   made by vmx
        guest.pid   QEMU's, the same      made by hostd as soon as vmx tells it
        vmx.log     what vmx says         opened by hostd

A vmx is started in a session of its own and shares nothing with hostd but files, so it outlives every hostd; a new
hostd finds it through its pid file. The guest's pid file is for the day when vmx is dead and its guest isn't.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from hostd.host.process import ProcessHandle, ProcessId, identify, read_pid_file
from runtime.faults import GuestStartFailed, InvalidState
from runtime.ondisk.durable import write_durably

_log = structlog.get_logger(__name__)

SOCKET_NAME = "vmx.sock"
PID_NAME = "vmx.pid"
GUEST_PID_NAME = "guest.pid"
LOG_NAME = "vmx.log"
_START_TIMEOUT_S = 20.0
# There's no event for "a process listens on its socket": a connection is tried this often while a vmx starts.
_CONNECT_INTERVAL_S = 0.02
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class VmxSettings:
    """How this host starts its vmx processes. `environment` is complete but for what is the VM's own."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    run_directory: Path


class VmxProcesses:
    """The vmx processes of this host."""

    def __init__(self, settings: VmxSettings) -> None:
        self._settings = settings

    def run_directory(self, vm_uuid: str) -> Path:
        """The VM's own run directory: short, because socket addresses are."""
        return self._settings.run_directory / vm_uuid[:13]

    def socket_path(self, vm_uuid: str) -> Path:
        """Where its vmx listens."""
        return self.run_directory(vm_uuid) / SOCKET_NAME

    async def start(self, vm_uuid: str) -> ProcessHandle:
        """Start a vmx for the VM; returns when it listens.

        :raises InvalidState: one is running already.
        :raises GuestStartFailed: it ended or didn't listen in time; it's gone, and its last words are in the fault.
        """
        directory = self.run_directory(vm_uuid)
        for name, what in ((PID_NAME, "vmx process"), (GUEST_PID_NAME, "guest")):
            present = read_pid_file(directory / name)
            if present is not None and identify(present.pid) == present:
                message = f"A {what} of this VM is running on this host (pid {present.pid})."
                raise InvalidState(message, state="running", required="none")
        opened = await self._spawned(directory, vm_uuid)
        if opened is None:
            raise GuestStartFailed("vmx ended at its start.", reason=_last_words(directory))
        try:
            await self._wait_for_socket(directory / SOCKET_NAME, opened)
        except BaseException:
            opened.kill()
            await opened.wait(timeout_s=5)
            opened.close()
            raise
        _log.info("vmx_started", vm_uuid=vm_uuid, pid=opened.process.pid, run_directory=str(directory))
        return opened

    def find(self, vm_uuid: str) -> ProcessHandle | None:
        """The VM's living vmx, started by an earlier hostd."""
        process = read_pid_file(self.run_directory(vm_uuid) / PID_NAME)
        return ProcessHandle.open(process) if process is not None else None

    def find_guest(self, vm_uuid: str) -> ProcessHandle | None:
        """The VM's living QEMU, as last noted."""
        process = read_pid_file(self.run_directory(vm_uuid) / GUEST_PID_NAME)
        return ProcessHandle.open(process) if process is not None else None

    def note_guest(self, vm_uuid: str, process: ProcessId | None) -> None:
        """Keep (or drop) who the guest's process is; blocks."""
        path = self.run_directory(vm_uuid) / GUEST_PID_NAME
        if process is None:
            path.unlink(missing_ok=True)
        else:
            write_durably(path, f"{process.pid} {process.start_time}\n".encode())

    def found_directories(self) -> list[Path]:
        """The run directories in which a vmx lives now, whoever's it is; blocks."""
        found = []
        for path in sorted(self._settings.run_directory.glob(f"*/{PID_NAME}")):
            process = read_pid_file(path)
            if process is not None and identify(process.pid) == process:
                found.append(path.parent)
        return found

    async def _spawned(self, directory: Path, vm_uuid: str) -> ProcessHandle | None:
        """A new vmx; None: it has ended already. Who is canceled here leaves none behind."""
        spawning = asyncio.create_task(asyncio.to_thread(self._spawn, directory, vm_uuid))
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            process = await spawning
            unwanted = ProcessHandle.open(process) if process is not None else None
            if unwanted is not None:
                unwanted.kill()
                await unwanted.wait(timeout_s=5)
                unwanted.close()
            raise
        return ProcessHandle.open(process) if process is not None else None

    def _spawn(self, directory: Path, vm_uuid: str) -> ProcessId | None:
        """Blocks. The child isn't waited for by `subprocess`: its pidfd tells its end and reaps it."""
        _clear(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {
            **self._settings.environment,
            "VMX_VM_UUID": vm_uuid,
            "VMX_RUN_DIR": str(directory),
        }
        with open(directory / LOG_NAME, "ab", buffering=0) as log:
            child = subprocess.Popen(
                self._settings.command,
                env=environment,
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        child.returncode = 0  # keeps Popen from waiting for it or warning about it when it is collected
        return identify(child.pid)

    async def _wait_for_socket(self, path: Path, process: ProcessHandle) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while not _listens(path):
            if await process.wait(timeout_s=_CONNECT_INTERVAL_S):
                raise GuestStartFailed("vmx ended at its start.", reason=_last_words(path.parent))
            if asyncio.get_running_loop().time() > deadline:
                message = f"vmx didn't listen within {_START_TIMEOUT_S:.0f} s."
                raise GuestStartFailed(message, reason=_last_words(path.parent))


def _clear(directory: Path) -> None:
    """Remove what an earlier vmx left; its log is kept as vmx.log.1."""
    if not directory.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):
        os.replace(directory / LOG_NAME, directory / f"{LOG_NAME}.1")
    for path in directory.iterdir():
        if path.name == f"{LOG_NAME}.1":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _last_words(directory: Path) -> str:
    """The last line of vmx's log: enough to say why, without a traceback."""
    try:
        with open(directory / LOG_NAME, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(log.tell() - _LOG_TAIL_BYTES, 0))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][-500:] if lines else ""
