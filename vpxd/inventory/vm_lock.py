"""Who works on what: the locks that tasks hold on VMs and hosts. Pure: no I/O, no clock, no logging.

A task holds its VM alone (by the instance uuid, so that a VM which is only being created can be held as well)
and shares the hosts it needs; adding and removing a host holds the host alone. Nothing waits here: a clash is a
TaskInProgress that names the holder. Locks live in memory; after a restart the tasks that are taken up again
lock again.
"""

from dataclasses import dataclass

from runtime.faults import TaskInProgress


@dataclass(frozen=True)
class Holder:
    """A task and what it does."""

    task: str
    operation: str


class EntityLocks:
    """Locks by key: exclusive ones have one holder, shared ones many."""

    def __init__(self) -> None:
        self._exclusive: dict[str, Holder] = {}
        self._shared: dict[str, list[Holder]] = {}

    def acquire(
        self, holder: Holder, exclusive: tuple[str, ...], shared: tuple[str, ...], entity: str
    ) -> None:
        """Takes all of them, or none. `entity` names the object for the fault's reader.

        :raises TaskInProgress: another task is in the way.
        """
        for key in exclusive:
            self._refuse(self._exclusive.get(key) or next(iter(self._shared.get(key, ())), None), entity)
        for key in shared:
            self._refuse(self._exclusive.get(key), entity)
        for key in exclusive:
            self._exclusive[key] = holder
        for key in shared:
            self._shared.setdefault(key, []).append(holder)

    def share(self, holder: Holder, key: str, entity: str) -> None:
        """One more shared key for a task that already holds others. :raises TaskInProgress: somebody holds it alone."""
        self.acquire(holder, (), (key,), entity)

    def release(self, task: str) -> None:
        """Lets go all that the task holds; idempotent."""
        self._exclusive = {key: held for key, held in self._exclusive.items() if held.task != task}
        kept = {key: [held for held in holders if held.task != task] for key, holders in self._shared.items()}
        self._shared = {key: holders for key, holders in kept.items() if holders}

    def holder(self, key: str) -> Holder | None:
        """The task that holds the key alone."""
        return self._exclusive.get(key)

    def _refuse(self, other: Holder | None, entity: str) -> None:
        if other is not None:
            raise TaskInProgress(
                f"{entity} is held by {other.task} ({other.operation})",
                entity=entity,
                task=other.task,
                operation=other.operation,
            )
