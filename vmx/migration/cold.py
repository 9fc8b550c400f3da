"""Both halves of a migration of a VM that is powered off: files only, over the same stream, with the same hand-over.

    source        HANDSHAKE ─▶ DISK_COPY ─▶ HAND_OVER ─▶ CONFIRM ─▶ FINISHED
    destination   LISTEN ─▶ RECEIVE ─▶ HAND_OVER ─▶ CONFIRM ─▶ FINISHED

There is nothing to run, and still the record says whose the VM is: whoever it names may power it on.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from runtime.faults import MigrationFault, VimFault, VMotionLinkDown, VMotionNotConfigured
from vmx.disk.errors import DiskError, MirrorFailed
from vmx.migration.destination import DestinationDisk
from vmx.migration.destination_hand_over import DestinationHandOver
from vmx.migration.destination_hand_over import Stake as DestinationStake
from vmx.migration.disk_copy import DiskCopies, SourceDisk, Traffic, disk_fault, told_by_destination
from vmx.migration.hand_over import Claim, require_ready
from vmx.migration.order import MigrationOrder, Ticket
from vmx.migration.phases import DESTINATION_MOVES, SOURCE_MOVES, DestinationPhase, SourcePhase
from vmx.migration.session import Session
from vmx.migration.source_hand_over import SourceHandOver
from vmx.migration.source_hand_over import Stake as SourceStake
from vmx.migration.streams import destination_spec, new_token, source_spec
from vmx.migration.switchover import DestinationState, SourceState
from vmx.stream import ControlCode, ControlMessage, DestinationStreams, SourceStreams, StreamError
from vmx.stream.errors import ListenFailed, RemoteDiskFailed

PREPARE_GUARD_S = 90.0
_FAREWELL_S = 1.0
_SOURCE_INTERRUPTIBLE = frozenset({SourcePhase.HANDSHAKE, SourcePhase.DISK_COPY})
_DESTINATION_INTERRUPTIBLE = frozenset({DestinationPhase.LISTEN, DestinationPhase.RECEIVE})


@dataclass(frozen=True)
class ColdSourceVm:
    """What is given away: the claim to the VM, its run lock held, and the disks that move."""

    claim: Claim
    disks: tuple[SourceDisk, ...]
    run_dir: Path


@dataclass(frozen=True)
class ColdDestinationVm:
    """What is taken over: the claim, its run lock free, and the empty disks."""

    claim: Claim
    disks: tuple[DestinationDisk, ...]


class ColdSource(Session[SourcePhase]):
    """One attempt to give a powered-off VM's files away: `run` once."""

    def __init__(self, order: MigrationOrder, ticket: Ticket, vm: ColdSourceVm) -> None:
        super().__init__(order, SourcePhase.HANDSHAKE, SOURCE_MOVES, _SOURCE_INTERRUPTIBLE)
        self._ticket = ticket
        self._vm = vm
        self._streams: SourceStreams | None = None
        self._hand_over: SourceHandOver | None = None

    def end(self, reason: VimFault) -> bool:
        """As Session's. What waits for the network, in threads that nobody can cancel, is woken at once."""
        is_ended = super().end(reason)
        if is_ended and self._streams is not None:
            self._streams.abort(str(reason))
        return is_ended

    @property
    def given_away(self) -> bool:
        """As far as is known here the VM is the destination's."""
        return self._hand_over is not None and self._hand_over.gave_away

    async def resolve(self) -> None:
        """After a fault with `given_away`: wait for the owner record, as long as it takes."""
        assert self._hand_over is not None, "made in the hand-over"
        await self._hand_over.resolve()

    async def _run_phases(self) -> None:
        await self._run_phase(SourcePhase.HANDSHAKE, self._connect)
        await self._run_phase(SourcePhase.DISK_COPY, self._copy)
        await self._run_phase(SourcePhase.HAND_OVER, self._give)
        await self._run_phase(SourcePhase.CONFIRM, self._confirm)

    async def _connect(self) -> None:
        order = self.order
        try:
            self._streams = await SourceStreams.connect(source_spec(order, self._ticket))
        except StreamError as error:
            message = f"The vMotion connection to {order.destination.name} can't be made: {error}"
            raise VMotionLinkDown(
                message, phase="handshake", host=order.source.name, peer=order.destination.name
            ) from error
        self._resources.push_async_callback(self._streams.close)

    async def _copy(self) -> None:
        assert self._streams is not None, "made in the handshake"
        streams = self._streams
        if not self._vm.disks:
            return

        def traffic() -> Traffic:
            return Traffic(wire_bytes=streams.progress().disk_wire_bytes)

        copies = DiskCopies(self._vm.disks, streams.disks, self.board, self._vm.run_dir, None, traffic)
        await copies.copy(_no_mirror)
        await streams.finish_disks(final=True)

    async def _give(self) -> None:
        assert self._streams is not None, "made in the handshake"
        # The end of the "state": the destination has everything and says READY.
        await self._streams.control.send_device_state(b"", 0, last=True)
        received = await self._streams.control.receive(self.order.options.max_switchover_s)
        claim = self._vm.claim
        require_ready(received, claim, self.phase.value)
        stake = SourceStake(
            claim.files, claim.record, claim.run_lock, claim.parted, resume_guest=_nothing_to_resume
        )
        self._hand_over = SourceHandOver(self.order, stake, self._streams.control)
        await self._hand_over.hand_over()
        self._raise_unless_given()

    async def _confirm(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        assert self._streams is not None, "made in the handshake"
        with contextlib.suppress(StreamError):  # the record tells what became of it
            await self._streams.control.send(ControlMessage(ControlCode.VERIFIED))
        await self._hand_over.confirm()
        self._raise_unless_given()

    def _raise_unless_given(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        if self._hand_over.state in {SourceState.CONFIRMING, SourceState.DONE}:
            return
        message = f"The VM wasn't handed over to {self.order.destination.name}: {self._hand_over.failure}"
        raise MigrationFault(message, phase=self.phase.value) from self._hand_over.failure

    async def _cause_of(self, error: BaseException) -> BaseException:
        if self._streams is not None and self._end_reason is None:
            error = await told_by_destination(self._streams, error)
        if isinstance(error, DiskError | RemoteDiskFailed):
            return disk_fault(error, self.phase.value)
        return error

    async def _undo(self, fault: VimFault) -> VimFault:
        if self._hand_over is None and self._streams is not None:
            self._streams.abort(str(fault))
            code = ControlCode.CANCEL if self._end_reason is not None else ControlCode.FAILED
            with contextlib.suppress(StreamError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._streams.control.send(ControlMessage(code, text=str(fault)[:200]))
        return fault


class ColdDestination(Session[DestinationPhase]):
    """One attempt to take a powered-off VM's files over: `prepare`, then `run`, once."""

    def __init__(self, order: MigrationOrder, vm: ColdDestinationVm) -> None:
        super().__init__(order, DestinationPhase.LISTEN, DESTINATION_MOVES, _DESTINATION_INTERRUPTIBLE)
        self._vm = vm
        self._streams: DestinationStreams | None = None
        self._hand_over: DestinationHandOver | None = None

    async def prepare(self) -> Ticket:
        """Open the disks and listen.

        :raises VMotionNotConfigured: the address can't be bound. :raises MigrationFault: a disk isn't as it should be.
        """
        order, token = self.order, new_token()
        async with contextlib.AsyncExitStack() as resources:
            try:
                sinks = {disk.key: resources.enter_context(disk.writer()) for disk in self._vm.disks}
                self._streams = DestinationStreams.listen(destination_spec(order, token), None, sinks)
            except ListenFailed as error:
                message = f"{order.destination.name} can't listen on its vMotion address: {error}"
                raise VMotionNotConfigured(message, phase="prepare", host=order.destination.name) from error
            except DiskError as error:
                raise disk_fault(error, "prepare") from error
            resources.push_async_callback(self._streams.close)
            self._resources = resources.pop_all()
        return Ticket(order.migration_id, self._streams.address, self._streams.port, token, order.ram_bytes)

    async def _run_phases(self) -> None:
        await self._run_phase(DestinationPhase.LISTEN, self._accept)
        await self._run_phase(DestinationPhase.RECEIVE, self._receive)
        await self._run_phase(DestinationPhase.HAND_OVER, self._take)
        await self._run_phase(DestinationPhase.CONFIRM, self._settle)

    async def _accept(self) -> None:
        assert self._streams is not None, "made by prepare()"
        await self._streams.accept(PREPARE_GUARD_S)

    async def _receive(self) -> None:
        assert self._streams is not None, "made by prepare()"
        # Disks may come for hours; a silent peer is noticed by the stream itself.
        received = await self._streams.receive(float(2**31))
        if isinstance(received, ControlMessage) and received.code in {ControlCode.CANCEL, ControlCode.FAILED}:
            raise MigrationFault(f"The source gave up: {received.text}", phase=self.phase.value)

    async def _take(self) -> None:
        assert self._streams is not None, "made by prepare()"
        claim = self._vm.claim
        stake = DestinationStake(
            claim.files,
            claim.record,
            claim.run_lock,
            claim.parted,
            resume_guest=_nothing_to_resume,
            end_guest=_nothing_to_resume,
            guest_ended=asyncio.Event().wait,
            announce_guest=_nobody_to_announce,
        )
        self._hand_over = DestinationHandOver(self.order, stake, self._streams)
        await self._hand_over.take_over()
        self._raise_if_destroyed()

    async def _settle(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        await self._hand_over.settle()
        self._raise_if_destroyed()

    def _raise_if_destroyed(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        if self._hand_over.state is DestinationState.DESTROYED:
            cause = self._hand_over.failure
            message = f"The VM can't be taken over by {self.order.destination.name}: {cause}"
            raise MigrationFault(message, phase=self.phase.value) from cause

    async def _cause_of(self, error: BaseException) -> BaseException:
        return disk_fault(error, self.phase.value) if isinstance(error, DiskError) else error

    async def _undo(self, fault: VimFault) -> VimFault | None:
        if self._hand_over is not None:
            await self._hand_over.resolve()
            if not self._hand_over.has_guest:
                return fault
            if self.phase is DestinationPhase.HAND_OVER:
                self._enter(DestinationPhase.CONFIRM)
            return None
        if self._streams is not None:
            with contextlib.suppress(StreamError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    message = ControlMessage(ControlCode.FAILED, text=str(fault)[:200])
                    await self._streams.control.send(message)
        return fault


async def _nothing_to_resume() -> None:
    """A VM that is off has nothing that would have to be let run, or ended."""


def _nobody_to_announce() -> None:
    """As above."""


async def _no_mirror(error: MirrorFailed) -> None:
    """As above: there are none."""
    raise error
