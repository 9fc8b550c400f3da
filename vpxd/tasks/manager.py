"""The task manager: makes tasks, runs their work, tells their end.

    submit -> locks taken, id given, record written -> answered to the client
           -> the work runs in the manager's task group -> end written -> locks let go -> end told to watchers

A client that has seen the end of a task can order the next thing at once: the locks are free by then. When vpxd
stops, work that isn't done within the grace is cut off and its record stays as it is: the next start takes it
up (vpxd/tasks/recovery.py).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from runtime.faults import HostNotReachable, ManagedObjectNotFound, RequestFault, SystemFault, VimFault
from runtime.rpc.operation_id import current_operation_id, new_operation_id, use_operation_id
from vpxd.inventory.vm_lock import EntityLocks, Holder
from vpxd.tasks.archive import TaskArchive
from vpxd.tasks.state import TaskRecord, TaskState
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)

Work = Callable[[Task], Awaitable[str]]


@dataclass(frozen=True)
class TaskSpec:
    """A task to be made. `exclusive` and `shared` are the keys of its locks; `user` asked for it.

    `begins_itself`: the work calls `Task.begin` when it stops waiting; until then the task is queued.
    """

    operation: str
    entity: str
    entity_name: str
    user: str
    exclusive: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    cancelable: bool = False
    begins_itself: bool = False


class TaskManager:
    """All tasks under way. Use as `async with manager.running():` around the daemon's life."""

    def __init__(self, archive: TaskArchive, locks: EntityLocks) -> None:
        self.archive = archive
        self.locks = locks
        self._active: dict[str, Task] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self, grace_s: float) -> AsyncIterator[None]:
        """Work can be submitted inside. At the end running work has `grace_s` to end by itself, then it is cut off."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                if self._workers:
                    await asyncio.wait(self._workers, timeout=grace_s)
                for worker in self._workers:
                    worker.cancel()

    async def submit(self, spec: TaskSpec, work: Work) -> TaskRecord:
        """Makes the task and starts its work, whose answer is the task's result.

        :raises TaskInProgress: a lock that it needs is held.
        :raises RequestFault: vpxd is stopping.
        """
        if self._group is None:
            raise RequestFault("vpxd is stopping and takes no new tasks")
        task_id = await self.archive.new_id()
        holder = Holder(task_id, spec.operation)
        self.locks.acquire(holder, spec.exclusive, spec.shared, spec.entity_name or spec.entity)
        record = TaskRecord(
            id=task_id,
            operation=spec.operation,
            entity=spec.entity,
            entity_name=spec.entity_name,
            user=spec.user,
            operation_id=current_operation_id() or new_operation_id(),
            queue_time=_now(),
            cancelable=spec.cancelable,
        )
        try:
            await self.archive.save(record)
        except BaseException:
            self.locks.release(task_id)
            raise
        self._start(Task(record, self._begin), work, begins_itself=spec.begins_itself)
        return record

    def take_up(self, record: TaskRecord, work: Work) -> None:
        """Goes on with a task of an earlier life of vpxd; the caller has taken its locks again."""
        self._start(Task(record, self._begin), work, begins_itself=True)

    async def end_interrupted(self, record: TaskRecord, error: VimFault) -> None:
        """Ends a task of an earlier life of vpxd that can't be taken up."""
        await self.archive.save(record.failed(_now(), error))

    async def get(self, task: str) -> TaskRecord:
        """A task now. :raises ManagedObjectNotFound: there is none."""
        active = self._active.get(task)
        if active is not None:
            return active.record
        record = await self.archive.get(task)
        if record is None:
            raise ManagedObjectNotFound(f"there is no task {task[:80]!r}", kind="task", key=task[:80])
        return record

    async def newest(self, entity: str, active_only: bool, limit: int) -> list[TaskRecord]:
        """The newest tasks, newest last, with the present progress of those under way."""
        records = await self.archive.newest(entity, active_only, limit)
        return [self._active[record.id].record if record.id in self._active else record for record in records]

    async def watch(self, task: str) -> AsyncGenerator[TaskRecord, None]:
        """A task now, at changes, and at its end. :raises ManagedObjectNotFound: there is none."""
        active = self._active.get(task)
        if active is None:
            yield await self.get(task)
            return
        async for record in active.watch():
            yield record

    async def cancel(self, task: str) -> TaskRecord:
        """Asks a task to stop; one that has ended stays as it is.

        :raises ManagedObjectNotFound: :raises NotSupported: :raises PastPointOfNoReturn: as `Task.request_cancel`.
        """
        active = self._active.get(task)
        if active is None:
            return await self.get(task)
        active.request_cancel()
        return active.record

    def _start(self, task: Task, work: Work, *, begins_itself: bool) -> None:
        assert self._group is not None
        self._active[task.id] = task
        worker = self._group.create_task(self._run(task, work, begins_itself), name=task.id)
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _begin(self, task: Task) -> None:
        now = _now()
        await self.archive.save(task.record.started(now))
        task.publish(task.record.started(now))  # anew: a cancel may have come meanwhile

    async def _run(self, task: Task, work: Work, begins_itself: bool) -> None:
        use_operation_id(task.record.operation_id)
        structlog.contextvars.bind_contextvars(task=task.id)
        log = _log.bind(operation=task.record.operation, entity=task.record.entity)
        log.info("task_begin")
        try:
            if not begins_itself:
                await self._begin(task)
            result = await work(task)
            ended = task.record.succeeded(_now(), result)
        except asyncio.CancelledError as error:
            worker = asyncio.current_task()
            if worker is not None and worker.cancelling():
                # vpxd stops: the record stays, the next start takes the task up.
                log.warning("task_cut_off")
                raise
            # A call that was canceled under the work: its channel was closed, because its host was removed.
            fault = HostNotReachable("the connection to the host was closed")
            fault.__cause__ = error
            ended = task.record.failed(_now(), fault)
        except VimFault as fault:
            log.info("task_failed", fault=type(fault).__name__, reason=fault.message)
            ended = task.record.failed(_now(), fault)
        except Exception as error:
            log.error("task_defect", exc_info=error)
            text = "a defect in vpxd; its log says more under the operation id"
            ended = task.record.failed(_now(), SystemFault(text, operation_id=task.record.operation_id))
        await self._end(task, ended)
        log.info("task_end", state=ended.state.value, duration_ms=_duration_ms(ended))

    async def _end(self, task: Task, ended: TaskRecord) -> None:
        try:
            await self.archive.save(ended)
        except SQLAlchemyError as error:
            # The work is done and its caller waits; after a restart the task will be ended as interrupted.
            _log.error("task_end_not_written", exc_info=error)
        finally:
            self.locks.release(task.id)
            task.publish(ended)
            self._active.pop(task.id, None)


def _now() -> datetime:
    return datetime.now(UTC)


def _duration_ms(record: TaskRecord) -> float:
    if record.start_time is None or record.complete_time is None or record.state is TaskState.QUEUED:
        return 0.0
    return (record.complete_time - record.start_time).total_seconds() * 1000.0
