"""`vpx cluster rule` and `vpx vm check` against a real vpxd with FAKE hosts."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from proto.vpxd.v1 import service_pb2
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig
from vpxd.cli.app import app


@dataclass(frozen=True)
class Ended:
    """How `vpx` ended."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    # vpxd runs in this process: its log must not run into the output of `vpx`.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.__stderr__))
    try:
        async with vpxd_rig(tmp_path / "vpxd", "esx01", "esx02") as running:
            running.fakes.hosts["esx01"].put_vm("web01", on=True, disks=1)
            running.fakes.hosts["esx02"].put_vm("web02", on=True)

            async def vms() -> int:
                return len((await running.stub.ListVms(service_pb2.ListVmsRequest())).vms)

            await until(vms, lambda count: count == 2)
            yield running
    finally:
        structlog.reset_defaults()


@pytest.fixture
def run(rig: VpxdRig) -> Run:
    async def vpx(*words: str) -> Ended:
        arguments = ["--config", str(rig.config.client_dir / "client.json"), *words]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="vpx")
        return Ended(result.exit_code, result.stdout, result.stderr)

    return vpx


async def test_rule_is_made_shown_followed_and_deleted(run: Run) -> None:
    assert "No rules." in (await run("cluster", "rule", "list")).stderr
    made = await run(
        "cluster", "rule", "set", "apart", "apart", "--vm", "web01", "--vm", "web02", "--mandatory"
    )
    assert made.exit_code == 0
    assert made.stdout.splitlines()[1].split() == ["apart", "apart", "web01,", "web02", "-", "yes", "holds"]
    checked = await run("vm", "check", "web01")
    assert checked.exit_code == 5
    assert "resource pool" in checked.stdout
    refused = await run("cluster", "rule", "set", "both", "together", "--vm", "web01", "--vm", "web02")
    assert refused.exit_code != 0
    assert "contradicts the rule apart" in refused.stderr
    on = await run(
        "cluster", "rule", "set", "pin", "on", "--vm", "web01", "--host", "esx02", "--cluster", "Cluster"
    )
    assert on.stdout.splitlines()[1].split()[-2:] == ["no", "violated"]
    assert (await run("cluster", "rule", "delete", "apart")).exit_code == 0
    assert (await run("vm", "check", "web01")).exit_code == 0
    assert (await run("cluster", "rule", "delete", "apart")).exit_code != 0


async def test_check_with_a_datastore_looks_at_the_vm_s_own_host_too(run: Run) -> None:
    checked = await run("vm", "check", "web01", "--datastore", "local", "--format", "eager")
    assert checked.exit_code == 0
    assert [line.split()[0] for line in checked.stdout.splitlines()] == ["esx01", "esx02"]
