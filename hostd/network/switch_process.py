"""Starts the host's virtual switch, finds it again, and starts it again when it dies.

    NEEDED BY NOBODY ──first connected NIC──▶ find or spawn ──▶ serving ──it died──▶ find or spawn ...
                                                   └──fails──▶ told to who needs it; tried again, ever more seldom

    HOST_RUN_DIR/net/
        vswitch.pid    pid and start time    made by the switch once it has its sockets, so it also says "ready"
        vswitch.log    what it says          opened by hostd
        <segment id>/  its sockets and the VMs'

It is started in a session of its own and shares nothing with hostd but files: the VMs' traffic goes on when hostd
ends, in whatever way, and the next hostd takes it up. A switch that runs with other settings is ended first.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from hostd.host.process import ProcessHandle, ProcessId, identify, read_pid_file
from hostd.owned_tasks import OwnedTasks
from runtime.faults import CannotAccessNetwork

_log = structlog.get_logger(__name__)

PID_NAME = "vswitch.pid"
LOG_NAME = "vswitch.log"
_PREFIX = "VSWITCH_"
_START_TIMEOUT_S = 10.0
# There's no event for "its pid file is there": it is looked for this often while a switch starts.
_LOOK_INTERVAL_S = 0.01
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 10.0
_STEADY_S = 5.0
_LOG_TAIL_BYTES = 2000


class SwitchNotStarted(Exception):
    """It ended at its start, or wasn't ready in time; its last words are the text."""


@dataclass(frozen=True)
class SwitchSettings:
    """How this host's switch is started. `environment` is complete."""

    host_name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path


class SwitchProcess:
    """The host's virtual switch, from the first VM that needs it on."""

    def __init__(self, settings: SwitchSettings, tasks: OwnedTasks) -> None:
        self._settings = settings
        self._tasks = tasks
        self._process: ProcessHandle | None = None
        self._failure = ""
        self._settled = asyncio.Event()  # an attempt to have one has ended, in whatever way
        self._is_kept = False

    async def take_up(self) -> None:
        """hostd starts: the switch of an earlier one is followed, and started if it has died meanwhile."""
        if (self._settings.directory / LOG_NAME).exists():
            self._keep_from_now_on()

    async def ensure(self) -> None:
        """There is a switch; returns when it carries frames.

        :raises CannotAccessNetwork: it can't be started; the reason is in the message. It'll be tried again.
        """
        self._keep_from_now_on()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._settled.wait()
        if self._process is None:
            reason = self._failure or "it doesn't come up"
            message = f"The virtual switch of {self._settings.host_name} doesn't run: {reason}"
            raise CannotAccessNetwork(message, host=self._settings.host_name)

    @property
    def process(self) -> ProcessId | None:
        """The switch that serves now."""
        return self._process.process if self._process is not None else None

    def _keep_from_now_on(self) -> None:
        if not self._is_kept:
            self._is_kept = True
            self._tasks.start(self._keep(), "virtual switch", detached=True)

    async def _keep(self) -> None:
        loop, retry_s = asyncio.get_running_loop(), _FIRST_RETRY_S
        while True:
            try:
                self._process = process = await self._bring_up()
            except (SwitchNotStarted, OSError) as error:
                self._failure = str(error)
                self._settled.set()
                _log.error("switch_not_started", reason=str(error), retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            since_s, self._failure = loop.time(), ""
            self._settled.set()
            try:
                await process.wait()
            finally:
                process.close()
                self._process = None
                self._settled.clear()
            _log.error("switch_died", pid=process.process.pid)
            if loop.time() - since_s > _STEADY_S:
                retry_s = _FIRST_RETRY_S
            else:  # it dies of what it does: the host isn't to spend itself on starting it
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _bring_up(self) -> ProcessHandle:
        """One that serves: the one that does already, or a new one. :raises SwitchNotStarted: :raises OSError:"""
        found = await asyncio.to_thread(self._find)
        if found is not None:
            opened = ProcessHandle.open(found)
            if opened is not None and await asyncio.to_thread(self._is_as_wanted, found):
                _log.info("switch_found", pid=found.pid)
                return opened
            if opened is not None:
                _log.info("switch_replaced", pid=found.pid, reason="it runs with other settings")
                opened.kill()
                await opened.wait()
                opened.close()
        spawned = await asyncio.to_thread(self._spawn)
        opened = ProcessHandle.open(spawned) if spawned is not None else None
        if opened is None:
            raise SwitchNotStarted(self._last_words())
        return await self._until_ready(opened)

    async def _until_ready(self, process: ProcessHandle) -> ProcessHandle:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while self._find() != process.process:
                    if await process.wait(timeout_s=_LOOK_INTERVAL_S):
                        raise SwitchNotStarted(self._last_words())
        except TimeoutError:
            process.kill()
            process.close()
            raise SwitchNotStarted(f"not ready within {_START_TIMEOUT_S:.0f} s") from None
        except BaseException:
            process.close()
            raise
        _log.info("switch_started", pid=process.process.pid)
        return process

    def _find(self) -> ProcessId | None:
        """The switch that serves this directory; blocks."""
        process = read_pid_file(self._settings.directory / PID_NAME)
        return process if process is not None and identify(process.pid) == process else None

    def _is_as_wanted(self, process: ProcessId) -> bool:
        """Whether it was started with the settings of now; blocks."""
        try:
            words = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        has = {word for word in words if word.startswith(_PREFIX.encode())}
        environment = self._settings.environment.items()
        return has == {
            os.fsencode(f"{name}={value}") for name, value in environment if name.startswith(_PREFIX)
        }

    def _spawn(self) -> ProcessId | None:
        """Blocks. The child isn't waited for by `subprocess`: its pidfd tells its end and reaps it."""
        directory = self._settings.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(directory / LOG_NAME, directory / f"{LOG_NAME}.1")
        with open(directory / LOG_NAME, "ab", buffering=0) as log:
            child = subprocess.Popen(
                self._settings.command,
                env=dict(self._settings.environment),
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        child.returncode = 0  # keeps Popen from waiting for it or warning about it when it is collected
        return identify(child.pid)

    def _last_words(self) -> str:
        """The last line of its log."""
        try:
            with open(self._settings.directory / LOG_NAME, "rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][-500:] if lines else "it ended at its start"
