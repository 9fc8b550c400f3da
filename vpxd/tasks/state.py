"""A task's record and its legal moves. Pure: no I/O, no clock, no logging.

    queued --> running --> success
      |           |
      +-----------+------> error

The state is changed by `_moved` only; progress never goes back; what has ended never changes.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from runtime.faults import VimFault


class TaskState(StrEnum):
    """Where a task is; each member names its next ones."""

    QUEUED = "queued"  # next: running, error
    RUNNING = "running"  # next: success, error
    SUCCESS = "success"  # the end
    ERROR = "error"  # the end


LEGAL_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset({TaskState.RUNNING, TaskState.ERROR}),
    TaskState.RUNNING: frozenset({TaskState.SUCCESS, TaskState.ERROR}),
    TaskState.SUCCESS: frozenset(),
    TaskState.ERROR: frozenset(),
}


class IllegalTaskMove(Exception):
    """A defect: the task can't go from `state` to `wanted`."""

    def __init__(self, task: str, state: TaskState, wanted: str) -> None:
        super().__init__(f"{task} is {state} and can't become {wanted}")
        self.task = task
        self.state = state
        self.wanted = wanted


@dataclass(frozen=True)
class TaskRecord:
    """A task at one moment. `migration` is a serialized MigrationStatus, relayed as the source's vmx published it.

    `queue_position`: 1 is next, 0: it doesn't wait; `queue_reason`: which limit it waits for.
    """

    id: str
    operation: str
    entity: str
    entity_name: str
    user: str
    operation_id: str
    queue_time: datetime
    cancelable: bool = False
    state: TaskState = TaskState.QUEUED
    progress_percent: int = 0
    description: str = ""
    cancel_requested: bool = False
    start_time: datetime | None = None
    complete_time: datetime | None = None
    error: VimFault | None = None
    result: str = ""
    migration: bytes = b""
    queue_position: int = 0
    queue_reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it has its last state."""
        return not LEGAL_MOVES[self.state]

    def started(self, now: datetime) -> "TaskRecord":
        """Queued -> running. :raises IllegalTaskMove: from any other state."""
        return replace(self.queued_at(0, "")._moved(TaskState.RUNNING), start_time=now, description="")

    def succeeded(self, now: datetime, result: str) -> "TaskRecord":
        """Running -> success. :raises IllegalTaskMove: from any other state."""
        ended = self._moved(TaskState.SUCCESS)
        return replace(
            ended, complete_time=now, result=result, progress_percent=100, description="", cancelable=False
        )

    def failed(self, now: datetime, error: VimFault) -> "TaskRecord":
        """Queued or running -> error. :raises IllegalTaskMove: from any other state."""
        ended = self.queued_at(0, "")._moved(TaskState.ERROR)
        return replace(ended, complete_time=now, error=error, cancelable=False)

    def advanced(self, percent: int, description: str | None = None) -> "TaskRecord":
        """Progress told; a smaller percentage leaves the greater one, 100 is kept for success.

        :raises IllegalTaskMove: when it has ended.
        """
        self._require_active("advanced")
        higher = max(self.progress_percent, min(percent, 99))
        text = self.description if description is None else description
        return replace(self, progress_percent=higher, description=text)

    def with_migration(self, status: bytes) -> "TaskRecord":
        """The last status of its migration. :raises IllegalTaskMove: when it has ended."""
        self._require_active("given a status")
        return replace(self, migration=status)

    def queued_at(self, position: int, reason: str) -> "TaskRecord":
        """Where it stands in line, and why it waits; 0: it doesn't any more.

        :raises IllegalTaskMove: when it has ended, or waits although it has begun.
        """
        self._require_active("queued")
        if position and self.state is not TaskState.QUEUED:
            raise IllegalTaskMove(self.id, self.state, "queued")
        return replace(self, queue_position=position, queue_reason=reason)

    def with_cancel_requested(self) -> "TaskRecord":
        """Somebody asked it to stop. :raises IllegalTaskMove: when it has ended."""
        self._require_active("canceled")
        return replace(self, cancel_requested=True)

    def with_cancelable(self, cancelable: bool) -> "TaskRecord":
        """Whether it can be asked to stop from now on. :raises IllegalTaskMove: when it has ended."""
        self._require_active("made cancelable")
        return replace(self, cancelable=cancelable)

    def _moved(self, state: TaskState) -> "TaskRecord":
        if state not in LEGAL_MOVES[self.state]:
            raise IllegalTaskMove(self.id, self.state, state)
        return replace(self, state=state)

    def _require_active(self, wanted: str) -> None:
        if self.ended:
            raise IllegalTaskMove(self.id, self.state, wanted)
