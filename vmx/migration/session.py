"""What both halves of a migration have in common: the phase with its one setter, its log lines, its way to be ended.

A session runs as one task that its VM owns:

    run ──▶ phase ──▶ phase ──▶ ... ──────────────────────▶ FINISHED
              │ failed, or ended from outside (`end`)
              └──▶ undo, to its end whatever comes ──▶ FAILED          then, in every case, resources are released

Until the hand-over it can be ended from outside (a cancel, the guest's death): what it waits for is cancelled and the
reason becomes the fault. From the hand-over on only the owner record decides, and while it undoes nothing may come in
between: a second cancel there would leave the guest stunned.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Generic, TypeVar

import structlog

from runtime.failpoint import failpoint
from runtime.faults import MigrationFault, MigrationNotReady, PastPointOfNoReturn, VimFault, VMotionLinkDown
from vmx.migration.failpoints import of_phase, of_roll_back
from vmx.migration.order import MigrationOrder
from vmx.migration.phases import DestinationPhase, SourcePhase, published
from vmx.migration.progress import Progress, ProgressBoard
from vmx.stream.errors import ConnectionLost, StreamError

Phase = TypeVar("Phase", SourcePhase, DestinationPhase)
T = TypeVar("T")

_log = structlog.get_logger(__name__)


class PhaseOrderError(Exception):
    """A phase was entered out of order: a defect."""


class Session(ABC, Generic[Phase]):
    """One migration on one side: subclassed by SourceMigration and DestinationMigration.

    `moves` are the role's legal moves, the first phase is where it stands; `interruptible` are those that `end` ends.
    """

    def __init__(
        self,
        order: MigrationOrder,
        first: Phase,
        moves: frozenset[tuple[Phase, Phase]],
        interruptible: frozenset[Phase],
    ) -> None:
        self.order = order
        self.phase: Phase = first
        self.board = ProgressBoard(
            Progress(
                migration_id=order.migration_id,
                ram_bytes=order.ram_bytes,
                encrypted=order.options.encrypted,
                streams=order.options.streams,
                phase=published(first),
            )
        )
        self._moves: frozenset[tuple[Phase, Phase]] = moves
        self._interruptible: frozenset[Phase] = interruptible
        self._began = time.monotonic()
        self._resources = contextlib.AsyncExitStack()
        self._end_reason: VimFault | None = None
        # The task to cancel: only while there is something that may be interrupted.
        self._task: asyncio.Task[object] | None = None

    # ---- what a role does

    @abstractmethod
    async def _run_phases(self) -> None:
        """All phases, from top to bottom, each by `_run_phase`."""

    @abstractmethod
    async def _undo(self, fault: VimFault) -> VimFault | None:
        """A phase failed for this reason: put everything back that may be. `_resources` are still there.

        :returns: what failed in the end; None where it has succeeded all the same.
        :raises Exception: it couldn't be; the guest may not run.
        """

    @abstractmethod
    async def _cause_of(self, error: BaseException) -> BaseException:
        """What is behind an error, where asking takes a while: the guest's death behind a QMP connection's."""

    # ---- for the VM

    @property
    def is_over(self) -> bool:
        """Its last phase is reached."""
        return self.phase.is_end

    async def run(self) -> VimFault | None:
        """Do it, once. None: it succeeded. A fault: what failed, told to the session's watchers too."""
        fault: VimFault | None = None
        try:
            self._task = asyncio.current_task()
            if self._end_reason is not None:  # ended before its first step
                raise self._end_reason
            await self._run_phases()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  a session's outer edge
            self._task = None
            fault = await self._undone(error)
        self._task = None
        await self._release()
        self._finish(fault)
        return fault

    def end(self, reason: VimFault) -> bool:
        """End it with this reason, if it still may be: `run` undoes and returns. Whether it will; the first reason
        counts."""
        if self.phase not in self._interruptible:
            return False
        if self._end_reason is None:
            self._end_reason = reason
            if self._task is not None:
                self._task.cancel()
        return True

    def check_may_end(self) -> None:
        """:raises PastPointOfNoReturn: the hand-over has begun: only the owner record decides now."""
        if self.phase not in self._interruptible:
            message = f"The migration is in its phase {self.phase.value!r}: it can't be ended any more."
            raise PastPointOfNoReturn(message, phase=self.phase.value)

    def require_phase(self, *phases: Phase) -> None:
        """:raises MigrationNotReady: it is in another phase."""
        if self.phase not in phases:
            name = self.phase.value
            raise MigrationNotReady(f"The migration is in its phase {name!r}.", phase=name, reason=name)

    # ---- for the roles

    async def _run_phase(self, phase: Phase, work: Callable[[], Awaitable[T]]) -> T:
        """Enter `phase`, do its work, log and time it; the one place where phases begin."""
        if phase is not self.phase:  # it stands in the first one from the beginning
            self._enter(phase)
        began = time.monotonic()
        _log.info("phase_begin", phase=phase.value)
        await failpoint(of_phase(phase))
        result = await work()
        duration_ms = (time.monotonic() - began) * 1000
        _log.info("phase_end", phase=phase.value, duration_ms=round(duration_ms, 3))
        self.board.leave(published(phase), duration_ms)
        return result

    # ---- inside

    def _enter(self, phase: Phase) -> None:
        if (self.phase, phase) not in self._moves:
            raise PhaseOrderError(f"{self.phase.name} -> {phase.name}")
        self.phase = phase
        if not phase.is_end:  # the ends are published with their fault
            self.board.enter(published(phase))

    async def _undone(self, error: BaseException) -> VimFault | None:
        error = await self._cause_of(_first_of(error))
        if not isinstance(error, VimFault | StreamError | asyncio.CancelledError):
            _log.error("migration_failed", phase=self.phase.value, exc_info=error)
        fault = self._fault_of(error)
        try:
            await failpoint(of_roll_back(self.phase))
            return await self._undo(fault)
        except Exception as failed:  # noqa: BLE001  as above: what it can't put back is told, with what it was about
            _log.error("roll_back_failed", phase=self.phase.value, exc_info=failed)
            message = f"{fault} And it couldn't be undone: {failed}"
            both = MigrationFault(message, phase=self.phase.value)
            both.__cause__ = fault
            return both

    async def _release(self) -> None:
        """What can't be given back changes nothing about the guest, so nothing about the outcome."""
        try:
            await self._resources.aclose()
        except Exception as error:  # noqa: BLE001  as above
            _log.error("migration_resources_not_released", exc_info=error)

    def _finish(self, fault: VimFault | None) -> None:
        phase = type(self.phase).FINISHED if fault is None else type(self.phase).FAILED
        if fault is not None:
            _log.warning("migration_not_done", phase=self.phase.value, reason=str(fault))
        self._enter(phase)
        total_ms = (time.monotonic() - self._began) * 1000
        self.board.publish(replace(self.board.now, total_ms=total_ms))
        self.board.close(published(phase), fault)

    def _fault_of(self, error: BaseException) -> VimFault:
        """What failed, as a fault: the reason to end if there is one, else the error itself or a wrapper of it."""
        if self._end_reason is not None:
            return self._end_reason
        if isinstance(error, VimFault):
            return error
        phase = self.phase.value
        fault: MigrationFault
        if isinstance(error, ConnectionLost):
            message = f"The vMotion connection was lost in the phase {phase!r}: {error}"
            order = self.order
            fault = VMotionLinkDown(message, phase=phase, host=order.source.name, peer=order.destination.name)
        else:
            reason = "it was interrupted" if isinstance(error, asyncio.CancelledError) else str(error)
            fault = MigrationFault(f"The migration failed in its phase {phase!r}: {reason}", phase=phase)
        fault.__cause__ = error
        return fault


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
