"""Daemons die and come back, idle and in the middle of a migration: the guest notices nothing, and nothing is lost."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC

import pytest
import pytest_asyncio

from demo.processes import command_of, send
from proto.vim.v1 import host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime import faults
from tests.framework.cluster_rig import MIB, ClusterRig, failure, small_vm, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]
SLOW = spec_pb2.MigrationOptions(
    bandwidth_bytes_per_s=3 * MIB, verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, network_timeout_s=10
)
EVERY_DAEMON = ("vpxd", "esx01-hostd", "esx01-vpxa", "esx02-hostd", "esx02-vpxa")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web01_id(rig: ClusterRig) -> str:
    """A VM that runs; `at_home` brings it to esx01 before each test."""
    return await rig.power_on_new("web01", "esx01", config=small_vm(rate_mib_s=1))


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def at_home(rig: ClusterRig, web01_id: str) -> AsyncIterator[None]:
    """All daemons run, the VM is on esx01 and can be moved: also after each test."""
    yield
    await restart(rig, *(name for name in EVERY_DAEMON if rig.cluster.process(name) is None))
    now = await rig.vm("web01")
    if now.host_name != "esx01":
        await rig.migrate("web01", "esx01")
    await rig.assert_alive("web01", "esx01")
    assert (await rig.vm("web01")).id == web01_id
    for host, reserved in (("esx01", now.config.ram_bytes), ("esx02", 0)):
        await rig.until_reserved(host, reserved, within_s=5)
    assert len(rig.guests()) == 1


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
    for names in (("vpxd",), ("esx01-vpxa",), ("esx01-hostd",), EVERY_DAEMON):
        before = await rig.vm("web01")
        await kill(rig, *names)
        await rig.beats("web01", 20)
        await restart(rig, *names)
        after = await rig.vm("web01")
        assert (after.id, after.host, after.config) == (web01_id, before.host, before.config)
        assert after.connection_state == inventory_pb2.VM_CONNECTION_STATE_CONNECTED
        assert after.power_state == host_pb2.POWER_STATE_POWERED_ON
        assert after.execution_state == host_pb2.EXECUTION_STATE_RUNNING
        assert after.uptime_s > before.uptime_s
        assert {name: (await rig.host(name)).id for name in hosts} == hosts
    info = await rig.migrate("web01", "esx02")
    assert info.migration.memory_verified
    await rig.assert_alive("web01", "esx02")


@pytest.mark.parametrize(
    "names",
    [("vpxd",), ("esx01-vpxa", "esx02-vpxa"), ("esx01-hostd",), ("esx02-hostd",)],
    ids=["vpxd", "vpxas", "hostd_of_the_source", "hostd_of_the_destination"],
)
async def test_daemon_killed_while_memory_flows_comes_back_and_the_migration_succeeds(
    rig: ClusterRig, web01_id: str, names: tuple[str, ...]
) -> None:
    task = await start_slow(rig)
    await kill(rig, *names)
    await rig.beats("web01")
    await restart(rig, *names)
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    assert info.entity == web01_id
    assert info.migration.memory_verified
    await rig.assert_alive("web01", "esx02")
    assert (await rig.vm("web01")).locked_by == ""


async def test_daemons_away_until_after_the_switchover_find_the_vm_at_the_destination(
    rig: ClusterRig,
) -> None:
    task = await start_slow(rig)
    await kill(rig, *EVERY_DAEMON)

    def only_sources_guest_is_stopped() -> bool:
        return "vm_demasked" in log.read_text() or len(rig.heartbeat("web01")) > beats + 600

    log, beats = rig.layout.log_directory / "esx02-hostd.log", len(rig.heartbeat("web01"))
    await until(only_sources_guest_is_stopped, "the migration is over")
    await restart(rig, *EVERY_DAEMON)
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    await rig.assert_alive("web01", "esx02")


async def test_destinations_vmx_killed_while_memory_flows_fails_the_migration_and_the_guest_runs_on(
    rig: ClusterRig,
) -> None:
    task = await start_slow(rig)
    here, there = (rig.layout.host_run_directory(name) for name in rig.layout.host_names)
    (victim,) = [
        one
        for one in rig.cluster.vm_processes()
        if command_of(one)[-2:] == ["-m", "vmx"] and f"VMX_RUN_DIR={there}/" in environment(one.pid)
    ]
    assert str(here) not in environment(victim.pid)
    send(victim, signal.SIGKILL)
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.MigrationFault | faults.GuestFault), fault
    await rig.until_reserved("esx02", 0, within_s=5)
    await rig.assert_alive("web01", "esx01")


async def test_silent_host_is_told_by_an_event_and_so_is_its_return(rig: ClusterRig) -> None:
    newest = await rig.client.call(rig.client.stub.ListEvents, service_pb2.ListEventsRequest(limit=1))
    request = service_pb2.ListEventsRequest(after_id=newest.events[-1].id)
    rig.cluster.signal("esx02-vpxa", signal.SIGSTOP)
    stopped = True
    seen: list[str] = []
    async with aclosing(rig.client.stream(rig.client.stub.WatchEvents, request, 30)) as events:
        async for event in events:
            if event.entity_name != "esx02":
                continue
            seen.append(event.type)
            if stopped:
                state = (await rig.host("esx02")).connection_state
                assert state == host_pb2.HOST_CONNECTION_STATE_NOT_RESPONDING
                rig.cluster.signal("esx02-vpxa", signal.SIGCONT)
                stopped = False
            else:
                break
    assert seen == ["HostConnectionLostEvent", "HostConnectedEvent"]
    assert (await rig.host("esx02")).connection_state == host_pb2.HOST_CONNECTION_STATE_CONNECTED


async def test_vms_of_a_silent_host_are_disconnected_and_come_back(rig: ClusterRig) -> None:
    rig.cluster.signal("esx01-hostd", signal.SIGSTOP)
    try:

        async def state_is(state: int) -> bool:
            return (await rig.vm("web01")).connection_state == state

        await until(lambda: state_is(inventory_pb2.VM_CONNECTION_STATE_DISCONNECTED), "disconnected")
        await rig.beats("web01")
    finally:
        rig.cluster.signal("esx01-hostd", signal.SIGCONT)
    await until(lambda: state_is(inventory_pb2.VM_CONNECTION_STATE_CONNECTED), "connected")


async def test_tasks_and_events_outlive_vpxd(rig: ClusterRig) -> None:
    async def history() -> tuple[list[str], list[tuple[int, str, str]]]:
        tasks = await rig.client.call(rig.client.stub.ListTasks, service_pb2.ListTasksRequest(limit=500))
        events = await rig.client.call(rig.client.stub.ListEvents, service_pb2.ListEventsRequest(limit=500))
        return (
            [task.SerializeToString().hex() for task in tasks.tasks],
            [(event.id, event.type, event.message) for event in events.events],
        )

    task = (await rig.migrate("web01", "esx02")).id
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
    new = await rig.migrate("web01", "esx01")
    assert int(new.id.split("-")[1]) > int(task.split("-")[1])


async def start_slow(rig: ClusterRig) -> str:
    """A migration to esx02 of about three seconds; returns when memory flows."""
    task = await rig.start_migration("web01", "esx02", SLOW)
    async for info in rig.client.watch(task, 20):
        assert info.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING), info
        if info.migration.pages_sent:
            break
    return task


def environment(pid: int) -> str:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().decode().replace("\0", "\n")
