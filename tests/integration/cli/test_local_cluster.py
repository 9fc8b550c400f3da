"""The local cluster with real daemons: up, seen by `vpx`, hurt, mended, down without a trace."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster_layout import PROJECT, BlockReservation, ClusterLayout
from demo.errors import ClusterError, PortBusy
from demo.local_cluster import LocalCluster
from demo.processes import is_alive

pytestmark = pytest.mark.cluster


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[ClusterLayout]:
    with BlockReservation() as block:
        yield block.layout(tmp_path / "cluster", 2)


async def _vpx(layout: ClusterLayout, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vpxd.cli", "--config", str(layout.client_directory), *words]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )


async def test_cluster_up_and_down_leaves_nothing(layout: ClusterLayout) -> None:
    async with LocalCluster(layout, images=None).running() as cluster:
        hosts = await _vpx(layout, "host", "list", "-o", "json")
        told = [
            (host["name"], host["id"] != "", host["connection_state"]) for host in json.loads(hosts.stdout)
        ]
        connected = "HOST_CONNECTION_STATE_CONNECTED"
        assert told == [("esx01", True, connected), ("esx02", True, connected)]
        assert set(cluster.rss_mib()) == {daemon.name for daemon in layout.daemons()}
        processes = [cluster.process(daemon.name) for daemon in layout.daemons()]
        await cluster.up()  # again: nothing is started twice
        assert [cluster.process(daemon.name) for daemon in layout.daemons()] == processes
    assert cluster.leftovers() == []
    assert all(process is not None and not is_alive(process) for process in processes)
    assert not layout.run_directory.exists()
    assert not layout.state_file.exists()
    assert await cluster.down() == []


async def test_cluster_another_object_takes_it_up_starts_what_is_missing_and_stops_it(
    layout: ClusterLayout,
) -> None:
    async with LocalCluster(layout, images=None).running() as first:
        await first.end_daemon("esx01-vpxa", kill=True)
        assert first.process("esx01-vpxa") is None
        second = LocalCluster(layout, images=None)
        await second.up()
        assert second.process("esx01-vpxa") is not None
        assert second.process("vpxd") == first.process("vpxd")
        await second.down()
        assert second.leftovers() == []
        assert first.leftovers() == []


async def test_cluster_port_busy_is_said_and_leaves_nothing(layout: ClusterLayout) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", layout.vpxd_port))
        other.listen()
        cluster = LocalCluster(layout, images=None)
        with pytest.raises(PortBusy, match=f"{layout.vpxd_port} is in use, and vpxd needs it"):
            await cluster.up()
    assert cluster.leftovers() == []
    assert not layout.run_directory.exists()


async def test_cluster_daemon_that_ends_at_its_start_is_said_with_its_log(layout: ClusterLayout) -> None:
    broken = ClusterLayout(
        layout.directory,
        1,
        layout.block,
        layout.vpxd_port,
        layout.join_port,
        vpxd_settings=(("VPXD_HEARTBEAT_TIMEOUT_S", "never"),),
    )
    cluster = LocalCluster(broken, images=None)
    with pytest.raises(ClusterError, match="VPXD_HEARTBEAT_TIMEOUT_S must be a number"):
        await cluster.up()
    assert cluster.leftovers() == []


async def test_cluster_without_its_images_says_how_to_make_them(
    layout: ClusterLayout, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match="make guest"):
        await LocalCluster(layout, images=tmp_path / "none").up()
