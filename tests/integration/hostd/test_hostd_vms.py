"""A real hostd with fake vmx processes: life of a VM, admission, files, console, and hostd's own death."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostd.host.process import identify, read_pid_file
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vim.v1.vm_config_pb2 import Boot, VmConfig
from runtime.faults import (
    ConcurrentAccess,
    DuplicateName,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    GuestStartFailed,
    InaccessibleDatastore,
    InsufficientCpuResources,
    InsufficientMemoryResources,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidPowerState,
    InvalidState,
    InvalidVmConfig,
    ManagedObjectNotFound,
    VimFault,
    VirtualHardwareVersionNotSupported,
)
from runtime.ondisk import owner_record, run_lock
from runtime.rpc.faults import remote_faults
from tests.framework.hostd_process import ROOT, HostdHost, read_one, small_vm

pytestmark = pytest.mark.cluster


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
async def host(tmp_path: Path, shared: Path) -> AsyncIterator[HostdHost]:
    host = HostdHost(tmp_path, 41, shared)
    try:
        await host.start()
        yield host
    finally:
        await host.end()


async def reconfigure(host: HostdHost, vm_uuid: str, config: VmConfig) -> host_pb2.VmState:
    request = operations_pb2.ReconfigureVmRequest(vm_uuid=vm_uuid, config=config, task="task-4")
    with remote_faults("hostd"):
        response = await host.hostd.ReconfigureVm(request, timeout=10)
    return response.vm


async def console(host: HostdHost, vm_uuid: str, port: str = "") -> bytes:
    request = operations_pb2.ReadConsoleRequest(vm_uuid=vm_uuid, port=port)
    with remote_faults("hostd"):
        return b"".join([piece.data async for piece in host.hostd.ReadConsole(request, timeout=10)])


async def test_life_of_a_vm_from_create_to_destroy(host: HostdHost, shared: Path) -> None:
    vm = await host.create(small_vm("web01"))
    assert vm.home == "[shared] web01/web01.vmx"
    assert vm.power_state == host_pb2.POWER_STATE_POWERED_OFF
    assert (vm.config.cpu_model, vm.config.change_version) == ("qemu64", 1)
    assert vm.config.machine_type in (await host.info()).host.capability.machine_types
    record = owner_record.read(owner_record.owner_path(shared / "web01", "web01"))
    assert record.owner_host_uuid == (await host.info()).host.uuid

    on = await host.call("PowerOnVm", vm.uuid)
    assert on is not None
    assert (on.power_state, on.execution_state) == (
        host_pb2.POWER_STATE_POWERED_ON,
        host_pb2.EXECUTION_STATE_RUNNING,
    )
    usage = (await host.info()).usage
    assert (usage.memory_reserved_bytes, usage.vcpus_reserved) == (vm.config.ram_bytes, 1)
    assert run_lock.is_held(owner_record.run_lock_path(shared / "web01", "web01"))
    await host.call("ResetVm", vm.uuid)
    for rpc in ("PowerOnVm", "DestroyVm", "UnregisterVm"):
        with pytest.raises(InvalidPowerState):
            await host.call(rpc, vm.uuid)
    with pytest.raises(InvalidPowerState):
        await reconfigure(host, vm.uuid, vm.config)
    assert await console(host, vm.uuid) == b"fake guest boots\n"

    off = await host.call("PowerOffVm", vm.uuid)
    assert off is not None
    assert (off.execution_state, off.failure) == (host_pb2.EXECUTION_STATE_OFF, "")
    assert (await host.info()).usage.memory_reserved_bytes == 0
    for rpc in ("PowerOffVm", "ResetVm"):
        with pytest.raises(InvalidPowerState):
            await host.call(rpc, vm.uuid)
    assert await host.call("PowerOnVm", vm.uuid) is not None
    await host.call("PowerOffVm", vm.uuid)
    await host.call("DestroyVm", vm.uuid)
    assert not (shared / "web01").exists()
    for rpc in ("PowerOnVm", "PowerOffVm", "ResetVm", "DestroyVm", "UnregisterVm"):
        with pytest.raises(ManagedObjectNotFound):
            await host.call(rpc, vm.uuid)


async def test_create_that_cannot_be_leaves_nothing(host: HostdHost, shared: Path, tmp_path: Path) -> None:
    before = sorted(shared.iterdir())
    (tmp_path / "vmlinuz").write_text("outside")
    (shared / "link").symlink_to(tmp_path / "vmlinuz")
    refused: list[tuple[type[VimFault], VmConfig, str]] = [
        (InvalidVmConfig, small_vm("../up"), "shared"),
        (InvalidVmConfig, small_vm("web01", vcpus=0), "shared"),
        (InaccessibleDatastore, small_vm("web01"), "nowhere"),
        (InvalidArgument, small_vm("web01"), "a/b"),
        (FileNotFound, _with_kernel("[shared] no/vmlinuz"), "shared"),
        (InvalidDatastorePath, _with_kernel("[shared] link"), "shared"),
        (InvalidVmConfig, _with_kernel("[shared] ../vmlinuz"), "shared"),
    ]
    for fault, config, datastore in refused:
        with pytest.raises(fault):
            await host.create(config, datastore)
    (shared / "link").unlink()
    assert sorted(shared.iterdir()) == before
    assert await host.vms() == {}
    vm = await host.create(small_vm("web01"))
    with pytest.raises(DuplicateName):
        await host.create(small_vm("web01"), "local")
    with pytest.raises(DuplicateName):
        await host.create(VmConfig(uuid=vm.uuid, name="web02", vcpus=1, ram_bytes=64 << 20))
    (shared / "taken").mkdir()
    with pytest.raises(FileAlreadyExists):
        await host.create(small_vm("taken"))
    assert list((shared / "taken").iterdir()) == []


def _with_kernel(path: str) -> VmConfig:
    config = small_vm("web01")
    config.boot.CopyFrom(Boot(kernel=path))
    return config


async def test_reconfigure_raises_the_change_version_and_refuses_a_stale_one(host: HostdHost) -> None:
    vm = await host.create(small_vm("web01"))
    wanted = VmConfig()
    wanted.CopyFrom(vm.config)
    wanted.vcpus = 3
    changed = await reconfigure(host, vm.uuid, wanted)
    assert (changed.config.vcpus, changed.config.change_version) == (3, 2)
    with pytest.raises(ConcurrentAccess):
        await reconfigure(host, vm.uuid, wanted)
    wanted.change_version, wanted.name = 2, "other"
    with pytest.raises(InvalidVmConfig):
        await reconfigure(host, vm.uuid, wanted)
    await host.stop(signal.SIGKILL)
    await host.start()
    assert (await host.vms())["web01"].config.vcpus == 3


async def test_admission_refuses_what_does_not_fit_and_a_failed_start_frees_it(host: HostdHost) -> None:
    big = await host.create(small_vm("big", ram_mib=800))
    second = await host.create(small_vm("second", ram_mib=300))
    wide = await host.create(small_vm("wide", vcpus=8))
    await host.call("PowerOnVm", big.uuid)
    with pytest.raises(InsufficientMemoryResources) as caught:
        await host.call("PowerOnVm", second.uuid)
    assert caught.value.unreserved_bytes == 224 << 20
    assert caught.value.origin == "hostd@esx41"
    with pytest.raises(InsufficientCpuResources):
        await host.call("PowerOnVm", wide.uuid)
    await host.call("PowerOffVm", big.uuid)
    await host.call("PowerOnVm", second.uuid)
    await host.call("PowerOffVm", second.uuid)
    failing = await host.create(small_vm("failing", annotation="fail-start", ram_mib=800))
    with pytest.raises(GuestStartFailed):
        await host.call("PowerOnVm", failing.uuid)
    usage = (await host.info()).usage
    assert (usage.memory_reserved_bytes, usage.vcpus_reserved) == (0, 0)
    state = (await host.vms())["failing"]
    assert (state.power_state, state.HasField("lock")) == (host_pb2.POWER_STATE_POWERED_OFF, False)


async def test_vmx_that_does_not_start_is_a_clear_fault(tmp_path: Path, shared: Path) -> None:
    host = HostdHost(tmp_path, 43, shared, vmx_command="/bin/false")
    try:
        await host.start()
        vm = await host.create(small_vm("web01"))
        with pytest.raises(GuestStartFailed):
            await host.call("PowerOnVm", vm.uuid)
        assert (await host.info()).usage.memory_reserved_bytes == 0
    finally:
        await host.end()


async def test_guest_death_is_the_vms_failure_and_frees_the_reservation(host: HostdHost) -> None:
    vm = await host.create(small_vm("web01"))
    await host.call("PowerOnVm", vm.uuid)
    await host.tell_vmx(vm.uuid, "guest-dies")
    state = await host.until("web01", "off")
    assert state is not None
    await asyncio.sleep(0)
    while (await host.info()).usage.memory_reserved_bytes:
        await asyncio.sleep(0.05)
    state = (await host.vms())["web01"]
    assert state.failure == "The fake guest died."
    assert state.execution_state == host_pb2.EXECUTION_STATE_FAILED
    assert await host.call("PowerOnVm", vm.uuid) is not None


async def test_vmx_death_leaves_the_guest_alone_and_says_so(host: HostdHost) -> None:
    vm = await host.create(small_vm("web01"))
    await host.call("PowerOnVm", vm.uuid)
    guest = read_pid_file(host.vmx_directory(vm.uuid) / "guest.pid")
    vmx = read_pid_file(host.vmx_directory(vm.uuid) / "vmx.pid")
    assert guest is not None
    assert vmx is not None
    os.kill(vmx.pid, signal.SIGKILL)
    while not (state := (await host.vms())["web01"]).failure:
        await asyncio.sleep(0.05)
    assert "unmanaged" in state.failure
    assert state.power_state == host_pb2.POWER_STATE_POWERED_ON
    assert identify(guest.pid) == guest
    assert (await host.info()).usage.memory_reserved_bytes == vm.config.ram_bytes
    with pytest.raises(InvalidState):
        await host.call("ResetVm", vm.uuid)
    with pytest.raises(InvalidPowerState):
        await host.call("PowerOnVm", vm.uuid)

    await host.stop(signal.SIGKILL)
    await host.start()
    state = (await host.vms())["web01"]
    assert "unmanaged" in state.failure
    assert (await host.info()).usage.memory_reserved_bytes == vm.config.ram_bytes
    assert identify(guest.pid) == guest

    off = await host.call("PowerOffVm", vm.uuid)
    assert off is not None
    assert off.failure == ""
    assert identify(guest.pid) is None
    assert (await host.info()).usage.memory_reserved_bytes == 0


async def test_vmx_and_guest_death_together_is_the_vms_failure(host: HostdHost) -> None:
    vm = await host.create(small_vm("web01"))
    await host.call("PowerOnVm", vm.uuid)
    for pid in set(host.pids()):
        os.kill(pid, signal.SIGKILL)
    state = await host.until("web01", "off")
    assert state is not None
    while (await host.info()).usage.memory_reserved_bytes:
        await asyncio.sleep(0.05)
    assert (await host.vms())["web01"].failure


async def test_power_off_of_a_vmx_that_does_not_answer_works(host: HostdHost) -> None:
    """vmx is stopped, not dead: it answers nothing, and its guest and itself are killed."""
    vm = await host.create(small_vm("web01"))
    await host.call("PowerOnVm", vm.uuid)
    pids = set(host.pids())
    vmx = read_pid_file(host.vmx_directory(vm.uuid) / "vmx.pid")
    assert vmx is not None
    os.kill(vmx.pid, signal.SIGSTOP)
    off = await host.call("PowerOffVm", vm.uuid)
    assert off is not None
    assert off.power_state == host_pb2.POWER_STATE_POWERED_OFF
    assert [identify(pid) for pid in pids] == [None] * len(pids)


async def test_hostd_killed_and_started_finds_running_vms_untouched(host: HostdHost) -> None:
    running = await host.create(small_vm("running"))
    off = await host.create(small_vm("off"))
    lost = await host.create(small_vm("lost"))
    for vm in (running, lost):
        await host.call("PowerOnVm", vm.uuid)
    processes = {pid: identify(pid) for pid in host.pids()}
    await host.stop(signal.SIGKILL)
    for name in ("vmx.pid", "guest.pid"):  # dies while there's no hostd
        gone = read_pid_file(host.vmx_directory(lost.uuid) / name)
        assert gone is not None
        os.kill(gone.pid, signal.SIGKILL)
        del processes[gone.pid]
    await host.start()
    vms = await host.vms()
    assert set(vms) == {"running", "off", "lost"}
    assert vms["running"].power_state == host_pb2.POWER_STATE_POWERED_ON
    assert vms["running"].execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert vms["off"].power_state == vms["lost"].power_state == host_pb2.POWER_STATE_POWERED_OFF
    assert {pid: identify(pid) for pid in processes} == processes
    assert (await host.info()).usage.memory_reserved_bytes == running.config.ram_bytes
    assert await host.stop(signal.SIGTERM) == 0
    assert {pid: identify(pid) for pid in processes} == processes
    await host.start()
    await host.call("PowerOffVm", running.uuid)
    assert [identify(pid) for pid in processes] == [None] * len(processes)
    await host.call("DestroyVm", off.uuid)
    await host.call("PowerOnVm", lost.uuid)


async def test_hostile_vmx_files_are_refused_or_shown_and_hostd_lives(host: HostdHost, shared: Path) -> None:
    for name, content, fault in (
        ("a", b"\xff\xfe", InvalidVmConfig),
        ("b", b'displayName = "b"\n', InvalidVmConfig),
        ("c", b"x" * 100_000, InvalidVmConfig),
    ):
        (shared / name).mkdir()
        (shared / name / f"{name}.vmx").write_bytes(content)
        with pytest.raises(fault):
            await host.register(f"[shared] {name}/{name}.vmx")
    (shared / "d").mkdir()
    (shared / "d" / "d.vmx").symlink_to("/etc/passwd")
    for home in ("[shared] d/d.vmx", "[shared] ../x/x.vmx", "/etc/passwd", "[shared] d.vmx", ""):
        with pytest.raises(InvalidDatastorePath):
            await host.register(home)
    with pytest.raises(FileNotFound):
        await host.register("[shared] a/none.vmx")
    vm = await host.create(small_vm("web01"))
    (shared / "web01" / "web01.vmx").write_text("damaged")
    with pytest.raises(InvalidVmConfig):
        await host.call("PowerOnVm", vm.uuid)
    await host.stop(signal.SIGKILL)
    await host.start()
    state = (await host.vms())["web01"]
    assert "can't be read" in state.failure
    assert state.config.ram_bytes == vm.config.ram_bytes


async def test_register_takes_an_idle_vm_over_and_refuses_a_running_one(
    host: HostdHost, tmp_path: Path, shared: Path
) -> None:
    other = HostdHost(tmp_path, 42, shared)
    try:
        await other.start()
        vm = await host.create(small_vm("web01"))
        await host.call("PowerOnVm", vm.uuid)
        with pytest.raises(FileLocked) as caught:
            await other.register(vm.home)
        assert caught.value.owner == (await host.info()).host.uuid
        await host.call("PowerOffVm", vm.uuid)
        taken = await other.register(vm.home)
        assert taken.config == vm.config
        with pytest.raises(DuplicateName):
            await other.register(vm.home)
        for rpc in ("PowerOnVm", "DestroyVm"):
            with pytest.raises(FileLocked):
                await host.call(rpc, vm.uuid)
        with pytest.raises(FileLocked):
            await reconfigure(host, vm.uuid, vm.config)
        await host.call("UnregisterVm", vm.uuid)
        assert (shared / "web01" / "web01.vmx").exists()
        assert await other.call("PowerOnVm", vm.uuid) is not None
    finally:
        await other.end()


async def test_power_on_of_a_machine_type_from_elsewhere_is_refused(host: HostdHost) -> None:
    config = small_vm("web01")
    config.machine_type = "pc-q35-99.0"
    vm = await host.create(config)
    with pytest.raises(VirtualHardwareVersionNotSupported):
        await host.call("PowerOnVm", vm.uuid)


async def test_read_console_follows_into_what_comes_and_refuses_other_ports(
    host: HostdHost, shared: Path
) -> None:
    vm = await host.create(small_vm("web01"))
    with pytest.raises(FileNotFound):
        await console(host, vm.uuid)
    with pytest.raises(InvalidArgument):
        await console(host, vm.uuid, "../../etc/passwd")
    call = host.hostd.ReadConsole(operations_pb2.ReadConsoleRequest(vm_uuid=vm.uuid, follow=True), timeout=20)
    await host.call("PowerOnVm", vm.uuid)
    assert (await read_one(call)).data == b"fake guest boots\n"
    with open(shared / "web01" / "console.log", "ab") as file:
        file.write(b"more\n")
    assert (await read_one(call)).data == b"more\n"
    call.cancel()


async def test_watch_host_tells_changes_at_once_and_beats_between(host: HostdHost) -> None:
    call = host.hostd.WatchHost(operations_pb2.WatchHostRequest(heartbeat_s=30), timeout=30)
    first = await read_one(call)
    assert first.HasField("host")
    assert {store.name for store in first.host.datastores} == {"shared", "local"}
    vm = await host.create(small_vm("web01"))
    seen = first
    async with asyncio.timeout(10):  # far less than a heartbeat: it came by the event
        while not seen.vms or seen.vms[0].HasField("lock"):
            seen = await read_one(call)
    assert seen.sequence > first.sequence
    assert seen.vms[0].uuid == vm.uuid
    call.cancel()
    beats = host.hostd.WatchHost(operations_pb2.WatchHostRequest(heartbeat_s=0.05), timeout=30)
    told = [await read_one(beats) for _ in range(4)]
    assert [beat.sequence for beat in told] == [1, 2, 3, 4]
    assert told[0].HasField("host")
    assert not any(beat.HasField("host") for beat in told[1:])  # nothing of it has changed
    beats.cancel()


async def test_telemetry_reaches_the_picture(host: HostdHost) -> None:
    vm = await host.create(small_vm("web01"))
    await host.call("PowerOnVm", vm.uuid)
    async with asyncio.timeout(10):
        while not (await host.info()).usage.memory_used_bytes:
            await asyncio.sleep(0.1)
    assert (await host.vms())["web01"].memory_used_bytes == 12 << 20


async def test_second_hostd_on_one_state_does_not_start(host: HostdHost) -> None:
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hostd"],
        env=host.environment,
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert b"Another hostd uses" in second.stderr
    assert (await host.info()).host.name == "esx41"
