"""A vmx is killed in the middle of a disk's move: its guest goes on with the disk that it has, and nothing is lost."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vmx.v1 import service_pb2
from runtime.rpc.faults import remote_faults
from tests.framework.disk_vmx_hosts import DiskVmxHosts
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.guest_disks import KEY, MIB, filled_extent
from tests.framework.guest_processes import qemu_binary
from tests.framework.migration_scene import arm
from tests.framework.vmx_hosts import VmxProcess
from vmx.disk.nodes import clear_leftovers, node_names
from vmx.guest.qmp import QmpConnection
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import DestinationPhase, SourcePhase

pytestmark = pytest.mark.qemu
S, D = SourcePhase, DestinationPhase
_DEVICE = f"/machine/peripheral/disk-{KEY}-device/virtio-backend"


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[DiskVmxHosts]:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    made = DiskVmxHosts(tmp_path, binary, ram_bytes=32 * MIB, capacity_bytes=16 * MIB)
    filled_extent(made.extent_in(made.home), made.capacity_bytes)
    yield made
    await made.close()


async def assert_guest_writes_to_its_old_disk(hosts: DiskVmxHosts, vmx: VmxProcess) -> None:
    """Over QEMU's own socket, as whoever adopts the guest would. The first write finds the mirror's target gone.

    A vmx that lives has left nothing; it ends here, since QEMU talks to one only.
    """
    was_killed = vmx.process.poll() is not None
    vmx.process.kill()
    await vmx.ended()
    qmp = await QmpConnection.connect(vmx.run_dir / "qmp.sock")
    try:
        for _ in range(2):
            line = f'qemu-io -d {_DEVICE} "write -P 0x5a 5M 4k"'
            await qmp.execute("human-monitor-command", {"command-line": line})
        if was_killed:
            await clear_leftovers(qmp)
        assert await node_names(qmp) == {f"disk-{KEY}", f"file-{KEY}"}
        assert await qmp.execute("query-block-jobs") == []
        assert (await qmp.query("query-status"))["status"] == "running"
    finally:
        await qmp.close()
    with hosts.extent_in(hosts.home).open("rb") as extent:
        assert os.pread(extent.fileno(), 4096, 5 * MIB) == b"\x5a" * 4096


@pytest.mark.parametrize("phase", [S.DISK_COPY, S.PRE_COPY, D.RECEIVE])
async def test_vmx_killed_during_a_migration_with_a_disk(
    hosts: DiskVmxHosts, phase: SourcePhase | DestinationPhase
) -> None:
    here, there = hosts.hosts[:2]
    async with FailpointPause(hosts.run_root / "pause.sock") as pause:
        arm(hosts, of_phase(phase), pause.action)
        await hosts.warm_up(here, there)
        source = await hosts.power_on()
        contents = hosts.extent_in(hosts.home).read_bytes()
        spec = hosts.spec(here, there)
        hosts.homes[there.name] = hosts.make_home("esx02-local", here)
        destination, ticket = await hosts.prepare(there, spec)
        await hosts.start(source, spec, ticket)
        await pause.reached()
        killed, other = (source, destination) if isinstance(phase, SourcePhase) else (destination, source)
        killed.process.kill()
        await killed.ended()
    if other is destination:
        assert await destination.ended() == 0
    else:
        assert (await hosts.outcome(source, spec.migration_id)).HasField("fault")
    assert hosts.extent_in(hosts.home).read_bytes() == contents
    await assert_guest_writes_to_its_old_disk(hosts, source)


@pytest.mark.parametrize("phase", [S.DISK_COPY, S.HAND_OVER])
async def test_vmx_killed_during_a_move_within_its_host(hosts: DiskVmxHosts, phase: SourcePhase) -> None:
    host = hosts.hosts[0]
    async with FailpointPause(hosts.run_root / "pause.sock") as pause:
        arm(hosts, of_phase(phase), pause.action)
        vmx = await hosts.power_on()
        contents = hosts.extent_in(hosts.home).read_bytes()
        spec = hosts.spec(host, host)
        spec.key = b""
        there = hosts.place_in(host, hosts.make_home("other", host))
        request = service_pb2.StartRelocationRequest(spec=spec, source=hosts.place(host), destination=there)
        with remote_faults("vmx"):
            await vmx.stub.StartRelocation(request, timeout=30)
        await pause.reached()
        vmx.process.kill()
        await vmx.ended()
    assert hosts.extent_in(hosts.home).read_bytes() == contents
    await assert_guest_writes_to_its_old_disk(hosts, vmx)
