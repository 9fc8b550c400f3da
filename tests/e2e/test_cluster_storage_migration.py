"""A VM with a real root disk changes hosts and datastores on a real cluster, and keeps every acknowledged record.

The scene is the demonstration's own (demo/storage_scene.py) with a smaller disk. One VM goes all ways, one test
after the other: between hosts that see no storage in common, between datastores of one host, between hosts on shared
storage, and powered off.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from demo.cluster_layout import BlockReservation, ClusterLayout
from demo.local_cluster import GUEST_IMAGES, LocalCluster
from demo.source_disk import GuestPlan, extent_of, file_of
from demo.storage_result import BOTH, COMPUTE, STORAGE, Act, Seen, act_problems, fsync_problems
from demo.storage_scene import StorageScene, with_station
from images.fsync_check import check_area
from images.guest_output import FsyncBegin, parse_fsync_begin, parse_heartbeat
from images.root_disk import DiskOptions
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import InaccessibleDatastore
from tests.framework.cluster_rig import until
from vpxd.cli.client import connect

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.cluster,
    pytest.mark.timeout(100),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
    pytest.mark.skipif(shutil.which("syslinux") is None, reason="there is no syslinux on this machine"),
    pytest.mark.skipif(
        not (GUEST_IMAGES / "vmlinuz").is_file(), reason="the guest image isn't built: make guest"
    ),
]
MIB = 1 << 20
PLAN = GuestPlan(DiskOptions(filler_mib=8, check_mib=16), capacity_mib=128)
THIN, LAZY = vm_config_pb2.DISK_FORMAT_THIN, vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED
Spec = service_pb2.RelocateSpec


@dataclass
class Story:
    """The running scene and what has happened in it; `observing` ends the observers."""

    layout: ClusterLayout
    scene: StorageScene
    observing: AsyncExitStack
    acts: list[Act] = field(default_factory=list)

    async def act(self, name: str, spec: Spec) -> Act:
        """A relocation after which nothing of the VM is where it was, and the guest has read all its records."""
        act = await self.scene.act(name, spec)
        self.acts.append(act)
        assert act.left == ()
        assert act.after.power_state == host_pb2.POWER_STATE_POWERED_ON
        return act

    async def end_observation(self) -> Seen:
        """What the observers saw from the power-on until now."""
        await self.observing.aclose()
        return Seen(self.scene.heart.beats, self.scene.pings.record)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    """The guest runs on esx01, its thick disk on esx01's local datastore."""
    with BlockReservation() as block:
        layout = with_station(block.layout(tmp_path_factory.mktemp("s") / "cluster", 3))
        cluster = LocalCluster(layout)
        async with cluster.running(), connect(cluster.client_config) as client, AsyncExitStack() as stack:
            scene = StorageScene(cluster, client, PLAN)
            await scene.make_vm("esx01", ram_mib=192)
            await scene.power_on()
            homes = [scene.home(host, store) for host, store in (("esx01", "local"), ("esx02", "local"))]
            await scene.until_heart_beats(homes[0])
            await stack.enter_async_context(scene.observed(*homes, scene.home("esx02", "shared")))
            await scene.until_ready()
            yield Story(layout, scene, stack)
        assert cluster.leftovers() == []


async def test_vm_and_its_disk_move_between_hosts_without_common_storage_and_thick_becomes_thin(
    story: Story,
) -> None:
    act = await story.act(BOTH, Spec(host="esx02", datastore="local", format=THIN))
    assert act.after.host_name == "esx02"
    assert act.after.home == act.before.home, "the same path, on another datastore of the same name"
    assert act.disk_before.format == LAZY
    assert act.disk_before.taken_bytes >= act.disk_before.capacity_bytes
    assert act.disk_after.format == THIN
    assert act.disk_after.taken_bytes < act.disk_after.capacity_bytes
    assert act.disk_after.allocated_bytes == pytest.approx(act.disk_after.taken_bytes, abs=MIB)
    (disk,) = act.status.disks
    assert disk.copied_bytes == disk.data_bytes > 8 * MIB
    assert 8 * MIB < disk.wire_bytes < act.status.wire_bytes
    assert act.status.stun_ms > 0
    assert act.status.memory_verified


async def test_storage_alone_changes_without_a_stun(story: Story) -> None:
    act = await story.act(STORAGE, Spec(datastore="shared"))
    assert act.after.host_name == act.before.host_name == "esx02"
    assert act.after.home == "[shared] store01/store01.vmx"
    assert act.disk_after.path == "[shared] store01/store01.vmdk"
    assert act.disk_after.format == THIN, "as it was"
    assert act.status.stun_ms == 0
    assert act.status.wire_bytes == 0
    assert [disk.switched for disk in act.status.disks] == [True]


async def test_compute_alone_copies_not_a_byte_of_the_disk(story: Story) -> None:
    act = await story.act(COMPUTE, Spec(host="esx03"))
    assert act.after.host_name == "esx03"
    assert list(act.status.disks) == []
    assert act.disk_after == act.disk_before or act.disk_after.inode == act.disk_before.inode
    assert (act.after.home, act.disk_after.path) == (act.before.home, act.disk_before.path)


async def test_guest_lived_through_it_all_and_every_acknowledged_record_is_on_the_disk(story: Story) -> None:
    scene = story.scene
    last = await scene.acknowledged_beyond(0)
    await scene.power_off()
    seen = await story.end_observation()
    assert len(story.acts) == 3
    assert [problem for act in story.acts for problem in act_problems(act, seen)] == []
    beats = [beat for line in seen.beats if (beat := parse_heartbeat(line.line)) is not None]
    numbers = [beat.sequence for beat in beats]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "no reboot, nothing twice"
    assert max(beat.wrong for beat in beats) == 0
    proof = await scene.proof()
    assert proof.acknowledged >= last.acknowledged
    assert fsync_problems(seen.beats, proof) == []
    assert proof.filler_whole


async def test_powered_off_vm_moves_with_its_files_and_boots_where_it_is_then(story: Story) -> None:
    scene, layout = story.scene, story.layout
    before = await scene.vm()
    acknowledged = max(state.acknowledged for state in scene.states())
    await scene.relocated(Spec(host="esx01", datastore="local", format=LAZY))
    after = await scene.vm()
    assert (after.host_name, after.power_state) == ("esx01", host_pb2.POWER_STATE_POWERED_OFF)
    assert after.home == "[local] store01/store01.vmx"
    assert not file_of(layout, "esx03", before.home).parent.exists()
    disk = await scene.disk(after)
    assert disk.format == LAZY
    assert disk.taken_bytes >= disk.capacity_bytes
    check = check_area(extent_of(layout, "esx01", disk.path), acknowledged)
    assert check.ok, check.wrong
    await scene.power_on()
    log = scene.home("esx01", "local") / "heartbeat.log"
    await until(lambda: begun(log) is not None, "the fsync checker has looked at its records", 60)
    begin = begun(log)
    assert begin is not None
    assert begin.found >= acknowledged
    assert begin.wrong == 0
    await scene.power_off()


def begun(log: Path) -> FsyncBegin | None:
    """What the fsync checker found at its last start."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((begin for line in reversed(lines) if (begin := parse_fsync_begin(line)) is not None), None)


async def test_what_cannot_be_is_refused_and_the_vm_stays(story: Story) -> None:
    before = await story.scene.vm()
    with pytest.raises(InaccessibleDatastore):
        await story.scene.relocated(Spec(host="esx02"))
    assert (await story.scene.vm()).config == before.config
    assert not story.scene.home("esx02", "local").exists()
