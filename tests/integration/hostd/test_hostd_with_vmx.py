"""Two real hostds with the real vmx and QEMU: that the fake vmx of the other tests hasn't lied about the contract."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hostd.host.process import identify, read_pid_file
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import status_pb2
from runtime.faults import TaskInProgress
from runtime.ondisk import owner_record
from tests.framework.hostd_process import HostdHost, small_vm, spec_between

pytestmark = [pytest.mark.cluster, pytest.mark.qemu]
REAL_VMX = f"{sys.executable} -m vmx"


async def test_real_vm_lives_through_migration_hostds_death_and_vmxs_death(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    first = HostdHost(tmp_path, 41, shared, vmx_command=REAL_VMX)
    second = HostdHost(tmp_path, 42, shared, vmx_command=REAL_VMX)
    try:
        await asyncio.gather(first.start(), second.start())
        vm = await first.create(small_vm("fw"))  # firmware only: nothing to boot, but vCPUs that run
        on = await first.call("PowerOnVm", vm.uuid)
        assert on is not None
        await first.call("ResetVm", vm.uuid)

        canceled = await spec_between(first, second, on)
        await second.prepare(canceled)
        await second.migration("CancelMigration", canceled)
        assert (await second.info()).usage.memory_reserved_bytes == 0
        assert not any(identify(pid) for pid in second.pids())

        spec = await spec_between(first, second, on)
        await first.start_source(spec, await second.prepare(spec))
        last = (await first.statuses(spec))[-1]
        assert last.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED, last
        assert last.status.encrypted
        arrived = await second.until("fw", "on")
        assert arrived is not None
        assert arrived.lock.operation == "immigrating"
        with pytest.raises(TaskInProgress):
            await second.call("PowerOffVm", vm.uuid)

        await asyncio.gather(first.stop(signal.SIGKILL), second.stop(signal.SIGKILL))
        await asyncio.gather(first.start(), second.start())
        for host in (second, first):
            await host.migration("CompleteMigration", spec)
        assert await first.vms() == {}
        assert not any(identify(pid) for pid in first.pids())
        assert (await second.vms())["fw"].execution_state == host_pb2.EXECUTION_STATE_RUNNING
        record = owner_record.read(owner_record.owner_path(shared / "fw", "fw"))
        assert record.owner_host_uuid == spec.destination.host_uuid

        vmx = read_pid_file(second.vmx_directory(vm.uuid) / "vmx.pid")
        guest = read_pid_file(second.vmx_directory(vm.uuid) / "guest.pid")
        assert vmx is not None
        assert guest is not None
        os.kill(vmx.pid, signal.SIGKILL)
        while "unmanaged" not in (await second.vms())["fw"].failure:
            await asyncio.sleep(0.05)
        assert identify(guest.pid) == guest
        await second.call("PowerOffVm", vm.uuid)
        assert identify(guest.pid) is None
        assert await second.call("PowerOnVm", vm.uuid) is not None
        await second.call("PowerOffVm", vm.uuid)
        await second.call("DestroyVm", vm.uuid)
        assert not (shared / "fw").exists()
    finally:
        await asyncio.gather(first.end(), second.end())


async def test_real_guest_that_dies_is_told_as_the_vms_failure(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    host = HostdHost(tmp_path, 41, shared, vmx_command=REAL_VMX)
    try:
        await host.start()
        vm = await host.create(small_vm("fw"))
        await host.call("PowerOnVm", vm.uuid)
        watch = host.hostd.WatchHost(operations_pb2.WatchHostRequest(), timeout=30)
        guest = read_pid_file(host.vmx_directory(vm.uuid) / "guest.pid")
        assert guest is not None
        os.kill(guest.pid, signal.SIGKILL)
        async for response in watch:
            if response.vms[0].failure and not response.usage.memory_reserved_bytes:
                break
        assert response.vms[0].power_state == host_pb2.POWER_STATE_POWERED_OFF
        assert response.vms[0].execution_state == host_pb2.EXECUTION_STATE_FAILED
        watch.cancel()
    finally:
        await host.end()
