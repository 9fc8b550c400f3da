"""The storage demonstration: a running VM moves with its root disk, between hosts that see no storage in common.

    esx01 [local] thick ──compute and storage──> esx02 [local] thin      one task, one stun
    esx02 [local]       ──storage only──>        esx02 [shared]          no stun
    esx02 [shared]      ──compute only──>        esx03 [shared]          no byte of the disk

All the while its guest writes records, fsyncs them and reads them back, its heart beats, and it is pinged from outside.
At the end its power is cut, and the disk's bytes are looked at. qemu-img converts the same disk in the same run: the
peer for the bulk copy. Whatever happens, nothing that was started runs afterwards.
"""

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path

from demo import disk_proof
from demo.cluster_layout import PROJECT, BlockReservation, ClusterLayout
from demo.demonstration import EXIT_INTERRUPTED, unless_terminated
from demo.errors import ClusterError
from demo.guest_console import GuestSilent
from demo.local_cluster import LocalCluster
from demo.orders import order, watched
from demo.screen import Screen
from demo.source_disk import GuestPlan, extent_of
from demo.storage_result import BOTH, COMPUTE, STORAGE, Act, Peer, Seen, StorageResult
from demo.storage_scene import StorageScene, with_station
from demo.storage_screen import conclude, report
from images.errors import ImageError
from images.fsync_check import FsyncAreaError
from images.root_disk import DiskOptions
from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import VimFault
from runtime.ondisk.durable import write_durably
from vpxd.cli.client import VpxdClient, connect
from vpxd.cli.errors import CliError

DIRECTORY = PROJECT / "out" / "storage-cluster"
RESULT_FILE = PROJECT / "out" / "storage.json"
PLAN = GuestPlan(DiskOptions(filler_mib=512), capacity_mib=1024)
ACTS = (
    (
        BOTH,
        service_pb2.RelocateSpec(host="esx02", datastore="local", format=vm_config_pb2.DISK_FORMAT_THIN),
    ),
    (STORAGE, service_pb2.RelocateSpec(datastore="shared")),
    (COMPUTE, service_pb2.RelocateSpec(host="esx03")),
)
_EXPECTED = (
    VimFault,
    CliError,
    ClusterError,
    GuestSilent,
    ImageError,
    FsyncAreaError,
    disk_proof.ProofFailed,
    OSError,  # TimeoutError is one
)


async def run(screen: Screen) -> StorageResult:
    """The whole demonstration; every failure is a problem in the result, and nothing is left running."""
    result = StorageResult()
    began_s = time.monotonic()
    with BlockReservation() as block:
        cluster = LocalCluster(with_station(block.layout(DIRECTORY, 3)), say=screen.say)
        try:
            await _clear_earlier_run(cluster)
            async with cluster.running():
                result.seconds["cluster_up"] = time.monotonic() - began_s
                async with connect(cluster.client_config) as client:
                    await _on_cluster(cluster, client, screen, result)
        except _EXPECTED as error:
            result.problems.append(f"{type(error).__name__}: {error}")
        except ExceptionGroup as group:
            result.problems.append(f"{group.message}: {'; '.join(map(str, group.exceptions))}")
        left = cluster.leftovers()
    if left:
        result.problems.append(f"processes are left: {left}")
    result.judge()
    result.seconds["all"] = time.monotonic() - began_s
    return result


async def _clear_earlier_run(cluster: LocalCluster) -> None:
    """Ends what a demonstration left that was killed outright (its folder names its processes), then its files."""
    await cluster.down()
    await asyncio.to_thread(shutil.rmtree, DIRECTORY, ignore_errors=True)


async def _on_cluster(
    cluster: LocalCluster, client: VpxdClient, screen: Screen, result: StorageResult
) -> None:
    scene = StorageScene(cluster, client, PLAN)
    began_s = time.monotonic()
    path = await scene.make_vm("esx01")
    extent = extent_of(cluster.layout, "esx01", path)
    result.seconds["disk_made"] = time.monotonic() - began_s
    screen.say(f"{scene.name} has a thick disk {path} of {PLAN.capacity_mib} MiB on esx01")
    quiet_ms = await _peer_ms(cluster.layout, extent)
    await scene.power_on()
    homes = [
        scene.home("esx01", "local"),
        scene.home("esx02", "local"),
        scene.home("esx02", "shared"),
    ]
    await scene.until_heart_beats(homes[0])

    async def watch(title: str, task: task_pb2.TaskInfo) -> task_pb2.TaskInfo:
        return await watched(client, screen, title, task)

    try:
        async with scene.observed(*homes):
            await scene.until_ready()
            result.seconds["guest_ready"] = time.monotonic() - began_s
            screen.say(
                f"{scene.name} is up: Linux on its disk, {PLAN.fsync_rate} records a second, pinged each 10 ms"
            )
            result.peer = Peer(await _peer_ms(cluster.layout, extent), quiet_ms)
            for name, spec in ACTS:
                act = await scene.act(name, spec, watch)
                result.acts.append(act)
                screen.say(_line(act))
    finally:
        result.seen = Seen(scene.heart.beats, scene.pings.record)
    await scene.power_off()
    result.proof = await scene.proof()
    await order(client, client.stub.DestroyVm, service_pb2.VmOperationRequest(vm=scene.name))
    for act in result.acts:
        report(screen, act)
    screen.say(f"{scene.name} is powered off, its disk's bytes are looked at, and it is deleted")


async def _peer_ms(layout: ClusterLayout, extent: Path) -> float:
    return await disk_proof.qemu_img_ms(extent, layout.directory / "qemu-img.raw")


def _line(act: Act) -> str:
    after = act.after
    return f"{act.name}: {after.name} runs on {after.host_name} with {act.disk_after.path}"


def save(result: StorageResult, path: Path = RESULT_FILE) -> None:
    """Writes storage.json. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.document(), indent=2, ensure_ascii=False)
    write_durably(path, text.encode() + b"\n", mode=0o644)


def main() -> int:
    """The exit status: 0 only if everything held."""
    screen = Screen()
    RESULT_FILE.unlink(missing_ok=True)  # an earlier run's word must not pass for this one's
    try:
        result = asyncio.run(unless_terminated(run(screen)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("interrupted; everything that was started has been stopped")
        return EXIT_INTERRUPTED
    save(result)
    conclude(screen, result, RESULT_FILE)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
