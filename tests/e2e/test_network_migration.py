"""VMs that talk while they move: pinged every 10 ms by another VM and from outside of all hosts, with real switches.

The measure of a lost ping is the stun: while the guest stands still, what is sent to it is lost or late, and beyond
that one more may be. Stun and pings are measured by two clocks on a machine that has other work, so each assertion adds
what the pinger itself was late: a ping isn't missed because its sender had no processor.
"""

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from demo.cluster_layout import BlockReservation
from demo.ethernet_station import EthernetStation, Interface, Pings
from demo.local_cluster import GUEST_IMAGES, LocalCluster
from demo.processes import send
from images.cmdline import kernel_command_line
from images.guest_output import PingStatus, parse_ping
from proto.vim.v1 import vm_config_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import MigrationFault
from tests.framework.cluster_rig import ClusterRig, failure, small_vm, until
from vpxd.cli.client import connect

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
    pytest.mark.skipif(
        not (GUEST_IMAGES / "vmlinuz").is_file(), reason="the guest image isn't built: make guest"
    ),
]
NETWORK, SEGMENT = "VM Network", 100
LAB, LAB_SEGMENT = "Lab", 200
WEB_MAC, WEB_IP = "02:00:00:00:00:05", "10.0.0.5"
PEER_MAC, PEER_IP = "02:00:00:00:00:06", "10.0.0.6"
STATION_NUMBER = 250


@asynccontextmanager
async def networked_cluster(folder: Path, *settings: tuple[str, str]) -> AsyncIterator[ClusterRig]:
    """Two hosts with two port groups each; a station outside is a peer of their switches."""
    with BlockReservation() as block:
        layout = block.layout(folder / "cluster", 2)
        peers = ",".join(layout.switch_address(number) for number in (1, 2, STATION_NUMBER))
        groups = f"{NETWORK}={SEGMENT},{LAB}={LAB_SEGMENT}"
        own = (("HOST_VSWITCH_PEERS", peers), ("HOST_PORT_GROUPS", groups), *settings)
        cluster = LocalCluster(replace(layout, host_settings=own))
        async with cluster.running(), connect(cluster.client_config) as client:
            yield ClusterRig(cluster, client)
        assert cluster.leftovers() == []


