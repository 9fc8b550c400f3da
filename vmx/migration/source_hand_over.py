"""The source's side of the hand-over: carries out what switchover.py decides, on the record, the lock and the wire."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from runtime.faults import CannotAccessFile, FileLocked, FileNotFound, NotOwner
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.files import VmFiles
from vmx.migration.order import MigrationOrder
from vmx.migration.switchover import SourceAction, SourceEvent, SourceState, source_step
from vmx.stream import ControlChannel, ControlCode, ControlMessage, StreamError

# The record is on storage that another host writes to: nothing tells of a change there, it has to be read.
_WATCH_EVERY_S = 0.2
_LOCK_EVERY_S = 0.02

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Stake:
    """What is handed over: the record that must be right for it, the lock, and the way back."""

    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    resume_guest: Callable[[], Awaitable[None]]


class SourceHandOver:
    """One hand-over. `hand_over` leaves it CONFIRMING, ROLLED_BACK or DONE, `confirm` in one of the last two.

    `failure` keeps the first thing that went wrong.
    """

    def __init__(self, order: MigrationOrder, stake: Stake, control: ControlChannel) -> None:
        self.state = SourceState.LOADING
        self.failure: BaseException | None = None
        self.commit_sent_ns = 0
        self.resumed_ns = 0
        self._order = order
        self._stake = stake
        self._control = control
        self._given: OwnerRecord | None = None
        self._deadline = time.monotonic() + order.options.max_switchover_s

    async def hand_over(self) -> None:
        """READY has arrived: swap the record, send COMMIT, wait for RESUMED. Point of no return: in here.

        Never raises for a failure of the peer or the storage; the state tells what became of it.
        """
        await self._drive(SourceEvent.READY)
        while self.state is SourceState.GIVEN:
            await self._drive(await self._next_message())

    async def confirm(self) -> None:
        """RESUMED has arrived and the memory is right as far as we know: wait until the destination has settled."""
        while self.state is SourceState.CONFIRMING:
            await self._drive(await self._next_message())

    # ---- events

    async def _next_message(self) -> SourceEvent:
        try:
            received = await self._control.receive(max(0.001, self._deadline - time.monotonic()))
        except StreamError as error:
            self._note(error)
            return SourceEvent.FAILURE
        if isinstance(received, ControlMessage):
            if received.code is ControlCode.RESUMED and self.state is SourceState.GIVEN:
                self.resumed_ns = time.monotonic_ns()
                return SourceEvent.RESUMED
            if received.code is ControlCode.SETTLED and self.state is SourceState.CONFIRMING:
                return SourceEvent.SETTLED
            if received.code in {ControlCode.GIVE_BACK, ControlCode.FAILED, ControlCode.CANCEL}:
                # Only the record says whether it's ours again; WATCHING reads it.
                self._note(StreamError(f"the destination gave up: {received.text or received.code.name}"))
                return SourceEvent.FAILURE
        self._note(StreamError(f"an unexpected message in {self.state.name}"))
        return SourceEvent.FAILURE

    def _note(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        _log.warning("hand_over_disturbed", state=self.state.name, reason=str(error))

    # ---- actions

    async def _drive(self, event: SourceEvent | None) -> None:
        while event is not None:
            before = self.state
            self.state, actions = source_step(self.state, event)
            _log.info("hand_over_step", before=before.name, cause=event.name, state=self.state.name)
            event = None
            for action in actions:
                event = await self._perform(action)
                if event is not None:
                    break

    async def _perform(self, action: SourceAction) -> SourceEvent | None:
        match action:
            case SourceAction.SWAP_TO_DESTINATION:
                return await self._swap_to_destination()
            case SourceAction.SWAP_TO_MYSELF:
                return await self._swap_to_myself()
            case SourceAction.RELEASE_RUN_LOCK:
                self._stake.run_lock.release()
                return None
            case SourceAction.SEND_COMMIT:
                return await self._send_commit()
            case SourceAction.WATCH_RECORD:
                return await self._watch_record()
            case SourceAction.TAKE_RUN_LOCK:
                return await self._take_run_lock()
            case SourceAction.RESUME_GUEST:
                await self._stake.resume_guest()
                return SourceEvent.GUEST_RUNS

    async def _swap_to_destination(self) -> SourceEvent:
        path, destination = self._stake.files.owner_record, self._order.destination.host_uuid
        try:
            # Point of no return: from the moment this swap is won the guest is the destination's.
            self._given = await asyncio.to_thread(owner_record.swap, path, self._stake.record, destination)
        except NotOwner as error:
            self._note(error)
            return SourceEvent.SWAP_LOST
        except (CannotAccessFile, FileNotFound) as error:
            self._note(error)
            return SourceEvent.SWAP_UNCERTAIN
        _log.info("switchover_committed", epoch=self._given.epoch)
        return SourceEvent.SWAP_WON

    async def _swap_to_myself(self) -> SourceEvent:
        path, me = self._stake.files.owner_record, self._order.source.host_uuid
        try:
            present = await asyncio.to_thread(owner_record.read, path)
            if present.owner_host_uuid == self._order.destination.host_uuid:
                self._given = present
                return SourceEvent.RECORD_NAMES_DESTINATION
            await asyncio.to_thread(owner_record.swap, path, present, me)
        except (CannotAccessFile, FileNotFound, NotOwner) as error:
            self._note(error)
            await asyncio.sleep(_WATCH_EVERY_S)  # the storage stalls: stay stunned, try again
            return SourceEvent.SWAP_UNCERTAIN
        return SourceEvent.SWAP_WON

    async def _send_commit(self) -> SourceEvent | None:
        assert self._given is not None, "set by the swap"
        self.commit_sent_ns = time.monotonic_ns()
        try:
            await self._control.send(ControlMessage(ControlCode.COMMIT, self._given.epoch))
        except StreamError as error:
            self._note(error)
            return SourceEvent.FAILURE
        return None

    async def _watch_record(self) -> SourceEvent:
        assert self._given is not None, "set by the swap"
        while True:
            try:
                present = await asyncio.to_thread(owner_record.read, self._stake.files.owner_record)
            except (CannotAccessFile, FileNotFound) as error:
                self._note(error)
            else:
                if present.owner_host_uuid == self._order.source.host_uuid:
                    return SourceEvent.RECORD_NAMES_ME
                if present.epoch > self._given.epoch:
                    return SourceEvent.SETTLED
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _take_run_lock(self) -> SourceEvent:
        while True:
            try:
                self._stake.run_lock.acquire()
            except FileLocked:
                await asyncio.sleep(_LOCK_EVERY_S)
            else:
                return SourceEvent.LOCK_TAKEN
