"""The source's side of the hand-over: carries out what switchover.py decides, on the record, the lock and the wire.

What it does can't be interrupted and may take as long as a storage stall or a lost host does. Who waits for it doesn't:
`hand_over` and `confirm` return after the migration's time for it at the latest, and the rest goes on by itself.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

import structlog

from runtime.failpoint import failpoint
from runtime.faults import FileLocked, NotOwner
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from vmx.migration import failpoints
from vmx.migration.hand_over import STORAGE_ERRORS, Claim, HandOverSide
from vmx.migration.order import MigrationOrder
from vmx.migration.switchover import SOURCE_RUNS, SourceAction, SourceEvent, SourceState, source_step
from vmx.stream import ControlChannel, ControlCode, ControlMessage, StreamError

# The record is on storage that another host writes to: nothing tells of a change there, it has to be read.
_WATCH_EVERY_S = 0.2
_LOCK_EVERY_S = 0.02
# Errors of a write that was refused: it hasn't happened and won't. (Not so EIO, ETIMEDOUT, ESTALE.)
_REFUSED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
    | {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENOENT, errno.EMFILE, errno.ENFILE}
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Stake(Claim):
    """What is handed over: the record that must be right for it, the lock, and the way back."""

    resume_guest: Callable[[], Awaitable[None]] = field(kw_only=True)


class SourceHandOver(HandOverSide[SourceState, SourceEvent, SourceAction]):
    """One hand-over. `hand_over` leaves it CONFIRMING, ROLLED_BACK or DONE, `confirm` in one of the last two; each may
    leave it in a state that still waits, when its time is up: then `resolve` ends it.

    Where the homes are parted, this side's record is the durable word that the guest was given away. The destination's
    word comes as a message (GIVE_BACK), or is written into this record by hostd, to whom vpxd has brought it.
    """

    def __init__(self, order: MigrationOrder, stake: Stake, control: ControlChannel) -> None:
        super().__init__(SourceState.LOADING, source_step)
        self.commit_sent_ns = 0
        self.resumed_ns = 0
        self._order = order
        self._stake = stake
        self._control = control
        self._given: OwnerRecord | None = None
        self._steps: asyncio.Task[None] | None = None
        self._deadline_s = 0.0

    @property
    def gave_away(self) -> bool:
        """The guest may not run here."""
        return self.state not in SOURCE_RUNS

    async def hand_over(self) -> None:
        """READY has arrived: swap the record, send COMMIT, wait for RESUMED. Point of no return: in here.

        A failure of the peer or the storage isn't raised; the state tells what became of it.

        :raises GuestError: the guest is ours again (RESUMING_HERE) and couldn't be let run.
        """
        await self._in_time(self._hand_over())

    async def confirm(self) -> None:
        """RESUMED has arrived and the memory is right as far as we know: wait until the destination has settled.

        :raises GuestError: as `hand_over`.
        """
        await self._in_time(self._confirm())

    async def resolve(self) -> None:
        """Wait, however long, until it is DONE or ROLLED_BACK: after `hand_over` or `confirm` ran out of time or was
        broken off by a defect.

        :raises GuestError: as `hand_over`.
        """
        if self._steps is not None:
            await asyncio.wait([self._steps])
            broken_by = self._steps.exception()
            if broken_by is not None:
                _log.error("hand_over_broken_off", state=self.state.name, exc_info=broken_by)
        await self._drive(await self._event_after_trouble())

    async def _in_time(self, steps: Coroutine[None, None, None]) -> None:
        limit_s = self._order.options.max_switchover_s
        self._deadline_s = time.monotonic() + limit_s
        self._steps = asyncio.create_task(steps, name="hand-over")
        await asyncio.wait([self._steps], timeout=limit_s)
        if self._steps.done():
            self._steps.result()
        else:
            _log.error("hand_over_unresolved", state=self.state.name, waited_s=limit_s)

    async def _hand_over(self) -> None:
        await failpoint(failpoints.SOURCE_BEFORE_SWAP)
        await self._drive(SourceEvent.READY)
        while self.state is SourceState.GIVEN:
            await self._drive(await self._next_message())

    async def _confirm(self) -> None:
        while self.state is SourceState.CONFIRMING:
            await self._drive(await self._next_message())

    # ---- events

    async def _next_message(self) -> SourceEvent:
        try:
            received = await self._control.receive(max(0.001, self._deadline_s - time.monotonic()))
        except StreamError as error:
            self._note(error)
            return SourceEvent.FAILURE
        if isinstance(received, ControlMessage):
            if received.code is ControlCode.RESUMED and self.state is SourceState.GIVEN:
                self.resumed_ns = time.monotonic_ns()
                return SourceEvent.RESUMED
            if received.code is ControlCode.SETTLED and self.state is SourceState.CONFIRMING:
                return SourceEvent.SETTLED
            if received.code is ControlCode.GIVE_BACK and self._stake.parted:
                await self._take_back(received.value)
            if received.code in {ControlCode.GIVE_BACK, ControlCode.FAILED, ControlCode.CANCEL}:
                # Only the record says whether it's ours again; WATCHING reads it.
                self._note(StreamError(f"the destination gave up: {received.text or received.code.name}"))
                return SourceEvent.FAILURE
        self._note(StreamError(f"an unexpected message in {self.state.name}"))
        return SourceEvent.FAILURE

    async def _take_back(self, epoch: int) -> None:
        """The destination has ended its guest and says so for good: with parted homes this record learns it here.

        If it can't be written the guest stays stunned, until hostd writes it or this one's next try.
        """
        assert self._given is not None, "the record names the destination"
        if epoch <= self._given.epoch:
            self._note(StreamError(f"the destination gave back epoch {epoch}, which it never had"))
            return
        mine = OwnerRecord(self._given.vm_uuid, self._order.source.host_uuid, epoch)
        try:
            await asyncio.to_thread(owner_record.replace, self._stake.files.owner_record, self._given, mine)
        except (*STORAGE_ERRORS, NotOwner) as error:
            self._note(error)

    async def _event_after_trouble(self) -> SourceEvent | None:
        """What leads on from wherever it was left, by the record alone."""
        match self.state:
            case SourceState.LOADING | SourceState.GIVEN | SourceState.CONFIRMING:
                return SourceEvent.FAILURE
            case SourceState.SWAPPING | SourceState.RECLAIMING:
                return SourceEvent.SWAP_UNCERTAIN
            case SourceState.WATCHING:
                return await self._watch_record()
            case SourceState.RETAKING:
                return await self._take_run_lock()
            case SourceState.RESUMING_HERE:
                return await self._perform(SourceAction.RESUME_GUEST)
        return None

    def _event_of(self, record: OwnerRecord) -> SourceEvent:
        """What a record means that isn't the one that was expected."""
        if record.owner_host_uuid == self._order.source.host_uuid:
            return SourceEvent.SWAP_LOST
        if record.owner_host_uuid == self._order.destination.host_uuid:
            self._given = record
            return SourceEvent.RECORD_NAMES_DESTINATION
        return SourceEvent.RECORD_NAMES_OTHER

    # ---- actions

    async def _perform(self, action: SourceAction) -> SourceEvent | None:
        match action:
            case SourceAction.SWAP_TO_DESTINATION:
                return await self._swap_to_destination()
            case SourceAction.SWAP_TO_MYSELF:
                return await self._swap_to_myself()
            case SourceAction.RELEASE_RUN_LOCK:
                self._release_run_lock()
                return None
            case SourceAction.SEND_COMMIT:
                return await self._send_commit()
            case SourceAction.WATCH_RECORD:
                return await self._watch_record()
            case SourceAction.TAKE_RUN_LOCK:
                return await self._take_run_lock()
            case SourceAction.RESUME_GUEST:
                await failpoint(failpoints.SOURCE_BEFORE_RESUME)
                await self._stake.resume_guest()
                return SourceEvent.GUEST_RUNS

    async def _swap_to_destination(self) -> SourceEvent:
        path, expected = self._stake.files.owner_record, self._stake.record
        try:
            # Point of no return: from the moment this swap is won the guest is the destination's.
            self._given = await asyncio.to_thread(
                owner_record.swap, path, expected, self._order.destination.host_uuid
            )
        except NotOwner as error:
            self._note(error)
            return self._event_of(OwnerRecord(expected.vm_uuid, error.owner, error.epoch))
        except STORAGE_ERRORS as error:
            self._note(error)
            return SourceEvent.SWAP_LOST if await self._is_refused(error) else SourceEvent.SWAP_UNCERTAIN
        _log.info("switchover_committed", epoch=self._given.epoch)
        await failpoint(failpoints.SOURCE_AFTER_SWAP)
        return SourceEvent.SWAP_WON

    async def _is_refused(self, error: BaseException) -> bool:
        """Whether the swap certainly hasn't happened and won't: a full disk mustn't keep the guest stunned."""
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _REFUSED:
            return False
        try:
            present = await asyncio.to_thread(owner_record.read, self._stake.files.owner_record)
        except STORAGE_ERRORS as unreadable:
            self._note(unreadable)
            return False
        return present == self._stake.record

    async def _swap_to_myself(self) -> SourceEvent:
        path, me = self._stake.files.owner_record, self._order.source.host_uuid
        try:
            present = await asyncio.to_thread(owner_record.read, path)
            event = self._event_of(present)
            if event is not SourceEvent.SWAP_LOST:
                return event
            await asyncio.to_thread(owner_record.swap, path, present, me)
        except (*STORAGE_ERRORS, NotOwner) as error:
            self._note(error)
            await asyncio.sleep(_WATCH_EVERY_S)  # the storage stalls: stay stunned, try again
            return SourceEvent.SWAP_UNCERTAIN
        return SourceEvent.SWAP_WON

    def _release_run_lock(self) -> None:
        try:
            self._stake.run_lock.release()
        except OSError as error:
            # The destination waits for it in vain, gives the guest back, and we have the lock still.
            self._note(error)

    async def _send_commit(self) -> SourceEvent | None:
        assert self._given is not None, "the record names the destination"
        self.commit_sent_ns = time.monotonic_ns()
        try:
            await self._control.send(ControlMessage(ControlCode.COMMIT, self._given.epoch))
        except StreamError as error:
            self._note(error)
            return SourceEvent.FAILURE
        await failpoint(failpoints.SOURCE_AFTER_COMMIT)
        return None

    async def _watch_record(self) -> SourceEvent:
        """Until the record names me, or names the destination at a later epoch than the one that gave it the guest."""
        while True:
            try:
                present = await asyncio.to_thread(owner_record.read, self._stake.files.owner_record)
            except STORAGE_ERRORS as error:
                self._note(error)
            else:
                if present.owner_host_uuid == self._order.source.host_uuid:
                    return SourceEvent.RECORD_NAMES_ME
                theirs = present.owner_host_uuid == self._order.destination.host_uuid
                if theirs and self._given is not None and present.epoch > self._given.epoch:
                    return SourceEvent.SETTLED
            await asyncio.sleep(_WATCH_EVERY_S)

    async def _take_run_lock(self) -> SourceEvent:
        while True:
            try:
                self._stake.run_lock.acquire()
            except (FileLocked, OSError) as error:
                self._note(error)
                await asyncio.sleep(_LOCK_EVERY_S)
            else:
                return SourceEvent.LOCK_TAKEN