def outside(rig: ClusterRig) -> EthernetStation:
    """The station, to be entered."""
    peers = [(rig.layout.switch_address(number), 4789) for number in (1, 2)]
    interface = Interface(SEGMENT, "02:00:00:00:00:fe", "10.0.0.9")
    return EthernetStation((rig.layout.switch_address(STATION_NUMBER), 4789), peers, interface)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    async with networked_cluster(tmp_path_factory.mktemp("c")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def station(rig: ClusterRig) -> AsyncIterator[EthernetStation]:
    with outside(rig) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(rig: ClusterRig, station: EthernetStation) -> None:
    """web01, which moves, and peer01 on esx02, which pings it."""
    for name, host, mac, options in (
        ("web01", "esx01", WEB_MAC, f"vpx.ip={WEB_IP}/24"),
        ("peer01", "esx02", PEER_MAC, f"vpx.ip={PEER_IP}/24 vpx.ping={WEB_IP}"),
    ):
        await rig.create(name, host, config=vm_with_nic(mac, options))
        await rig.power_on(name)
    await until(lambda: last_count(rig, "peer01") is not None, "peer01 has answers", 90)


def vm_with_nic(mac: str, options: str, network: str = NETWORK) -> vm_config_pb2.VmConfig:
    """A Linux VM with one NIC that stamps 16 MiB."""
    config = small_vm(ram_mib=128, stamper_mib=16)
    config.boot.kernel_command_line = f"{kernel_command_line(stamper_mib=16, rate=5)} {options}"
    config.nics.add(key=4000, mac=mac, network=network, connected=True)
    return config


def last_count(rig: ClusterRig, vm: str) -> PingStatus | None:
    """What the guest's pinger has last told."""
    log = rig.home(vm) / "heartbeat.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return next((count for line in reversed(lines) if (count := parse_ping(line)) is not None), None)


async def judged(rig: ClusterRig) -> PingStatus:
    """peer01's count when every ping that it has sent until now is judged."""
    now = last_count(rig, "peer01")
    assert now is not None

    def later() -> bool:
        count = last_count(rig, "peer01")
        return count is not None and count.sent >= now.sent + 250

    await until(later, "peer01 pings on", 30)
    count = last_count(rig, "peer01")
    assert count is not None
    return count


async def steady(pings: Pings, answers: int = 50) -> int:
    """So many pings more are answered; answers the number of the next one."""
    goal = len(pings.answered_s) + answers
    await until(lambda: len(pings.answered_s) >= goal, f"{answers} pings are answered", 30)
    return len(pings.sent_s)


async def settled(pings: Pings) -> None:
    """Every ping that was sent until now is answered or lost for good."""
    goal = len(pings.sent_s) + 130
    await until(lambda: len(pings.sent_s) >= goal, "pings go on", 30)


@pytest.mark.timeout(180)
async def test_pinged_vm_loses_at_most_one_ping_beyond_its_stun(
    rig: ClusterRig, station: EthernetStation, guests: None
) -> None:
    with station.pinging(WEB_IP) as pings:
        for number, host in ((2, "esx02"), (1, "esx01"), (2, "esx02")):
            before = await judged(rig)
            first = await steady(pings)
            heard = len(station.announcements)
            info = await rig.migrate("web01", host)
            stun_ms = info.migration.stun_ms
            await settled(pings)
            after, result = await judged(rig), pings.result(first)
            inside_lost = after.lost - before.lost
            print(f"to {host}: stun {stun_ms:.1f} ms; from outside {result}; from peer01 lost {inside_lost}")
            allowed_ms = stun_ms + 10 + result.latest_start_ms + 20
            assert result.lost * 10 <= allowed_ms
            assert inside_lost * 10 <= allowed_ms
            assert result.duplicates == 0
            assert after.duplicates == before.duplicates
            heard_now = station.announcements[heard:]
            switch = (rig.layout.switch_address(number), 4789)
            assert {one.peer for one in heard_now if one.mac == WEB_MAC} == {switch}
            assert station.where(WEB_MAC) == switch
            await rig.assert_alive("web01", host)
    assert "address_moved" in switch_log(rig, "esx01")


@pytest.mark.timeout(120)
async def test_vms_talk_on_while_hostd_is_dead(
    rig: ClusterRig, station: EthernetStation, guests: None
) -> None:
    switches = [rig.cluster.switch(host) for host in rig.layout.host_names]
    with station.pinging(WEB_IP) as pings:
        first = await steady(pings)
        for host in rig.layout.host_names:
            await rig.cluster.end_daemon(f"{host}-hostd", kill=True)
        await steady(pings, 100)
        for host in rig.layout.host_names:
            await rig.start_daemon(f"{host}-hostd")
        await rig.until_connected()
        await settled(pings)
        result = pings.result(first)
    print("hostd dead:", result)
    assert result.lost <= 1
    assert switches == [rig.cluster.switch(host) for host in rig.layout.host_names], "they are the same"
    assert None not in switches


@pytest.mark.timeout(120)
async def test_killed_switch_is_started_again_and_knows_its_ports(
    rig: ClusterRig, station: EthernetStation, guests: None
) -> None:
    host = (await rig.vm("web01")).host_name
    with station.pinging(WEB_IP) as pings:
        first = await steady(pings)
        killed = rig.cluster.switch(host)
        assert killed is not None
        assert send(killed, signal.SIGKILL)
        await until(lambda: rig.cluster.switch(host) not in (None, killed), "another switch runs")
        await steady(pings, 100)
        await settled(pings)
        result = pings.result(first)
    print("switch killed:", result)
    assert result.lost * 10 <= result.longest_gap_ms + 20, "one gap, and nothing after it"
    assert "ports_recalled" in switch_log(rig, host)
    await judged(rig)


@pytest.mark.timeout(120)
async def test_port_groups_are_apart_and_an_unknown_one_is_refused(
    rig: ClusterRig, station: EthernetStation, guests: None
) -> None:
    layout = rig.layout
    info = (await rig.host("esx01")).info
    assert {(group.name, group.segment_id) for group in info.port_groups} == {
        (NETWORK, SEGMENT),
        (LAB, LAB_SEGMENT),
    }
    before = station.frames_from.copy()
    lab_mac = "02:00:00:00:00:07"
    await rig.create("lab01", "esx01", config=vm_with_nic(lab_mac, f"vpx.ip={WEB_IP}/24", LAB))
    await rig.power_on("lab01")
    await rig.beats("lab01", 3)
    path = layout.host_run_directory("esx01") / "net" / str(LAB_SEGMENT) / "ports"
    await until(path.exists, "the switch knows lab01's port", 30)
    assert station.where(lab_mac) is None, f"the same IP address in another segment; heard {before}"
    await rig.remove("lab01")


@pytest.mark.timeout(120)
async def test_moved_vm_is_plugged_into_the_port_group_that_it_was_mapped_to(
    rig: ClusterRig, station: EthernetStation, guests: None
) -> None:
    """Out of the station's segment by one migration, back into it by the next."""
    here = (await rig.vm("web01")).host_name
    there = next(name for name in rig.layout.host_names if name != here)
    with station.pinging(WEB_IP) as pings:
        await steady(pings)
        for target, old, new in ((there, NETWORK, LAB), (here, LAB, NETWORK)):
            spec = service_pb2.RelocateSpec(host=target)
            spec.networks.add(from_network=old, network=new)
            await rig.do(rig.client.stub.RelocateVm, service_pb2.RelocateVmRequest(vm="web01", spec=spec))
            (nic,) = (await rig.vm("web01")).config.nics
            assert nic.network == new
            if new == LAB:
                answered = len(pings.answered_s)
                await settled(pings)
                assert len(pings.answered_s) <= answered + 1, "what was under way, and then nothing more"
        await steady(pings)
    await rig.assert_alive("web01", here)


@pytest.mark.timeout(120)
async def test_failed_migration_announces_the_vm_where_it_runs_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The destination breaks while the guest is stunned: it goes on at its source, which says so to all switches."""
    breaks = ("VPX_FAILPOINTS", "destination.restore=error")
    async with networked_cluster(tmp_path_factory.mktemp("f"), breaks) as rig:
        with outside(rig) as station, station.pinging(WEB_IP) as pings:
            await rig.create("web01", "esx01", config=vm_with_nic(WEB_MAC, f"vpx.ip={WEB_IP}/24"))
            await rig.power_on("web01")
            await until(lambda: len(pings.answered_s) > 50, "web01 answers", 90)
            source = (rig.layout.switch_address(1), 4789)
            heard = len(station.announcements)
            task = await rig.ended(await rig.start_migration("web01", "esx02"))
            assert isinstance(failure(task), MigrationFault)
            await until(lambda: len(station.announcements) > heard + 2, "it is announced")
            assert {one.peer for one in station.announcements if one.mac == WEB_MAC} == {source}
            await steady(pings)
            await rig.assert_alive("web01", "esx01")


def switch_log(rig: ClusterRig, host: str) -> str:
    """All that the host's switches have said."""
    folder = rig.layout.host_run_directory(host) / "net"
    texts = [path.read_text() for path in sorted(folder.glob("vswitch.log*"))]
    return "\n".join(texts)
