"""The destination's half of a migration: a list of phases from top to bottom.

The VM is a shell until the hand-over: its QEMU process exists, its memory fills, nothing may run it. Until then any
error ends it. From READY on the owner record decides (destination_hand_over.py), and once the guest runs here nothing
that happens to this session ends it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from runtime.faults import MigrationFault, NotOwner, VimFault, VMotionNotConfigured
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.checkpoint.restore import CheckpointRestore
from vmx.disk.contract import DiskLayout
from vmx.disk.extent import ExtentWriter
from vmx.faults import guest_died
from vmx.files import VmFiles
from vmx.guest.errors import GuestDied, QmpFailure
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl
from vmx.migration.destination_hand_over import DestinationHandOver, Stake
from vmx.migration.order import MigrationOrder, Ticket
from vmx.migration.phases import DESTINATION_MOVES, DestinationPhase
from vmx.migration.session import Session
from vmx.migration.streams import destination_spec, new_token
from vmx.migration.switchover import DestinationState
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DestinationStreams,
    DeviceStateChunk,
    StreamError,
)
from vmx.stream.errors import ListenFailed
from vmx.threads import in_thread

# Prepared, and nobody comes: the real system's guard of a prepared destination.
PREPARE_GUARD_S = 90.0
_FAREWELL_S = 1.0
_INTERRUPTIBLE = frozenset({DestinationPhase.LISTEN, DestinationPhase.RECEIVE, DestinationPhase.RESTORE})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DestinationDisk:
    """A disk that moves here: its extent, which is there, empty."""

    key: int
    extent_path: Path
    layout: DiskLayout

    def writer(self) -> ExtentWriter:
        """:raises DiskError: the extent isn't as it should be."""
        return ExtentWriter(self.extent_path, self.layout)


