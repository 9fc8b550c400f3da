"""Daemons die and come back, idle and in the middle of a migration: the guest notices nothing, and nothing is lost."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC
from functools import partial

import pytest
import pytest_asyncio

from demo.processes import ProcessId, command_of, send
from proto.vim.v1 import host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime import faults
from runtime.ondisk import owner_record
from runtime.rpc.faults import fault_from_proto
from tests.framework.cluster_rig import MIB, ClusterRig, cluster_rig, failure, refusal, small_vm, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]
SLOW = spec_pb2.MigrationOptions(
    bandwidth_bytes_per_s=3 * MIB, verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, network_timeout_s=10
)
EVERY_DAEMON = ("vpxd", "esx01-hostd", "esx01-vpxa", "esx02-hostd", "esx02-vpxa")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    """A cluster of its own: what is killed here is no concern of other tests."""
    async with cluster_rig(tmp_path_factory.mktemp("c"), 2) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def web01_id(rig: ClusterRig) -> str:
    """A VM that runs on one of the two hosts and goes to the other one in most tests."""
    return await rig.power_on_new("web01", "esx01", config=small_vm(rate_mib_s=1))


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def intact(rig: ClusterRig, web01_id: str) -> AsyncIterator[None]:
    """After each test all daemons run, and the VM on one host, with nothing left of it on the other."""
    yield
    await restart(rig, *(name for name in EVERY_DAEMON if rig.cluster.process(name) is None))
    source, other = await sides(rig)
    now = await rig.vm("web01")
    await rig.assert_alive("web01", source)
    assert (now.id, now.locked_by) == (web01_id, "")
    for host, reserved in ((source, now.config.ram_bytes), (other, 0)):
        await rig.until_reserved(host, reserved, within_s=5)
    assert len(rig.guests()) == 1


async def sides(rig: ClusterRig) -> tuple[str, str]:
    """Where the VM is, and where it isn't."""
    here = (await rig.vm("web01")).host_name
    return here, "esx02" if here == "esx01" else "esx01"


async def kill(rig: ClusterRig, *names: str) -> None:
    for name in names:
        assert rig.cluster.signal(name, signal.SIGKILL), f"{name} wasn't there"
    await asyncio.gather(*(rig.cluster.end_daemon(name) for name in names))


async def restart(rig: ClusterRig, *names: str) -> None:
    """They serve again, hostds first, and vpxd has heard anew of the VM."""
    before = time.time()
    for name in sorted(names, key=lambda name: ("hostd" not in name, name)):
        await rig.start_daemon(name)
    await rig.until_connected()

    async def heard() -> bool:
        return (await rig.host("esx01")).last_heartbeat.ToDatetime(UTC).timestamp() > before

    await until(heard, "a heartbeat of the host")


async def test_daemons_killed_idle_come_back_with_everything_and_the_vm_can_move(
    rig: ClusterRig, web01_id: str
) -> None:
    hosts = {name: (await rig.host(name)).id for name in rig.layout.host_names}
    here, there = await sides(rig)
    for names in (("vpxd",), (f"{here}-vpxa",), (f"{here}-hostd",), EVERY_DAEMON):
        before = await rig.vm("web01")
        await kill(rig, *names)
        await rig.beats("web01", 20)
        await restart(rig, *names)
        await until(partial(runs_on, rig, before), "the VM is told to run on")
        after = await rig.vm("web01")
        assert (after.id, after.host, after.config) == (web01_id, before.host, before.config)
        assert after.connection_state == inventory_pb2.VM_CONNECTION_STATE_CONNECTED
        assert after.power_state == host_pb2.POWER_STATE_POWERED_ON
        assert {name: (await rig.host(name)).id for name in hosts} == hosts
    info = await rig.migrate("web01", there)
    assert info.migration.memory_verified
    await rig.assert_alive("web01", there)


