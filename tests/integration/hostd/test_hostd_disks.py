"""A real hostd: VMs with disks, from creation to destruction, with what is refused and what is undone."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.host.v1 import operations_pb2, storage_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vim.v1.vm_config_pb2 import VirtualDisk, VmConfig
from runtime.faults import (
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InaccessibleDatastore,
    InvalidDiskFormat,
    InvalidVmConfig,
    NoDiskSpace,
    ResourceInUse,
    VimFault,
)
from runtime.ondisk.run_lock import RunLock
from runtime.rpc.faults import remote_faults
from tests.framework.hostd_process import MIB, HostdHost, small_vm

pytestmark = pytest.mark.cluster
THIN = vm_config_pb2.DISK_FORMAT_THIN
LAZY = vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED
EAGER = vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED


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


def vm_with(name: str, *disks: VirtualDisk) -> VmConfig:
    config = small_vm(name)
    config.disks.extend(disks)
    return config


async def reconfigure(host: HostdHost, vm: host_pb2.VmState, config: VmConfig) -> host_pb2.VmState:
    request = operations_pb2.ReconfigureVmRequest(vm_uuid=vm.uuid, config=config, task="task-4")
    with remote_faults("hostd"):
        return (await host.hostd.ReconfigureVm(request, timeout=20)).vm


async def create_disk(host: HostdHost, path: str, mib: int = 1) -> None:
    with remote_faults("hostd"):
        request = storage_pb2.CreateDiskRequest(path=path, capacity_bytes=mib * MIB)
        await host.storage.CreateDisk(request, timeout=20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".datastore.json")


def changed(vm: host_pb2.VmState) -> VmConfig:
    config = VmConfig()
    config.CopyFrom(vm.config)
    return config


async def test_vm_gets_its_disks_powers_on_and_loses_them_with_itself(host: HostdHost, shared: Path) -> None:
    wanted = vm_with(
        "web",
        VirtualDisk(capacity_bytes=4 * MIB),
        VirtualDisk(capacity_bytes=2 * MIB, format=LAZY),
        VirtualDisk(capacity_bytes=2 * MIB, format=EAGER, path="[local] data.vmdk"),
    )
    vm = await host.create(wanted)
    assert list(vm.config.disks) == [
        VirtualDisk(key=2000, path="[shared] web/web.vmdk", capacity_bytes=4 * MIB, format=THIN),
        VirtualDisk(key=2001, path="[shared] web/web_1.vmdk", capacity_bytes=2 * MIB, format=LAZY),
        VirtualDisk(key=2002, path="[local] data.vmdk", capacity_bytes=2 * MIB, format=EAGER),
    ]
    assert (shared / "web" / "web-flat.vmdk").stat().st_blocks == 0
    assert (shared / "web" / "web_1-flat.vmdk").stat().st_blocks * 512 >= 2 * MIB
    await host.stop(signal.SIGKILL)
    await host.start()
    assert (await host.vms())["web"].config.disks == vm.config.disks
    on = await host.call("PowerOnVm", vm.uuid)
    assert on is not None
    assert on.power_state == host_pb2.POWER_STATE_POWERED_ON
    await host.call("PowerOffVm", vm.uuid)
    await host.call("DestroyVm", vm.uuid)
    assert names(shared) == []
    assert names(host.local) == []


async def test_nics_get_keys_and_macs_of_their_own(host: HostdHost) -> None:
    macs = set()
    network = (await host.info()).host.port_groups[0].name
    for name in ("a", "b"):
        config = small_vm(name)
        config.nics.add(network=network, connected=True)
        config.nics.add(network=network, key=4000)
        config.nics.add(network=network, mac="02:00:00:00:00:77")
        nics = (await host.create(config)).config.nics
        assert [nic.key for nic in nics] == [4000, 4001, 4002]
        macs |= {nic.mac for nic in nics}
        assert all(nic.mac.startswith("02:") for nic in nics)
    assert len(macs) == 5


async def test_disk_that_is_there_is_attached_as_it_is(host: HostdHost) -> None:
    await create_disk(host, "[local] data.vmdk", 3)
    (host.local / "data-flat.vmdk").write_bytes(b"precious" + bytes(3 * MIB - 8))
    vm = await host.create(vm_with("web", VirtualDisk(path="[local] data.vmdk")))
    assert (vm.config.disks[0].capacity_bytes, vm.config.disks[0].format) == (3 * MIB, THIN)
    assert (host.local / "data-flat.vmdk").read_bytes()[:8] == b"precious"
    with pytest.raises(ResourceInUse):
        await host.create(vm_with("thief", VirtualDisk(path="[local] data.vmdk")))
    await host.call("UnregisterVm", vm.uuid)
    other = await host.create(vm_with("other", VirtualDisk(path="[local] data.vmdk")))
    with pytest.raises(ResourceInUse):
        await host.register(vm.home)
    await host.call("DestroyVm", other.uuid)
    with pytest.raises(FileNotFound) as caught:
        await host.register(vm.home)
    assert caught.value.path == "[local] data.vmdk"


async def test_create_that_fails_at_any_disk_leaves_nothing(host: HostdHost, shared: Path) -> None:
    await create_disk(host, "[local] there.vmdk")
    (host.local / "broken.vmdk").write_text("# Disk DescriptorFile\n")
    (host.local / "orphan-flat.vmdk").write_text("x")
    good = VirtualDisk(capacity_bytes=MIB)
    before = names(host.local)
    cases: list[tuple[VirtualDisk, type[VimFault]]] = [
        (VirtualDisk(path="[local] none.vmdk"), FileNotFound),
        (VirtualDisk(path="[local] none/x.vmdk", capacity_bytes=MIB), FileNotFound),
        (VirtualDisk(path="[none] x.vmdk", capacity_bytes=MIB), InaccessibleDatastore),
        (VirtualDisk(path="[local] broken.vmdk"), InvalidDiskFormat),
        (VirtualDisk(path="[local] orphan.vmdk", capacity_bytes=MIB), FileAlreadyExists),
        (VirtualDisk(path="[local] there.vmdk", capacity_bytes=2 * MIB), InvalidVmConfig),
        (VirtualDisk(path="[local] there.vmdk", format=LAZY), InvalidVmConfig),
        (VirtualDisk(path="[local] x.img", capacity_bytes=MIB), InvalidVmConfig),
        (VirtualDisk(path="[local] ../x.vmdk", capacity_bytes=MIB), InvalidVmConfig),
        (VirtualDisk(capacity_bytes=MIB + 1), InvalidVmConfig),
        (VirtualDisk(capacity_bytes=MIB, key=7), InvalidVmConfig),
        (VirtualDisk(capacity_bytes=MIB, format=vm_config_pb2.DISK_FORMAT_QCOW2), InvalidVmConfig),
        (VirtualDisk(capacity_bytes=1 << 45, format=LAZY), NoDiskSpace),
    ]
    for bad, fault in cases:
        with pytest.raises(fault):
            await host.create(vm_with("web", good, bad))
        assert (names(shared), names(host.local)) == ([], before), bad
    with pytest.raises(InvalidVmConfig):
        await host.create(vm_with("web", *(good for _ in range(17))))
    boot = vm_with("web", good)
    boot.boot.kernel = "[local] none"
    with pytest.raises(FileNotFound):
        await host.create(boot)
    assert names(shared) == []


async def test_reconfigure_adds_removes_and_grows_disks(host: HostdHost, shared: Path) -> None:
    vm = await host.create(vm_with("web", VirtualDisk(capacity_bytes=MIB), VirtualDisk(capacity_bytes=MIB)))
    config = changed(vm)
    config.disks[0].capacity_bytes = 4 * MIB
    del config.disks[1]
    config.disks.add(capacity_bytes=2 * MIB, format=LAZY)
    vm = await reconfigure(host, vm, config)
    assert [(disk.key, disk.path, disk.capacity_bytes) for disk in vm.config.disks] == [
        (2000, "[shared] web/web.vmdk", 4 * MIB),
        (2002, "[shared] web/web_2.vmdk", 2 * MIB),
    ]
    assert (shared / "web" / "web-flat.vmdk").stat().st_size == 4 * MIB
    assert (shared / "web" / "web_1.vmdk").exists()
    await host.call("PowerOnVm", vm.uuid)
    await host.call("PowerOffVm", vm.uuid)


async def test_reconfigure_of_disks_that_cannot_be_leaves_all_as_it_was(
    host: HostdHost, shared: Path
) -> None:
    vm = await host.create(vm_with("web", VirtualDisk(capacity_bytes=2 * MIB)))
    before = {path.name: path.stat().st_size for path in (shared / "web").iterdir()}

    async def refused(change: VirtualDisk, fault: type[VimFault], *more: VirtualDisk) -> None:
        config = changed(vm)
        config.disks[0].MergeFrom(change)
        config.disks.extend(more)
        with pytest.raises(fault):
            await reconfigure(host, vm, config)
        assert {path.name: path.stat().st_size for path in (shared / "web").iterdir()} == before

    await refused(VirtualDisk(capacity_bytes=MIB), InvalidVmConfig)
    await refused(VirtualDisk(format=LAZY), InvalidVmConfig)
    await refused(VirtualDisk(path="[shared] web/other.vmdk"), InvalidVmConfig)
    huge = VirtualDisk(capacity_bytes=1 << 45, format=LAZY)
    await refused(VirtualDisk(), NoDiskSpace, VirtualDisk(capacity_bytes=MIB), huge)
    (shared / "web" / "web.owner").write_text(
        json.dumps({"vm_uuid": vm.uuid, "owner_host_uuid": "x", "epoch": 9})
    )
    before["web.owner"] = (shared / "web" / "web.owner").stat().st_size
    await refused(VirtualDisk(capacity_bytes=4 * MIB), FileLocked, VirtualDisk(capacity_bytes=MIB))


async def test_power_on_with_a_disk_that_is_not_as_configured_is_refused(
    host: HostdHost, shared: Path
) -> None:
    vm = await host.create(vm_with("web", VirtualDisk(capacity_bytes=2 * MIB)))
    descriptor = shared / "web" / "web.vmdk"
    text = descriptor.read_text()
    for damaged, fault in (
        (text.replace('ddb.thinProvisioned = "1"', ""), InvalidVmConfig),
        (text.replace("RW 4096", "RW 6144"), InvalidDiskFormat),
        (text.replace("web-flat", "other-flat"), InvalidDiskFormat),
    ):
        descriptor.write_text(damaged)
        with pytest.raises(fault):
            await host.call("PowerOnVm", vm.uuid)
    descriptor.unlink()
    with pytest.raises(FileNotFound):
        await host.call("PowerOnVm", vm.uuid)
    assert (await host.info()).usage.memory_reserved_bytes == 0
    descriptor.write_text(text)
    await host.call("PowerOnVm", vm.uuid)
    await host.call("PowerOffVm", vm.uuid)


async def test_destroy_of_a_vm_that_runs_elsewhere_deletes_no_disk(host: HostdHost, shared: Path) -> None:
    vm = await host.create(vm_with("web", VirtualDisk(capacity_bytes=MIB)))
    before = names(shared / "web")
    lock = RunLock.open(shared / "web" / "web.runlock")
    lock.acquire()
    with pytest.raises(FileLocked):
        await host.call("DestroyVm", vm.uuid)
    lock.close()
    assert set(before) <= set(names(shared / "web"))
    (shared / "web" / "web.vmdk").unlink()  # a disk that has gone already is no obstacle
    await host.call("DestroyVm", vm.uuid)
    assert names(shared) == []
