"""The configuration lock: one operation at a time may change a VM or what it does.

    free --acquire--> held(operation, task, migration) --release--> free

Power, reconfigure, unregister and destroy hold it while they run; a migration ("emigrating" at the source,
"immigrating" at the destination) from its first step on this host until it is completed or undone. Who comes
second is refused at once with TaskInProgress, which names the holder: nobody waits. The lock is kept by uuid,
so it also covers a VM that immigrates and isn't registered yet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.faults import TaskInProgress

EMIGRATING = "emigrating"
IMMIGRATING = "immigrating"
RELOCATING = "relocating"


@dataclass(frozen=True)
class Holder:
    """Who holds a VM's lock. `task` is vpxd's task id."""

    operation: str
    task: str = ""
    migration_id: int = 0


class ConfigLocks:
    """All VMs' locks. `changed` is called after each change: what a VM's lock is belongs to its state."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._holders: dict[str, Holder] = {}
        self._changed = changed

    def holder(self, vm_uuid: str) -> Holder | None:
        """Who holds it now."""
        return self._holders.get(vm_uuid)

    def acquire(self, vm_uuid: str, holder: Holder) -> None:
        """Take the lock.

        :raises TaskInProgress: it's held; the fault names the holder's task and operation.
        """
        present = self._holders.get(vm_uuid)
        if present is not None:
            by = f" by {present.task}" if present.task else ""
            message = f"The VM is locked: {present.operation} is in progress{by}."
            raise TaskInProgress(message, entity=vm_uuid, task=present.task, operation=present.operation)
        self._holders[vm_uuid] = holder
        self._changed()

    def release(self, vm_uuid: str, holder: Holder) -> None:
        """Give it back; nothing happens if this holder hasn't got it (any more)."""
        if self._holders.get(vm_uuid) == holder:
            del self._holders[vm_uuid]
            self._changed()

    @contextmanager
    def held(self, vm_uuid: str, holder: Holder) -> Iterator[None]:
        """The lock for as long as the block runs.

        :raises TaskInProgress: as `acquire`.
        """
        self.acquire(vm_uuid, holder)
        try:
            yield
        finally:
            self.release(vm_uuid, holder)
