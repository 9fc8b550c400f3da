"""The task's record: legal moves only, progress never back."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.faults import InvalidState, NotSupported, PastPointOfNoReturn, RequestCanceled
from vpxd.tasks.state import LEGAL_MOVES, IllegalTaskMove, TaskRecord, TaskState
from vpxd.tasks.task import Task

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_FAULT = InvalidState("no")


def _record(**fields: object) -> TaskRecord:
    return TaskRecord("task-1", "VirtualMachine.powerOn", "vm-1", "web01", "admin", "op", _NOW, **fields)  # type: ignore[arg-type]


def _task(**fields: object) -> Task:
    async def begin(task: Task) -> None:
        task.publish(task.record.started(_NOW))

    return Task(_record(**fields), begin)


_MOVES = st.one_of(
    st.just(("started",)),
    st.just(("succeeded",)),
    st.just(("failed",)),
    st.tuples(st.just("advanced"), st.integers(-10, 200)),
    st.just(("cancel",)),
)


@given(st.lists(_MOVES, max_size=30))
def test_any_sequence_of_moves_keeps_to_the_table_and_progress_rises(moves: list[tuple[object, ...]]) -> None:
    record = _record()
    for move in moves:
        before = record
        try:
            match move:
                case ("started",):
                    record = record.started(_NOW)
                case ("succeeded",):
                    record = record.succeeded(_NOW, "vm-1")
                case ("failed",):
                    record = record.failed(_NOW, _FAULT)
                case ("advanced", int(percent)):
                    record = record.advanced(percent)
                case _:
                    record = record.with_cancel_requested()
        except IllegalTaskMove:
            assert record == before
        assert record.state is before.state or record.state in LEGAL_MOVES[before.state]
        assert record.progress_percent >= before.progress_percent
        assert (record.progress_percent == 100) == (record.state is TaskState.SUCCESS)
        if before.ended:
            assert record == before


def test_every_state_has_its_row_and_every_path_ends() -> None:
    assert set(LEGAL_MOVES) == set(TaskState)
    assert {state for state, moves in LEGAL_MOVES.items() if not moves} == {
        TaskState.SUCCESS,
        TaskState.ERROR,
    }


def test_canceled_queued_task_ends_without_a_start_time() -> None:
    ended = _record().failed(_NOW, _FAULT)
    assert (ended.state, ended.start_time, ended.error) == (TaskState.ERROR, None, _FAULT)


async def test_slow_watcher_misses_steps_but_never_the_last_state() -> None:
    task = _task()
    await task.begin()
    seen = []
    async for record in task.watch():
        seen.append((record.state, record.progress_percent))
        if len(seen) == 1:
            for percent in range(1, 90):
                task.advance(percent)
        if len(seen) == 2:
            task.publish(task.record.succeeded(_NOW, ""))
    assert seen == [(TaskState.RUNNING, 0), (TaskState.RUNNING, 89), (TaskState.SUCCESS, 100)]


async def test_many_watchers_all_see_the_end() -> None:
    task = _task()
    await task.begin()

    async def last() -> TaskState:
        return [record.state async for record in task.watch()][-1]

    watchers = [asyncio.ensure_future(last()) for _ in range(20)]
    await asyncio.sleep(0)
    task.publish(task.record.failed(_NOW, _FAULT))
    assert await asyncio.gather(*watchers) == [TaskState.ERROR] * 20


async def test_cancel_is_idempotent_and_refused_where_it_can_not_be() -> None:
    with pytest.raises(NotSupported):
        _task().request_cancel()
    task = _task(cancelable=True)
    task.request_cancel()
    task.request_cancel()
    assert task.record.cancel_requested
    late = _task(cancelable=True)
    late.pass_point_of_no_return()
    with pytest.raises(PastPointOfNoReturn):
        late.request_cancel()


async def test_cancel_ends_work_under_way_and_awaits_it() -> None:
    task, ended = _task(cancelable=True), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    waiting = asyncio.ensure_future(task.unless_canceled(work(), "prepare"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.request_cancel()
    with pytest.raises(RequestCanceled) as caught:
        await waiting
    assert (ended, caught.value.phase) == ([True], "prepare")
