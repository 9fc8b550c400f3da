"""Taking the checkpoint at the source: the guest is stopped and its device and CPU state leaves QEMU.

QEMU's own migration does it, to a unix socket of vmx, with guest RAM left out (`x-ignore-shared`):

    READY ──stop_guest()──> STOPPED ──save()──> SAVED ─┐
      └────────────── cancel() ────┴───────────────────┴──> CANCELLED   the guest runs on as before

Everything that takes time before the guest has to stop (the socket, the capabilities, the connection, QEMU's pass
over its ROMs) happens while it still runs: `migrate` stops it by itself, at the end of that pass. Three orders were
tried (QEMU 7.2, TCG, 2 busy cores; STOP to RESUME, medians of ten), with the last pages placed 3.5 ms and 1.5 ms after
the stop:

    migrate, hold (pause-before-switchover), last pages, save, load      8.2 ms   7.0 ms
    migrate, hold, save beside the last pages, load                      6.2 ms   8.0 ms
    migrate, save beside the last pages, load                            6.5 ms   5.9 ms   taken
    (`stop` first, then migrate: 0 to 3 ms more than the first: all of migrate's set-up falls into the stun)

Without the hold the state is here 1 ms after the stop, and nothing of it waits for an answer of vmx.

Two rules for the caller:
  - The state may be *sent* at once but given to the destination's QEMU only when every page is placed: devices read
    guest RAM while they are loaded (the local APIC's and virtio's state are checked against it).
  - Saving may touch RAM: collect the written pages once more after `save`.

Who runs the guest if vmx dies on the way: until the migration is complete QEMU sees its socket break and lets the
guest run on by itself; afterwards it stays stopped for ever. So the guest may be handed over only after `save` has
returned.

A guest that was stopped before (paused) stays stopped through `cancel`; QEMU 7.2 then refuses a further capture until
the guest has run once.

QEMU: docs/devel/migration, qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from vmx.checkpoint.errors import CaptureFailed, CheckpointStateError, RamInState, StateTooLarge
from vmx.checkpoint.stream_socket import listening_on, uri_of
from vmx.guest.errors import QmpBadReply, QmpTimeout
from vmx.guest.qmp import EventSubscription, QmpConnection
from vmx.guest.run_control import RunControl, RunState

__all__ = ["CaptureLimits", "CaptureState", "CapturedState", "CheckpointCapture", "GuestStop"]

# MigrationStatus of qapi/migration.json in which nothing goes on (any more).
_ENDED = frozenset({"none", "cancelled", "failed", "completed"})
_RECEIVE_BYTES = 256 * 1024
_LETS_GO_EVERY_S = 0.005


# Status and state of QEMU's migration between the vCPUs' stop and the saving (capability pause-before-switchover).
_PAUSED = "pre-switchover"


class CaptureState(StrEnum):
    """Where a capture is."""

    READY = "ready"  # -> STOPPED, FAILED, CANCELLED
    STOPPED = "stopped"  # -> SAVED, FAILED, CANCELLED
    SAVED = "saved"  # -> CANCELLED
    FAILED = "failed"  # -> CANCELLED
    CANCELLED = "cancelled"  # the end


_MOVES: Mapping[CaptureState, frozenset[CaptureState]] = {
    CaptureState.READY: frozenset({CaptureState.STOPPED, CaptureState.FAILED, CaptureState.CANCELLED}),
    CaptureState.STOPPED: frozenset({CaptureState.SAVED, CaptureState.FAILED, CaptureState.CANCELLED}),
    CaptureState.SAVED: frozenset({CaptureState.FAILED, CaptureState.CANCELLED}),
    CaptureState.FAILED: frozenset({CaptureState.CANCELLED}),
    CaptureState.CANCELLED: frozenset(),
}


@dataclass(frozen=True)
class CaptureLimits:
    """What a device state may be at most, and how long each step may take.

    About 0.3 MB is usual, of which QEMU counts 0.2 MB as RAM (its ROMs).
    """

    state_bytes: int = 64 << 20
    ram_transferred_bytes: int = 4 << 20
    step_deadline_s: float = 10.0


@dataclass(frozen=True)
class GuestStop:
    """When the guest stopped, on this process's monotonic clock; one that was stopped already, when ordered."""

    ordered_ns: int
    stopped_ns: int

    @property
    def stop_ms(self) -> float:
        """From the order to the vCPUs' stop. The guest runs on for nearly all of it."""
        return (self.stopped_ns - self.ordered_ns) / 1e6


