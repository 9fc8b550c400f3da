"""What both sides of the hand-over have in common: the machine that drives them, and what is at stake.

event ──step──▶ state, actions ──perform──▶ the next event, or None: wait for a message
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import structlog

from runtime.faults import CannotAccessFile, FileNotFound, MigrationFault
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.files import VmFiles
from vmx.stream import ControlCode, ControlMessage, Received

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


def require_ready(received: Received, claim: Claim, phase: str) -> None:
    """The destination's word before the source's hand-over. In a home that both see it says which record it could give
    up: if that isn't the source's, its giving up wouldn't make the hand-over fail, and this one mustn't begin. The
    epochs of parted homes have nothing to do with each other.

    :raises MigrationFault: it isn't READY, or not for the source's record.
    """
    if not isinstance(received, ControlMessage) or received.code is not ControlCode.READY:
        reason = received.text if isinstance(received, ControlMessage) else "it sent something else"
        raise MigrationFault(f"The destination can't take the VM: {reason}", phase=phase)
    if not claim.parted and received.value != claim.record.epoch:
        message = "The owner record was changed between the destination's preparation and the source's start."
        raise MigrationFault(message, phase=phase)


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
