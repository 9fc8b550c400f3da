"""A VM with a root disk, observed from outside while its disk and its host change: acts, and what each left behind.

    scene = StorageScene(cluster, client, plan)
    await scene.make_vm()
    async with scene.observed():
        await scene.until_ready()
        act = await scene.act("both", RelocateSpec(host="esx02", datastore="local", format=THIN))

Its guest writes and fsyncs all the time, its heart beats, and it is pinged; all of that is judged by
demo/storage_result.py. The observers are processes of their own, and see every move from start to end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from demo import disk_proof
from demo.cluster_layout import PROJECT, ClusterLayout
from demo.guest_console import GuestSilent, read_all, wait_for
from demo.heartbeat_observer import HeartbeatObserver
from demo.local_cluster import LocalCluster
from demo.orders import TASK_TIMEOUT_S, order
from demo.ping_observer import PingObserver, PingSettings
from demo.source_disk import GuestPlan, extent_of, file_of, provide_disk
from demo.storage_result import Act, DiskState, Proof
from images.guest_output import FsyncState, parse_fsync_state
from proto.host.v1 import storage_pb2 as host_storage_pb2
from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2, storage_pb2
from vpxd.cli.client import VpxdClient

MIB = 1 << 20
NETWORK, SEGMENT = "VM Network", 100
STATION_NUMBER = 250
STATION_MAC, STATION_IP = "02:00:00:00:00:fe", "10.0.0.9"
GUEST_MAC = "02:00:00:00:00:05"
OPTIONS = spec_pb2.MigrationOptions(
    verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, encryption=spec_pb2.ENCRYPTION_MODE_REQUIRED
)
PINGED_AFTERWARDS_S = 1.0
_BOOT_TIMEOUT_S = 90.0
_WAIT_TIMEOUT_S = 30.0
_STEADY_PINGS = 50
_LATE_ANSWERS = 10
Watch = Callable[[str, task_pb2.TaskInfo], Awaitable[task_pb2.TaskInfo]]


def with_station(layout: ClusterLayout) -> ClusterLayout:
    """The layout whose switches know the pinging station as one more peer."""
    numbers = (*range(1, layout.host_count + 1), STATION_NUMBER)
    peers = ",".join(map(layout.switch_address, numbers))
    return replace(layout, host_settings=(*layout.host_settings, ("HOST_VSWITCH_PEERS", peers)))


class StorageScene:
    """One VM on one cluster, whose layout is `with_station`."""

    def __init__(
        self, cluster: LocalCluster, client: VpxdClient, plan: GuestPlan, name: str = "store01"
    ) -> None:
        self.name = name
        self.plan = plan
        self.heart = HeartbeatObserver()
        self.pings = PingObserver(self._ping_settings(cluster.layout))
        self._layout = cluster.layout
        self._client = client

    async def make_vm(self, host: str, ram_mib: int = 256) -> str:
        """The VM with its disk on the host's local datastore; answers the disk's path. Raises as `provide_disk`."""
        path = await provide_disk(self._client, host, self.name, self.plan)
        config = vm_config_pb2.VmConfig(name=self.name, vcpus=1, ram_bytes=ram_mib * MIB)
        config.disks.add(path=path)
        config.nics.add(key=4000, mac=GUEST_MAC, network=NETWORK, connected=True)
        request = service_pb2.CreateVmRequest(config=config, datastore="local", host=host)
        await order(self._client, self._client.stub.CreateVm, request)
        return path

    async def power_on(self) -> None:
        """Its guest starts. Raises as VpxdClient.wait."""
        await order(self._client, self._client.stub.PowerOnVm, service_pb2.VmOperationRequest(vm=self.name))

    async def power_off(self) -> None:
        """Its guest is ended at once, as by a power cut. Raises as VpxdClient.wait."""
        await order(self._client, self._client.stub.PowerOffVm, service_pb2.VmOperationRequest(vm=self.name))

    async def vm(self) -> inventory_pb2.Vm:
        """The VM now."""
        return await self._client.call(self._client.stub.GetVm, service_pb2.GetVmRequest(vm=self.name))

    @asynccontextmanager
    async def observed(self, *homes: Path) -> AsyncIterator[None]:
        """Heartbeat and pings are noted while the body runs; `homes`: the folders that it comes to, in their order."""
        logs = [home / "heartbeat.log" for home in homes]
        async with self.heart.watching(PROJECT, *logs), self.pings.pinging(PROJECT):
            await self.heart.ready()
            yield

    async def until_ready(self) -> None:
        """The guest has booted, stamps, acknowledges and answers.

        :raises GuestSilent: :raises TimeoutError: It doesn't, in time.
        """
        await wait_for(self._client, self.name, 2, _BOOT_TIMEOUT_S)
        await self.acknowledged_beyond(self.plan.fsync_rate // 2)
        await self.pings.answers(_STEADY_PINGS, _WAIT_TIMEOUT_S)

    async def acknowledged_beyond(self, least: int) -> FsyncState:
        """The fsync checker's word as soon as that record is safe. :raises TimeoutError: it isn't."""
        return await self._state(lambda state: state.acknowledged > least)

    async def act(self, name: str, spec: service_pb2.RelocateSpec, watch: Watch | None = None) -> Act:
        """One relocation of the running VM, and what is seen until the guest has read all its records again.

        :raises VimFault: the task's error. :raises GuestSilent: the guest doesn't answer or read afterwards.
        """
        before = await self.vm()
        disk_before = await self.disk(before)
        begin_s = time.monotonic()
        task = await self.relocated(spec, watch)
        task_end_s = time.monotonic()
        await asyncio.sleep(PINGED_AFTERWARDS_S)  # not a wait for something: it is pinged for so long
        end_s = time.monotonic()
        try:
            await self.pings.answers(_LATE_ANSWERS, _WAIT_TIMEOUT_S)
            state = await self._state(lambda _state: True)
            # The pass that is under way began before; the one after it reads every record where it is now.
            await self._state(lambda later: later.passes >= state.passes + 2)
        except TimeoutError as error:
            raise GuestSilent(f"After '{name}' the guest doesn't answer, or its disk doesn't.") from error
        after = await self.vm()
        return Act(
            name,
            before,
            after,
            task.migration,
            (begin_s, task_end_s, end_s),
            self._left(before, after),
            disk_before,
            await self.disk(after),
            (await read_all(self._client, self.name)).complaints,
        )

    async def relocated(
        self, spec: service_pb2.RelocateSpec, watch: Watch | None = None
    ) -> task_pb2.TaskInfo:
        """A relocation that succeeds. :raises VimFault: the task's error."""
        request = service_pb2.RelocateVmRequest(vm=self.name, spec=spec, options=OPTIONS)
        task = await self._client.call(self._client.stub.RelocateVm, request)
        if watch is not None:
            return await watch(f"{self.name}: {_title(spec)}", task)
        return await self._client.wait(task.id, TASK_TIMEOUT_S)

    async def disk(self, vm: inventory_pb2.Vm) -> DiskState:
        """Its disk as its host tells it and as it lies there."""
        (disk,) = vm.config.disks
        request = storage_pb2.DatastoreFileRequest(path=disk.path, host=vm.host_name)
        info: host_storage_pb2.DiskInfo = await self._client.call(self._client.storage.InspectDisk, request)
        extent = extent_of(self._layout, vm.host_name, disk.path)
        return DiskState(
            disk.path,
            info.format,
            info.capacity_bytes,
            info.allocated_bytes,
            disk_proof.allocated_bytes(extent),
            extent.stat().st_ino,
        )

    async def proof(self) -> Proof:
        """What the powered-off VM's disk holds. Raises as demo.disk_proof."""
        vm = await self.vm()
        extent = extent_of(self._layout, vm.host_name, vm.config.disks[0].path)
        told = max((state.acknowledged for state in self.states()), default=0)
        return Proof(
            told,
            await disk_proof.acknowledged_records(extent, told),
            await disk_proof.filler_is_whole(extent, self.plan.disk.layout),
        )

    def states(self) -> list[FsyncState]:
        """All that the fsync checker has told on the heartbeat port."""
        return [state for beat in self.heart.beats if (state := parse_fsync_state(beat.line)) is not None]

    def home(self, host: str, datastore: str) -> Path:
        """The VM's home folder on that datastore."""
        return file_of(self._layout, host, f"[{datastore}] {self.name}/{self.name}.vmx").parent

    async def until_heart_beats(self, home: Path) -> None:
        """A guest that has just been powered on writes. :raises TimeoutError: it doesn't."""
        log = home / "heartbeat.log"
        async with asyncio.timeout(_WAIT_TIMEOUT_S):
            # QEMU makes it at its start, some hundred ms from now: not worth a watch.
            while not log.is_file():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _state(self, wanted: Callable[[FsyncState], bool]) -> FsyncState:
        line = await self.heart.wait_for(
            lambda text: (state := parse_fsync_state(text)) is not None and wanted(state), _WAIT_TIMEOUT_S
        )
        state = parse_fsync_state(line)
        assert state is not None
        return state

    def _left(self, before: inventory_pb2.Vm, after: inventory_pb2.Vm) -> tuple[str, ...]:
        """Files of the VM that are still where it isn't any more."""
        layout, here, there = self._layout, before.host_name, after.host_name
        old = file_of(layout, here, before.home)
        gone = [old, old.parent] if old != file_of(layout, there, after.home) else []
        for disk, moved in zip(before.config.disks, after.config.disks, strict=True):
            descriptor = file_of(layout, here, disk.path)
            if descriptor != file_of(layout, there, moved.path):
                gone += [descriptor, extent_of(layout, here, disk.path)]
        return tuple(str(path) for path in gone if path.exists())

    def _ping_settings(self, layout: ClusterLayout) -> PingSettings:
        return PingSettings(
            layout.switch_address(STATION_NUMBER),
            [layout.switch_address(number) for number in range(1, layout.host_count + 1)],
            SEGMENT,
            STATION_MAC,
            STATION_IP,
            self.plan.address.partition("/")[0],
            GUEST_MAC,
        )


def _title(spec: service_pb2.RelocateSpec) -> str:
    words = [spec.host and f"to {spec.host}", spec.datastore and f"to [{spec.datastore}]"]
    return ", ".join(word for word in words if word)
