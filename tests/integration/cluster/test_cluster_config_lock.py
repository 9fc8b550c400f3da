"""A VM that migrates is locked, by vpxd and by both its hosts; at the destination it is masked until it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
import pytest_asyncio

from proto.host.v1 import operations_pb2
from proto.vim.v1 import fault_pb2, host_pb2, task_pb2
from proto.vpxd.v1 import service_pb2
from runtime import faults
from tests.framework.cluster_rig import MIB, ClusterRig, failure, refusal, small_vm

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]
RAM_BYTES = 64 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def web01(rig: ClusterRig) -> AsyncIterator[str]:
    """A VM that runs on esx01 at the start of each test."""
    yield await rig.power_on_new("web01", "esx01", config=small_vm(rate_mib_s=1))
    await rig.remove("web01")


@pytest_asyncio.fixture(loop_scope="package")
async def migration(rig: ClusterRig, web01: str) -> AsyncIterator[str]:
    """The task of a migration to esx02 that lasts; canceled at the end."""
    task = await rig.start_slow("web01", "esx02", mib_s=0.5)
    yield task
    await rig.cancel(task)
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.RequestCanceled)
    await rig.assert_alive("web01", "esx01")


async def test_every_other_order_is_refused_by_vpxd_and_names_the_task(
    rig: ClusterRig, migration: str
) -> None:
    stub, config = rig.client.stub, (await rig.vm("web01")).config
    vm = service_pb2.VmOperationRequest(vm="web01")
    config.annotation = "changed"
    orders: dict[str, Awaitable[object]] = {
        "reconfigure": stub.ReconfigureVm(
            service_pb2.ReconfigureVmRequest(vm="web01", config=config), timeout=5
        ),
        "power on": stub.PowerOnVm(vm, timeout=5),
        "power off": stub.PowerOffVm(vm, timeout=5),
        "reset": stub.ResetVm(vm, timeout=5),
        "destroy": stub.DestroyVm(vm, timeout=5),
        "unregister": stub.UnregisterVm(vm, timeout=5),
        "migrate there": stub.MigrateVm(service_pb2.MigrateVmRequest(vm="web01", host="esx02"), timeout=5),
        "migrate elsewhere": stub.MigrateVm(
            service_pb2.MigrateVmRequest(vm="web01", host="esx03"), timeout=5
        ),
        "migrate anywhere": stub.MigrateVm(service_pb2.MigrateVmRequest(vm="web01"), timeout=5),
    }
    for name, call in orders.items():
        refused = await refusal(call)
        assert isinstance(refused, faults.TaskInProgress), name
        assert (refused.task, refused.operation) == (migration, "VirtualMachine.migrate"), name
        assert refused.origin == "vpxd", name
    assert (await rig.vm("web01")).locked_by == migration
    # The hosts that take part can't be taken away either.
    for host in ("esx01", "esx02"):
        request = service_pb2.RemoveHostRequest(host=host, force=True)
        refused = await refusal(stub.RemoveHost(request, timeout=5))
        assert isinstance(refused, faults.TaskInProgress)
        assert refused.task == migration
    await rig.beats("web01")
    assert (await rig.task(migration)).state == task_pb2.TASK_STATE_RUNNING


async def test_every_other_order_is_refused_by_the_sources_hostd_itself(
    rig: ClusterRig, migration: str
) -> None:
    found = await rig.vm("web01")
    uuid = found.config.uuid
    vm = operations_pb2.VmRequest(vm_uuid=uuid, task="task-other")
    async with rig.vpxa("esx01") as vpxa:
        orders: dict[str, Awaitable[object]] = {
            "reconfigure": vpxa.ReconfigureVm(
                operations_pb2.ReconfigureVmRequest(vm_uuid=uuid, config=found.config, task="task-other"),
                timeout=5,
            ),
            "power on": vpxa.PowerOnVm(vm, timeout=5),
            "power off": vpxa.PowerOffVm(vm, timeout=5),
            "reset": vpxa.ResetVm(vm, timeout=5),
            "destroy": vpxa.DestroyVm(vm, timeout=5),
            "unregister": vpxa.UnregisterVm(vm, timeout=5),
        }
        refusals = {name: await refusal(call) for name, call in orders.items()}
        spec = await rig.spec("web01", "esx03")
        async with rig.vpxa("esx03") as third:
            prepare = operations_pb2.PrepareDestinationRequest(spec=spec)
            ticket = (await third.PrepareDestination(prepare, timeout=20)).ticket
            start = operations_pb2.StartSourceRequest(spec=spec, ticket=ticket)
            refusals["second migration"] = await refusal(vpxa.StartSource(start, timeout=5))
            cancel = operations_pb2.MigrationRequest(migration_id=spec.migration_id)
            await third.CancelMigration(cancel, timeout=20)
        await rig.until_reserved("esx03", 0, within_s=5)
    for name, refused in refusals.items():
        assert isinstance(refused, faults.TaskInProgress), (name, refused)
        assert (refused.task, refused.operation) == (migration, "emigrating"), name
        assert refused.origin == "hostd@esx01", name
        assert refused.entity == uuid
    await rig.beats("web01")


async def test_destination_is_locked_masked_and_reserved_until_the_switchover(
    rig: ClusterRig, migration: str
) -> None:
    uuid = (await rig.vm("web01")).config.uuid
    there = await rig.host_itself("esx02")
    assert list(there.vms) == [], "a masked VM is in no list"
    assert (there.usage.memory_reserved_bytes, there.usage.vcpus_reserved) == (RAM_BYTES, 1)
    assert there.usage.memory_used_bytes == 0
    assert await rig.vms("esx02") == {}
    assert (await rig.host("esx02")).vm_count == 0
    listed = (await rig.vms())["web01"]
    assert (listed.host_name, listed.execution_state) == ("esx01", host_pb2.EXECUTION_STATE_EMIGRATING)
    async with rig.vpxa("esx02") as vpxa:
        # Nobody can do anything with it, nor put the same VM there by another way.
        for call in (
            vpxa.PowerOnVm(operations_pb2.VmRequest(vm_uuid=uuid), timeout=5),
            vpxa.PowerOffVm(operations_pb2.VmRequest(vm_uuid=uuid), timeout=5),
            vpxa.ReadConsole(operations_pb2.ReadConsoleRequest(vm_uuid=uuid), timeout=5).read(),
        ):
            assert isinstance(await refusal(call), faults.ManagedObjectNotFound)
        register = operations_pb2.RegisterVmRequest(home="[shared] web01/web01.vmx", task="task-other")
        again = operations_pb2.PrepareDestinationRequest(spec=await rig.spec("web01", "esx02"))
        others: list[Awaitable[object]] = [
            vpxa.RegisterVm(register, timeout=5),
            vpxa.PrepareDestination(again, timeout=5),
        ]
        for other in others:
            refused = await refusal(other)
            assert isinstance(refused, faults.TaskInProgress)
            assert (refused.task, refused.operation) == (migration, "immigrating")
            assert refused.origin == "hostd@esx02"


async def test_fifth_migration_over_a_1_gbps_link_waits_says_why_and_can_be_canceled(
    rig: ClusterRig, web01: str
) -> None:
    others = [f"web0{number}" for number in range(2, 6)]
    for name in others:
        await rig.power_on_new(name, "esx01", config=small_vm(rate_mib_s=1))
    try:
        running = [
            await rig.start_slow(f"web0{number}", f"esx0{2 + number % 2}", 0.5) for number in range(1, 5)
        ]
        fifth = await rig.start_migration("web05", "esx02")
        info = await rig.task(fifth)
        assert info.state == task_pb2.TASK_STATE_QUEUED
        assert info.queue_position == 1
        assert "network" in info.queue_reason
        assert any(task in info.queue_reason for task in running), info.queue_reason
        usage = (await rig.host_itself("esx02")).usage
        assert usage.memory_reserved_bytes == 2 * RAM_BYTES, "nothing is reserved for one that waits"
        await rig.cancel(fifth)
        fault = failure(await asyncio.wait_for(rig.ended(fifth), 5))
        assert isinstance(fault, faults.RequestCanceled)
        assert fault.phase == "queued"
        # Another one waits, and begins when there is a place.
        sixth = await rig.start_migration("web05", "esx02")
        assert (await rig.task(sixth)).state == task_pb2.TASK_STATE_QUEUED
        await rig.cancel(running[0])
        assert failure(await rig.ended(running[0]))
        assert (await rig.ended(sixth)).state == task_pb2.TASK_STATE_SUCCESS
        for task in running[1:]:
            await rig.cancel(task)
            assert (await rig.ended(task)).error.type == fault_pb2.FAULT_TYPE_REQUEST_CANCELED
        await rig.until_reserved("esx03", 0, within_s=5)
        for name, host in (("web01", "esx01"), ("web02", "esx01"), ("web05", "esx02")):
            await rig.assert_alive(name, host)
    finally:
        for name in others:
            await rig.remove(name)


async def test_demasking_comes_in_one_piece(rig: ClusterRig, web01: str) -> None:
    """Whoever looks at any moment of a migration finds the VM exactly once in vpxd's list, never in none or two."""
    task = await rig.start_migration("web01", "esx02")
    hosts = []
    while (await rig.task(task)).state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING):
        answer = await rig.client.call(rig.client.stub.ListVms, service_pb2.ListVmsRequest(name="web01"))
        (found,) = answer.vms
        assert found.power_state == host_pb2.POWER_STATE_POWERED_ON
        hosts.append(found.host_name)
        await asyncio.sleep(0.005)
    assert sorted(set(hosts)) == [host for host in ("esx01", "esx02") if host in hosts]
    assert hosts == sorted(hosts), "it never goes back"
    assert (await rig.task(task)).state == task_pb2.TASK_STATE_SUCCESS
    await rig.until_reserved("esx01", 0, within_s=5)
    await rig.assert_alive("web01", "esx02")
