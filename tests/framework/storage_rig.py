"""A cluster of real daemons with real QEMU, whose guests are a boot sector: VMs with a disk that move in seconds.

The guest writes a rising number to one of 64 sectors of its disk, and when the disk has taken it, to its console. The
rest of the disk holds random bytes that nobody writes. So a disk that moved can be judged without an operating system.
"""

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from demo.cluster_layout import BlockReservation
from demo.local_cluster import LocalCluster
from demo.processes import ProcessId, command_of
from proto.vim.v1 import host_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxd.v1 import service_pb2
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import is_held
from tests.framework.cluster_rig import MIB, TASK_S, ClusterRig, until
from vpxd.cli.client import connect

Spec = service_pb2.RelocateSpec
DISK_MIB = 32
DATA_OFFSET = MIB
DATA_BYTES = 20 * MIB
SLOW = spec_pb2.MigrationOptions(bandwidth_bytes_per_s=6 * MIB)
FAST = spec_pb2.MigrationOptions()
NETWORK, LAB = "VM Network", "Lab"
_LOADED_AT, _FIRST_SECTOR, _SECTORS, _SECTOR = 0x7C00, 64, 64, 512
# again: number += 1; write it to sector 64 + number % 64 (int 13h, 43h); print 'W' (or 'E') and it in hex on COM1; wait
# for two ticks of the clock; again. Real mode, assembled by GNU as.
_BOOT_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c88167c7cfb66ff06787c66a1787c66a3007e6683e03f6683c04066a3887cb800438a167c7cbe807ccd13b145"
    "7202b15788c8e82600b90800668b1e787c66c1c30488d8240f04303c3976020427e80b00e2ebb00ae80400f4f4ebaa50bafd03eca82074fb"
    "58baf803eec3669000000000008d740010000100007e"
)


@dataclass
class DiskVm:
    """What a test knows of one of its VMs. `data`: the random part of its disk."""

    name: str
    data: bytes = field(repr=False)


