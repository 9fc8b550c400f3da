"""What both sides of the hand-over have in common: the machine that drives them, and what is at stake.

event ──step──▶ state, actions ──perform──▶ the next event, or None: wait for a message
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import structlog

from runtime.faults import CannotAccessFile, FileNotFound
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.files import VmFiles

STORAGE_ERRORS = (CannotAccessFile, FileNotFound, OSError)

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)
Action = TypeVar("Action", bound=Enum)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Claim:
    """What decides who may run the guest, as this side has it.

    `record` is what it said when the migration began, naming the source. `parted`: each side has a home, and so a
    record and a run lock, of its own, because the VM's files move; else both sides see one home.
    """

    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    parted: bool = False


class HandOverSide(ABC, Generic[State, Event, Action]):
    """One side of one hand-over. `failure` keeps the first thing that went wrong."""

    def __init__(
        self, state: State, step: Callable[[State, Event], tuple[State, tuple[Action, ...]]]
    ) -> None:
        self.state: State = state
        self.failure: BaseException | None = None
        self._step = step
        self._last_note = ""

    async def _drive(self, event: Event | None) -> None:
        """Follow the table from `event` on, until an action has no answer of its own."""
        while event is not None:
            before = self.state
            self.state, actions = self._step(self.state, event)
            _log.info("hand_over_step", before=before.name, cause=event.name, state=self.state.name)
            event = None
            for action in actions:
                event = await self._perform(action)
                if event is not None:
                    break

    @abstractmethod
    async def _perform(self, action: Action) -> Event | None:
        """Carry an action out; what it brought, where it brings something."""

    def _note(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        if str(error) != self._last_note:  # a stall is asked about five times a second, and told once
            self._last_note = str(error)
            _log.warning("hand_over_disturbed", state=self.state.name, reason=str(error))
