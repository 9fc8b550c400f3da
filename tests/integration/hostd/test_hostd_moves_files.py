"""Two real hostds with the real vmx and QEMU: a VM's files move with its guest or without, and none is left."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostd.host.process import identify
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.ondisk import owner_record
from tests.framework.hostd_process import MIB, HostdHost, small_vm, spec_between

pytestmark = [pytest.mark.cluster, pytest.mark.qemu]
REAL_VMX = f"{sys.executable} -m vmx"
LAZY, THIN = vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED, vm_config_pb2.DISK_FORMAT_THIN
DISK_MIB, DATA_MIB = 64, 24


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[HostdHost, HostdHost]]:
    shared = tmp_path / "shared"
    shared.mkdir()
    first = HostdHost(tmp_path, 43, shared, vmx_command=REAL_VMX)
    second = HostdHost(tmp_path, 44, shared, vmx_command=REAL_VMX)
    try:
        await asyncio.gather(first.start(), second.start())
        yield first, second
    finally:
        await asyncio.gather(first.end(), second.end())


async def vm_with_disk(host: HostdHost, datastore: str = "local") -> tuple[host_pb2.VmState, bytes]:
    """A VM with a thick disk whose middle holds random bytes."""
    config = small_vm("moved")
    config.disks.add(capacity_bytes=DISK_MIB * MIB, format=LAZY)
    vm = await host.create(config, datastore)
    data = os.urandom(DATA_MIB * MIB)
    with (host.local / "moved" / "moved-flat.vmdk").open("r+b") as extent:
        extent.seek(8 * MIB)
        extent.write(data)
    return vm, data


def extent_holds(folder: Path, data: bytes) -> None:
    content = (folder / "moved-flat.vmdk").read_bytes()
    assert len(content) == DISK_MIB * MIB
    assert content[8 * MIB : 8 * MIB + len(data)] == data
    assert not any(content[: 8 * MIB])
    assert not any(content[8 * MIB + len(data) :])


async def spec_of_move(
    source: HostdHost, destination: HostdHost, vm: host_pb2.VmState, datastore: str
) -> spec_pb2.MigrationSpec:
    """Home and disks go to `datastore`, thin."""
    spec = await spec_between(source, destination, vm)
    stores = {store.name: store.uuid for store in (await destination.info()).host.datastores}
    spec.destination_vm.CopyFrom(vm.config)
    spec.destination_home = f"[{datastore}] there/moved.vmx"
    spec.destination_home_datastore_uuid = stores[datastore]
    for disk in spec.destination_vm.disks:
        disk.path = f"[{datastore}] there/moved.vmdk"
        disk.format = THIN
        spec.moved_disks.append(disk.key)
    spec.powered_off = vm.power_state == host_pb2.POWER_STATE_POWERED_OFF
    if source is destination:
        spec.ClearField("key")
    return spec


async def succeeds(host: HostdHost, spec: spec_pb2.MigrationSpec) -> operations_pb2.WatchMigrationResponse:
    last = (await host.statuses(spec))[-1]
    assert last.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED, (last, host.log()[-3000:])
    return last


async def power_on(host: HostdHost, vm: host_pb2.VmState) -> host_pb2.VmState:
    on = await host.call("PowerOnVm", vm.uuid)
    assert on is not None
    return on


async def test_live_move_between_local_datastores_takes_memory_and_disk_along(
    hosts: tuple[HostdHost, HostdHost],
) -> None:
    first, second = hosts
    vm, data = await vm_with_disk(first)
    on = await power_on(first, vm)
    spec = await spec_of_move(first, second, on, "local")
    await first.start_source(spec, await second.prepare(spec))
    last = await succeeds(first, spec)
    (disk,) = last.status.disks
    assert disk.copied_bytes == disk.data_bytes
    assert disk.data_bytes - disk.zero_bytes >= DATA_MIB * MIB
    assert disk.wire_bytes < (DATA_MIB + 2) * MIB
    for host in (second, first):
        await host.migration("CompleteMigration", spec)
    assert list(first.local.iterdir()) == [first.local / ".datastore.json"]
    extent_holds(second.local / "there", data)
    extent = (second.local / "there" / "moved-flat.vmdk").stat()
    assert extent.st_blocks * 512 < (DATA_MIB + 2) * MIB
    moved = (await second.vms())["moved"]
    assert moved.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert moved.home == "[local] there/moved.vmx"
    assert moved.config.disks == spec.destination_vm.disks
    record = owner_record.read(owner_record.owner_path(second.local / "there", "moved"))
    assert record.owner_host_uuid == spec.destination.host_uuid
    await second.call("PowerOffVm", vm.uuid)
    await power_on(second, vm)
    await second.call("PowerOffVm", vm.uuid)
    await second.call("DestroyVm", vm.uuid)
    assert list(second.local.iterdir()) == [second.local / ".datastore.json"]


async def test_live_move_within_a_host_needs_no_stun(hosts: tuple[HostdHost, HostdHost]) -> None:
    first, _ = hosts
    vm, data = await vm_with_disk(first)
    on = await power_on(first, vm)
    spec = await spec_of_move(first, first, on, "shared")
    await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=spec), timeout=30)
    last = await succeeds(first, spec)
    assert last.status.stun_ms == 0
    assert [disk.switched for disk in last.status.disks] == [True]
    await first.migration("CompleteMigration", spec)
    shared = first.local.parent / "shared"
    assert list(first.local.iterdir()) == [first.local / ".datastore.json"]
    extent_holds(shared / "there", data)
    moved = (await first.vms())["moved"]
    assert moved.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert (moved.home, moved.lock.operation) == ("[shared] there/moved.vmx", "")
    # It moves on like any other: its disk is where it says, and its run lock is the new home's.
    onward = await spec_of_move(first, first, moved, "local")
    onward.destination_home = "[local] moved/moved.vmx"
    await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=onward), timeout=30)
    await succeeds(first, onward)
    await first.migration("CompleteMigration", onward)
    await first.call("PowerOffVm", vm.uuid)
    extent_holds(first.local / "there", data)


@pytest.mark.parametrize("within", [True, False])
async def test_move_of_a_vm_that_is_off_takes_its_files_along(
    hosts: tuple[HostdHost, HostdHost], within: bool
) -> None:
    first, second = hosts
    destination = first if within else second
    vm, data = await vm_with_disk(first)
    spec = await spec_of_move(first, destination, vm, "shared" if within else "local")
    if within:
        await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=spec), timeout=30)
    else:
        await first.start_source(spec, await second.prepare(spec))
    await succeeds(first, spec)
    for host in {destination, first}:
        await host.migration("CompleteMigration", spec)
    root = first.local.parent / "shared" if within else second.local
    assert list(first.local.iterdir()) == [first.local / ".datastore.json"]
    extent_holds(root / "there", data)
    moved = (await destination.vms())["moved"]
    assert moved.power_state == host_pb2.POWER_STATE_POWERED_OFF
    assert (moved.failure, moved.lock.operation) == ("", "")
    await power_on(destination, vm)
    await destination.call("PowerOffVm", vm.uuid)
    await destination.call("DestroyVm", vm.uuid)


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("live", [True, False])
async def test_canceled_move_leaves_the_vm_as_it_was_and_nothing_else(
    hosts: tuple[HostdHost, HostdHost], within: bool, live: bool
) -> None:
    first, second = hosts
    destination = first if within else second
    vm, data = await vm_with_disk(first)
    if live:
        vm = await power_on(first, vm)
    spec = await spec_of_move(first, destination, vm, "shared" if within else "local")
    if within:
        await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=spec), timeout=30)
    else:
        spec.options.bandwidth_bytes_per_s = MIB
        await first.start_source(spec, await second.prepare(spec))
    try:
        await first.migration("CancelMigration", spec)
    except Exception:  # noqa: BLE001  the copy within a host may be done already
        assert within
    last = (await first.statuses(spec))[-1]
    if last.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
        assert within
        return
    if not within:
        await second.migration("CancelMigration", spec)
        assert list(second.local.iterdir()) == [second.local / ".datastore.json"]
        assert await second.vms() == {}
    assert [path.name for path in (first.local.parent / "shared").iterdir()] == [".datastore.json"]
    extent_holds(first.local / "moved", data)
    state = await first.until("moved", "unlocked")
    assert state is not None
    assert state.power_state == vm.power_state
    assert state.home == vm.home
    # And the next try works.
    again = await spec_of_move(first, destination, vm, "shared" if within else "local")
    if within:
        await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=again), timeout=30)
    else:
        await first.start_source(again, await second.prepare(again))
    await succeeds(first, again)


async def test_destination_that_died_before_commit_gives_the_guest_back_by_settle(
    hosts: tuple[HostdHost, HostdHost],
) -> None:
    """The homes are parted: the source's record gives the VM away, and only the destination's end can undo that."""
    first, second = hosts
    await second.stop()
    second.environment["VPX_FAILPOINTS"] = "destination.hand_over.after_ready=kill"
    await second.start()
    vm, data = await vm_with_disk(first)
    on = await power_on(first, vm)
    spec = await spec_of_move(first, second, on, "local")
    await first.start_source(spec, await second.prepare(spec))
    record = owner_record.owner_path(first.local / "moved", "moved")
    async with asyncio.timeout(60):
        while owner_record.read(record).owner_host_uuid != spec.destination.host_uuid:
            await asyncio.sleep(0.02)
        while (await second.migration("QueryMigration", spec)).open:
            await asyncio.sleep(0.05)
    assert list(second.local.iterdir()) == [second.local / ".datastore.json"]
    assert not any(identify(pid) for pid in second.pids()), "its masked guest ends with the migration"
    assert (await first.vms())["moved"].execution_state != host_pb2.EXECUTION_STATE_RUNNING
    request = operations_pb2.SettleMigrationRequest(migration_id=spec.migration_id, destination_has_vm=False)
    await first.hostd.SettleMigration(request, timeout=30)
    last = (await first.statuses(spec))[-1]
    assert last.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    here = await first.until("moved", "unlocked")
    assert here is not None
    assert here.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert owner_record.read(record).owner_host_uuid == spec.source.host_uuid
    await first.hostd.SettleMigration(request, timeout=30)  # told again: nothing happens
    again = await spec_of_move(first, first, here, "shared")
    await first.hostd.StartRelocation(operations_pb2.StartRelocationRequest(spec=again), timeout=30)
    await succeeds(first, again)
    await first.migration("CompleteMigration", again)
    extent_holds(first.local.parent / "shared" / "there", data)
