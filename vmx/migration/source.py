"""The source's half of a migration: a list of phases from top to bottom.

Until HAND_OVER every error and every cancel is undone here: first the guest runs on, then the destination is told, then
tracer, mapping and streams are released. HAND_OVER and CONFIRM obey the owner record alone (source_hand_over.py).
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from runtime.faults import MemoryVerificationFailed, MigrationFault, VimFault, VMotionLinkDown
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.checkpoint.capture import CapturedState, CheckpointCapture
from vmx.disk.errors import DiskError, MirrorFailed
from vmx.faults import guest_died
from vmx.files import VmFiles
from vmx.guest.errors import GuestDied, QmpError, QmpFailure, QmpTimeout
from vmx.guest.memory import GuestMemoryError
from vmx.guest.pages import PageRuns, page_total, union
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl
from vmx.migration.disk_copy import (
    DiskCopies,
    MirrorTools,
    SourceDisk,
    Traffic,
    disk_fault,
    guest_death_behind,
    told_by_destination,
)
from vmx.migration.hand_over import Claim, require_ready
from vmx.migration.order import MigrationOrder, Ticket, Verification
from vmx.migration.phases import SOURCE_MOVES, SourcePhase
from vmx.migration.progress import StunReport
from vmx.migration.session import Session
from vmx.migration.source_hand_over import SourceHandOver, Stake
from vmx.migration.streams import source_spec
from vmx.migration.switchover import SourceState
from vmx.precopy.loop import PreCopy, Tools
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DigestsReceived,
    SourceStreams,
    StreamError,
)
from vmx.stream.errors import RemoteDiskFailed
from vmx.stream.verify import compare, digest_memory
from vmx.threads import in_thread
from vmx.trace.contract import Tracer, TraceTarget
from vmx.trace.errors import TargetGoneError
from vmx.trace.tracer import choose_tracer

_INTERRUPTIBLE = frozenset(
    {
        SourcePhase.HANDSHAKE,
        SourcePhase.DISK_COPY,
        SourcePhase.PRE_COPY,
        SourcePhase.STUN,
        SourcePhase.LAST_PAGES,
        SourcePhase.CHECKPOINT,
    }
)
# Telling the peer that it failed is worth this much waiting, no more.
_FAREWELL_S = 1.0
# A guest must not stay stunned because its QEMU answers late, or says for a moment "Migration is not finalized yet"
# (QEMU 7.2, right after its migration has ended): it is asked again, this often and this long.
_RESUME_EVERY_S = 0.02
_RESUME_FOR_S = 30.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SourceGuest:
    """What the VM lends to its migration. `disks` are those that move."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    run_dir: Path
    disks: tuple[SourceDisk, ...] = ()


@dataclass
class _Marks:
    """Moments of the stun, monotonic nanoseconds."""

    ordered_ns: int = 0
    stopped_ns: int = 0
    pages_placed_ns: int = 0
    ready_ns: int = 0
    commit_sent_ns: int = 0
    resumed_ns: int = 0

    def report(self) -> StunReport:
        return StunReport(
            stop_ms=(self.stopped_ns - self.ordered_ns) / 1e6,
            last_pages_ms=(self.pages_placed_ns - self.stopped_ns) / 1e6,
            device_state_ms=(self.ready_ns - self.pages_placed_ns) / 1e6,
            hand_over_ms=(self.commit_sent_ns - self.ready_ns) / 1e6,
            resume_ms=(self.resumed_ns - self.commit_sent_ns) / 1e6,
        )


