"""Migrations between fake hosts: success, failure, cancel in each phase, lost connections, restarts of vpxd."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxd.v1 import service_pb2
from runtime import faults
from tests.framework.fake_cluster import GIB
from tests.framework.fake_migration import PHASES_TO_SUCCESS, FakeMigration
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig

_ALL_PHASES = set(status_pb2.MigrationPhase.values())
_ENDS = {
    status_pb2.MIGRATION_PHASE_UNSPECIFIED,
    status_pb2.MIGRATION_PHASE_SUCCEEDED,
    status_pb2.MIGRATION_PHASE_FAILED,
}
_TOO_LATE = sorted(
    phase
    for phase in _ALL_PHASES - _ENDS
    if status_pb2.MIGRATION_PHASE_SWITCHOVER <= phase < status_pb2.MIGRATION_PHASE_SUCCEEDED
)
_CANCELABLE = sorted(_ALL_PHASES - _ENDS - set(_TOO_LATE))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02", "esx03") as running:
        yield running


async def _by_hand(rig: VpxdRig, name: str = "web01") -> tuple[task_pb2.TaskInfo, FakeMigration]:
    """A migration of a running VM esx01 -> esx02 that stands in PREPARE until the test moves it."""
    rig.fakes.script = None
    vm = await rig.running(name, "esx01")
    task = await rig.migrate(vm.id, "esx02")
    return task, await rig.fakes.migration_of(name)


async def _phase_reached(rig: VpxdRig, task: str, phase: int) -> task_pb2.TaskInfo:
    return await until(
        lambda: rig.stub.GetTask(service_pb2.GetTaskRequest(task=task)),
        lambda info: info.migration.phase >= phase,
    )


async def test_live_migration_moves_the_vm_and_keeps_its_tables(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")
    task = await rig.done(rig.migrate("web01", "esx02"))
    moved = await rig.vm(vm.id)
    assert (moved.host_name, moved.locked_by, moved.power_state) == ("esx02", "", vm.power_state)
    assert (task.result, task.progress_percent) == (vm.id, 100)
    assert task.migration.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    assert task.migration.total_ms > 0
    migration = rig.fakes.migrations[task.migration.migration_id]
    assert migration.completed == {"esx01", "esx02"}
    spec = migration.spec
    assert len(spec.key) == 32
    assert (spec.task_id, spec.vm_id, spec.vm_home) == (task.id, vm.id, vm.home)
    assert spec.home_datastore_uuid == rig.fakes.shared.uuid
    assert (spec.source.vmotion_address, spec.destination.vmotion_address) == ("127.0.2.1", "127.0.2.2")
    assert (await rig.event_types(vm.id))[-2:] == ["VmBeingHotMigratedEvent", "VmMigratedEvent"]
    await rig.restart()
    again = await rig.stub.GetTask(service_pb2.GetTaskRequest(task=task.id))
    assert again.migration == task.migration


async def test_migration_without_a_host_goes_to_the_emptier_one_and_back(rig: VpxdRig) -> None:
    await rig.running("other", "esx02")
    vm = await rig.running("web01", "esx01")
    await until(lambda: rig.host("esx02"), lambda host: host.usage.memory_reserved_bytes > 0)
    await rig.done(rig.migrate(vm.id))
    assert (await rig.vm(vm.id)).host_name == "esx03"
    events = await rig.stub.ListEvents(service_pb2.ListEventsRequest(entity=vm.id, limit=1000))
    begun = [event.message for event in events.events if event.type == "VmBeingHotMigratedEvent"]
    assert "stay unreserved" in begun[0]
    await rig.done(rig.migrate(vm.id, "esx01"))
    assert (await rig.vm(vm.id)).host_name == "esx01"


async def test_cold_migration_moves_the_registration_only(rig: VpxdRig) -> None:
    vm = await rig.create("web01", "esx01")
    await rig.done(rig.migrate("web01", "esx02"))
    assert (await rig.vm(vm.id)).host_name == "esx02"
    assert rig.fakes.migrations == {}
    assert (await rig.event_types(vm.id))[-2:] == ["VmBeingMigratedEvent", "VmMigratedEvent"]


async def test_cold_migration_that_the_destination_refuses_leaves_the_vm_registered_at_the_source(
    rig: VpxdRig,
) -> None:
    vm = await rig.create("web01", "esx01")
    rig.fakes.hosts["esx02"].refuse["RegisterVm"] = faults.FileLocked("locked", path=vm.home, owner="x")
    with pytest.raises(faults.FileLocked):
        await rig.done(rig.migrate("web01", "esx02"))
    assert vm.config.uuid in rig.fakes.hosts["esx01"].vms
    assert (await rig.vm(vm.id)).host_name == "esx01"
    rig.fakes.hosts["esx02"].refuse.clear()
    await rig.done(rig.migrate("web01", "esx02"))


@pytest.mark.parametrize("rpc", ["PrepareDestination", "StartSource"])
async def test_refused_step_is_undone_and_the_next_try_works(rig: VpxdRig, rpc: str) -> None:
    vm = await rig.running("web01", "esx01")
    host = rig.fakes.hosts["esx02" if rpc == "PrepareDestination" else "esx01"]
    host.refuse[rpc] = faults.GuestStartFailed("no QEMU", reason="missing")
    with pytest.raises(faults.GuestStartFailed):
        await rig.done(rig.migrate("web01", "esx02"))
    assert "CancelMigration" in rig.fakes.hosts["esx02"].calls
    assert ("CancelMigration" in rig.fakes.hosts["esx01"].calls) == (rpc == "StartSource")
    assert (await rig.event_types(vm.id))[-1] == "VmFailedMigrateEvent"
    host.refuse.clear()
    await rig.done(rig.migrate("web01", "esx02"))


async def test_failure_on_the_way_is_the_tasks_error_with_its_origin(rig: VpxdRig) -> None:
    task, migration = await _by_hand(rig)
    migration.move_to(status_pb2.MIGRATION_PHASE_PRE_COPY)
    migration.fail(faults.ProgressStalled("too many dirty pages", iteration=7, dirty_pages=99))
    last = await rig.end_of(task.id)
    assert last.error.type == faults.ProgressStalled.fault_type
    assert last.error.origin == "vmx@esx01"
    assert last.error.details["iteration"] == "7"
    assert last.migration.failure == "too many dirty pages"
    assert migration.canceled == {"esx01", "esx02"}
    assert (await rig.vm("web01")).host_name == "esx01"
    rig.fakes.script = PHASES_TO_SUCCESS
    await rig.done(rig.migrate("web01", "esx02"))


@pytest.mark.parametrize("phase", _CANCELABLE, ids=status_pb2.MigrationPhase.Name)
async def test_cancel_before_the_hand_over_leaves_the_vm_and_frees_the_destination(
    rig: VpxdRig, phase: "status_pb2.MigrationPhase.ValueType"
) -> None:
    task, migration = await _by_hand(rig)
    migration.move_to(phase)
    await _phase_reached(rig, task.id, phase)
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    last = await rig.end_of(task.id)
    assert last.error.type == faults.RequestCanceled.fault_type
    assert last.cancel_requested
    assert migration.canceled == {"esx01", "esx02"}
    vm = await rig.vm("web01")
    assert (vm.host_name, vm.locked_by) == ("esx01", "")
    rig.fakes.script = PHASES_TO_SUCCESS
    await rig.done(rig.migrate("web01", "esx03"))


@pytest.mark.parametrize("phase", _TOO_LATE, ids=status_pb2.MigrationPhase.Name)
async def test_cancel_after_the_hand_over_is_refused_and_the_migration_succeeds(
    rig: VpxdRig, phase: "status_pb2.MigrationPhase.ValueType"
) -> None:
    task, migration = await _by_hand(rig)
    migration.move_to(status_pb2.MIGRATION_PHASE_SWITCHOVER)
    migration.move_to(phase)
    await _phase_reached(rig, task.id, phase)
    fault = await rig.fault(rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id)))
    assert isinstance(fault, faults.PastPointOfNoReturn)
    migration.move_to(status_pb2.MIGRATION_PHASE_SUCCEEDED)
    assert (await rig.end_of(task.id)).state == task_pb2.TASK_STATE_SUCCESS


async def test_cancel_while_the_destination_prepares(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")
    gate = rig.fakes.hosts["esx02"].hold["PrepareDestination"] = asyncio.Event()
    task = await rig.migrate(vm.id, "esx02")
    await rig.fakes.migration_of("web01", started=False)
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    assert (await rig.end_of(task.id)).error.type == faults.RequestCanceled.fault_type
    assert "StartSource" not in rig.fakes.hosts["esx01"].calls
    gate.set()


@pytest.mark.parametrize("host", ["esx01", "esx02"])
async def test_vpxa_lost_in_the_middle_and_back_is_taken_up_again(rig: VpxdRig, host: str) -> None:
    task, migration = await _by_hand(rig)
    migration.move_to(status_pb2.MIGRATION_PHASE_PRE_COPY)
    await _phase_reached(rig, task.id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    await rig.fakes.hosts[host].stop()
    await asyncio.sleep(0.2)
    await rig.fakes.hosts[host].start()
    for phase in PHASES_TO_SUCCESS[2:]:
        migration.move_to(phase)
    assert (await rig.end_of(task.id)).state == task_pb2.TASK_STATE_SUCCESS
    assert (await rig.vm("web01")).host_name == "esx02"


async def test_source_that_stays_away_after_the_hand_over_is_decided_by_the_owner_record(
    rig: VpxdRig,
) -> None:
    task, migration = await _by_hand(rig)
    await _phase_reached(rig, task.id, status_pb2.MIGRATION_PHASE_PREPARE)
    await rig.fakes.hosts["esx01"].stop()
    for phase in PHASES_TO_SUCCESS:
        migration.move_to(phase)
    assert (await rig.end_of(task.id)).state == task_pb2.TASK_STATE_SUCCESS
    assert (await rig.vm("web01")).host_name == "esx02"
    assert migration.completed == {"esx02"}
    await rig.restart()
    await rig.fakes.hosts["esx01"].start()

    async def completed() -> set[str]:
        return migration.completed

    await until(completed, lambda hosts: "esx01" in hosts)


async def test_doubt_that_nothing_dispels_ends_in_a_typed_fault(rig: VpxdRig) -> None:
    task, _migration = await _by_hand(rig)
    await _phase_reached(rig, task.id, status_pb2.MIGRATION_PHASE_PREPARE)
    await rig.fakes.hosts["esx01"].stop()
    last = await rig.end_of(task.id)
    assert last.error.type == faults.TimedOut.fault_type
    assert (await rig.vm("web01")).host_name == "esx01"


@pytest.mark.parametrize("phase", [*_CANCELABLE, *_TOO_LATE], ids=status_pb2.MigrationPhase.Name)
async def test_restart_of_vpxd_takes_a_migration_up_in_any_phase(
    rig: VpxdRig, phase: "status_pb2.MigrationPhase.ValueType"
) -> None:
    task, migration = await _by_hand(rig)
    way = (PHASES_TO_SUCCESS[0], status_pb2.MIGRATION_PHASE_DISK_COPY, *PHASES_TO_SUCCESS[1:])
    for step in way[: way.index(phase) + 1] if phase in way else ():
        migration.move_to(step)
    await _phase_reached(rig, task.id, phase)
    await rig.restart()
    vm = await rig.vm("web01")
    assert vm.locked_by == task.id
    fault = await rig.fault(rig.migrate("web01", "esx03"))
    assert isinstance(fault, faults.TaskInProgress | faults.HostNotConnected)
    for step in PHASES_TO_SUCCESS:
        migration.move_to(step)
    last = await rig.end_of(task.id)
    assert last.state == task_pb2.TASK_STATE_SUCCESS
    assert last.migration.total_ms > 0
    assert (await rig.vm("web01")).host_name == "esx02"


async def test_restart_before_the_source_started_ends_the_task_and_frees_the_destination(
    rig: VpxdRig,
) -> None:
    vm = await rig.running("web01", "esx01")
    gate = rig.fakes.hosts["esx02"].hold["PrepareDestination"] = asyncio.Event()
    task = await rig.migrate(vm.id, "esx02")
    migration = await rig.fakes.migration_of("web01", started=False)
    await rig.restart()
    gate.set()
    last = await rig.end_of(task.id)
    assert last.state == task_pb2.TASK_STATE_ERROR
    assert "esx02" in migration.canceled
    await until(lambda: rig.host("esx01"), lambda host: host.connection_state == 1)
    await until(lambda: rig.host("esx02"), lambda host: host.connection_state == 1)
    await rig.done(rig.migrate("web01", "esx02"))


async def test_power_task_cut_off_by_a_restart_says_so(rig: VpxdRig) -> None:
    vm = await rig.create("web01", "esx01")
    rig.fakes.hosts["esx01"].hold["PowerOnVm"] = asyncio.Event()
    task = await rig.stub.PowerOnVm(service_pb2.VmOperationRequest(vm=vm.id))
    await rig.restart()
    last = await rig.end_of(task.id)
    assert last.error.type == faults.InvalidState.fault_type
    assert "restarted" in last.error.message
    rig.fakes.hosts["esx01"].hold.clear()
    await until(lambda: rig.host("esx01"), lambda host: host.connection_state == 1)
    await rig.done(rig.stub.PowerOnVm(service_pb2.VmOperationRequest(vm=vm.id)))


async def test_bad_migrations_are_refused_at_once_and_nothing_changes(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")

    async def refused(name: str, host: str, **options: object) -> faults.VimFault:
        wanted = spec_pb2.MigrationOptions(**options)  # type: ignore[arg-type]
        request = service_pb2.MigrateVmRequest(vm=name, host=host, options=wanted)
        return await rig.fault(rig.stub.MigrateVm(request))

    assert isinstance(await refused("nobody", "esx02"), faults.ManagedObjectNotFound)
    assert isinstance(await refused("web01", "esx99"), faults.ManagedObjectNotFound)
    same = await refused("web01", "esx01")
    assert isinstance(same, faults.InvalidArgument)
    assert same.argument == "host"
    assert isinstance(await refused("web01", "esx02", streams=1000), faults.InvalidArgument)
    assert isinstance(await refused("web01", "esx02", tracer="magic"), faults.InvalidArgument)
    assert isinstance(await refused("web01", "esx02", verify=17), faults.InvalidArgument)
    assert isinstance(await refused("web01", "esx02", network_timeout_s=float("nan")), faults.InvalidArgument)
    await rig.fakes.hosts["esx02"].stop()
    await until(lambda: rig.host("esx02"), lambda host: host.connection_state == 2)
    assert isinstance(await refused("web01", "esx02"), faults.HostNotConnected)
    assert rig.fakes.migrations == {}
    assert (await rig.vm(vm.id)).locked_by == ""


async def test_incompatible_destination_is_found_before_anything_starts(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")
    host = rig.fakes.hosts["esx02"]
    del host.info.datastores[0]
    host.info.memory_bytes = GIB // 2
    host.info.vmotion_address = ""
    host.info.capability.machine_types[:] = ["pc-q35-7.1"]
    host.changed()
    await until(lambda: rig.host("esx02"), lambda seen: not seen.info.vmotion_address)
    answer = await rig.stub.CheckMigrate(service_pb2.CheckMigrateRequest(vm=vm.id))
    by_name = {entry.host_name: entry.findings for entry in answer.hosts}
    assert list(by_name) == ["esx02", "esx03"]
    assert not by_name["esx03"]
    assert {finding.fault.type for finding in by_name["esx02"]} == {
        faults.InaccessibleDatastore.fault_type,
        faults.VirtualHardwareVersionNotSupported.fault_type,
        faults.InsufficientMemoryResources.fault_type,
        faults.VMotionNotConfigured.fault_type,
    }
    assert all(finding.remedy and finding.error for finding in by_name["esx02"])
    with pytest.raises(faults.InaccessibleDatastore):
        await rig.done(rig.migrate(vm.id, "esx02"))
    assert rig.fakes.migrations == {}
    await rig.fakes.hosts["esx03"].stop()
    await until(lambda: rig.host("esx03"), lambda seen: seen.connection_state == 2)
    with pytest.raises(faults.NoCompatibleHost) as caught:
        await rig.done(rig.migrate(vm.id))
    assert "esx02:" in caught.value.reasons
    assert "esx03:" in caught.value.reasons
