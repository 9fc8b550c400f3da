"""What a vmx process answers to calls that come at the wrong time, twice, or with the wrong thing in them."""

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from proto.host.v1 import operations_pb2
from proto.vim.v1 import fault_pb2, host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    InvalidArgument,
    InvalidState,
    InvalidVmConfig,
    ManagedObjectNotFound,
    MigrationNotReady,
    NotOwner,
    TaskInProgress,
    TimedOut,
    VimFault,
    VMotionProtocolIncompatible,
)
from runtime.ondisk import owner_record
from runtime.rpc.faults import remote_faults
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.vmx_hosts import VmxHosts, VmxProcess
from tests.framework.vmx_invariants import assert_heart_beats, assert_vm_is_off, migrate

SLOW = spec_pb2.MigrationOptions(bandwidth_bytes_per_s=2_000_000)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[VmxHosts]:
    made = VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8)
    yield made
    await made.close()


async def power_off(vmx: VmxProcess) -> None:
    with remote_faults("vmx"):
        await vmx.stub.PowerOff(service_pb2.PowerOffRequest(), timeout=10)


async def slow_migration(hosts: VmxHosts) -> tuple[VmxProcess, VmxProcess, spec_pb2.MigrationSpec]:
    """A migration that stays in pre-copy."""
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1], SLOW)
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    await hosts.phase_reached(vmx, spec.migration_id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    return vmx, destination, spec


@pytest.fixture
def mute_qemu(tmp_path: Path) -> Path:
    """A QEMU that starts and never says a word: whoever brings a guest up waits for it."""
    path = tmp_path / "mute-qemu"
    path.write_text("#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.1; done\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def test_power_off_while_the_guest_is_started_leaves_nothing(hosts: VmxHosts, mute_qemu: Path) -> None:
    hosts.qemu_binary = mute_qemu
    vmx = await hosts.start_vmx(hosts.hosts[0])
    request = service_pb2.PowerOnRequest(config=hosts.config, place=hosts.place(vmx.host))
    starting = asyncio.ensure_future(vmx.stub.PowerOn(request, timeout=30))
    await asyncio.sleep(0.5)
    await power_off(vmx)
    with pytest.raises(InvalidState), remote_faults("vmx"):
        await starting
    assert await vmx.ended() == 0
    await assert_vm_is_off(hosts)


@pytest.mark.parametrize("call", ["PowerOn", "PrepareDestination"])
async def test_caller_that_goes_away_while_the_guest_is_started_leaves_nothing(
    hosts: VmxHosts, mute_qemu: Path, call: str
) -> None:
    hosts.qemu_binary = mute_qemu
    vmx = await hosts.start_vmx(hosts.hosts[1])
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    path = owner_record.owner_path(hosts.home, "web01")
    if call == "PowerOn":
        owner_record.swap(path, owner_record.read(path), hosts.hosts[1].uuid)
    place = hosts.place(vmx.host)
    power_on = service_pb2.PowerOnRequest(config=hosts.config, place=place)
    prepare = service_pb2.PrepareDestinationRequest(spec=spec, place=place)
    with pytest.raises(TimedOut), remote_faults("vmx"):  # noqa: PT012
        if call == "PowerOn":
            await vmx.stub.PowerOn(power_on, timeout=0.5)
        else:
            await vmx.stub.PrepareDestination(prepare, timeout=0.5)
    assert await vmx.ended() == 0
    await assert_vm_is_off(hosts)


async def test_sigterm_while_the_guest_is_started_leaves_nothing(hosts: VmxHosts, mute_qemu: Path) -> None:
    hosts.qemu_binary = mute_qemu
    vmx = await hosts.start_vmx(hosts.hosts[0])
    request = service_pb2.PowerOnRequest(config=hosts.config, place=hosts.place(vmx.host))
    starting = asyncio.ensure_future(vmx.stub.PowerOn(request, timeout=30))
    await asyncio.sleep(0.5)
    vmx.process.terminate()
    with pytest.raises(grpc.aio.AioRpcError):
        await starting
    assert await vmx.ended() == 0
    await assert_vm_is_off(hosts)


async def test_a_process_brings_one_guest_up_in_its_life(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    place = hosts.place(vmx.host)
    with pytest.raises(InvalidState), remote_faults("vmx"):
        await vmx.stub.PowerOn(service_pb2.PowerOnRequest(config=hosts.config, place=place), timeout=10)
    spec = hosts.spec(hosts.hosts[1], hosts.hosts[0])
    request = service_pb2.PrepareDestinationRequest(spec=spec, place=place)
    with pytest.raises(InvalidState), remote_faults("vmx"):
        await vmx.stub.PrepareDestination(request, timeout=10)
    await assert_heart_beats(hosts)
    await power_off(vmx)
    with pytest.raises((VimFault, grpc.aio.AioRpcError)), remote_faults("vmx"):
        await vmx.stub.PowerOn(service_pb2.PowerOnRequest(config=hosts.config, place=place), timeout=10)
    assert await vmx.ended() == 0
    await assert_vm_is_off(hosts)


async def test_second_prepare_and_start_at_a_destination_are_refused(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    request = service_pb2.PrepareDestinationRequest(spec=spec, place=hosts.place(destination.host))
    with pytest.raises(InvalidState), remote_faults("vmx"):
        await destination.stub.PrepareDestination(request, timeout=10)
    with pytest.raises(TaskInProgress):
        await hosts.start(destination, spec, ticket)
    with pytest.raises(TaskInProgress):
        await power_off(destination)
    await hosts.cancel(destination, spec.migration_id)
    assert await destination.ended() == 0
    await assert_heart_beats(hosts)


async def test_start_before_there_is_a_guest_is_refused(hosts: VmxHosts) -> None:
    vmx = await hosts.start_vmx(hosts.hosts[0])
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    ticket = spec_pb2.DestinationTicket(
        migration_id=spec.migration_id,
        vmotion_address=spec.destination.vmotion_address,
        port=8000,
        token=bytes(32),
        ram_bytes=spec.vm.ram_bytes,
        stream_version_min=1,
        stream_version_max=1,
    )
    with pytest.raises(InvalidState):
        await hosts.start(vmx, spec, ticket)
    await power_off(vmx)
    assert await vmx.ended() == 0


async def test_malformed_specs_and_tickets_are_refused_and_the_guest_runs_on(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    good = hosts.spec(vmx.host, hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], good)
    for argument, kind in (
        ("key", InvalidArgument),
        ("vm.uuid", InvalidArgument),
        ("vm.ram_bytes", InvalidArgument),
        ("source.host_uuid", InvalidArgument),
        ("ticket.token", InvalidArgument),
        ("ticket.stream_version_max", VMotionProtocolIncompatible),
    ):
        spec, bad_ticket = spec_pb2.MigrationSpec(), spec_pb2.DestinationTicket()
        spec.CopyFrom(good)
        bad_ticket.CopyFrom(ticket)
        owner, _, name = argument.rpartition(".")
        part = {"": spec, "vm": spec.vm, "source": spec.source, "ticket": bad_ticket}[owner]
        part.ClearField(name)
        with pytest.raises(kind):
            await hosts.start(vmx, spec, bad_ticket)
    other = spec_pb2.MigrationSpec()
    other.CopyFrom(good)
    other.vm.uuid = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(InvalidArgument):
        await hosts.start(vmx, other, ticket)
    await hosts.cancel(destination, good.migration_id)
    await migrate(hosts, vmx, 2)


async def test_prepare_of_another_vm_or_with_bad_hardware_is_refused_and_leaves_nothing(
    hosts: VmxHosts,
) -> None:
    await hosts.power_on()
    other = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    other.vm.uuid = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(InvalidArgument):
        await hosts.prepare(hosts.hosts[1], other)
    assert (await hosts.started[-1].state()).execution_state == host_pb2.EXECUTION_STATE_OFF
    odd = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    odd.vm.machine_type = "pc,accel=kvm"
    with pytest.raises(InvalidVmConfig):
        await hosts.prepare(hosts.hosts[1], odd)
    assert await hosts.started[-1].ended() == 0
    larger = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    larger.vm.name = "web02"  # no such record
    with pytest.raises(VimFault):
        await hosts.prepare(hosts.hosts[1], larger)
    assert await hosts.started[-1].ended() == 0
    assert len(hosts.qemu_pids()) == 1


async def test_prepare_by_a_source_that_the_record_doesnt_name_is_refused(hosts: VmxHosts) -> None:
    await hosts.power_on()
    spec = hosts.spec(hosts.hosts[2], hosts.hosts[1])
    with pytest.raises(NotOwner):
        await hosts.prepare(hosts.hosts[1], spec)
    assert await hosts.started[-1].ended() == 0


async def test_larger_memory_at_the_destination_is_refused_by_the_ticket(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    larger = spec_pb2.MigrationSpec()
    larger.CopyFrom(spec)
    larger.vm.ram_bytes *= 2
    destination, ticket = await hosts.prepare(hosts.hosts[1], larger)
    with pytest.raises(InvalidArgument):
        await hosts.start(vmx, spec, ticket)
    with pytest.raises(InvalidArgument):
        await hosts.start(vmx, larger, ticket)
    # Someone who mends the ticket is found out in the stream.
    ticket.ram_bytes = spec.vm.ram_bytes
    await hosts.start(vmx, spec, ticket)
    assert (await hosts.outcome(vmx, spec.migration_id)).HasField("fault")
    assert await destination.ended() == 0
    await migrate(hosts, vmx, 2)


async def test_operations_while_it_migrates_are_refused_with_the_task(hosts: VmxHosts) -> None:
    vmx, destination, spec = await slow_migration(hosts)
    for process in (vmx, destination):
        with pytest.raises(TaskInProgress) as refused:
            await power_off(process)
        assert refused.value.task == spec.task_id
        with pytest.raises((TaskInProgress, InvalidState)), remote_faults("vmx"):
            await process.stub.Reset(service_pb2.ResetRequest(), timeout=10)
        with pytest.raises(MigrationNotReady):
            await hosts.complete(process, spec.migration_id)
        with pytest.raises(ManagedObjectNotFound):
            await hosts.cancel(process, spec.migration_id + 1)
    await hosts.cancel(vmx, spec.migration_id)
    assert await destination.ended() == 0
    await power_off(vmx)
    assert await vmx.ended() == 0
    await assert_vm_is_off(hosts)


async def test_stunned_source_is_refused_to_everyone_but_its_completion(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    assert not (await hosts.outcome(vmx, spec.migration_id)).HasField("fault")
    with pytest.raises(TaskInProgress):
        await power_off(vmx)
    with pytest.raises(TaskInProgress):
        await hosts.start(vmx, spec, ticket)
    os.kill((await vmx.state()).qemu_pid, signal.SIGKILL)  # what dies there is no VM any more
    async with asyncio.timeout(10):
        while (state := await vmx.state()).qemu_pid:
            await asyncio.sleep(0.02)
    assert state.execution_state == host_pb2.EXECUTION_STATE_STUNNED
    await asyncio.gather(*(hosts.complete(one, spec.migration_id) for one in (destination, vmx)))
    await hosts.complete(destination, spec.migration_id)
    assert await vmx.ended() == 0
    await assert_heart_beats(hosts)


async def test_watchers_all_see_the_same_end_and_late_ones_too(hosts: VmxHosts) -> None:
    vmx, _, spec = await slow_migration(hosts)
    watching = [asyncio.create_task(hosts.outcome(vmx, spec.migration_id)) for _ in range(3)]
    await asyncio.sleep(0.1)
    await hosts.cancel(vmx, spec.migration_id)
    late = await hosts.outcome(vmx, spec.migration_id)
    for last in [*await asyncio.gather(*watching), late]:
        assert last.status.phase == status_pb2.MIGRATION_PHASE_FAILED
        assert last.fault.type == fault_pb2.FAULT_TYPE_REQUEST_CANCELED
    with pytest.raises(ManagedObjectNotFound):
        await hosts.outcome(vmx, spec.migration_id + 1)


async def test_state_watcher_sees_every_end(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    seen: list[service_pb2.GetStateResponse] = []

    async def watch() -> None:
        async for state in vmx.stub.WatchState(service_pb2.GetStateRequest(), timeout=30):
            seen.append(state)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.2)
    os.kill((await vmx.state()).qemu_pid, signal.SIGKILL)
    await watching
    assert [state.execution_state for state in seen] == [
        host_pb2.EXECUTION_STATE_RUNNING,
        host_pb2.EXECUTION_STATE_FAILED,
    ]
    assert "signal 9" in seen[-1].failure or "SIGKILL" in seen[-1].failure
    assert await vmx.ended() == 0


async def test_unknown_failpoint_refuses_the_start(hosts: VmxHosts) -> None:
    hosts.environment["esx01"] = {"VPX_FAILPOINTS": "source.warp=error"}
    starting = asyncio.ensure_future(hosts.start_vmx(hosts.hosts[0]))
    while not hosts.started:
        await asyncio.sleep(0.02)
    assert await hosts.started[0].ended() == 2
    starting.cancel()
    await asyncio.wait([starting])
    assert "VPX_FAILPOINTS names no failpoint" in (hosts.started[0].run_dir / "vmx.log").read_text()


async def test_migration_request_of_an_idle_process_is_not_found(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    request = operations_pb2.MigrationRequest(migration_id=1)
    for call in (vmx.stub.CancelMigration, vmx.stub.CompleteMigration):
        with pytest.raises(ManagedObjectNotFound), remote_faults("vmx"):
            await call(request, timeout=10)
