"""The whole system as its user has it: three hosts, QEMU, Linux. A VM moves around, and what is said of it holds."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from demo.cluster_layout import PROJECT
from demo.guest_console import ConsoleFacts, read_all, wait_for
from demo.local_cluster import GUEST_IMAGES
from images.cmdline import kernel_command_line
from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxd.v1 import service_pb2
from tests.framework.cluster_rig import MIB, ClusterRig, linux_cluster_rig, small_vm

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
    pytest.mark.skipif(
        not (GUEST_IMAGES / "vmlinuz").is_file(), reason="the guest image isn't built: make guest"
    ),
]
RAM_BYTES = 256 * MIB
QEMU_RAM_LIMIT_BYTES = 4 * MIB
RSS_LIMIT_MIB = 90.0
STUN_PARTS = ("stop_ms", "last_pages_ms", "device_state_ms", "hand_over_ms", "resume_ms")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    async with linux_cluster_rig(tmp_path_factory.mktemp("c"), 3) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web01(rig: ClusterRig) -> str:
    """A Linux VM that stamps 64 MiB of its 256, on esx01 at the start of the module."""
    config = small_vm(ram_mib=RAM_BYTES // MIB)
    config.boot.kernel_command_line = kernel_command_line(stamper_mib=64, rate=20, sweep_mib_s=64)
    made = await rig.create("web01", "esx01", config=config)
    await rig.power_on("web01")
    await wait_for(rig.client, "web01", 2, 90)
    return made


async def said(rig: ClusterRig) -> ConsoleFacts:
    """What the guest says on its console once it has stamped and checked for two seconds more; nothing is wrong."""
    before = await read_all(rig.client, "web01")
    facts = await wait_for(rig.client, "web01", 2, 30, beyond=len(before.statuses))
    assert facts.complaints == ()
    assert facts.wrong == 0
    assert facts.boots == 1
    assert facts.statuses[-1].checked > before.statuses[-1].checked
    return facts


def assert_as_promised(status: status_pb2.MigrationStatus) -> None:
    """The figures of a migration that succeeded."""
    assert status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    assert status.memory_verified
    assert status.encrypted
    assert status.ram_bytes == RAM_BYTES
    assert status.qemu_ram_transferred_bytes < QEMU_RAM_LIMIT_BYTES
    assert 0 < status.device_state_bytes < QEMU_RAM_LIMIT_BYTES
    parts = [getattr(status.stun_parts, name) for name in STUN_PARTS]
    assert all(part > 0 for part in parts), status.stun_parts
    assert sum(parts) == pytest.approx(status.stun_ms, abs=0.01)
    assert 0 < status.stun_ms < status.total_ms
    passes = list(status.iterations)
    assert [one.number for one in passes] == list(range(len(passes)))
    assert len(passes) >= 2
    assert 0 < passes[0].ram_bytes <= RAM_BYTES
    assert passes[0].ram_bytes >= 64 * MIB, "the working set at least"
    assert passes[0].dirty_pages > 0, "the guest writes while it is copied"
    assert sum(one.wire_bytes for one in passes) <= status.wire_bytes
    assert passes[-1].pages < passes[0].pages


async def test_vm_moves_through_all_hosts_and_back_verified_each_time(rig: ClusterRig, web01: str) -> None:
    stuns = []
    for host in ("esx02", "esx03", "esx01"):
        info = await rig.migrate("web01", host)
        assert_as_promised(info.migration)
        assert info.migration.tracer in ("pagemap_scan", "hash_scan")
        stuns.append(round(info.migration.stun_ms, 1))
        await rig.assert_alive("web01", host)
    await said(rig)
    assert (await rig.vm("web01")).id == web01
    print("stun ms:", stuns)


async def test_command_line_moves_it_and_tells_the_same(rig: ClusterRig, web01: str) -> None:
    words = ("-o", "json", "vm", "migrate", "web01", "--host", "esx02", "--watch", "--verify")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "vpxd.cli", "--config", str(rig.layout.client_directory), *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tasks = await rig.client.call(rig.client.stub.ListTasks, service_pb2.ListTasksRequest(entity="web01"))
    last = next(task for task in reversed(tasks.tasks) if task.operation == "VirtualMachine.migrate")
    assert told["id"] == last.id
    assert told["migration"]["stun_ms"] == pytest.approx(last.migration.stun_ms)
    assert told["migration"]["memory_verified"] is True
    assert last.state == task_pb2.TASK_STATE_SUCCESS
    assert_as_promised(last.migration)
    await rig.assert_alive("web01", "esx02")
    await said(rig)


async def test_memories_compared_before_the_resume_are_equal(rig: ClusterRig, web01: str) -> None:
    options = spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_BEFORE_RESUME)
    info = await rig.migrate("web01", "esx03", options)
    assert_as_promised(info.migration)
    await rig.assert_alive("web01", "esx03")
    await said(rig)


async def test_hash_tracer_moves_it_as_well(rig: ClusterRig, web01: str) -> None:
    options = spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, tracer="hash_scan")
    info = await rig.migrate("web01", "esx01", options)
    assert_as_promised(info.migration)
    assert info.migration.tracer == "hash_scan"
    await rig.assert_alive("web01", "esx01")
    await said(rig)


async def test_every_daemon_with_a_real_guest_is_below_90_mib(rig: ClusterRig, web01: str) -> None:
    weights = {**rig.cluster.rss_mib(), **rig.cluster.vmx_rss_mib()}
    assert set(weights) == {"vmx", *(daemon.name for daemon in rig.layout.daemons())}
    assert all(0 < weight < RSS_LIMIT_MIB for weight in weights.values()), weights
    print("resident MiB:", weights)
