"""The four ways of a migration between fake hosts: success, undoing, cancel, silent hosts, restarts, places in line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from proto.vim.v1 import host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime import faults
from tests.framework.fake_migration import FakeMigration, phases_of
from tests.framework.fake_vpxa import FakeVpxaHost
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig

_CONNECTED = host_pb2.HOST_CONNECTION_STATE_CONNECTED


@dataclass(frozen=True)
class _Way:
    """A VM on esx01, and what is asked of it."""

    name: str
    on: bool
    to_host: str
    to_datastore: str
    begun: str
    done: str
    failed: str
    networks: bool = False

    @property
    def between(self) -> bool:
        return bool(self.to_host)

    def spec(self) -> service_pb2.RelocateSpec:
        spec = service_pb2.RelocateSpec(host=self.to_host, datastore=self.to_datastore)
        if self.networks:
            spec.networks.add(from_network="lan", network="dmz")
        return spec


_HOT = ("VmBeingHotMigratedEvent", "VmMigratedEvent", "VmFailedMigrateEvent")
_FILES = ("VmBeingRelocatedEvent", "VmRelocatedEvent", "VmRelocateFailedEvent")
_HOST_ONLY = _Way("host", True, "esx02", "", *_HOT)
_BOTH = _Way("both", True, "esx02", "local", *_HOT, networks=True)
_WITHIN_ON = _Way("within-on", True, "", "local", *_FILES)
_WITHIN_OFF = _Way("within-off", False, "", "local", *_FILES)
_OFF_FILES = _Way("off-files", False, "esx02", "local", *_FILES, networks=True)
_REGISTER = _Way("register", False, "esx02", "", "VmBeingMigratedEvent", *_HOT[1:], networks=True)
_COPIES = [_HOST_ONLY, _BOTH, _WITHIN_ON, _WITHIN_OFF, _OFF_FILES]
_WAYS = [*_COPIES, _REGISTER]


def _names(ways: list[_Way]) -> list[str]:
    return [way.name for way in ways]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02") as running:
        for host in running.fakes.hosts.values():
            for segment, name in enumerate(("lan", "dmz"), start=1):
                host.info.port_groups.add(name=name, segment_id=segment)
            host.changed()
        await until(lambda: running.host("esx02"), lambda host: len(host.info.port_groups) == 2)
        await until(lambda: running.host("esx01"), lambda host: len(host.info.port_groups) == 2)
        yield running


async def _vm(rig: VpxdRig, way: _Way, name: str = "web01") -> inventory_pb2.Vm:
    rig.fakes.hosts["esx01"].put_vm(name, on=way.on, networks=["lan"], disks=1)
    listed = await until(
        lambda: rig.stub.ListVms(service_pb2.ListVmsRequest(name=name)), lambda answer: len(answer.vms) == 1
    )
    return listed.vms[0]


def _order(rig: VpxdRig, way: _Way, name: str = "web01", priority: int = 0) -> Awaitable[task_pb2.TaskInfo]:
    options = spec_pb2.MigrationOptions(priority=spec_pb2.Priority.ValueType(priority))
    return rig.stub.RelocateVm(service_pb2.RelocateVmRequest(vm=name, spec=way.spec(), options=options))


async def _by_hand(rig: VpxdRig, way: _Way) -> tuple[inventory_pb2.Vm, task_pb2.TaskInfo, FakeMigration]:
    rig.fakes.script = None
    vm = await _vm(rig, way)
    task = await _order(rig, way)
    return vm, task, await rig.fakes.migration_of("web01")


async def _reached(rig: VpxdRig, task: str, phase: int) -> None:
    await until(
        lambda: rig.stub.GetTask(service_pb2.GetTaskRequest(task=task)),
        lambda info: info.migration.phase == phase,
    )


def _destination(rig: VpxdRig, way: _Way) -> FakeVpxaHost:
    return rig.fakes.hosts[way.to_host or "esx01"]


async def _assert_moved(rig: VpxdRig, way: _Way, vm: inventory_pb2.Vm) -> None:
    moved = await rig.vm(vm.id)
    assert (moved.host_name, moved.locked_by, moved.power_state) == (
        way.to_host or "esx01",
        "",
        vm.power_state,
    )
    store = way.to_datastore or "shared"
    assert moved.home == f"[{store}] web01/web01.vmx"
    assert [disk.path for disk in moved.config.disks] == [f"[{store}] web01/disk0.vmdk"]
    assert [nic.network for nic in moved.config.nics] == ["dmz" if way.networks else "lan"]
    told = _destination(rig, way).vms[vm.config.uuid]
    assert (told.home, told.config) == (moved.home, moved.config)
    assert not told.HasField("lock")
    if way.between:
        assert vm.config.uuid not in rig.fakes.hosts["esx01"].vms
    assert len(rig.fakes.homes) == 1


async def _assert_unmoved(rig: VpxdRig, vm: inventory_pb2.Vm) -> None:
    present = await rig.vm(vm.id)
    assert (present.host_name, present.locked_by, present.home) == ("esx01", "", vm.home)
    assert [nic.network for nic in present.config.nics] == ["lan"]
    told = rig.fakes.hosts["esx01"].vms[vm.config.uuid]
    assert not told.HasField("lock")
    assert [nic.network for nic in told.config.nics] == ["lan"]
    assert vm.config.uuid not in rig.fakes.hosts["esx02"].vms
    assert len(rig.fakes.homes) == 1, "something was left at the destination"


@pytest.mark.parametrize("way", _WAYS, ids=_names(_WAYS))
async def test_every_way_moves_what_was_asked_and_nothing_else(rig: VpxdRig, way: _Way) -> None:
    vm = await _vm(rig, way)
    task = await rig.done(_order(rig, way))
    await _assert_moved(rig, way, vm)
    types = await rig.event_types(vm.id)
    assert types[-2:] == [way.begun, way.done]
    assert (task.queue_position, task.queue_reason) == (0, "")
    events = await rig.stub.ListEvents(service_pb2.ListEventsRequest(entity=vm.id, limit=100))
    text = events.events[-1].message
    assert "esx01" in text
    assert way.to_host in text
    assert f"[{way.to_datastore}]" in text or not way.to_datastore
    if way is _REGISTER:
        assert rig.fakes.migrations == {}
        return
    spec = rig.fakes.migrations[task.migration.migration_id].spec
    assert list(spec.moved_disks) == ([2000] if way.to_datastore else [])
    assert spec.HasField("destination_vm") == bool(way.to_datastore)
    assert spec.powered_off == (not way.on)
    assert bool(spec.destination_home) == bool(way.to_datastore)
    called = rig.fakes.hosts["esx01"].calls
    assert ("StartRelocation" in called) == (not way.between)
    assert ("StartSource" in called) == way.between


_STEPS = [
    (_HOST_ONLY, "esx02", "PrepareDestination", {"esx02"}),
    (_HOST_ONLY, "esx01", "StartSource", {"esx01", "esx02"}),
    (_BOTH, "esx02", "PrepareDestination", {"esx02"}),
    (_BOTH, "esx01", "StartSource", {"esx01", "esx02"}),
    (_OFF_FILES, "esx02", "PrepareDestination", {"esx02"}),
    (_OFF_FILES, "esx01", "StartSource", {"esx01", "esx02"}),
    (_WITHIN_ON, "esx01", "StartRelocation", {"esx01"}),
    (_WITHIN_OFF, "esx01", "StartRelocation", {"esx01"}),
    (_REGISTER, "esx01", "UnregisterVm", set()),
    (_REGISTER, "esx02", "RegisterVm", set()),
    (_REGISTER, "esx02", "ReconfigureVm", set()),
]


@pytest.mark.parametrize(
    ("way", "host", "rpc", "canceled"), _STEPS, ids=[f"{way.name}-{rpc}" for way, _host, rpc, _c in _STEPS]
)
async def test_refused_step_undoes_those_before_it(
    rig: VpxdRig, way: _Way, host: str, rpc: str, canceled: set[str]
) -> None:
    vm = await _vm(rig, way)
    refusing = rig.fakes.hosts[host]
    refusing.refuse[rpc] = faults.NoDiskSpace("full", datastore="local")
    with pytest.raises(faults.NoDiskSpace):
        await rig.done(_order(rig, way))
    await _assert_unmoved(rig, vm)
    assert (await rig.event_types(vm.id))[-1] == way.failed
    assert {name for name, each in rig.fakes.hosts.items() if "CancelMigration" in each.calls} == canceled
    refusing.refuse.clear()
    await rig.done(_order(rig, way))
    await _assert_moved(rig, way, vm)


@pytest.mark.parametrize("way", _COPIES, ids=_names(_COPIES))
async def test_failure_while_it_is_copied_leaves_nothing_at_the_destination(rig: VpxdRig, way: _Way) -> None:
    vm, task, migration = await _by_hand(rig, way)
    for phase in phases_of(migration.spec)[:2]:
        migration.move_to(phase)
    migration.fail(faults.NoDiskSpace("full", datastore="local"))
    last = await rig.end_of(task.id)
    assert last.error.type == faults.NoDiskSpace.fault_type
    await _assert_unmoved(rig, vm)


@pytest.mark.parametrize("way", _COPIES, ids=_names(_COPIES))
async def test_cancel_while_it_is_copied_leaves_nothing_at_the_destination(rig: VpxdRig, way: _Way) -> None:
    vm, task, migration = await _by_hand(rig, way)
    for phase in phases_of(migration.spec)[:2]:
        migration.move_to(phase)
    await _reached(rig, task.id, phase)
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    assert (await rig.end_of(task.id)).error.type == faults.RequestCanceled.fault_type
    await _assert_unmoved(rig, vm)


@pytest.mark.parametrize("way", _COPIES, ids=_names(_COPIES))
async def test_disks_are_told_while_they_are_copied(rig: VpxdRig, way: _Way) -> None:
    _vm_before, task, migration = await _by_hand(rig, way)
    phases = phases_of(migration.spec)
    assert (status_pb2.MIGRATION_PHASE_DISK_COPY in phases) == bool(way.to_datastore)
    for phase in phases[:2]:
        migration.move_to(phase)
    await _reached(rig, task.id, phase)
    info = await rig.stub.GetTask(service_pb2.GetTaskRequest(task=task.id))
    if way.to_datastore:
        assert info.description == "copying disk 2000: 32 of 64 MiB"
        assert 5 <= info.progress_percent < 70
    for phase in phases[2:]:
        migration.move_to(phase)
    assert (await rig.end_of(task.id)).state == task_pb2.TASK_STATE_SUCCESS


@pytest.mark.parametrize("done", [1, 2, 3, 4])
@pytest.mark.parametrize("way", _COPIES, ids=_names(_COPIES))
async def test_restart_of_vpxd_takes_every_way_up(rig: VpxdRig, way: _Way, done: int) -> None:
    vm, task, migration = await _by_hand(rig, way)
    phases = phases_of(migration.spec)
    for phase in phases[:done]:
        migration.move_to(phase)
    await _reached(rig, task.id, phase)
    await rig.restart()
    assert (await rig.vm("web01")).locked_by == task.id
    for phase in phases[done:]:
        migration.move_to(phase)
    last = await rig.end_of(task.id)
    assert last.state == task_pb2.TASK_STATE_SUCCESS, last.error
    await _assert_moved(rig, way, vm)
    assert (await rig.event_types(vm.id))[-1] == way.done


@pytest.mark.parametrize(
    ("way", "rpc"),
    [(_WITHIN_ON, "StartRelocation"), (_OFF_FILES, "PrepareDestination"), (_BOTH, "StartSource")],
)
async def test_restart_before_it_started_ends_the_task_and_frees_what_was_made(
    rig: VpxdRig, way: _Way, rpc: str
) -> None:
    vm = await _vm(rig, way)
    host = rig.fakes.hosts["esx02" if rpc == "PrepareDestination" else "esx01"]
    gate = host.hold[rpc] = asyncio.Event()
    task = await _order(rig, way)
    await rig.fakes.migration_of("web01", started=False)
    await rig.restart()
    gate.set()
    last = await rig.end_of(task.id)
    assert last.state == task_pb2.TASK_STATE_ERROR
    await _assert_unmoved(rig, vm)


@pytest.mark.parametrize("registered", [False, True])
async def test_restart_in_the_middle_of_a_registration(rig: VpxdRig, registered: bool) -> None:
    vm = await _vm(rig, _REGISTER)
    destination = rig.fakes.hosts["esx02"]
    gate = destination.hold["ReconfigureVm" if registered else "RegisterVm"] = asyncio.Event()
    task = await _order(rig, _REGISTER)

    async def calls() -> list[str]:
        return destination.calls

    await until(calls, lambda seen: ("ReconfigureVm" if registered else "RegisterVm") in seen)
    await rig.restart()
    destination.hold.clear()
    gate.set()
    last = await rig.end_of(task.id)
    if registered:
        assert last.state == task_pb2.TASK_STATE_SUCCESS
        await _assert_moved(rig, _REGISTER, vm)
    else:
        assert last.error.type == faults.InvalidState.fault_type
        await _assert_unmoved(rig, vm)


async def test_cancel_while_the_destination_is_frozen_ends_at_once_and_is_told_when_it_answers(
    rig: VpxdRig,
) -> None:
    vm = await _vm(rig, _BOTH)
    frozen = rig.fakes.hosts["esx02"]
    gates = [
        frozen.hold.setdefault(rpc, asyncio.Event()) for rpc in ("PrepareDestination", "CancelMigration")
    ]
    task = await _order(rig, _BOTH)
    migration = await rig.fakes.migration_of("web01", started=False)
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    async with asyncio.timeout(5.0):
        last = await rig.end_of(task.id)
    assert last.error.type == faults.RequestCanceled.fault_type
    assert (await rig.vm(vm.id)).locked_by == ""
    assert migration.canceled == set()
    await rig.restart()  # the order to tell it is kept
    frozen.hold.clear()
    for gate in gates:
        gate.set()

    async def canceled() -> set[str]:
        return migration.canceled

    await until(canceled, lambda hosts: hosts == {"esx02"})
    await until(lambda: rig.host("esx02"), lambda host: host.connection_state == _CONNECTED)
    await until(lambda: rig.host("esx01"), lambda host: host.connection_state == _CONNECTED)
    await rig.done(_order(rig, _BOTH))
    await _assert_moved(rig, _BOTH, vm)


async def test_cancel_that_the_source_does_not_answer_frees_the_destination_and_ends(rig: VpxdRig) -> None:
    vm, task, migration = await _by_hand(rig, _BOTH)
    migration.move_to(status_pb2.MIGRATION_PHASE_HANDSHAKE)
    await _reached(rig, task.id, status_pb2.MIGRATION_PHASE_HANDSHAKE)
    gate = rig.fakes.hosts["esx01"].hold["CancelMigration"] = asyncio.Event()
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    async with asyncio.timeout(5.0):
        last = await rig.end_of(task.id)
    assert last.error.type == faults.RequestCanceled.fault_type
    assert migration.canceled == {"esx02"}
    rig.fakes.hosts["esx01"].hold.clear()
    gate.set()

    async def canceled() -> set[str]:
        return migration.canceled

    await until(canceled, lambda hosts: hosts == {"esx01", "esx02"})
    await _assert_unmoved(rig, vm)


async def test_destination_that_is_silent_at_the_end_is_completed_later(rig: VpxdRig) -> None:
    vm, task, migration = await _by_hand(rig, _OFF_FILES)
    gate = rig.fakes.hosts["esx02"].hold["CompleteMigration"] = asyncio.Event()
    rig.fakes.hosts["esx02"].refuse["CompleteMigration"] = faults.HostNotReachable("gone", host="esx02")
    gate.set()
    for phase in phases_of(migration.spec):
        migration.move_to(phase)
    assert (await rig.end_of(task.id)).state == task_pb2.TASK_STATE_SUCCESS
    moved = await rig.vm(vm.id)
    assert (moved.host_name, moved.home) == ("esx02", "[local] web01/web01.vmx")
    assert migration.completed == {"esx01"}
    rig.fakes.hosts["esx02"].refuse.clear()

    async def completed() -> set[str]:
        return migration.completed

    await until(completed, lambda hosts: hosts == {"esx01", "esx02"})


async def test_third_storage_migration_of_a_host_waits_in_line_by_priority(rig: VpxdRig) -> None:
    rig.fakes.script = None
    for number in range(5):
        await _vm(rig, _WITHIN_ON, f"web0{number}")
    tasks = [
        await _order(rig, _WITHIN_ON, f"web0{number}", priority)
        for number, priority in enumerate((0, 0, 0, spec_pb2.PRIORITY_LOW, spec_pb2.PRIORITY_HIGH))
    ]
    first = await rig.fakes.migration_of("web00")

    async def waiting(index: int, position: int) -> task_pb2.TaskInfo:
        return await until(
            lambda: rig.stub.GetTask(service_pb2.GetTaskRequest(task=tasks[index].id)),
            lambda info: info.queue_position == position,
        )

    assert (await waiting(2, 2)).state == task_pb2.TASK_STATE_QUEUED
    await waiting(3, 3)
    high = await waiting(4, 1)
    assert high.queue_reason == (
        f"the host esx01 has 0 of 16 units free, 8 are needed; held by {tasks[0].id}, {tasks[1].id}"
    )
    assert "number 1 in line" in high.description
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=tasks[2].id))
    canceled = await rig.end_of(tasks[2].id)
    assert canceled.error.type == faults.RequestCanceled.fault_type
    assert (canceled.queue_position, canceled.HasField("start_time")) == (0, False)
    await waiting(3, 2)
    for phase in phases_of(first.spec):
        first.move_to(phase)
    fifth = await rig.fakes.migration_of("web04")
    await waiting(3, 1)
    second = await rig.fakes.migration_of("web01")
    for migration in (second, fifth):
        for phase in phases_of(migration.spec):
            migration.move_to(phase)
    fourth = await rig.fakes.migration_of("web03")
    for phase in phases_of(fourth.spec):
        fourth.move_to(phase)
    for index in (0, 1, 3, 4):
        assert (await rig.end_of(tasks[index].id)).state == task_pb2.TASK_STATE_SUCCESS


async def test_resumed_migrations_are_charged_again(rig: VpxdRig) -> None:
    rig.fakes.script = None
    for number in range(3):
        await _vm(rig, _WITHIN_ON, f"web0{number}")
    tasks = [await _order(rig, _WITHIN_ON, f"web0{number}") for number in range(2)]
    moving = [await rig.fakes.migration_of(f"web0{number}") for number in range(2)]
    await rig.restart()
    await until(lambda: rig.host("esx01"), lambda host: host.connection_state == _CONNECTED)
    third = await _order(rig, _WITHIN_ON, "web02")
    waiting = await until(
        lambda: rig.stub.GetTask(service_pb2.GetTaskRequest(task=third.id)),
        lambda info: info.queue_position == 1,
    )
    assert all(task.id in waiting.queue_reason for task in tasks)
    for migration in moving:
        for phase in phases_of(migration.spec):
            migration.move_to(phase)
    last = await rig.fakes.migration_of("web02")
    for phase in phases_of(last.spec):
        last.move_to(phase)
    assert (await rig.end_of(third.id)).state == task_pb2.TASK_STATE_SUCCESS


async def test_high_priority_is_not_started_where_no_cpu_can_be_reserved(rig: VpxdRig) -> None:
    vm = await _vm(rig, _HOST_ONLY)
    rig.fakes.hosts["esx02"].info.vcpu_capacity = 1
    rig.fakes.hosts["esx02"].changed()
    await until(lambda: rig.host("esx02"), lambda host: host.info.vcpu_capacity == 1)
    with pytest.raises(faults.InsufficientCpuResources):
        await rig.done(_order(rig, _HOST_ONLY, priority=spec_pb2.PRIORITY_HIGH))
    assert rig.fakes.migrations == {}
    await rig.done(_order(rig, _HOST_ONLY))
    await _assert_moved(rig, _HOST_ONLY, vm)
