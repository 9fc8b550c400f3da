"""Two vmx processes and one guest: the whole of a migration below hostd, on the fake QEMU and on the real one."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import (
    InvalidArgument,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    TaskInProgress,
    VMotionNotConfigured,
)
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import is_held
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.guest_processes import FAKE_QEMU, GUEST_KERNEL, qemu_binary
from tests.framework.vmx_hosts import VmxHosts
from tests.framework.vmx_invariants import assert_one_unbroken_heartbeat, migrate
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import SourcePhase


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.qemu)])
async def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VmxHosts]:
    binary: Path | None = FAKE_QEMU
    if request.param == "qemu":
        binary = qemu_binary()
        if binary is None or not GUEST_KERNEL.exists():
            pytest.skip("needs qemu-system-x86_64 and the guest image (make guest)")
    assert binary is not None
    made = VmxHosts(tmp_path, binary)
    yield made
    await made.close()


@pytest.fixture
async def fake_hosts(tmp_path: Path) -> AsyncIterator[VmxHosts]:
    made = VmxHosts(tmp_path, FAKE_QEMU)
    yield made
    await made.close()


async def test_guest_moves_there_and_back_and_notices_nothing(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(50)
    for to in (1, 0):
        vmx, status = await migrate(hosts, vmx, to)
        assert status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
        assert status.memory_verified
        assert status.encrypted
        assert status.tracer == "pagemap_scan"
        assert status.qemu_ram_transferred_bytes < 4 << 20
        parts = status.stun_parts
        total = (
            parts.stop_ms + parts.last_pages_ms + parts.device_state_ms + parts.hand_over_ms + parts.resume_ms
        )
        assert status.stun_ms == pytest.approx(total)
        assert min(parts.stop_ms, parts.last_pages_ms, parts.device_state_ms, parts.hand_over_ms) > 0
        assert [one.number for one in status.iterations] == list(range(len(status.iterations)))
        await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 50)
    record = owner_record.read(owner_record.owner_path(hosts.home, "web01"))
    assert (record.owner_host_uuid, record.epoch) == (hosts.hosts[0].uuid, 5)  # given and settled, twice
    assert_one_unbroken_heartbeat(hosts)


@pytest.mark.parametrize(
    "options",
    [
        spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_BEFORE_RESUME),
        spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, tracer="hash_scan"),
        spec_pb2.MigrationOptions(
            verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, encryption=spec_pb2.ENCRYPTION_MODE_DISABLED, streams=1
        ),
        spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, bandwidth_bytes_per_s=60_000_000),
    ],
    ids=["verify-before-resume", "hash-scan", "plain-one-stream", "bandwidth-cap"],
)
async def test_options_are_obeyed(hosts: VmxHosts, options: spec_pb2.MigrationOptions) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(20)
    vmx, status = await migrate(hosts, vmx, 1, options)
    assert status.memory_verified
    assert status.tracer == (options.tracer or "pagemap_scan")
    assert status.encrypted == (options.encryption != spec_pb2.ENCRYPTION_MODE_DISABLED)
    if options.bandwidth_bytes_per_s:
        first = status.iterations[0]
        assert first.wire_bytes / first.duration_ms * 1000 <= 1.15 * options.bandwidth_bytes_per_s
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 20)
    assert_one_unbroken_heartbeat(hosts)


async def test_destination_is_masked_until_it_resumes(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    assert (await destination.state()).execution_state == host_pb2.EXECUTION_STATE_IMMIGRATING
    assert is_held(hosts.home / "web01.runlock")
    await hosts.start(vmx, spec, ticket)
    outcome = await hosts.outcome(vmx, spec.migration_id)
    assert not outcome.HasField("fault")
    assert (await destination.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_STUNNED


async def test_cancel_in_pre_copy_leaves_the_guest_as_it_was_and_the_next_try_works(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(20)
    slow = spec_pb2.MigrationOptions(bandwidth_bytes_per_s=2_000_000)
    spec = hosts.spec(vmx.host, hosts.hosts[1], slow)
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    with pytest.raises(TaskInProgress) as caught:
        await hosts.start(vmx, spec, ticket)
    assert caught.value.task == "task-1"
    await hosts.phase_reached(vmx, spec.migration_id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    await hosts.cancel(vmx, spec.migration_id)
    await hosts.cancel(vmx, spec.migration_id)
    outcome = await hosts.outcome(vmx, spec.migration_id)
    assert outcome.fault.type == fault_pb2.FAULT_TYPE_REQUEST_CANCELED
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert await destination.ended() == 0  # the source's word was enough
    with pytest.raises(MigrationNotReady):
        await hosts.complete(vmx, spec.migration_id)
    vmx, status = await migrate(hosts, vmx, 2)
    assert status.memory_verified
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 20)
    assert_one_unbroken_heartbeat(hosts)


@pytest.mark.parametrize("phase", [SourcePhase.STUN, SourcePhase.LAST_PAGES, SourcePhase.CHECKPOINT])
async def test_cancel_in_the_stun_lets_the_guest_run_on_and_the_next_try_works(
    hosts: VmxHosts, phase: SourcePhase
) -> None:
    async with FailpointPause(hosts.run_root / "pause.sock") as pause:
        hosts.environment["esx01"] = {"VPX_FAILPOINTS": f"{of_phase(phase)}={pause.action}"}
        vmx = await hosts.power_on()
        await hosts.heartbeats_beyond(20)
        spec = hosts.spec(vmx.host, hosts.hosts[1])
        destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
        await hosts.start(vmx, spec, ticket)
        await pause.reached()
        await hosts.cancel(vmx, spec.migration_id)
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 20)
    assert await destination.ended() == 0
    vmx, status = await migrate(hosts, vmx, 2)
    assert status.memory_verified
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 20)
    assert_one_unbroken_heartbeat(hosts)


async def test_cancel_of_the_destination_alone_frees_it_and_fails_the_source(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1], spec_pb2.MigrationOptions(bandwidth_bytes_per_s=2_000_000))
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    await hosts.phase_reached(vmx, spec.migration_id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    await hosts.cancel(destination, spec.migration_id)
    assert await destination.ended() == 0
    outcome = await hosts.outcome(vmx, spec.migration_id)
    assert outcome.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    await migrate(hosts, vmx, 2)


async def test_destination_killed_in_pre_copy_the_guest_runs_on(hosts: VmxHosts) -> None:
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(20)
    spec = hosts.spec(vmx.host, hosts.hosts[1], spec_pb2.MigrationOptions(bandwidth_bytes_per_s=4_000_000))
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    await hosts.phase_reached(vmx, spec.migration_id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    qemu_pid = (await destination.state()).qemu_pid
    destination.process.kill()
    os.kill(qemu_pid, signal.SIGKILL)
    outcome = await hosts.outcome(vmx, spec.migration_id)
    assert outcome.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    assert outcome.fault.message
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    vmx, _ = await migrate(hosts, vmx, 2)
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 20)
    assert_one_unbroken_heartbeat(hosts)


async def test_source_guest_killed_in_pre_copy_is_told_and_the_destination_goes(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1], spec_pb2.MigrationOptions(bandwidth_bytes_per_s=4_000_000))
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    await hosts.phase_reached(vmx, spec.migration_id, status_pb2.MIGRATION_PHASE_PRE_COPY)
    watching = asyncio.create_task(hosts.outcome(vmx, spec.migration_id))
    await asyncio.sleep(0)
    os.kill((await vmx.state()).qemu_pid, signal.SIGKILL)
    assert (await watching).fault.type == fault_pb2.FAULT_TYPE_GUEST_DIED
    assert await vmx.ended() == 0
    assert await destination.ended() == 0
    assert not is_held(hosts.home / "web01.runlock")


async def test_cancel_after_success_is_past_the_point_of_no_return(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    _, ticket = await hosts.prepare(hosts.hosts[1], spec)
    await hosts.start(vmx, spec, ticket)
    await hosts.outcome(vmx, spec.migration_id)
    with pytest.raises(PastPointOfNoReturn):
        await hosts.cancel(vmx, spec.migration_id)


async def test_prepare_on_a_host_that_isnt_the_destination_is_refused(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    await hosts.power_on()
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    with pytest.raises(InvalidArgument):
        await hosts.prepare(hosts.hosts[2], spec)


async def test_prepare_without_the_vmotion_address_is_refused_and_leaves_nothing(
    fake_hosts: VmxHosts,
) -> None:
    hosts = fake_hosts
    await hosts.power_on()
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    spec.destination.vmotion_address = "192.0.2.1"  # TEST-NET-1: not ours
    with pytest.raises(VMotionNotConfigured) as caught:
        await hosts.prepare(hosts.hosts[1], spec)
    assert caught.value.host == "esx02"
    assert await hosts.started[-1].ended() == 0


async def test_second_power_on_of_one_vm_is_refused_by_the_owner_record(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    await hosts.power_on()
    with pytest.raises(NotOwner):
        await hosts.power_on(hosts.hosts[1])


async def test_start_with_a_forged_ticket_fails_and_the_guest_runs_on(fake_hosts: VmxHosts) -> None:
    hosts = fake_hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    _, ticket = await hosts.prepare(hosts.hosts[1], spec)
    forged = spec_pb2.DestinationTicket()
    forged.CopyFrom(ticket)
    forged.token = bytes(32)
    await hosts.start(vmx, spec, forged)
    outcome = await hosts.outcome(vmx, spec.migration_id)
    assert outcome.fault.type == fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN
    assert (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    before = len(hosts.heartbeat_lines())
    await hosts.heartbeats_beyond(before + 5)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_vmx_ended_the_guest_runs_on_and_keeps_the_run_lock(
    fake_hosts: VmxHosts, how: signal.Signals
) -> None:
    hosts = fake_hosts
    hosts.environment["esx01"] = {"FAKE_QEMU_DIE_WITH_PARENT": "0"}
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    qemu_pid = (await vmx.state()).qemu_pid
    vmx.process.send_signal(how)
    await vmx.ended()
    before = len(hosts.heartbeat_lines())
    await hosts.heartbeats_beyond(before + 50)
    assert is_held(hosts.home / "web01.runlock")
    assert hosts.qemu_pids() == [qemu_pid]