@dataclass(frozen=True)
class DestinationGuest:
    """What the VM lends to its migration. `end_process` ends QEMU for good; `on_resumed` de-masks the VM. `disks` are
    those that move."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    run_dir: Path
    end_process: Callable[[], Awaitable[None]]
    on_resumed: Callable[[], None]
    disks: tuple[DestinationDisk, ...] = ()


class DestinationMigration(Session[DestinationPhase]):
    """One attempt to take a guest over: `prepare`, then `run`, once. After a fault the guest will never run here."""

    def __init__(self, order: MigrationOrder, guest: DestinationGuest) -> None:
        super().__init__(order, DestinationPhase.LISTEN, DESTINATION_MOVES, _INTERRUPTIBLE)
        self._guest = guest
        self._streams: DestinationStreams | None = None
        self._restore: CheckpointRestore | None = None
        self._hand_over: DestinationHandOver | None = None
        self._last_chunk = False

    async def prepare(self) -> Ticket:
        """Make everything ready and listen on the vMotion address; "prepared" means that all of it truly is.

        :raises NotOwner: the record doesn't name the source: it couldn't hand over.
        :raises VMotionNotConfigured: the address can't be bound.
        :raises CheckpointError: QEMU can't take a state.
        """
        order = self.order
        record = self._guest.record
        if record.owner_host_uuid != order.source.host_uuid:
            message = "The owner record doesn't name the migration's source."
            raise NotOwner(message, phase="prepare", owner=record.owner_host_uuid, epoch=record.epoch)
        token = new_token()
        process = self._guest.process
        async with contextlib.AsyncExitStack() as resources:
            self._restore = CheckpointRestore(process.qmp, self._guest.run_dir / "state-in.sock")
            await resources.enter_async_context(self._restore)
            # QEMU is up: whatever its start has put into guest RAM goes, so that what isn't sent reads as zeros.
            await in_thread(process.memory.clear)
            sinks = {disk.key: resources.enter_context(disk.writer()) for disk in self._guest.disks}
            try:
                self._streams = DestinationStreams.listen(
                    destination_spec(order, token), process.memory, sinks
                )
            except ListenFailed as error:
                message = f"{order.destination.name} can't listen on its vMotion address: {error}"
                raise VMotionNotConfigured(message, phase="prepare", host=order.destination.name) from error
            resources.push_async_callback(self._streams.close)
            self._resources = resources.pop_all()
        return Ticket(order.migration_id, self._streams.address, self._streams.port, token, order.ram_bytes)

    async def _run_phases(self) -> None:
        await self._run_phase(DestinationPhase.LISTEN, self._accept)
        await self._run_phase(DestinationPhase.RECEIVE, self._receive_memory)
        await self._run_phase(DestinationPhase.RESTORE, self._load)
        await self._run_phase(DestinationPhase.HAND_OVER, self._take)
        await self._run_phase(DestinationPhase.CONFIRM, self._settle)

    # ---- phases

    async def _accept(self) -> None:
        assert self._streams is not None, "made by prepare()"
        await self._streams.accept(PREPARE_GUARD_S)

    async def _receive_memory(self) -> None:
        """Pages are placed by the stream's threads; the first piece of device state ends the phase.

        The source sends it when every page is placed here, so it may be given to QEMU as it comes.
        """
        await self._take_chunk()

    async def _load(self) -> None:
        assert self._restore is not None, "made by prepare()"
        while not self._last_chunk:
            await self._take_chunk()
        await self._restore.loaded()

    async def _take_chunk(self) -> None:
        assert self._streams is not None, "made by prepare()"
        assert self._restore is not None, "made by prepare()"
        # Pages may come for hours; a silent peer is noticed by the stream itself.
        received = await self._streams.receive(float(2**31))
        if isinstance(received, ControlMessage) and received.code in {ControlCode.CANCEL, ControlCode.FAILED}:
            raise MigrationFault(f"The source gave up: {received.text}", phase=self.phase.value)
        if not isinstance(received, DeviceStateChunk):
            raise StreamError("the source sent something else instead of the device state")
        self.board.publish(replace(self.board.now, device_state_bytes=received.offset + len(received.data)))
        await self._restore.feed(received.data)
        self._last_chunk = received.last

    async def _take(self) -> None:
        assert self._streams is not None, "made by prepare()"
        guest = self._guest
        stake = Stake(
            guest.files,
            guest.record,
            guest.run_lock,
            parted=self.order.moves_home,
            resume_guest=self._resume,
            announce_guest=self._announce,
            end_guest=guest.end_process,
            guest_ended=guest.process.wait_exit,
        )
        self._hand_over = DestinationHandOver(self.order, stake, self._streams)
        await self._hand_over.take_over()
        self._raise_if_destroyed()

    async def _settle(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        await self._hand_over.settle()
        self._raise_if_destroyed()

    async def _resume(self) -> None:
        assert self._restore is not None, "made by prepare()"
        await self._restore.resume()
        self._guest.on_resumed()

    def _announce(self) -> None:
        """Beside whatever comes next: the source waits for RESUMED and then for SETTLED, and not for this."""
        process = self._guest.process
        announcing = asyncio.create_task(RunControl(process.qmp).announce(process.spec.nics), name="announce")
        self._resources.push_async_callback(asyncio.wait, [announcing])

    def _raise_if_destroyed(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        if self._hand_over.state is DestinationState.DESTROYED:
            cause = self._hand_over.failure
            message = f"The guest can't run on {self.order.destination.name}: {cause}"
            raise MigrationFault(message, phase=self.phase.value) from cause

    # ---- undoing

    async def _cause_of(self, error: BaseException) -> BaseException:
        if isinstance(error, QmpFailure):
            error = await self._guest.process.cause_of(error)
        return guest_died(error.exit_status) if isinstance(error, GuestDied) else error

    async def _undo(self, fault: VimFault) -> VimFault | None:
        """Before the hand-over: tell the source, end the shell VM. After it: what the record says."""
        if self._hand_over is None:
            await self._tell(fault)
            await self._guest.end_process()
            return fault
        await self._hand_over.resolve()
        if not self._hand_over.has_guest:
            return fault
        if self.phase is DestinationPhase.HAND_OVER:
            self._enter(DestinationPhase.CONFIRM)
        return None

    async def _tell(self, fault: VimFault) -> None:
        """Best effort: the source would notice by itself."""
        if self._streams is None:
            return
        with contextlib.suppress(StreamError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                message = ControlMessage(ControlCode.FAILED, text=str(fault)[:200])
                await self._streams.control.send(message)