@dataclass(frozen=True)
class CapturedState:
    """The checkpoint, and what it cost. `save_ms` is from the vCPUs' stop to the whole state being here."""

    device_state: bytes
    ram_transferred_bytes: int
    save_ms: float


class CheckpointCapture:
    """One attempt to take a guest's checkpoint: an asynchronous context manager.

    Entering prepares QEMU and costs the guest nothing. Leaving frees the socket and does nothing to the guest:
    one that was stopped stays so, until `cancel` or until it is handed over.

    With `pauses`, QEMU waits between the vCPUs' stop and the saving until `save` is called: what must happen to its
    disks after the guest's last write and before QEMU lets go of them, happens there.

    :raises CaptureFailed: on entering, where the socket can't be made.
    :raises QmpFailure: on entering, where QEMU refuses.
    """

    def __init__(
        self,
        qmp: QmpConnection,
        socket_path: Path,
        limits: CaptureLimits | None = None,
        *,
        pauses: bool = False,
    ) -> None:
        self._qmp = qmp
        self._pauses = pauses
        self._socket_path = socket_path
        self._limits = limits or CaptureLimits()
        self._run_control = RunControl(qmp)
        self._state = CaptureState.READY
        self._was_running = False
        self._status = "none"
        self._stopped_ns = 0
        self._resources = contextlib.AsyncExitStack()
        self._listener: socket.socket | None = None
        self._events: EventSubscription | None = None
        self._receiving: asyncio.Task[bytes] | None = None

    @property
    def state(self) -> CaptureState:
        """Where this capture is."""
        return self._state

    async def __aenter__(self) -> CheckpointCapture:
        async with contextlib.AsyncExitStack() as resources:
            await _set_capabilities(self._qmp, pauses=self._pauses)
            try:
                self._listener = await asyncio.to_thread(listening_on, self._socket_path)
            except OSError as error:
                raise CaptureFailed("listen", str(error)) from error
            resources.callback(self._listener.close)
            resources.push_async_callback(asyncio.to_thread, self._socket_path.unlink, missing_ok=True)
            self._events = resources.enter_context(self._qmp.subscribe("STOP", "MIGRATION"))
            resources.push_async_callback(self._end_receiving)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    async def stop_guest(self) -> GuestStop:
        """Starts the capture; returns when the vCPUs are stopped. The saving of the state goes on at once.

        On failure call `cancel`: the guest may or may not be stopped.

        :raises CaptureFailed: QEMU gave up.
        :raises QmpFailure: QEMU refused, or said nothing in time.
        """
        self._require("stop_guest", CaptureState.READY)
        assert self._listener is not None, "entered"
        with self._failing():
            self._was_running = await self._run_control.state() is RunState.RUNNING
            self._receiving = asyncio.create_task(self._receive(self._listener), name="device-state")
            ordered_ns = time.monotonic_ns()
            await self._qmp.execute("migrate", {"uri": uri_of(self._socket_path)})
            self._stopped_ns = await self._wait_for_stop() if self._was_running else ordered_ns
            self._move(CaptureState.STOPPED)
        return GuestStop(ordered_ns, self._stopped_ns)

    async def save(self) -> CapturedState:
        """Waits for the whole state. After it the guest can't run again unless `cancel` is called.

        :raises CaptureFailed: QEMU gave up; the guest may run already.
        :raises StateTooLarge: the state passed its limit; the guest may run already.
        :raises RamInState: guest RAM is in the state, which is of no use.
        :raises QmpFailure: QEMU said nothing in time.
        """
        self._require("save", CaptureState.STOPPED)
        assert self._receiving is not None, "started by stop_guest()"
        with self._failing():
            if self._pauses:
                await self._wait_for_status(_PAUSED)
                await self._qmp.execute("migrate-continue", {"state": _PAUSED})
            await self._wait_for_status("completed")
            device_state = await self._received(self._receiving)
            save_ms = (time.monotonic_ns() - self._stopped_ns) / 1e6
            ram_transferred_bytes = _ram_transferred(await self._qmp.query("query-migrate"))
            if ram_transferred_bytes > self._limits.ram_transferred_bytes:
                raise RamInState(ram_transferred_bytes, self._limits.ram_transferred_bytes)
            self._move(CaptureState.SAVED)
        return CapturedState(device_state, ram_transferred_bytes, save_ms)

    async def cancel(self) -> None:
        """Ends the attempt wherever it is; returns when the guest runs, if it ran before. Idempotent.

        Never call it for a guest that was handed over. If it fails it can be called again.

        :raises QmpFailure: QEMU did not do it in time, or is gone.
        """
        if self._state is CaptureState.CANCELLED:
            return
        if self._receiving is not None:
            await self._end_migration()
            if self._was_running:
                await self._run_control.cont()
        self._move(CaptureState.CANCELLED)

    # ---- inside

    async def _end_migration(self) -> None:
        assert self._events is not None, "entered"
        status = await self._query_status()
        if status not in _ENDED:
            await self._qmp.execute("migrate_cancel")
            while (status := await self._query_status()) not in _ENDED:
                await self._events.next(self._limits.step_deadline_s)
        await self._end_receiving()
        # QEMU 7.2 tells the end of its migration a moment before it lets go of the guest ("Migration is not finalized
        # yet"), and no event tells when it has.
        async with _deadline("let go of the guest", self._limits.step_deadline_s):
            while await self._run_control.state() is RunState.FINISH_MIGRATE:  # noqa: ASYNC110  as said
                await asyncio.sleep(_LETS_GO_EVERY_S)

    async def _query_status(self) -> str:
        return str((await self._qmp.query("query-migrate")).get("status", "none"))

    async def _wait_for_stop(self) -> int:
        assert self._events is not None, "entered"
        async with _deadline("stop the guest", self._limits.step_deadline_s):
            while True:
                event = await self._events.next(self._limits.step_deadline_s)
                if event.name == "STOP":
                    return event.arrived_ns
                await self._note_status(event.data, "stop")

    async def _wait_for_status(self, wanted: str) -> None:
        assert self._events is not None, "entered"
        async with _deadline("save the device state", self._limits.step_deadline_s):
            while self._status != wanted:
                event = await self._events.next(self._limits.step_deadline_s)
                if event.name == "MIGRATION":
                    await self._note_status(event.data, "save")

    async def _note_status(self, data: Mapping[str, object], step: str) -> None:
        self._status = str(data.get("status"))
        if self._status not in ("failed", "cancelled"):
            return
        if self._receiving is not None and self._receiving.done():
            await self._receiving  # its own error is the cause
        reason = (await self._qmp.query("query-migrate")).get("error-desc", self._status)
        raise CaptureFailed(step, str(reason))

    async def _received(self, receiving: asyncio.Task[bytes]) -> bytes:
        async with _deadline("end the stream of its device state", self._limits.step_deadline_s):
            return await asyncio.shield(receiving)

    async def _receive(self, listener: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listener)
        state = bytearray()
        with connection:
            connection.setblocking(False)
            while chunk := await loop.sock_recv(connection, _RECEIVE_BYTES):
                state += chunk
                if len(state) > self._limits.state_bytes:
                    raise StateTooLarge(self._limits.state_bytes)
        return bytes(state)

    async def _end_receiving(self) -> None:
        if self._receiving is None:
            return
        self._receiving.cancel()
        await asyncio.wait([self._receiving])
        if not self._receiving.cancelled():
            self._receiving.exception()  # it was the cause of a failure that was raised, or nobody's any more

    def _require(self, operation: str, state: CaptureState) -> None:
        if self._state is not state:
            raise CheckpointStateError(operation, self._state)

    def _move(self, state: CaptureState) -> None:
        if state not in _MOVES[self._state]:
            raise CheckpointStateError(f"move to {state}", self._state)
        self._state = state

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._move(CaptureState.FAILED)
            raise


async def _set_capabilities(qmp: QmpConnection, *, pauses: bool) -> None:
    wanted = {"x-ignore-shared": True, "events": True, "pause-before-switchover": pauses}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})


def _ram_transferred(migration: Mapping[str, object]) -> int:
    ram = migration.get("ram")
    transferred = ram.get("transferred") if isinstance(ram, dict) else None
    if not isinstance(transferred, int):
        raise QmpBadReply("query-migrate", "no ram.transferred")
    return transferred


@contextlib.asynccontextmanager
async def _deadline(doing: str, deadline_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise QmpTimeout(doing, deadline_s) from None