@pytest.mark.parametrize(
    "daemons",
    [("vpxd",), ("{source}-vpxa", "{destination}-vpxa"), ("{source}-hostd",), ("{destination}-hostd",)],
    ids=["vpxd", "both_vpxas", "hostd_of_the_source", "hostd_of_the_destination"],
)
async def test_daemon_killed_while_memory_flows_comes_back_and_the_migration_succeeds(
    rig: ClusterRig, web01_id: str, daemons: tuple[str, ...]
) -> None:
    here, there = await sides(rig)
    names = [name.format(source=here, destination=there) for name in daemons]
    task = await start_slow(rig, there)
    await kill(rig, *names)
    await rig.beats("web01")
    await restart(rig, *names)
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    assert info.entity == web01_id
    assert info.migration.memory_verified
    await rig.assert_alive("web01", there)


async def test_daemons_away_until_after_the_switchover_find_the_vm_at_the_destination(
    rig: ClusterRig,
) -> None:
    _here, there = await sides(rig)
    task = await start_slow(rig, there)
    await kill(rig, *EVERY_DAEMON)

    # With no daemon there to hear of it, the vmx processes finish what they were told to do.
    def owner() -> str:
        return owner_record.read(owner_record.owner_path(rig.home("web01"), "web01")).owner_host_uuid

    source = owner()
    await until(lambda: owner() != source, "the hand-over")
    await rig.beats("web01", 20)
    await restart(rig, *EVERY_DAEMON)
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    await rig.assert_alive("web01", there)


async def test_destinations_vmx_killed_while_memory_flows_fails_the_migration_and_the_guest_runs_on(
    rig: ClusterRig,
) -> None:
    here, there = await sides(rig)
    task = await start_slow(rig, there)
    send(vmx_on(rig, there, "web01"), signal.SIGKILL)
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.MigrationFault | faults.GuestFault), fault
    await rig.until_reserved(there, 0, within_s=5)
    await rig.assert_alive("web01", here)


async def test_sources_vmx_killed_while_memory_flows_leaves_its_guest_running_where_it_is(
    rig: ClusterRig,
) -> None:
    here, there = await sides(rig)
    await rig.power_on_new("web02", here, config=small_vm(rate_mib_s=1))
    try:
        task = await rig.start_slow("web02", there, mib_s=1)
        send(vmx_on(rig, here, "web02"), signal.SIGKILL)
        fault = failure(await rig.ended(task))
        assert isinstance(fault, faults.MigrationFault | faults.GuestFault), fault
        await rig.until_reserved(there, 0, within_s=5)
        await rig.beats("web02", 20)
        left = await rig.vm("web02")
        assert (left.host_name, left.power_state) == (here, host_pb2.POWER_STATE_POWERED_ON)
        assert "unmanaged" in left.failure
        assert left.locked_by == ""
    finally:
        await rig.remove("web02")


async def test_silent_hosts_are_told_by_events_get_no_orders_and_come_back(rig: ClusterRig) -> None:
    newest = await rig.client.call(rig.client.stub.ListEvents, service_pb2.ListEventsRequest(limit=1))
    request = service_pb2.ListEventsRequest(after_id=newest.events[-1].id)
    here, there = await sides(rig)
    seen: list[tuple[str, str]] = []
    async with aclosing(rig.client.stream(rig.client.stub.WatchEvents, request, 30)) as events:
        rig.cluster.signal(f"{there}-vpxa", signal.SIGSTOP)
        try:
            seen.append(await next_host_event(events))
            assert (await rig.host(there)).connection_state == host_pb2.HOST_CONNECTION_STATE_NOT_RESPONDING
            order = service_pb2.MigrateVmRequest(vm="web01", host=there)
            refused = await refusal(rig.client.stub.MigrateVm(order))
            assert isinstance(refused, faults.HostNotConnected)
            assert (refused.host, refused.state, refused.origin) == (there, "notResponding", "vpxd")
            check = service_pb2.CheckMigrateRequest(vm="web01")
            (entry,) = (await rig.client.call(rig.client.stub.CheckMigrate, check)).hosts
            assert isinstance(fault_from_proto(entry.findings[0].fault), faults.HostNotConnected)
            # The VM's own host falls silent as well, further down.
            rig.cluster.signal(f"{here}-hostd", signal.SIGSTOP)
            seen.append(await next_host_event(events))
            lost = await rig.vm("web01")
            assert lost.connection_state == inventory_pb2.VM_CONNECTION_STATE_DISCONNECTED
            assert lost.host_name == here
            power_off = rig.client.stub.PowerOffVm(service_pb2.VmOperationRequest(vm="web01"))
            assert isinstance(await refusal(power_off), faults.HostNotConnected)
            await rig.beats("web01")
        finally:
            rig.cluster.signal(f"{there}-vpxa", signal.SIGCONT)
            rig.cluster.signal(f"{here}-hostd", signal.SIGCONT)
        seen += [await next_host_event(events), await next_host_event(events)]
    assert seen[:2] == [("HostConnectionLostEvent", there), ("HostConnectionLostEvent", here)]
    assert set(seen[2:]) == {("HostConnectedEvent", there), ("HostConnectedEvent", here)}
    await rig.until_connected()
    assert (await rig.vm("web01")).connection_state == inventory_pb2.VM_CONNECTION_STATE_CONNECTED


