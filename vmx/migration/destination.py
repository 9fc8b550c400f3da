"""The destination's half of a migration: a list of phases from top to bottom.

The VM is a shell until the hand-over: its QEMU process exists, its memory fills, nothing may run it. Before READY any
error ends it. From READY on the owner record decides (destination_hand_over.py).
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from runtime.faults import MigrationFault, NotOwner, VimFault, VMotionNotConfigured
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.checkpoint.restore import CheckpointRestore
from vmx.files import VmFiles
from vmx.guest.process import GuestProcess
from vmx.migration.destination_hand_over import DestinationHandOver, Stake
from vmx.migration.order import MigrationOrder, Ticket, Verification
from vmx.migration.phases import DESTINATION_MOVES, DestinationPhase
from vmx.migration.session import Session
from vmx.migration.switchover import DestinationState
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DestinationStreams,
    DeviceStateChunk,
    ReceiverSpec,
    StreamError,
    StreamSecret,
)
from vmx.stream.errors import ListenFailed
from vmx.stream.spec import Encryption

# Prepared, and nobody comes: the real system's guard of a prepared destination.
PREPARE_GUARD_S = 90.0
_TOKEN_BYTES = 32
_FAREWELL_S = 1.0
_UNINTERRUPTIBLE = frozenset(
    {DestinationPhase.HAND_OVER, DestinationPhase.CONFIRM, DestinationPhase.FINISHED, DestinationPhase.FAILED}
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DestinationGuest:
    """What the VM lends to its migration. `end_process` ends QEMU for good; `on_resumed` de-masks the VM."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    run_dir: Path
    end_process: Callable[[], Awaitable[None]]
    on_resumed: Callable[[], None]


class DestinationMigration(Session[DestinationPhase]):
    """One attempt to take a guest over. `prepare`, then `run`, once."""

    def __init__(self, order: MigrationOrder, guest: DestinationGuest) -> None:
        super().__init__(order, DestinationPhase.LISTEN, DESTINATION_MOVES)
        self._guest = guest
        self._streams: DestinationStreams | None = None
        self._restore: CheckpointRestore | None = None
        self._hand_over: DestinationHandOver | None = None
        self._resources = contextlib.AsyncExitStack()
        self._last_chunk = False

    def check_may_cancel(self) -> None:
        """:raises PastPointOfNoReturn: the hand-over has begun."""
        self.check_may_end(_UNINTERRUPTIBLE)

    async def prepare(self) -> Ticket:
        """Make everything ready and listen on the vMotion address; "prepared" means that all of it truly is.

        :raises NotOwner: the record doesn't name the source: it couldn't hand over.
        :raises VMotionNotConfigured: the address can't be bound.
        :raises CheckpointError: QEMU can't take a state.
        """
        order, options = self.order, self.order.options
        record = self._guest.record
        if record.owner_host_uuid != order.source.host_uuid:
            message = "The owner record doesn't name the migration's source."
            raise NotOwner(message, phase="prepare", owner=record.owner_host_uuid, epoch=record.epoch)
        token = secrets.token_bytes(_TOKEN_BYTES)
        spec = ReceiverSpec(
            secret=StreamSecret(order.migration_id, order.key, token),
            listen_address=order.destination.vmotion_address,
            source_addresses=(order.source.vmotion_address,),
            channel_count=options.streams,
            encryption=Encryption.AES_256_GCM if options.encrypted else Encryption.DISABLED,
            keep_digests=options.verification is not Verification.OFF,
            timeouts=options.timeouts,
        )
        process = self._guest.process
        async with contextlib.AsyncExitStack() as resources:
            self._restore = CheckpointRestore(process.qmp, self._guest.run_dir / "state-in.sock")
            await resources.enter_async_context(self._restore)
            # QEMU is up: whatever its start has put into guest RAM goes, so that what isn't sent reads as zeros.
            await asyncio.to_thread(process.memory.clear)
            try:
                self._streams = DestinationStreams.listen(spec, process.memory)
            except ListenFailed as error:
                message = f"{order.destination.name} can't listen on its vMotion address: {error}"
                raise VMotionNotConfigured(message, phase="prepare", host=order.destination.name) from error
            resources.push_async_callback(self._streams.close)
            self._resources = resources.pop_all()
        return Ticket(order.migration_id, self._streams.address, self._streams.port, token, order.ram_bytes)

    async def run(self) -> VimFault | None:
        """Take the guest over. None: it runs here for good. A fault: it never will, its process has ended."""
        fault: VimFault | None = None
        try:
            async with self._resources as resources:
                resources.push_async_exit(self._give_up)
                await self._run_phases()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  a session's outer edge
            fault = self.fault_of(error)
            if not isinstance(error, VimFault | StreamError | asyncio.CancelledError):
                _log.error("migration_failed", phase=self.phase.value, exc_info=error)
        if fault is None:
            self.finish(DestinationPhase.FINISHED)
            return None
        _log.warning("destination_destroyed", phase=self.phase.value, reason=str(fault))
        self.finish(DestinationPhase.FAILED, fault)
        return fault

    async def _run_phases(self) -> None:
        await self.run_phase(DestinationPhase.LISTEN, self._accept())
        await self.run_phase(DestinationPhase.RECEIVE, self._receive_memory())
        await self.run_phase(DestinationPhase.RESTORE, self._load())
        await self.run_phase(DestinationPhase.HAND_OVER, self._take())
        await self.run_phase(DestinationPhase.CONFIRM, self._settle())

    # ---- phases

    async def _accept(self) -> None:
        assert self._streams is not None, "made by prepare()"
        guest = self._guest
        assert self._restore is not None, "made by prepare()"
        stake = Stake(guest.files, guest.record, guest.run_lock, self._resume, guest.end_process)
        self._hand_over = DestinationHandOver(self.order, stake, self._streams)
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
        assert self._hand_over is not None, "made when the source was accepted"
        await self._hand_over.take_over()
        self._raise_if_destroyed()

    async def _settle(self) -> None:
        assert self._hand_over is not None, "made when the source was accepted"
        await self._hand_over.settle()
        self._raise_if_destroyed()

    async def _resume(self) -> None:
        assert self._restore is not None, "made by prepare()"
        await self._restore.resume()
        self._guest.on_resumed()

    def _raise_if_destroyed(self) -> None:
        assert self._hand_over is not None, "made when the source was accepted"
        if self._hand_over.state is DestinationState.DESTROYED:
            cause = self._hand_over.failure
            message = f"The guest can't run on {self.order.destination.name}: {cause}"
            raise MigrationFault(message, phase=self.phase.value) from cause

    # ---- undoing

    async def _give_up(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Before READY: tell the source, end the shell VM. After it the hand-over has done what was right."""
        if error is None or self.phase in _UNINTERRUPTIBLE:
            return
        if self._streams is not None:
            with contextlib.suppress(StreamError, TimeoutError):  # best effort: it would notice by itself
                async with asyncio.timeout(_FAREWELL_S):
                    text = str(self.fault_of(error))[:200]
                    await self._streams.control.send(ControlMessage(ControlCode.FAILED, text=text))
        if self._hand_over is not None:
            await self._hand_over.give_up(error)
        else:
            await self._guest.end_process()
