"""What must hold after every migration between vmx processes, however it went."""

import asyncio

from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import is_held
from tests.framework.vmx_hosts import VmxHost, VmxHosts, VmxProcess

VERIFIED = spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_AFTER_RESUME)
_SETTLED_DEADLINE_S = 10.0


async def migrate(
    hosts: VmxHosts, source: VmxProcess, to: int, options: spec_pb2.MigrationOptions = VERIFIED
) -> tuple[VmxProcess, status_pb2.MigrationStatus]:
    """A whole migration that succeeds; returns the vmx that has the guest now, and the source's last status."""
    spec = hosts.spec(source.host, hosts.hosts[to], options)
    destination, ticket = await hosts.prepare(hosts.hosts[to], spec)
    await hosts.start(source, spec, ticket)
    outcome = await hosts.outcome(source, spec.migration_id)
    assert not outcome.HasField("fault"), outcome.fault
    await hosts.complete(destination, spec.migration_id)
    await hosts.complete(source, spec.migration_id)
    assert await source.ended() == 0
    return destination, outcome.status


def record_of(hosts: VmxHosts) -> OwnerRecord:
    """The owner record now."""
    return owner_record.read(owner_record.owner_path(hosts.home, "web01"))


def run_lock_is_held(hosts: VmxHosts) -> bool:
    """Whether any process may run the guest."""
    return is_held(owner_record.run_lock_path(hosts.home, "web01"))


def heartbeat_numbers(hosts: VmxHosts) -> list[int]:
    """The numbers of all heartbeats so far, in the order in which they were written."""
    return [int(line.split()[1]) for line in hosts.heartbeat_lines() if line.startswith("HB ")]


def assert_one_unbroken_heartbeat(hosts: VmxHosts) -> None:
    """Each number came once and in order: no guest lost time, restarted, or ran twice; and its memory is right."""
    seen = heartbeat_numbers(hosts)
    assert seen == list(range(seen[0], seen[0] + len(seen))), (
        "the guest lost, repeated or restarted its heartbeat"
    )
    assert_memory_is_right(hosts)


def assert_memory_is_right(hosts: VmxHosts) -> None:
    """No page was found that isn't as the guest left it."""
    assert "STAMP WRONG" not in hosts.console()


async def assert_heart_beats(hosts: VmxHosts) -> None:
    """The guest runs, somewhere."""
    await hosts.heartbeats_beyond(len(hosts.heartbeat_lines()) + 5, deadline_s=15)


async def assert_vm_is_on(hosts: VmxHosts, vmx: VmxProcess) -> None:
    """It runs under `vmx` alone, the record and the lock say so, and nothing is left of the migration there."""
    await _until_state(vmx, host_pb2.EXECUTION_STATE_RUNNING)
    await assert_heart_beats(hosts)
    assert record_of(hosts).owner_host_uuid == vmx.host.uuid
    assert run_lock_is_held(hosts)
    await assert_guests_left(hosts, [(await vmx.state()).qemu_pid])
    async with asyncio.timeout(_SETTLED_DEADLINE_S):
        while list(vmx.run_dir.glob("state-*.sock")):  # another process's file: no event tells us
            await asyncio.sleep(0.02)


async def assert_guests_left(hosts: VmxHosts, expected: list[int]) -> None:
    """These guest processes and no others live. One that was killed takes a moment to be gone."""
    async with asyncio.timeout(_SETTLED_DEADLINE_S):
        while sorted(hosts.qemu_pids()) != sorted(expected):  # another process's end: no event tells us
            await asyncio.sleep(0.05)


async def assert_vm_is_off(hosts: VmxHosts) -> None:
    """No process of it is left and the lock is free."""
    await assert_guests_left(hosts, [])
    async with asyncio.timeout(_SETTLED_DEADLINE_S):
        while run_lock_is_held(hosts):
            await asyncio.sleep(0.02)


async def assert_it_can_move_on(hosts: VmxHosts, vmx: VmxProcess, to: int) -> VmxProcess:
    """The next migration works, proved page by page."""
    vmx, status = await migrate(hosts, vmx, to)
    assert status.memory_verified
    await assert_vm_is_on(hosts, vmx)
    return vmx


def host_number(hosts: VmxHosts, host: VmxHost) -> int:
    """Its place among the hosts."""
    return hosts.hosts.index(host)


async def _until_state(vmx: VmxProcess, state: host_pb2.ExecutionState.ValueType) -> None:
    async with asyncio.timeout(_SETTLED_DEADLINE_S):
        while (now := (await vmx.state()).execution_state) != state:
            assert vmx.process.poll() is None, f"vmx ended in state {now}"
            await asyncio.sleep(0.02)
