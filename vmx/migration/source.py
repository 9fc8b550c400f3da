"""The source's half of a migration: a list of phases from top to bottom.

Until HAND_OVER every error and every cancel is undone here: the guest runs on as before, with no tracer and no stream
left. HAND_OVER and CONFIRM obey the owner record alone (source_hand_over.py).
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from runtime.faults import MemoryVerificationFailed, MigrationFault, VimFault, VMotionLinkDown
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.checkpoint.capture import CapturedState, CheckpointCapture
from vmx.files import VmFiles
from vmx.guest.pages import PageRuns, page_total
from vmx.guest.process import GuestProcess
from vmx.migration.order import MigrationOrder, Ticket, Verification
from vmx.migration.phases import SOURCE_MOVES, SourcePhase
from vmx.migration.progress import StunReport
from vmx.migration.session import Session
from vmx.migration.source_hand_over import SourceHandOver, Stake
from vmx.migration.switchover import SourceState
from vmx.precopy.loop import PreCopy, Tools
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DigestsReceived,
    SourceStreams,
    StreamError,
    StreamSecret,
    StreamSpec,
)
from vmx.stream.errors import ConnectFailed
from vmx.stream.spec import Encryption
from vmx.stream.verify import compare, digest_memory
from vmx.threads import in_thread
from vmx.trace.contract import Tracer, TraceTarget
from vmx.trace.tracer import choose_tracer

_UNINTERRUPTIBLE = frozenset(
    {SourcePhase.HAND_OVER, SourcePhase.CONFIRM, SourcePhase.FINISHED, SourcePhase.FAILED}
)
# The peer's word that it failed is worth this much waiting, no more.
_FAREWELL_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SourceGuest:
    """What the VM lends to its migration."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    run_dir: Path


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
    """One attempt to give a running guest away. `run` once; `guest_left` tells afterwards whether it is gone."""

    def __init__(self, order: MigrationOrder, ticket: Ticket, guest: SourceGuest) -> None:
        super().__init__(order, SourcePhase.HANDSHAKE, SOURCE_MOVES)
        self.guest_left = False
        self._ticket = ticket
        self._guest = guest
        self._marks = _Marks()
        self._capture: CheckpointCapture | None = None
        self._captured: CapturedState | None = None
        self._streams: SourceStreams | None = None
        self._pre_copy: PreCopy | None = None
        self._tracer: Tracer | None = None
        self._hand_over: SourceHandOver | None = None

    def check_may_cancel(self) -> None:
        """:raises PastPointOfNoReturn: the hand-over has begun."""
        self.check_may_end(_UNINTERRUPTIBLE)

    async def run(self) -> VimFault | None:
        """Do it. None: the destination keeps the guest for good; the stunned guest here is worthless.

        A fault: it failed or was canceled, and the guest runs here as before; only where the hand-over's outcome isn't
        known it stays stunned (`guest_left`).
        """
        fault: VimFault | None = None
        try:
            async with contextlib.AsyncExitStack() as resources:
                await self._run_phases(resources)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  a session's outer edge
            fault = self.fault_of(error)
            if not isinstance(error, VimFault | StreamError | asyncio.CancelledError):
                _log.error("migration_failed", phase=self.phase.value, exc_info=error)
        if fault is None:
            self.finish(SourcePhase.FINISHED)
            return None
        _log.warning(
            "migration_rolled_back", phase=self.phase.value, reason=str(fault), guest_left=self.guest_left
        )
        self.finish(SourcePhase.FAILED, fault)
        return fault

    async def _run_phases(self, resources: contextlib.AsyncExitStack) -> None:
        await self.run_phase(SourcePhase.HANDSHAKE, self._connect(resources))
        left = await self.run_phase(SourcePhase.PRE_COPY, self._copy(resources))
        await self.run_phase(SourcePhase.STUN, self._stun())
        await self.run_phase(SourcePhase.LAST_PAGES, self._send_last_pages(left))
        await self.run_phase(SourcePhase.CHECKPOINT, self._send_checkpoint())
        await self.run_phase(SourcePhase.HAND_OVER, self._give())
        await self.run_phase(SourcePhase.CONFIRM, self._confirm())

    # ---- phases

    async def _connect(self, resources: contextlib.AsyncExitStack) -> None:
        order, options = self.order, self.order.options
        spec = StreamSpec(
            secret=StreamSecret(order.migration_id, order.key, self._ticket.token),
            source_address=order.source.vmotion_address,
            destination_address=self._ticket.address,
            port=self._ticket.port,
            ram_bytes=order.ram_bytes,
            channel_count=options.streams,
            encryption=Encryption.AES_256_GCM if options.encrypted else Encryption.DISABLED,
            bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
            timeouts=options.timeouts,
        )
        try:
            self._streams = await SourceStreams.connect(spec)
        except (ConnectFailed, StreamError) as error:
            message = f"The vMotion connection to {order.destination.name} can't be made: {error}"
            raise VMotionLinkDown(
                message, phase="handshake", host=order.source.name, peer=order.destination.name
            ) from error
        resources.push_async_callback(self._streams.close)
        self._capture = CheckpointCapture(self._guest.process.qmp, self._guest.run_dir / "state-out.sock")
        await resources.enter_async_context(self._capture)
        # Pushed last, so done first: the streams and the capture still work while it undoes.
        resources.push_async_exit(self._roll_back)

    async def _copy(self, resources: contextlib.AsyncExitStack) -> PageRuns:
        assert self._streams is not None, "made in the handshake"
        process = self._guest.process
        target = TraceTarget(process.pid, process.memory, process.userfault_fd)
        self._tracer = choose_tracer(target, self.order.options.tracer, _log)
        resources.push_async_callback(in_thread, self._tracer.stop)
        memory = resources.enter_context(process.memory.mapped(writable=False))
        self.board.publish(replace(self.board.now, tracer=self._tracer.kind.value))
        self._pre_copy = PreCopy(
            Tools(self._streams, self._tracer, memory, self.board), self.order.options.limits
        )
        return await self._pre_copy.run()

    async def _stun(self) -> None:
        assert self._capture is not None, "made in the handshake"
        stop = await self._capture.stop_guest()
        self._marks.ordered_ns, self._marks.stopped_ns = stop.ordered_ns, stop.stopped_ns

    async def _send_last_pages(self, left: PageRuns) -> None:
        """What is left, and what the guest wrote until it stopped; beside it QEMU saves its device state."""
        assert self._capture is not None, "made in the handshake"
        async with asyncio.TaskGroup() as together:
            saving = together.create_task(self._capture.save(), name="save-device-state")
            together.create_task(self._send_left(left), name="last-pages")
        self._captured = saving.result()
        # Saving may have touched RAM; what was written after the stop is in one more scan, nearly always empty.
        await self._send_left(None)
        self._marks.pages_placed_ns = time.monotonic_ns()

    async def _send_left(self, left: PageRuns | None) -> None:
        assert self._tracer is not None, "made in pre-copy"
        assert self._pre_copy is not None, "made in pre-copy"
        if left is not None and page_total(left):
            self._pre_copy.note_last_pages(await self._pre_copy.send(left))
        late = await in_thread(self._tracer.collect)
        if page_total(late):
            self._pre_copy.note_last_pages(await self._pre_copy.send(late))

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
        if isinstance(received, ControlMessage) and received.code is ControlCode.READY:
            return
        reason = received.text if isinstance(received, ControlMessage) else "it sent something else"
        message = f"The destination can't take the guest: {reason}"
        raise MigrationFault(message, phase=self.phase.value)

    async def _give(self) -> None:
        assert self._streams is not None, "made in the handshake"
        guest = self._guest
        stake = Stake(guest.files, guest.record, guest.run_lock, self._resume_guest)
        self._hand_over = SourceHandOver(self.order, stake, self._streams.control)
        self.guest_left = True
        await self._hand_over.hand_over()
        if self._hand_over.state is SourceState.CONFIRMING:
            self._marks.commit_sent_ns = self._hand_over.commit_sent_ns
            self._marks.resumed_ns = self._hand_over.resumed_ns
            self.board.publish(replace(self.board.now, stun=self._marks.report()))
            _log.info("guest_resumed_at_destination", stun_ms=round(self.board.now.stun.stun_ms, 3))
        self._raise_if_rolled_back()

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
        except StreamError as error:
            _log.warning("memory_not_verified", reason=str(error))
        with contextlib.suppress(StreamError):  # the record tells what became of it
            await self._streams.control.send(verdict)
        await self._hand_over.confirm()
        if failure is not None:
            self.end_reason = failure
        self._raise_if_rolled_back()

    def _raise_if_rolled_back(self) -> None:
        assert self._hand_over is not None, "made in the hand-over"
        if self._hand_over.state is not SourceState.ROLLED_BACK:
            return
        self.guest_left = False
        cause = self._hand_over.failure
        message = f"The guest came back from {self.order.destination.name}: {cause}"
        raise MigrationFault(message, phase=self.phase.value) from cause

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

    async def _resume_guest(self) -> None:
        assert self._capture is not None, "made in the handshake"
        await self._capture.cancel()

    async def _roll_back(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Before the hand-over: tell the peer, and let the guest run on. After it: nothing, the record has decided."""
        if error is None or self._hand_over is not None:
            return
        if self._streams is not None:
            reason = str(self.fault_of(error))
            self._streams.abort(reason)
            code = ControlCode.CANCEL if self.end_reason is not None else ControlCode.FAILED
            with contextlib.suppress(StreamError, TimeoutError):  # best effort: it would notice by itself
                async with asyncio.timeout(_FAREWELL_S):
                    await self._streams.control.send(ControlMessage(code, text=reason[:200]))
        if self._capture is not None:
            await self._resume_guest()