class StorageRig(ClusterRig):
    """Two hosts with a local datastore each, and a shared one."""

    def folder(self, host: str, datastore: str, name: str) -> Path:
        """A VM's folder as this machine sees it; "small" is a datastore that a test has made for itself."""
        own = {"shared": self.layout.shared_datastore, "local": self.layout.local_datastore(host)}
        return own.get(datastore, self.layout.directory / datastore) / name

    async def make(
        self, name: str, host: str, datastore: str = "local", *, on: bool = True, nic: str = ""
    ) -> DiskVm:
        """A VM whose disk has the boot sector and random bytes."""
        config = vm_config_pb2.VmConfig(vcpus=1, ram_bytes=16 * MIB)
        config.disks.add(capacity_bytes=DISK_MIB * MIB, format=vm_config_pb2.DISK_FORMAT_THIN)
        if nic:
            config.nics.add(network=nic, connected=True)
        await self.create(name, host, datastore, config)
        data = os.urandom(DATA_BYTES)
        with (self.folder(host, datastore, name) / f"{name}-flat.vmdk").open("r+b") as extent:
            extent.write(_BOOT_CODE.ljust(510, b"\0") + b"\x55\xaa")
            extent.seek(DATA_OFFSET)
            extent.write(data)
        if on:
            await self.power_on(name)
            await self.writes(name)
        return DiskVm(name, data)

    # -- orders -------------------------------------------------------------------------------------------------------

    async def start_relocation(self, vm: str, spec: Spec, options: spec_pb2.MigrationOptions = FAST) -> str:
        """Answers the task's id."""
        request = service_pb2.RelocateVmRequest(vm=vm, spec=spec, options=options)
        return (await self.client.call(self.client.stub.RelocateVm, request)).id

    async def relocate(
        self, vm: str, spec: Spec, options: spec_pb2.MigrationOptions = FAST
    ) -> task_pb2.TaskInfo:
        """A whole relocation that succeeds. :raises VimFault: it was refused, or failed."""
        return await self.client.wait(await self.start_relocation(vm, spec, options), TASK_S)

    async def in_disk_copy(self, vm: str, spec: Spec) -> str:
        """A slow relocation; returns in the middle of the disk's copy."""
        task = await self.start_relocation(vm, spec, SLOW)
        async for info in self.client.watch(task, TASK_S):
            copying = info.migration.phase == status_pb2.MIGRATION_PHASE_DISK_COPY
            if copying and any(disk.copied_bytes >= 2 * MIB for disk in info.migration.disks):
                break
            assert info.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING), info
        (disk,) = info.migration.disks
        assert disk.copied_bytes < disk.data_bytes, "in the middle"
        return task

    async def kill(self, name: str) -> None:
        """SIGKILL for a daemon; it is gone on return."""
        assert self.cluster.signal(name, signal.SIGKILL), f"{name} wasn't there"
        await self.cluster.end_daemon(name)

    async def restart(self, name: str) -> None:
        """It serves again, and its hosts are connected."""
        await self.start_daemon(name)
        await self.until_connected()

    async def until_followed(self, task: str) -> None:
        """vpxd has heard of the disk's copy: its order has been answered."""
        async for info in self.client.watch(task, TASK_S):
            if info.migration.phase == status_pb2.MIGRATION_PHASE_DISK_COPY:
                return
            assert info.state in (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING), info
        raise AssertionError("the task ended")

    async def until_settled(self, vm: str) -> None:
        """No task is under way, and the VM's host and the inventory agree on its place."""

        async def settled() -> bool:
            request = service_pb2.ListTasksRequest(active_only=True)
            if (await self.client.call(self.client.stub.ListTasks, request)).tasks:
                return False
            now = await self.vm(vm)
            listed = (await self.host_itself(now.host_name)).vms
            return any(one.name == vm and one.home == now.home and not one.lock.task for one in listed)

        await until(settled, f"all is over with {vm}")

    # -- looks --------------------------------------------------------------------------------------------------------

    def vmx_on(self, host: str) -> list[ProcessId]:
        """The vmx processes of a host."""
        return [one for one in self._vm_processes_on(host) if command_of(one)[-2:] == ["-m", "vmx"]]

    def _vm_processes_on(self, host: str) -> list[ProcessId]:
        place = str(self.layout.host_run_directory(host)).encode() + b"/"
        found = []
        for one in self.cluster.vm_processes():
            with open(f"/proc/{one.pid}/environ", "rb") as file:
                if b"\0VMX_RUN_DIR=" + place in b"\0" + file.read():
                    found.append(one)
        return found

    async def until_nothing_runs(self, host: str, within_s: float = 5.0) -> None:
        """No process of a VM is on the host, and it has nothing reserved."""
        await until(lambda: not self._vm_processes_on(host), f"nothing runs on {host}", within_s)
        await self.until_reserved(host, 0, within_s)

    async def writes(self, vm: str, count: int = 2) -> None:
        """The guest lives and its disk takes what it writes."""
        log = await self.console_log(vm)
        before = len(_numbers(log))
        await until(lambda: len(_numbers(log)) >= before + count, f"{vm} writes to its disk", 15)

    async def console_log(self, vm: str) -> Path:
        """The console's log in its home as the inventory has it."""
        return (await self.home_folder(vm)) / "console.log"

    async def home_folder(self, vm: str) -> Path:
        """Its home as the inventory has it."""
        now = await self.vm(vm)
        return self.folder(now.host_name, now.home.partition("]")[0].lstrip("["), vm)

    async def assert_is(self, vm: DiskVm, host: str, datastore: str, *, on: bool = True) -> None:
        """It is there whole, free, nowhere else, and (`on`) its guest writes to its disk."""
        now = await self.vm(vm.name)
        assert (now.host_name, now.home) == (host, f"[{datastore}] {vm.name}/{vm.name}.vmx"), now
        assert [disk.path for disk in now.config.disks] == [f"[{datastore}] {vm.name}/{vm.name}.vmdk"]
        state = host_pb2.POWER_STATE_POWERED_ON if on else host_pb2.POWER_STATE_POWERED_OFF
        assert now.power_state == state, now

        async def free() -> bool:
            listed = (await self.host_itself(host)).vms
            found = next(one for one in listed if one.name == vm.name)
            return not found.lock.task and not (await self.vm(vm.name)).locked_by

        await until(free, f"{vm.name} isn't locked", 10)
        home = self.folder(host, datastore, vm.name)
        places = {
            self.folder(name, store, vm.name)
            for name in self.layout.host_names
            for store in ("local", "shared", "small")
        }
        left = [sorted(place.rglob("*")) for place in places - {home} if place.exists()]
        assert left == [], "files at another place"
        names = {path.name for path in home.iterdir() if path.suffix != ".log"}
        own = {f"{vm.name}{end}" for end in (".vmx", ".owner", ".runlock", ".vmdk", "-flat.vmdk")}
        assert names <= own | {owner_record.LOCK_NAME}, names
        record = owner_record.read(owner_record.owner_path(home, vm.name))
        assert record.owner_host_uuid == (await self.host(host)).info.uuid
        assert is_held(owner_record.run_lock_path(home, vm.name)) == on
        elsewhere = [one for one in self.layout.host_names if one != host and vm.name in await self.vms(one)]
        assert elsewhere == []
        for name in self.layout.host_names:
            told = [one.name for one in (await self.host_itself(name)).vms]
            assert (vm.name in told) == (name == host), (name, told)
        if on:
            await self.writes(vm.name)
        self.assert_disk(vm, home)

    def assert_disk(self, vm: DiskVm, home: Path) -> None:
        """The random bytes are as they were; what the guest had acknowledged by its disk is there, or newer."""
        numbers = _numbers(home / "console.log")
        with (home / f"{vm.name}-flat.vmdk").open("rb") as extent:
            content = extent.read()
        assert content[DATA_OFFSET : DATA_OFFSET + DATA_BYTES] == vm.data, "the disk's bytes have changed"
        for number in numbers[-_SECTORS:]:
            offset = (_FIRST_SECTOR + number % _SECTORS) * _SECTOR
            (found,) = struct.unpack_from("<I", content, offset)
            assert found in range(number, number + 1000 * _SECTORS, _SECTORS), (number, found)


def _numbers(console: Path) -> list[int]:
    """What the guest said of its writes, in order; a failed one is told."""
    text = console.read_text("ascii", "replace") if console.exists() else ""
    assert "E0" not in text, "the disk refused a write"
    return [int(line[1:], 16) for line in text.split("\n")[:-1] if line.startswith("W") and len(line) == 9]


@asynccontextmanager
async def storage_rig(folder: Path, *settings: tuple[str, str]) -> AsyncIterator[StorageRig]:
    """The running cluster; afterwards nothing of it runs."""
    with BlockReservation() as block:
        layout = replace(
            block.layout(folder / "cluster", 2),
            host_settings=(
                ("HOST_ACCELERATOR", "tcg"),
                ("HOST_PORT_GROUPS", f"{NETWORK}=100,{LAB}=200"),
                *settings,
            ),
            vpxd_settings=(("VPXD_HEARTBEAT_TIMEOUT_S", "2"), ("VPXD_VMOTION_LINK_GBPS", "1")),
        )
        cluster = LocalCluster(layout, images=None)
        async with cluster.running(), connect(cluster.client_config) as client:
            yield StorageRig(cluster, client)
        leftovers = await asyncio.to_thread(cluster.leftovers)
        assert leftovers == []
