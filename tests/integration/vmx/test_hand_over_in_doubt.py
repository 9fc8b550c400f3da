"""A destination that vanishes after the swap: the source's migration ends in time, its guest stays stunned, and comes
back when the owner record says so. The source's VM runs in the test's own process: its migration has little time."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.faults import (
    InvalidState,
    MigrationFault,
    MigrationNotReady,
    PastPointOfNoReturn,
    TaskInProgress,
)
from runtime.ondisk import owner_record
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.vmx_hosts import VmxHosts, VmxProcess
from tests.framework.vmx_invariants import (
    assert_guests_left,
    assert_heart_beats,
    assert_one_unbroken_heartbeat,
    record_of,
    run_lock_is_held,
)
from vmx import messages
from vmx.config import Config
from vmx.guest.command_line import Accelerator
from vmx.migration import failpoints
from vmx.migration.phases import PublishedPhase
from vmx.virtual_machine import VirtualMachine
from vmx.vm_state import ExecutionState

_MAX_SWITCHOVER_S = 1.0


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[VmxHosts]:
    made = VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8)
    yield made
    await made.close()


async def power_on(hosts: VmxHosts) -> VirtualMachine:
    run_dir = hosts.run_root / "own"
    run_dir.mkdir()
    first = hosts.hosts[0]
    vm = VirtualMachine(
        Config(
            vm_uuid=hosts.vm_uuid,
            run_dir=run_dir,
            host_name=first.name,
            host_uuid=first.uuid,
            vmotion_address=first.vmotion_address,
            qemu_binary=hosts.qemu_binary,
            accelerator=Accelerator.TCG,
            log_json=False,
        )
    )
    await vm.power_on(hosts.config, hosts.place(first))
    await hosts.heartbeats_beyond(5)
    return vm


def state_of(vm: VirtualMachine) -> ExecutionState:
    return vm.state


async def migrate(hosts: VmxHosts, vm: VirtualMachine, to: int) -> tuple[VmxProcess, int]:
    """Start it; returns when it is over at the source."""
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[to])
    destination, ticket = await hosts.prepare(hosts.hosts[to], spec)
    order = messages.migration_order(spec)
    order = replace(order, options=replace(order.options, max_switchover_s=_MAX_SWITCHOVER_S))
    await vm.start_source(order, messages.ticket_of(ticket, order))
    async with asyncio.timeout(30):
        async for _ in vm.session(spec.migration_id).board.watched.watch():
            pass
    return destination, spec.migration_id


async def test_destination_gone_after_the_swap_the_guest_stays_stunned_until_it_is_given_back(
    hosts: VmxHosts,
) -> None:
    hosts.environment["esx02"] = {"VPX_FAILPOINTS": f"{failpoints.DESTINATION_BEFORE_LOCK}=kill"}
    vm = await power_on(hosts)
    assert vm.guest is not None
    destination, migration_id = await migrate(hosts, vm, 1)
    await destination.ended()
    last = vm.session(migration_id).board.now
    assert last.phase is PublishedPhase.FAILED
    assert isinstance(last.fault, MigrationFault)
    assert last.fault.phase == "hand-over"
    assert "stays stunned" in str(last.fault)
    assert state_of(vm) is ExecutionState.STUNNED
    with pytest.raises(PastPointOfNoReturn):
        await vm.cancel_migration(migration_id)
    with pytest.raises(MigrationNotReady):
        await vm.complete_migration(migration_id)
    with pytest.raises(TaskInProgress):
        await vm.power_off()
    await assert_guests_left(hosts, [vm.guest.pid])
    assert not run_lock_is_held(hosts)

    path = owner_record.owner_path(hosts.home, "web01")
    owner_record.swap(path, record_of(hosts), hosts.hosts[0].uuid)  # its hostd gives the VM back
    await assert_heart_beats(hosts)
    assert state_of(vm) is ExecutionState.RUNNING
    assert run_lock_is_held(hosts)
    await vm.cancel_migration(migration_id)  # it has failed: that is what a cancel is about

    arrived, migration_id = await migrate(hosts, vm, 2)
    await hosts.complete(arrived, migration_id)
    await vm.complete_migration(migration_id)
    assert vm.ended.is_set()
    await assert_heart_beats(hosts)
    assert_one_unbroken_heartbeat(hosts)


async def test_destination_that_runs_and_never_says_so_is_settled_by_the_record(hosts: VmxHosts) -> None:
    """Its vmx dies before its last word, its guest lives: the source lets nothing run."""
    hosts.environment["esx02"] = {
        "VPX_FAILPOINTS": f"{failpoints.DESTINATION_BEFORE_SETTLE}=kill",
        "FAKE_QEMU_DIE_WITH_PARENT": "0",
    }
    vm = await power_on(hosts)
    _, migration_id = await migrate(hosts, vm, 1)
    assert isinstance(vm.session(migration_id).board.now.fault, MigrationFault)
    assert state_of(vm) is ExecutionState.STUNNED
    await assert_heart_beats(hosts)
    assert_one_unbroken_heartbeat(hosts)
    assert vm.guest is not None
    os.kill(vm.guest.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await vm.ended.wait()
    assert state_of(vm) is ExecutionState.FAILED
    await assert_heart_beats(hosts)


async def test_let_go_ends_the_watching_and_leaves_the_guest(hosts: VmxHosts) -> None:
    hosts.environment["esx02"] = {"VPX_FAILPOINTS": f"{failpoints.DESTINATION_BEFORE_LOCK}=kill"}
    vm = await power_on(hosts)
    await migrate(hosts, vm, 1)
    assert vm.guest is not None
    async with asyncio.timeout(5):
        await vm.let_go()
    await assert_guests_left(hosts, [vm.guest.pid])


async def test_start_whose_caller_goes_away_leaves_the_guest_running(hosts: VmxHosts) -> None:
    vm = await power_on(hosts)
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    order = messages.migration_order(spec)
    starting = asyncio.create_task(vm.start_source(order, messages.ticket_of(ticket, order)))
    await asyncio.sleep(0)  # it reads the owner record
    assert state_of(vm) is ExecutionState.EMIGRATING
    with pytest.raises(TaskInProgress):
        await vm.power_off()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert state_of(vm) is ExecutionState.RUNNING
    await hosts.cancel(destination, spec.migration_id)
    await vm.power_off()


async def test_guest_that_dies_while_a_migration_starts_is_told(hosts: VmxHosts) -> None:
    vm = await power_on(hosts)
    assert vm.guest is not None
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    order = messages.migration_order(spec)
    os.kill(vm.guest.pid, signal.SIGKILL)
    with contextlib.suppress(InvalidState):  # it depends on which of both is seen first
        await vm.start_source(order, messages.ticket_of(ticket, order))
    async with asyncio.timeout(10):
        await vm.ended.wait()
    assert state_of(vm) is ExecutionState.FAILED
    with pytest.raises(InvalidState):
        await vm.start_source(order, messages.ticket_of(ticket, order))
    await hosts.cancel(destination, spec.migration_id)


async def test_power_off_whose_caller_goes_away_still_ends_the_vm(hosts: VmxHosts) -> None:
    vm = await power_on(hosts)
    stopping = asyncio.create_task(vm.power_off())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert vm.ended.is_set()
    assert state_of(vm) is ExecutionState.OFF
    await assert_guests_left(hosts, [])
