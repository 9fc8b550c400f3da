"""What both halves of a migration have in common: the phase with its one setter, its log lines, its way to be ended.

A session runs as one task that its VM owns. Until the hand-over it can be ended from outside (a cancel, the guest's
death): the task is cancelled and the reason becomes the fault that it raises. From the hand-over on only the owner
record decides, and nothing outside may interrupt.
"""

import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Generic, TypeVar

import structlog

from runtime.faults import MigrationFault, PastPointOfNoReturn, VimFault
from vmx.migration.order import MigrationOrder
from vmx.migration.phases import DestinationPhase, SourcePhase, published
from vmx.migration.progress import Progress, ProgressBoard

Phase = TypeVar("Phase", SourcePhase, DestinationPhase)
T = TypeVar("T")

_log = structlog.get_logger(__name__)


class PhaseOrderError(Exception):
    """A phase was entered out of order: a defect."""


class Session(Generic[Phase]):
    """One migration on one side: subclassed by SourceMigration and DestinationMigration."""

    def __init__(self, order: MigrationOrder, first: Phase, moves: frozenset[tuple[Phase, Phase]]) -> None:
        self.order = order
        self.board = ProgressBoard(
            Progress(
                migration_id=order.migration_id,
                ram_bytes=order.ram_bytes,
                encrypted=order.options.encrypted,
                streams=order.options.streams,
                phase=published(first),
            )
        )
        self.phase: Phase = first
        self.end_reason: VimFault | None = None
        self._moves: frozenset[tuple[Phase, Phase]] = moves
        self._began = time.monotonic()

    async def run_phase(self, phase: Phase, work: Awaitable[T]) -> T:
        """Enter `phase`, do its work, log and time it; the one place where phases begin."""
        self._enter(phase)
        began = time.monotonic()
        _log.info("phase_begin", phase=phase.value)
        result = await work
        _log.info("phase_end", phase=phase.value, duration_ms=round((time.monotonic() - began) * 1000, 3))
        return result

    def finish(self, phase: Phase, fault: VimFault | None = None) -> None:
        """Enter the last phase and publish it; watchers end after it."""
        self._enter(phase)
        total_ms = (time.monotonic() - self._began) * 1000
        self.board.publish(replace(self.board.now, total_ms=total_ms))
        self.board.close(published(phase), fault)

    def check_may_end(self, uninterruptible: frozenset[Phase]) -> None:
        """:raises PastPointOfNoReturn: the hand-over has begun: only the owner record decides now."""
        if self.phase in uninterruptible:
            message = f"The migration is in its phase {self.phase.value!r}: it can't be ended any more."
            raise PastPointOfNoReturn(message, phase=self.phase.value)

    def fault_of(self, error: BaseException) -> VimFault:
        """What failed, as a fault: the reason to end if there is one, else the error itself or a wrapper of it."""
        if self.end_reason is not None:
            return self.end_reason
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, VimFault):
            return error
        fault = MigrationFault(
            f"The migration failed in its phase {self.phase.value!r}: {error}", phase=self.phase.value
        )
        fault.__cause__ = error
        return fault

    def _enter(self, phase: Phase) -> None:
        if phase is self.phase and published(phase) is self.board.now.phase:
            return
        if (self.phase, phase) not in self._moves:
            raise PhaseOrderError(f"{self.phase.name} -> {phase.name}")
        self.phase = phase
        if published(phase).order < 9:  # the last ones are published by finish(), with their fault
            self.board.enter(published(phase))
