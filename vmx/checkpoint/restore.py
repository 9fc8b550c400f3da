"""Putting the checkpoint in at the destination, and letting the guest go on.

    WAITING ──feed()*──> WAITING ──loaded()──> LOADED ──resume()──> RUNNING

The destination's QEMU was started with `-incoming defer -S`: entering makes it listen and connects, long before the
stun. It takes the state as it comes and then stays stopped, so that nothing runs before the hand-over says so.

All pages must lie in guest RAM before the first byte is fed: devices read guest RAM while they are loaded, and QEMU
ends itself where what it finds makes no sense. Loading may also *write* a few bytes of guest RAM, so RAM after
`loaded` is not what arrived: compare memories by what was placed.

QEMU: docs/devel/migration, qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from vmx.checkpoint.errors import CheckpointStateError, RestoreFailed
from vmx.checkpoint.stream_socket import connected_to, uri_of
from vmx.guest.errors import QmpConnectionLost
from vmx.guest.qmp import EventSubscription, QmpConnection
from vmx.guest.run_control import RunControl

__all__ = ["CheckpointRestore", "GuestResume", "RestoreState", "StateLoad"]

STEP_DEADLINE_S = 10.0
# late-block-activate: a source that may still have to resume holds its disks until `cont` here takes them over.
_CAPABILITIES = ("x-ignore-shared", "events", "late-block-activate")


class RestoreState(StrEnum):
    """Where a restore is."""

    WAITING = "waiting"  # -> LOADED, FAILED
    LOADED = "loaded"  # -> RUNNING, FAILED
    RUNNING = "running"  # the end
    FAILED = "failed"  # the end


@dataclass(frozen=True)
class StateLoad:
    """What loading cost: from the first byte fed to the state in place."""

    load_ms: float


@dataclass(frozen=True)
class GuestResume:
    """When the guest went on, on this process's monotonic clock."""

    ordered_ns: int
    resumed_ns: int

    @property
    def resume_ms(self) -> float:
        """From the order to the vCPUs' start."""
        return (self.resumed_ns - self.ordered_ns) / 1e6


class CheckpointRestore:
    """The restore of one guest: an asynchronous context manager, entered while the destination is prepared.

    Leaving frees the socket. A guest whose state was not loaded by then is of no use any more: end its process.

    :raises RestoreFailed: on entering, where QEMU can't be connected to.
    :raises QmpFailure: on entering, where QEMU refuses.
    """

    def __init__(
        self, qmp: QmpConnection, socket_path: Path, step_deadline_s: float = STEP_DEADLINE_S
    ) -> None:
        self._qmp = qmp
        self._socket_path = socket_path
        self._step_deadline_s = step_deadline_s
        self._state = RestoreState.WAITING
        self._first_fed_ns = 0
        self._resources = contextlib.AsyncExitStack()
        self._connection: socket.socket | None = None
        self._events: EventSubscription | None = None

    @property
    def state(self) -> RestoreState:
        """Where this restore is."""
        return self._state

    async def __aenter__(self) -> CheckpointRestore:
        async with contextlib.AsyncExitStack() as resources:
            capabilities = [{"capability": name, "state": True} for name in _CAPABILITIES]
            await self._qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
            # QEMU would announce the guest when its state is loaded, which is before it is ours.
            await self._qmp.execute("migrate-set-parameters", {"announce-rounds": 0})
            self._events = resources.enter_context(self._qmp.subscribe("MIGRATION"))
            await asyncio.to_thread(self._socket_path.unlink, missing_ok=True)
            await self._qmp.execute("migrate-incoming", {"uri": uri_of(self._socket_path)})
            try:
                self._connection = await asyncio.to_thread(
                    connected_to, self._socket_path, self._step_deadline_s
                )
            except OSError as error:
                raise RestoreFailed("connect", str(error)) from error
            resources.callback(self._connection.close)
            resources.push_async_callback(asyncio.to_thread, self._socket_path.unlink, missing_ok=True)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    async def feed(self, part: bytes | bytearray | memoryview) -> None:
        """Gives QEMU the next part of the state; returns when QEMU has it or the socket's buffer does.

        :raises RestoreFailed: QEMU has closed the stream or does not read it.
        """
        self._require("feed", RestoreState.WAITING)
        assert self._connection is not None, "entered"
        self._first_fed_ns = self._first_fed_ns or time.monotonic_ns()
        try:
            async with asyncio.timeout(self._step_deadline_s):
                await asyncio.get_running_loop().sock_sendall(self._connection, part)
        except TimeoutError as error:
            raise self._failed("feed", "QEMU does not read the state") from error
        except OSError as error:
            raise self._failed("feed", f"QEMU closed the stream ({error})") from error

    async def loaded(self) -> StateLoad:
        """Waits until QEMU has the whole state, which must have been fed. The guest is stopped then, and ready.

        :raises RestoreFailed: QEMU did not take it. Its log says why.
        :raises QmpTimeout: it said nothing in time.
        """
        self._require("loaded", RestoreState.WAITING)
        assert self._events is not None, "entered"
        try:
            event = await self._events.until(
                lambda event: event.data.get("status") in ("completed", "failed"), self._step_deadline_s
            )
        except QmpConnectionLost as error:
            raise self._failed("load", "QEMU ended") from error
        if event.data["status"] == "failed":
            raise self._failed("load", "QEMU says that it failed")
        self._state = RestoreState.LOADED
        return StateLoad((event.arrived_ns - self._first_fed_ns) / 1e6 if self._first_fed_ns else 0.0)

    async def resume(self) -> GuestResume:
        """Lets the guest go on. Only who owns the guest may call this.

        :raises QmpFailure: whether it runs is not known: ask, or call again.
        """
        self._require("resume", RestoreState.LOADED)
        ordered_ns = time.monotonic_ns()
        event = await RunControl(self._qmp).cont()
        self._state = RestoreState.RUNNING
        return GuestResume(ordered_ns, event.arrived_ns if event is not None else time.monotonic_ns())

    def _failed(self, step: str, reason: str) -> RestoreFailed:
        self._state = RestoreState.FAILED
        return RestoreFailed(step, reason)

    def _require(self, operation: str, state: RestoreState) -> None:
        if self._state is not state:
            raise CheckpointStateError(operation, self._state)
