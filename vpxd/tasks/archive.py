"""Tasks in the database: written at each change of state, not at each step of progress."""

from datetime import datetime

from sqlalchemy import delete, func, select

from proto.vim.v1 import fault_pb2
from runtime.faults import VimFault
from runtime.rpc.faults import fault_from_proto, fault_to_proto
from vpxd.inventory.database import Database
from vpxd.inventory.ids import Kind, id_of, number_of
from vpxd.inventory.model import CounterRow, TaskRow
from vpxd.inventory.rows import aware_utc, naive_utc
from vpxd.tasks.state import TaskRecord, TaskState

KEPT_TASKS = 10_000  # older ones are deleted at start
_ACTIVE = (TaskState.QUEUED.value, TaskState.RUNNING.value)
_ORIGIN = "vpxd"


class TaskArchive:
    """All tasks that were ever made, but for very old ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def new_id(self) -> str:
        """A task id that was never given out before."""
        async with self._database.write() as write:
            counter = await write.session.get(CounterRow, Kind.TASK.counter)
            if counter is None:
                counter = CounterRow(name=Kind.TASK.counter, last=0)
                write.session.add(counter)
            counter.last += 1
            return id_of(Kind.TASK, counter.last)

    async def save(self, record: TaskRecord) -> None:
        """Writes the record down, new or again."""
        async with self._database.write() as write:
            await write.session.merge(_row(record))

    async def get(self, task: str) -> TaskRecord | None:
        """A task by its id."""
        number = number_of(Kind.TASK, task)
        if number is None:
            return None
        async with self._database.read() as session:
            row = await session.get(TaskRow, number)
            return None if row is None else _record(row)

    async def newest(self, entity: str, active_only: bool, limit: int) -> list[TaskRecord]:
        """The newest `limit` tasks, of one entity where one is named, newest last."""
        query = select(TaskRow)
        if entity:
            query = query.where(TaskRow.entity == entity)
        if active_only:
            query = query.where(TaskRow.state.in_(_ACTIVE))
        async with self._database.read() as session:
            rows = await session.scalars(query.order_by(TaskRow.number.desc()).limit(limit))
            return [_record(row) for row in rows][::-1]

    async def unfinished(self) -> list[TaskRecord]:
        """The tasks that were queued or running when vpxd ended, oldest first."""
        async with self._database.read() as session:
            rows = await session.scalars(
                select(TaskRow).where(TaskRow.state.in_(_ACTIVE)).order_by(TaskRow.number)
            )
            return [_record(row) for row in rows]

    async def drop_old(self) -> None:
        """Deletes ended tasks older than the newest KEPT_TASKS."""
        async with self._database.write() as write:
            newest = await write.session.scalar(select(func.max(TaskRow.number))) or 0
            await write.session.execute(
                delete(TaskRow).where(TaskRow.number <= newest - KEPT_TASKS, TaskRow.state.not_in(_ACTIVE))
            )


def _row(record: TaskRecord) -> TaskRow:
    number = number_of(Kind.TASK, record.id)
    assert number is not None
    return TaskRow(
        number=number,
        operation=record.operation,
        entity=record.entity,
        entity_name=record.entity_name,
        user=record.user,
        operation_id=record.operation_id,
        state=record.state.value,
        progress_percent=record.progress_percent,
        description=record.description,
        cancel_requested=record.cancel_requested,
        queue_time=naive_utc(record.queue_time),
        start_time=_stored(record.start_time),
        complete_time=_stored(record.complete_time),
        error=b"" if record.error is None else fault_to_proto(record.error, _ORIGIN).SerializeToString(),
        result=record.result,
        migration=record.migration,
    )


def _record(row: TaskRow) -> TaskRecord:
    return TaskRecord(
        id=id_of(Kind.TASK, row.number),
        operation=row.operation,
        entity=row.entity,
        entity_name=row.entity_name,
        user=row.user,
        operation_id=row.operation_id,
        queue_time=aware_utc(row.queue_time),
        state=TaskState(row.state),
        progress_percent=row.progress_percent,
        description=row.description,
        cancel_requested=row.cancel_requested,
        start_time=_loaded(row.start_time),
        complete_time=_loaded(row.complete_time),
        error=_fault(row.error) if row.error else None,
        result=row.result,
        migration=row.migration,
    )


def _fault(serialized: bytes) -> VimFault:
    return fault_from_proto(fault_pb2.Fault.FromString(serialized))


def _stored(moment: datetime | None) -> datetime | None:
    return None if moment is None else naive_utc(moment)


def _loaded(moment: datetime | None) -> datetime | None:
    return None if moment is None else aware_utc(moment)