async def next_host_event(events: AsyncGenerator[task_pb2.Event, None]) -> tuple[str, str]:
    """Type and host of the next event of a host."""
    async for event in events:
        if event.type.startswith("Host"):
            return event.type, event.entity_name
    raise AssertionError("the events ended")


async def test_tasks_and_events_outlive_vpxd(rig: ClusterRig) -> None:
    async def history() -> tuple[list[task_pb2.TaskInfo], list[task_pb2.Event]]:
        tasks = await rig.client.call(rig.client.stub.ListTasks, service_pb2.ListTasksRequest(limit=500))
        events = await rig.client.call(rig.client.stub.ListEvents, service_pb2.ListEventsRequest(limit=500))
        return list(tasks.tasks), list(events.events)

    here, there = await sides(rig)
    task = (await rig.migrate("web01", there)).id
    tasks, events = await history()
    before = await rig.task(task)
    await kill(rig, "vpxd")
    await restart(rig, "vpxd")
    tasks_now, events_now = await history()
    assert tasks_now == tasks
    assert events_now[: len(events)] == events
    watched = [info async for info in rig.client.watch(task, 10)]
    assert watched[-1] == before
    assert len(watched[-1].migration.iterations) >= 2, "the figures of the migration are kept"
    new = await rig.migrate("web01", here)
    assert int(new.id.split("-")[1]) > int(task.split("-")[1])


async def runs_on(rig: ClusterRig, before: inventory_pb2.Vm) -> bool:
    """Its host has told of it since `before`."""
    now = await rig.vm("web01")
    return now.execution_state == host_pb2.EXECUTION_STATE_RUNNING and now.uptime_s > before.uptime_s


async def start_slow(rig: ClusterRig, host: str) -> str:
    """A migration of about three seconds; returns when memory flows."""
    task = await rig.start_migration("web01", host, SLOW)
    async for info in rig.client.watch(task, 20):
        assert info.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING), info
        if info.migration.pages_sent:
            break
    return task


def vmx_on(rig: ClusterRig, host: str, vm: str) -> ProcessId:
    """The vmx of a VM on a host, masked or not."""
    place = f"\0VMX_RUN_DIR={rig.layout.host_run_directory(host)}/".encode()
    uuid = next(line for line in (rig.home(vm) / f"{vm}.vmx").read_text().split("\n") if "uuid" in line)
    found = []
    for one in rig.cluster.vm_processes():
        with open(f"/proc/{one.pid}/environ", "rb") as file:
            settings = b"\0" + file.read()
        is_its = settings.partition(b"\0VMX_VM_UUID=")[2].partition(b"\0")[0].decode() in uuid
        if command_of(one)[-2:] == ["-m", "vmx"] and place in settings and is_its:
            found.append(one)
    (vmx,) = found
    return vmx
