"""The destination's side of the hand-over: carries out what switchover.py decides, on record, lock, guest and wire.

A storage that stalls is waited for, however long: whoever gave up here would leave a guest that nobody may run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from runtime.failpoint import failpoint
from runtime.faults import (
    FileLocked,
    MemoryVerificationFailed,
    NotOwner,
    VimFault,
)
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from vmx.checkpoint.errors import CheckpointError
from vmx.guest.errors import GuestError
from vmx.migration import failpoints
from vmx.migration.hand_over import STORAGE_ERRORS, Claim, HandOverSide
from vmx.migration.order import MigrationOrder
from vmx.migration.switchover import (
    DESTINATION_RUNS,
    DestinationAction,
    DestinationEvent,
    DestinationState,
    destination_step,
)
from vmx.stream import ControlCode, ControlMessage, DestinationStreams, Received, StreamError
from vmx.stream.verify import DigestTable

# The source releases the lock before it sends COMMIT; only its storage can make us wait.
_LOCK_DEADLINE_S = 10.0
_LOCK_EVERY_S = 0.001
_STORAGE_EVERY_S = 0.2


@dataclass(frozen=True)
class Stake(Claim):
    """What is taken over. `guest_ended` returns when QEMU has; `announce_guest` is begun when the source has been told
    that the guest runs: it must not be stunned for longer because of it."""

    resume_guest: Callable[[], Awaitable[object]] = field(kw_only=True)
    end_guest: Callable[[], Awaitable[None]] = field(kw_only=True)
    guest_ended: Callable[[], Awaitable[object]] = field(kw_only=True)
    announce_guest: Callable[[], None] = field(kw_only=True)


class DestinationHandOver(HandOverSide[DestinationState, DestinationEvent, DestinationAction]):
    """One take-over. After `take_over` the state is RUNNING or DESTROYED; after `settle` SETTLED or DESTROYED.

    Where the homes are parted, COMMIT is the source's durable word, and this side's record becomes "mine" by it before
    anything may run. Giving up and giving back are written into this side's record only: vpxd brings the source what
    the connection doesn't.
    """

    def __init__(self, order: MigrationOrder, stake: Stake, streams: DestinationStreams) -> None:
        super().__init__(DestinationState.LOADING, destination_step)
        self._order = order
        self._stake = stake
        self._streams = streams
        self._record = stake.record
        self._deadline_s = 0.0
        self._committed_epoch = 0

    @property
    def has_guest(self) -> bool:
        """The guest runs here, and nothing but the record or its own end may change that."""
        return self.state in DESTINATION_RUNS - {DestinationState.RESUMING}

    async def take_over(self) -> None:
        """Everything is loaded: say READY, wait for COMMIT, take record and lock, resume. Failures aren't raised."""
        self._set_deadline()
        await self._drive(DestinationEvent.LOADED)
        while self.state is DestinationState.READY:
            await self._drive(await self._next_message())

    async def settle(self) -> None:
        """The guest runs: answer the source's questions about its memory, then keep it for good."""
        self._set_deadline()
        while self.state is DestinationState.RUNNING:
            await self._drive(await self._next_message())

    async def resolve(self) -> None:
        """After a defect: go on from wherever it was left, by the record alone, until it is SETTLED or DESTROYED."""
        await self._drive(await self._event_after_trouble())
        if self.state is DestinationState.RUNNING:
            await self._drive(DestinationEvent.FAILURE)

    def _set_deadline(self) -> None:
        self._deadline_s = time.monotonic() + self._order.options.max_switchover_s

    # ---- events

    async def _next_message(self) -> DestinationEvent | None:
        """The source's next message, or the guest's end, whichever comes first."""
        limit_s = max(0.001, self._deadline_s - time.monotonic())
        receiving = asyncio.ensure_future(self._streams.receive(limit_s))
        ending = asyncio.ensure_future(self._stake.guest_ended())
        try:
            await asyncio.wait((receiving, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                self._note(StreamError("the guest's process ended by itself"))
                running = self.state is DestinationState.RUNNING
                return DestinationEvent.GUEST_FAILED if running else DestinationEvent.FAILURE
            return await self._event_of(receiving.result())
        except StreamError as error:
            self._note(error)
            return DestinationEvent.FAILURE
        finally:
            for waiting in (receiving, ending):
                waiting.cancel()
            await asyncio.gather(receiving, ending, return_exceptions=True)

    async def _event_of(self, received: Received) -> DestinationEvent | None:
        if isinstance(received, ControlMessage):
            ready, running = DestinationState.READY, DestinationState.RUNNING
            match received.code:
                case ControlCode.COMMIT if self.state is ready:
                    self._committed_epoch = received.value
                    return DestinationEvent.COMMIT
                case ControlCode.DIGESTS_WANTED:
                    await self._streams.control.send_digests(self._digests())
                    return None
                case ControlCode.VERIFIED if self.state is running:
                    return DestinationEvent.VERIFIED
                case ControlCode.WRONG_MEMORY if self.state is running:
                    text = f"{received.value} pages differ from the source's"
                    self._note(MemoryVerificationFailed(text, pages=received.value))
                    return DestinationEvent.GUEST_FAILED
                case ControlCode.FAILED | ControlCode.CANCEL:
                    raise StreamError(f"the source gave up: {received.text or received.code.name}")
        raise StreamError(f"an unexpected message in {self.state.name}")

    async def _event_after_trouble(self) -> DestinationEvent | None:
        match self.state:
            case DestinationState.LOADING | DestinationState.READY | DestinationState.RUNNING:
                return DestinationEvent.FAILURE
            case DestinationState.READING:
                return await self._read_record()
            case DestinationState.LOCKING:
                return DestinationEvent.LOCK_REFUSED
            case DestinationState.RESUMING:
                return DestinationEvent.GUEST_FAILED
            case DestinationState.GIVING_UP:
                return await self._swap(self._order.source.host_uuid)
            case DestinationState.GIVING_BACK:
                await self._perform(DestinationAction.END_GUEST)
                return await self._swap(self._order.source.host_uuid)
            case DestinationState.SETTLING:
                return await self._swap(self._order.destination.host_uuid)
        return None

    def _digests(self) -> DigestTable:
        digests = self._streams.digests
        if digests is None:
            raise StreamError("digests were asked for, but the migration isn't verified")
        return digests

    # ---- actions

    async def _perform(self, action: DestinationAction) -> DestinationEvent | None:
        match action:
            case DestinationAction.SEND_READY:
                sent = await self._send(ControlMessage(ControlCode.READY, self._record.epoch))
                await failpoint(failpoints.DESTINATION_AFTER_READY)
                return sent
            case DestinationAction.SWAP_TO_GIVE_UP | DestinationAction.SWAP_BACK:
                return await self._swap(self._order.source.host_uuid)
            case DestinationAction.SWAP_TO_SETTLE:
                await failpoint(failpoints.DESTINATION_BEFORE_SETTLE)
                return await self._swap(self._order.destination.host_uuid)
            case DestinationAction.READ_RECORD:
                if self._stake.parted and self._committed_epoch:
                    return await self._write_mine()
                return await self._read_record()
            case DestinationAction.TAKE_RUN_LOCK:
                return await self._take_run_lock()
            case DestinationAction.RESUME_GUEST:
                return await self._resume_guest()
            case DestinationAction.SEND_RESUMED:
                sent = await self._send(ControlMessage(ControlCode.RESUMED))
                self._stake.announce_guest()
                return sent
            case DestinationAction.SEND_SETTLED:
                await self._send(ControlMessage(ControlCode.SETTLED, self._record.epoch))
                return None
            case DestinationAction.SEND_GIVE_BACK:
                await self._send(ControlMessage(ControlCode.GIVE_BACK, self._record.epoch))
                return None
            case DestinationAction.END_GUEST:
                await self._stake.end_guest()
                self._stake.run_lock.close()
                return None

    async def _send(self, message: ControlMessage) -> DestinationEvent | None:
        try:
            await self._streams.control.send(message)
        except StreamError as error:
            self._note(error)
            return DestinationEvent.FAILURE
        return None

    async def _swap(self, owner: str) -> DestinationEvent:
        """Swap what we believe in for `owner`."""
        wanted = self._record.given_to(owner)
        return await self._change_record(wanted, DestinationEvent.SWAP_WON, DestinationEvent.SWAP_LOST)

    async def _change_record(
        self, wanted: OwnerRecord, won: DestinationEvent, lost: DestinationEvent
    ) -> DestinationEvent:
        """Replace what we believe in; a write that fails in the middle is read back until it is certain."""
        path = self._stake.files.owner_record
        while True:
            try:
                self._record = await asyncio.to_thread(owner_record.replace, path, self._record, wanted)
            except NotOwner as error:
                present = OwnerRecord(self._record.vm_uuid, error.owner, error.epoch)
                if present == wanted:  # our own write of a moment ago, which seemed to fail
                    self._record = present
                    return won
                self._note(error)
                return lost
            except STORAGE_ERRORS as error:
                self._note(error)
                await asyncio.sleep(_STORAGE_EVERY_S)
            else:
                return won

    async def _write_mine(self) -> DestinationEvent:
        """COMMIT has come: the source's record gives the guest to me; mine must say so before it runs."""
        mine = OwnerRecord(self._record.vm_uuid, self._order.destination.host_uuid, self._committed_epoch)
        won, lost = DestinationEvent.RECORD_NAMES_ME, DestinationEvent.RECORD_NAMES_OTHER
        if mine.epoch <= self._record.epoch:
            self._note(StreamError(f"the source committed epoch {mine.epoch}, which is no later one"))
            return lost
        return await self._change_record(mine, won, lost)

    async def _read_record(self) -> DestinationEvent:
        while True:
            try:
                self._record = await asyncio.to_thread(owner_record.read, self._stake.files.owner_record)
            except STORAGE_ERRORS as error:
                self._note(error)
                await asyncio.sleep(_STORAGE_EVERY_S)
                continue
            if self._record.owner_host_uuid == self._order.destination.host_uuid:
                return DestinationEvent.RECORD_NAMES_ME
            self._note(NotOwner("The owner record names another host.", owner=self._record.owner_host_uuid))
            return DestinationEvent.RECORD_NAMES_OTHER

    async def _take_run_lock(self) -> DestinationEvent:
        await failpoint(failpoints.DESTINATION_BEFORE_LOCK)
        deadline, has_waited = time.monotonic() + _LOCK_DEADLINE_S, False
        while True:
            try:
                self._stake.run_lock.acquire()
            except (FileLocked, OSError) as error:
                has_waited = True
                if time.monotonic() > deadline:
                    self._note(error)
                    return DestinationEvent.LOCK_REFUSED
                await asyncio.sleep(_LOCK_EVERY_S)
            else:
                if has_waited and not await self._is_still_mine():
                    return DestinationEvent.LOCK_REFUSED
                return DestinationEvent.LOCK_TAKEN

    async def _is_still_mine(self) -> bool:
        """While we waited for the lock the record may have been taken from us: only both together let us run."""
        try:
            present = await asyncio.to_thread(owner_record.read, self._stake.files.owner_record)
        except STORAGE_ERRORS as error:
            self._note(error)
            return False
        return present == self._record

    async def _resume_guest(self) -> DestinationEvent:
        await failpoint(failpoints.DESTINATION_BEFORE_RESUME)
        try:
            await self._stake.resume_guest()
        except (CheckpointError, GuestError, VimFault) as error:
            self._note(error)
            return DestinationEvent.GUEST_FAILED
        return DestinationEvent.GUEST_RUNS
