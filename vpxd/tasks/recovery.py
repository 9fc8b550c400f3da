"""What becomes of the tasks that were under way when vpxd ended. Once, at start.

A migration has a journal entry: it is taken up, with its locks, and its hosts are asked what became of it; one that
has ended without a host's knowing has it told to that host.
Everything else ends with a fault that says that vpxd was restarted; what the hosts really did comes in with
their reports.
"""

import structlog

from runtime.faults import TaskInProgress
from vpxd.inventory.records import MigrationEntry
from vpxd.inventory.store import InventoryStore
from vpxd.inventory.vm_lock import EntityLocks, Holder
from vpxd.migration.workflow import MigrationWorkflow, restarted
from vpxd.tasks.manager import TaskManager
from vpxd.tasks.state import TaskRecord, TaskState
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)


def hold(locks: EntityLocks, store: InventoryStore) -> None:
    """Locks the VMs of migrations under way, before any host is heard: until `recover` a report could move them."""
    for entry in store.inventory.migrations.values():
        vm = store.inventory.vms.get(entry.vm)
        if vm is not None and not (entry.completing or entry.canceling):
            locks.acquire(Holder(entry.task, "recovery"), (vm.uuid,), (), vm.name)


async def recover(tasks: TaskManager, store: InventoryStore, workflow: MigrationWorkflow) -> None:
    """Takes up or ends every unfinished task; hosts needn't be connected yet."""
    await tasks.archive.drop_old()
    entries = dict(store.inventory.migrations)
    for record in await tasks.archive.unfinished():
        entry = entries.pop(record.id, None)
        ended = entry is not None and (entry.completing or entry.canceling)
        if entry is not None and not ended and record.state is TaskState.RUNNING:
            _take_up(tasks, store, workflow, record, entry)
            continue
        if entry is not None:
            entries[record.id] = entry
        _log.info("task_interrupted", task=record.id, operation=record.operation)
        await tasks.end_interrupted(record, restarted(record.operation))
    for entry in entries.values():
        tasks.locks.release(entry.task)
        if entry.completing or entry.canceling:
            await workflow.aftermath.tell(entry)
        else:
            async with store.transaction() as transaction:
                transaction.delete(entry)


def _take_up(
    tasks: TaskManager,
    store: InventoryStore,
    workflow: MigrationWorkflow,
    record: TaskRecord,
    entry: MigrationEntry,
) -> None:
    vm = store.inventory.vms.get(entry.vm)
    exclusive = (vm.uuid,) if vm is not None else ()
    holder = Holder(record.id, record.operation)
    tasks.locks.release(record.id)  # those of `hold`: nothing can come between
    try:
        tasks.locks.acquire(holder, exclusive, (entry.source, entry.destination), record.entity_name)
    except TaskInProgress as fault:
        raise AssertionError("two migrations of one VM in the journal") from fault

    async def work(task: Task) -> str:
        return await workflow.resume(task, entry)

    _log.info("task_taken_up", task=record.id, migration_id=entry.migration_id)
    tasks.take_up(record, work)
