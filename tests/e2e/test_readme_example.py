"""The README's tour in Python runs as it stands, on a real cluster with a real guest."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from demo.cluster_layout import PROJECT, BlockReservation, ClusterLayout
from demo.local_cluster import GUEST_IMAGES, LocalCluster

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
    pytest.mark.skipif(
        not (GUEST_IMAGES / "vmlinuz").is_file(), reason="the guest image isn't built: make guest"
    ),
]


async def test_python_tour_as_printed_migrates_a_vm(tmp_path: Path) -> None:
    with BlockReservation() as block:
        output, status, left = await _run_example(block.layout(tmp_path / "cluster", 2))
    assert status == 0, output
    assert "tour01 runs on esx02: stunned for" in output
    assert "memory verified: True, encrypted: True" in output
    assert left == []


async def _run_example(layout: ClusterLayout) -> tuple[str, int | None, list[str]]:
    async with LocalCluster(layout).running() as cluster:
        config = layout.client_directory / "client.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROJECT / "docs" / "examples" / "client.py"),
            "--config",
            str(config),
            env={"PYTHONPATH": str(PROJECT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    return output.decode(), process.returncode, cluster.leftovers()