class SourceMigration(Session[SourcePhase]):
    """One attempt to give a running guest away: `run` once.

    Where that ends in a fault the guest runs here as before, unless `guest_stunned`: it couldn't be let run again, or
    it was given away and its new owner's last word is missing (`guest_left`): that is for `resolve`.
    """

    def __init__(self, order: MigrationOrder, ticket: Ticket, guest: SourceGuest) -> None:
        super().__init__(order, SourcePhase.HANDSHAKE, SOURCE_MOVES, _INTERRUPTIBLE)
        self.guest_stunned = False
        self._ticket = ticket
        self._guest = guest
        self._marks = _Marks()
        self._capture: CheckpointCapture | None = None
        self._captured: CapturedState | None = None
        self._streams: SourceStreams | None = None
        self._pre_copy: PreCopy | None = None
        self._tracer: Tracer | None = None
        self._hand_over: SourceHandOver | None = None
        self._disks: DiskCopies | None = None

    def end(self, reason: VimFault) -> bool:
        """As Session's. What waits for the network, in threads that nobody can cancel, is woken at once."""
        is_ended = super().end(reason)
        if is_ended and self._streams is not None:
            self._streams.abort(str(reason))
        return is_ended

    @property
    def guest_left(self) -> bool:
        """As far as is known here the guest is the destination's: it must not run here."""
        return self._hand_over is not None and self._hand_over.gave_away

    async def resolve(self) -> None:
        """After a fault with `guest_left`: wait for the owner record, as long as it takes. Afterwards `guest_left`
        tells what it said; if that is no, the guest runs.

        :raises GuestError: the guest is ours again and couldn't be let run.
        """
        assert self._hand_over is not None, "made in the hand-over"
        await self._hand_over.resolve()

    async def _run_phases(self) -> None:
        await self._run_phase(SourcePhase.HANDSHAKE, self._connect)
        if self.order.disks:
            await self._run_phase(SourcePhase.DISK_COPY, self._copy_disks)
        left = await self._run_phase(SourcePhase.PRE_COPY, self._copy)
        await self._run_phase(SourcePhase.STUN, self._stun)
        await self._run_phase(SourcePhase.LAST_PAGES, partial(self._send_last_pages, left))
        await self._run_phase(SourcePhase.CHECKPOINT, self._send_checkpoint)
        await self._run_phase(SourcePhase.HAND_OVER, self._give)
        await self._run_phase(SourcePhase.CONFIRM, self._confirm)

    # ---- phases

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
        qmp, run_dir = self._guest.process.qmp, self._guest.run_dir
        self._capture = CheckpointCapture(qmp, run_dir / "state-out.sock", pauses=bool(order.disks))
        await self._resources.enter_async_context(self._capture)

    async def _copy_disks(self) -> None:
        """The disks are equal at the destination, and stay so: the guest's writes are mirrored from now on."""
        assert self._streams is not None, "made in the handshake"
        streams, guest = self._streams, self._guest
        tools = MirrorTools(guest.process.qmp)

        def traffic() -> Traffic:
            sent = streams.progress()
            return Traffic(sent.disk_wire_bytes, sent.mirrored_bytes)

        self._disks = DiskCopies(guest.disks, streams.disks, self.board, guest.run_dir, tools, traffic)
        self._resources.push_async_callback(self._disks.cancel)
        await self._disks.copy(self._on_mirror_failure)
        await streams.finish_disks()

    async def _on_mirror_failure(self, error: MirrorFailed) -> None:
        cause = await self._cause_of(error)
        assert isinstance(cause, VimFault), "what becomes of an error of a disk"
        self.end(cause)

    async def _copy(self) -> PageRuns:
        assert self._streams is not None, "made in the handshake"
        process = self._guest.process
        target = TraceTarget(process.pid, process.memory, process.userfault_fd)
        self._tracer = choose_tracer(target, self.order.options.tracer, _log)
        self._resources.push_async_callback(in_thread, self._tracer.stop)
        memory = self._resources.enter_context(process.memory.mapped(writable=False))
        self.board.publish(replace(self.board.now, tracer=self._tracer.kind.value))
        self._pre_copy = PreCopy(
            Tools(self._streams, self._tracer, memory, self.board), self.order.options.limits
        )
        return await self._pre_copy.run()

    async def _stun(self) -> None:
        assert self._capture is not None, "made in the handshake"
        self.guest_stunned = True
        stop = await self._capture.stop_guest()
        self._marks.ordered_ns, self._marks.stopped_ns = stop.ordered_ns, stop.stopped_ns

    async def _send_last_pages(self, left: PageRuns) -> None:
        """What is left, and what the guest wrote until it stopped; beside it QEMU saves its device state."""
        assert self._capture is not None, "made in the handshake"
        async with asyncio.TaskGroup() as together:
            saving = together.create_task(self._save(self._capture), name="save-device-state")
            together.create_task(self._send_left(left), name="last-pages")
        self._captured = saving.result()
        # Saving may have touched RAM; what was written after the stop is in one more scan, nearly always empty.
        await self._send_left(None)
        self._marks.pages_placed_ns = time.monotonic_ns()

    async def _save(self, capture: CheckpointCapture) -> CapturedState:
        """QEMU lets go of the disks when it saves: the guest's last writes must be at the destination before."""
        if self._disks is not None:
            assert self._streams is not None, "made in the handshake"
            await self._disks.finish_after_stop()
            await self._streams.finish_disks(final=True)
        return await capture.save()

    async def _send_left(self, left: PageRuns | None) -> None:
        assert self._tracer is not None, "made in pre-copy"
        assert self._pre_copy is not None, "made in pre-copy"
        late = await in_thread(self._tracer.collect)
        runs = late if left is None else union(left, late)
        if page_total(runs):
            self._pre_copy.note_last_pages(await self._pre_copy.send(runs))

    async def _send_checkpoint(self) -> None:
        assert self._captured is not None, "saved with the last pages"
        assert self._streams is not None, "made in the handshake"
        state = self._captured
        self.board.publish(
            replace(
                self.board.now,
                device_state_bytes=len(state.device_state),
                qemu_ram_transferred_bytes=state.ram_transferred_bytes,
            )
        )
        await self._streams.control.send_device_state(state.device_state, 0, last=True)
        await self._expect_ready()
        self._marks.ready_ns = time.monotonic_ns()
        if self.order.options.verification is Verification.BEFORE_RESUME:
            await self._verify()
            self._marks.ready_ns = time.monotonic_ns()

    async def _expect_ready(self) -> None:
        assert self._streams is not None, "made in the handshake"
        received = await self._streams.control.receive(self.order.options.max_switchover_s)
        require_ready(received, self._claim(), self.phase.value)

    def _claim(self) -> Claim:
        guest = self._guest
        return Claim(guest.files, guest.record, guest.run_lock, parted=self.order.moves_home)

    async def _give(self) -> None:
        assert self._streams is not None, "made in the handshake"
        claim = self._claim()
        stake = Stake(
            claim.files, claim.record, claim.run_lock, claim.parted, resume_guest=self._resume_guest
        )
        self._hand_over = SourceHandOver(self.order, stake, self._streams.control)
        await self._hand_over.hand_over()
        if self._hand_over.state is SourceState.CONFIRMING:
            self._marks.commit_sent_ns = self._hand_over.commit_sent_ns
            self._marks.resumed_ns = self._hand_over.resumed_ns
            self.board.publish(replace(self.board.now, stun=self._marks.report()))
            _log.info("guest_resumed_at_destination", stun_ms=round(self.board.now.stun.stun_ms, 3))
        self._raise_unless_given()

    async def _confirm(self) -> None:
        """The stun is over. Prove the memory, tell the destination, and wait for its last word."""
        assert self._hand_over is not None, "made in the hand-over"
        assert self._streams is not None, "made in the handshake"
        verdict = ControlMessage(ControlCode.VERIFIED)
        failure: MemoryVerificationFailed | None = None
        try:
            if self.order.options.verification is Verification.AFTER_RESUME:
                await self._verify()
        except MemoryVerificationFailed as error:
            failure = error
            verdict = ControlMessage(ControlCode.WRONG_MEMORY, error.pages)
        except (StreamError, GuestMemoryError) as error:
            # The guest runs there and nothing speaks against it; `memory_verified` stays false.
            _log.warning("memory_not_verified", reason=str(error))
        with contextlib.suppress(StreamError):  # the record tells what became of it
            await self._streams.control.send(verdict)
        await self._hand_over.confirm()
        if failure is not None:
            raise failure  # given back, or settled before it heard of it: `guest_left` tells
        self._raise_unless_given()

    def _raise_unless_given(self) -> None:
        """:raises MigrationFault: the guest is here again, or nobody knows yet whose it is."""
        assert self._hand_over is not None, "made in the hand-over"
        hand_over, name = self._hand_over, self.order.destination.name
        if hand_over.state in {SourceState.CONFIRMING, SourceState.DONE}:
            return
        if hand_over.state is SourceState.ROLLED_BACK:
            message = f"The guest couldn't be handed over to {name} and runs here: {hand_over.failure}"
        else:
            message = (
                f"Whether {name} has the guest isn't known in the phase {self.phase.value!r} "
                f"({hand_over.state.name}): it stays stunned here until the owner record tells: {hand_over.failure}"
            )
        raise MigrationFault(message, phase=self.phase.value) from hand_over.failure

    async def _verify(self) -> None:
        """Compare the frozen RAM here with the destination's digests.

        :raises MemoryVerificationFailed: pages differ.
        :raises StreamError: the digests didn't come.
        """
        assert self._streams is not None, "made in the handshake"
        control = self._streams.control
        await control.send(ControlMessage(ControlCode.DIGESTS_WANTED))
        mine = await in_thread(digest_memory, self._guest.process.memory)
        received = await control.receive(self.order.options.max_switchover_s)
        if not isinstance(received, DigestsReceived):
            raise StreamError("the destination sent something else instead of its digests")
        result = compare(mine, received.digests)
        _log.info("memory_compared", pages=result.page_count, differing_pages=result.differing_count)
        if not result.equal:
            message = f"{result.differing_count} of {result.page_count} pages differ at the destination."
            raise MemoryVerificationFailed(
                message,
                phase=self.phase.value,
                pages=result.differing_count,
                first_page=result.differing_pages[0],
            )
        self.board.publish(replace(self.board.now, memory_verified=True))

    # ---- undoing

    async def _cause_of(self, error: BaseException) -> BaseException:
        if isinstance(error, QmpFailure):
            error = await self._guest.process.cause_of(error)
        if isinstance(error, DiskError | RemoteDiskFailed | TargetGoneError):
            died = await guest_death_behind(error, self._guest.process)
            if died is not None:
                return guest_died(died.exit_status)
        if self.order.disks and self._streams is not None and self._end_reason is None:
            error = await told_by_destination(self._streams, error)
        if isinstance(error, DiskError | RemoteDiskFailed):
            return disk_fault(error, self.phase.value)
        return guest_died(error.exit_status) if isinstance(error, GuestDied) else error

    async def _undo(self, fault: VimFault) -> VimFault:
        """Before the hand-over: the guest runs on, and the peer is told. After it: nothing, the record decides."""
        if self._hand_over is not None:
            return fault
        if self._streams is not None:
            self._streams.abort(str(fault))
        try:
            await self._resume_guest()
        finally:
            await self._tell(fault)
        return fault

    async def _resume_guest(self) -> None:
        """:raises GuestError: it couldn't be let run: it stays stunned."""
        deadline_s = time.monotonic() + _RESUME_FOR_S
        while self.guest_stunned and self._guest.process.exit_status is None:
            assert self._capture is not None, "made in the handshake"
            try:
                await self._capture.cancel()
            except (QmpTimeout, QmpError) as error:
                _log.warning("guest_not_resumed", reason=str(error))
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_RESUME_EVERY_S)
            else:
                self.guest_stunned = False
                process = self._guest.process
                await RunControl(process.qmp).announce(process.spec.nics)

    async def _tell(self, fault: VimFault) -> None:
        """Best effort: the destination would notice by itself."""
        if self._streams is None:
            return
        code = ControlCode.CANCEL if self._end_reason is not None else ControlCode.FAILED
        with contextlib.suppress(StreamError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._streams.control.send(ControlMessage(code, text=str(fault)[:200]))
