"""A move of a VM's files within its host, while the guest runs or not.

    DISK_COPY ─▶ HAND_OVER ─▶ CONFIRM ─▶ FINISHED
    copies made    both copies are equal and stay so,     the guest stands
    and mirrored   hostd writes down which one counts     on the new files

Until `commit` everything is undone and the VM is as before; the copies of a guest that runs stay equal until then, so
the moment at which hostd's word changes needs no stun. From `commit` on there is no way back: a disk that can't be
switched stays where it is, and the progress tells which ones were.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from runtime.faults import VimFault
from vmx.disk.errors import DiskError, MirrorError, PartlyPivoted, PivotFailed
from vmx.disk.local_move import DiskMove, LocalMove
from vmx.faults import guest_died
from vmx.guest.errors import GuestDied, QmpFailure
from vmx.guest.process import GuestProcess
from vmx.migration.disk_copy import SourceDisk, disk_fault, guest_death_behind
from vmx.migration.order import MigrationOrder
from vmx.migration.phases import SOURCE_MOVES, SourcePhase
from vmx.migration.progress import DiskReport
from vmx.migration.session import Session

_REPORT_EVERY_S = 0.1
_INTERRUPTIBLE = frozenset({SourcePhase.DISK_COPY, SourcePhase.HAND_OVER})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RelocatedVm:
    """What moves: the disks as they are and, by key, as they will be. `process` is None for a VM that is off.

    `take_new_home` makes everything but the disks follow (run lock, logs), at the commit; it does nothing where the
    home stays.
    """

    disks: tuple[SourceDisk, ...]
    targets: tuple[SourceDisk, ...]
    process: GuestProcess | None
    run_dir: Path
    take_new_home: Callable[[], Awaitable[None]]


class Relocation(Session[SourcePhase]):
    """One attempt: `run` once, `commit` when hostd has written down that the new files count."""

    def __init__(self, order: MigrationOrder, vm: RelocatedVm) -> None:
        super().__init__(order, SourcePhase.DISK_COPY, SOURCE_MOVES, _INTERRUPTIBLE)
        self._vm = vm
        self._committed = asyncio.Event()
        self._move: LocalMove | None = None

    def commit(self) -> None:
        """The new files count. Idempotent.

        :raises MigrationNotReady: the copies aren't made, or it has failed.
        """
        self.require_phase(SourcePhase.HAND_OVER, SourcePhase.CONFIRM, SourcePhase.FINISHED)
        self._committed.set()

    def end(self, reason: VimFault) -> bool:
        """As Session's; not after the commit."""
        return not self._committed.is_set() and super().end(reason)

    async def _run_phases(self) -> None:
        await self._run_phase(SourcePhase.DISK_COPY, self._copy)
        await self._run_phase(SourcePhase.HAND_OVER, self._wait_for_commit)
        await self._run_phase(SourcePhase.CONFIRM, self._switch)

    async def _copy(self) -> None:
        qmp = self._vm.process.qmp if self._vm.process is not None else None
        targets = {disk.key: disk for disk in self._vm.targets}
        moves = [
            DiskMove(disk.layout, disk.extent_path, targets[disk.key].layout, targets[disk.key].extent_path)
            for disk in self._vm.disks
        ]
        self._move = move = LocalMove(moves, self._vm.run_dir, qmp)
        self._resources.push_async_callback(move.cancel)
        reporting = asyncio.create_task(self._report(move), name="disk-progress")
        try:
            await move.prepare()
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])
        self._publish(move, frozenset())

    async def _wait_for_commit(self) -> None:
        """The copies stay equal as long as no mirror fails."""
        assert self._move is not None, "made in the disk copy"
        waiting = asyncio.ensure_future(self._committed.wait())
        failing = asyncio.ensure_future(self._move.wait_failed())
        try:
            await asyncio.wait((waiting, failing), return_when=asyncio.FIRST_COMPLETED)
            if failing.done() and not self._committed.is_set():
                raise failing.result()
        finally:
            for task in (waiting, failing):
                task.cancel()
            await asyncio.gather(waiting, failing, return_exceptions=True)

    async def _switch(self) -> None:
        assert self._move is not None, "made in the disk copy"
        moved = {disk.key for disk in self._vm.disks}
        try:
            await self._move.commit()
        except PartlyPivoted as error:
            stayed = {key for key, failure in error.failures.items() if not _is_on_target(failure)}
            self._publish(self._move, frozenset(moved - stayed))
            if stayed:
                raise
            _log.error("disk_left_open", reason=str(error))
        else:
            self._publish(self._move, frozenset(moved))
        await self._vm.take_new_home()

    async def _report(self, move: LocalMove) -> None:
        while True:
            # A copy has no events that are worth one: people look several times a second.
            await asyncio.sleep(_REPORT_EVERY_S)
            self._publish(move, frozenset())

    def _publish(self, move: LocalMove, switched: frozenset[int]) -> None:
        disks = tuple(
            DiskReport(
                key=one.key,
                capacity_bytes=one.capacity_bytes,
                data_bytes=one.data_bytes,
                copied_bytes=one.copied_bytes,
                zero_bytes=one.zero_bytes,
                mirrored_bytes=one.mirrored_bytes,
                duration_ms=one.duration_ms,
                switched=one.key in switched,
            )
            for one in move.progress
        )
        self.board.publish(replace(self.board.now, disks=disks))

    async def _cause_of(self, error: BaseException) -> BaseException:
        process = self._vm.process
        if isinstance(error, QmpFailure) and process is not None:
            error = await process.cause_of(error)
        if isinstance(error, DiskError):
            died = await guest_death_behind(error, process) if process is not None else None
            if died is not None:
                return guest_died(died.exit_status)
            return disk_fault(error, self.phase.value)
        return guest_died(error.exit_status) if isinstance(error, GuestDied) else error

    async def _undo(self, fault: VimFault) -> VimFault:
        """What was copied is left to hostd, who made the files; the mirrors end with the session's resources."""
        _log.warning("relocation_undone", committed=self._committed.is_set())
        return fault


def _is_on_target(failure: MirrorError) -> bool:
    """Whether the guest uses the target all the same: only the old file couldn't be closed."""
    return isinstance(failure, PivotFailed) and failure.pivoted
