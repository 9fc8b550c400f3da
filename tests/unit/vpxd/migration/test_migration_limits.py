"""Costs, order and waiting of migrations: limits hold whatever comes, nobody starves, priorities count."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.faults import InsufficientCpuResources, RequestCanceled
from vpxd.migration.limits.account import OVERTAKINGS, Waiting, in_order, place, startable, units_used
from vpxd.migration.limits.costs import Claim, Maxima, Resource, ResourceKind, Work, charges, maxima
from vpxd.migration.limits.cpu import CpuRoom
from vpxd.migration.limits.queue import MigrationLimits
from vpxd.migration.options import Priority
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

_HOSTS = [(f"host-{number}", f"esx0{number}") for number in range(1, 4)]
_STORES = [("ds-a", "fast"), ("ds-b", "slow")]
_PRIORITIES = [Priority.HIGH, Priority.DEFAULT, Priority.LOW]


def _claim(task: str, work: Work, priority: Priority = Priority.DEFAULT) -> Claim:
    return Claim(task, charges(work), priority)


def _task(name: str) -> Task:
    async def begin(_task: Task) -> None:
        raise AssertionError("not here")

    record = TaskRecord(
        name, "VirtualMachine.migrate", "vm-1", "web01", "admin", "op", datetime.now(UTC), True
    )
    return Task(record, begin)


def _units(work: Work, kind: ResourceKind) -> list[int]:
    return [charge.units for charge in charges(work) if charge.resource.kind is kind]


_H, _D, _N = ResourceKind.HOST, ResourceKind.DATASTORE, ResourceKind.NETWORK
_TWO, _ONE = tuple(_HOSTS[:2]), tuple(_HOSTS[:1])


@pytest.mark.parametrize(
    ("work", "host", "datastore", "network"),
    [
        (Work(True, _TWO, (), tuple(_STORES[:1])), [2, 2], [1], [1, 1]),
        (Work(True, _ONE, tuple(_STORES)), [8], [16, 16], []),
        (Work(True, _TWO, tuple(_STORES)), [8, 8], [16, 16], [1, 1]),
        (Work(True, _TWO, tuple(_STORES[:1]), tuple(_STORES)), [8, 8], [16, 1], [1, 1]),
        (Work(False, _TWO, tuple(_STORES)), [2, 2], [16, 16], [1, 1]),
        (Work(False, _ONE, tuple(_STORES)), [2], [16, 16], []),
        (Work(False, _TWO, (), tuple(_STORES[:1])), [2, 2], [1], []),
    ],
)
def test_costs_are_those_of_the_table(
    work: Work, host: list[int], datastore: list[int], network: list[int]
) -> None:
    assert (_units(work, _H), _units(work, _D), _units(work, _N)) == (host, datastore, network)


@pytest.mark.parametrize(
    ("work", "link_gbps", "at_once"),
    [
        (Work(True, _TWO), 10.0, 8),
        (Work(True, _TWO), 1.0, 4),
        (Work(True, _TWO), 9.9, 4),
        (Work(True, _ONE, tuple(_STORES)), 10.0, 2),
        (Work(True, _TWO, tuple(_STORES)), 1.0, 2),
        (Work(False, _TWO, tuple(_STORES)), 10.0, 8),
        (Work(False, _TWO), 1.0, 8),
    ],
)
def test_so_many_run_at_once(work: Work, link_gbps: float, at_once: int) -> None:
    waiting = [Waiting(_claim(f"task-{number}", work), number) for number in range(20)]
    assert len(startable([], waiting, maxima(link_gbps))) == at_once


_WORKS = st.builds(
    Work,
    live=st.booleans(),
    hosts=st.sampled_from([(one,) for one in _HOSTS] + [(a, b) for a in _HOSTS for b in _HOSTS if a != b]),
    copied=st.lists(st.sampled_from(_STORES), unique=True, max_size=2).map(tuple),
    touched=st.lists(st.sampled_from(_STORES), unique=True, max_size=2).map(tuple),
)
_COMINGS = st.tuples(_WORKS, st.sampled_from(_PRIORITIES))


class _Line:
    """All that random operations do, and what must hold after each of them."""

    def __init__(self, limits: MigrationLimits) -> None:
        self.limits = limits
        self.tasks: dict[str, Task] = {}
        self.claims: dict[str, Claim] = {}
        self.stacks: dict[str, AsyncExitStack] = {}
        self.started: list[str] = []
        self.workers: dict[str, asyncio.Task[None]] = {}

    async def come(self, work: Work, priority: Priority) -> None:
        name = f"task-{len(self.tasks)}"
        self.tasks[name], self.claims[name] = _task(name), _claim(name, work, priority)
        self.workers[name] = asyncio.ensure_future(self._wait(name))
        await self.settle()

    async def _wait(self, name: str) -> None:
        stack = AsyncExitStack()
        await stack.enter_async_context(self.limits.slot(self.tasks[name], self.claims[name]))
        self.started.append(name)
        self.stacks[name] = stack

    async def leave(self, index: int) -> None:
        if self.stacks:
            name = list(self.stacks)[index % len(self.stacks)]
            await self.stacks.pop(name).aclose()
        await self.settle()

    async def cancel(self, index: int) -> None:
        if self.waiting:
            name = self.waiting[index % len(self.waiting)]
            self.tasks[name].request_cancel()
            await asyncio.gather(self.workers[name], return_exceptions=True)
            assert isinstance(self.workers[name].exception(), RequestCanceled)
        await self.settle()

    async def settle(self) -> None:
        for _turn in range(6):
            await asyncio.sleep(0)

    @property
    def waiting(self) -> list[str]:
        return [name for name, worker in self.workers.items() if not worker.done()]

    def check(self) -> None:
        running = [self.claims[name] for name in self.stacks]
        for resource, used in units_used(running).items():
            assert used <= self.limits.maxima.of(resource), "a limit was exceeded"
        for name in self.waiting:
            record = self.tasks[name].record
            assert record.queue_position >= 1
            assert record.queue_reason
        for name in self.stacks:
            assert (self.tasks[name].record.queue_position, self.tasks[name].record.queue_reason) == (0, "")
        if self.waiting:
            assert running, "somebody waits although nothing runs"
            assert min(self.tasks[name].record.queue_position for name in self.waiting) == 1

    def overtakers(self, name: str, resource: Resource) -> int:
        """How many that came later started before it on this resource."""
        number = int(name.removeprefix("task-"))
        before = self.started[: self.started.index(name)] if name in self.started else self.started
        return sum(
            int(other.removeprefix("task-")) > number and resource in self.claims[other].resources
            for other in before
        )

    async def drain(self) -> None:
        while self.stacks:
            await self.leave(0)
            self.check()
        assert not self.waiting, "somebody starves"


def _run(work: Coroutine[object, object, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(work)


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), _COMINGS),
        st.tuples(st.just("leave"), st.integers(0, 99)),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
    ),
    max_size=40,
)


@given(_OPERATIONS, st.sampled_from([1.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_random_operations_exceed_no_limit_and_leave_nobody_waiting(
    operations: list[tuple[str, object]], link_gbps: float
) -> None:
    async def scenario() -> None:
        line = _Line(MigrationLimits(link_gbps))
        for kind, argument in operations:
            if kind == "come":
                assert isinstance(argument, tuple)
                await line.come(*argument)
            else:
                assert isinstance(argument, int)
                await (line.leave(argument) if kind == "leave" else line.cancel(argument))
            line.check()
        await line.drain()
        canceled = {name for name, task in line.tasks.items() if task.cancel_requested}
        assert set(line.started) == set(line.tasks) - canceled
        for name in line.started:
            for resource in line.claims[name].resources:
                assert line.overtakers(name, resource) <= 2 * OVERTAKINGS

    _run(scenario())


@given(st.lists(_COMINGS, max_size=15))
def test_priorities_go_first_and_equals_in_the_order_they_came(comings: list[tuple[Work, Priority]]) -> None:
    waiting = [
        Waiting(_claim(f"task-{number}", work, priority), number)
        for number, (work, priority) in enumerate(comings)
    ]
    order = in_order(waiting)
    assert [_PRIORITIES.index(one.claim.priority) for one in order] == sorted(
        _PRIORITIES.index(priority) for _work, priority in comings
    )
    chosen = startable([], waiting, Maxima())
    for index, one in enumerate(order):
        if one not in chosen:
            ahead = [other.claim for other in order[:index]]
            used = units_used(ahead)
            assert any(
                used[charge.resource] + charge.units > Maxima().of(charge.resource)
                for charge in one.claim.charges
            ), "it waits although nothing before it takes its places"
    assert not waiting or order[0] in chosen


async def test_low_priority_is_overtaken_by_a_bounded_number_of_those_that_come_later() -> None:
    line = _Line(MigrationLimits())
    storage = Work(True, _ONE, tuple(_STORES))
    await line.come(storage, Priority.HIGH)
    await line.come(storage, Priority.HIGH)
    await line.come(storage, Priority.LOW)
    for _round in range(3 * OVERTAKINGS):
        await line.come(storage, Priority.HIGH)
        await line.leave(0)
        line.check()
    host = Resource(ResourceKind.HOST, _ONE[0][0])
    assert "task-2" in line.started
    assert line.overtakers("task-2", host) == 2 * OVERTAKINGS
    await line.drain()


async def test_waiting_one_says_its_position_and_who_holds_what_it_needs() -> None:
    line = _Line(MigrationLimits())
    storage = Work(True, _ONE, tuple(_STORES[:1]))
    for _number in range(4):
        await line.come(storage, Priority.DEFAULT)
    third, fourth = line.tasks["task-2"].record, line.tasks["task-3"].record
    assert (third.queue_position, fourth.queue_position) == (1, 2)
    assert third.queue_reason == "the host esx01 has 0 of 16 units free, 8 are needed; held by task-0, task-1"
    await line.come(storage, Priority.HIGH)
    assert line.tasks["task-4"].record.queue_position == 1
    assert line.tasks["task-2"].record.queue_position == 2
    await line.leave(0)
    assert line.started[-1] == "task-4"
    assert line.tasks["task-2"].record.queue_reason.endswith("held by task-1, task-4")
    await line.drain()


def test_place_names_the_one_ahead_where_no_limit_is_full() -> None:
    wide = Waiting(_claim("task-1", Work(True, _TWO, tuple(_STORES))), 1)
    narrow = Waiting(_claim("task-2", Work(True, _ONE, tuple(_STORES))), 2)
    running = [_claim(f"task-{number}", Work(True, tuple(_HOSTS[1:2]), ())) for number in (8, 9)]
    where = place(narrow, running, [wide, narrow], Maxima())
    assert (where.position, where.reason) == (2, "task-1 is before it on the host esx01")


async def test_high_priority_reserves_cpu_on_both_hosts_or_is_refused() -> None:
    limits = MigrationLimits()
    rooms = (CpuRoom("host-1", "esx01", 4, 3), CpuRoom("host-2", "esx02", 4, 1, extra_vcpus=2))
    async with limits.cpu("task-1", rooms):
        with pytest.raises(InsufficientCpuResources) as caught:
            limits.require_cpu("task-2", rooms)
        assert (caught.value.requested_vcpus, caught.value.unreserved_vcpus) == (1, 0)
        assert "esx01" in caught.value.message
    async with limits.cpu("task-2", rooms):
        pass


async def test_resumed_migration_counts_whatever_the_limits_say() -> None:
    limits = MigrationLimits()
    storage = _claim("task-0", Work(True, _ONE, tuple(_STORES)))
    line = _Line(limits)
    async with AsyncExitStack() as resumed:
        for _number in range(3):
            await resumed.enter_async_context(limits.taken(storage))
        await line.come(Work(True, _ONE, tuple(_STORES)), Priority.HIGH)
        assert line.waiting == ["task-0"]
        assert "has 0 of 16 units free" in line.tasks["task-0"].record.queue_reason
    await line.settle()
    assert line.started == ["task-0"]
    await line.drain()
