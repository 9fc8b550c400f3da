"""vpxd as its own process: start, stop, kill, memory, settings."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from proto.vpxd.v1 import service_pb2, service_pb2_grpc
from runtime.rpc.channel import network_channel
from runtime.rpc.enrollment import join
from runtime.rpc.identity import Identity, Role
from tests.framework.fake_cluster import FakeCluster
from tests.framework.fake_vpxa import FakeVpxaHost, fake_host_info
from tests.framework.vpxd_rig import until

_IDLE_LIMIT_MIB = 90


@asynccontextmanager
async def _vpxd(
    state: Path,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], "service_pb2_grpc.VpxdAsyncStub"]]:
    settings = {
        "VPXD_STATE_DIR": str(state),
        "VPXD_LISTEN": "127.0.0.1:0",
        "VPXD_JOIN_LISTEN": "127.0.0.1:0",
        "VPXD_HEARTBEAT_TIMEOUT_S": "2",
    }
    client_file = state / "clients" / "admin" / "client.json"
    client_file.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "vpxd"], env={**os.environ, **settings})
    try:

        async def written() -> bool:
            assert process.poll() is None, "vpxd ended"
            return client_file.exists()

        await until(written, bool)
        server = json.loads(client_file.read_text())["server"]
        identity = Identity.load(client_file.parent)
        async with network_channel(server, identity, Role.VPXD, "vpxd") as channel:
            yield process, service_pb2_grpc.VpxdStub(channel)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def test_process_keeps_its_inventory_over_a_kill_and_stays_small(tmp_path: Path) -> None:
    fakes = FakeCluster()
    names = ("esx01", "esx02", "esx03")
    async with _vpxd(tmp_path) as (process, stub):
        for number, name in enumerate(names, 1):
            made = await stub.CreateJoinToken(service_pb2.CreateJoinTokenRequest(host_name=name))
            identity = await join(made.join_address, made.token, made.ca_fingerprint, name, "127.0.0.1:1")
            host = FakeVpxaHost(fakes, identity, fake_host_info(name, number, fakes))
            await host.start()
            host.put_vm(f"vm of {name}")
            await stub.AddHost(service_pb2.AddHostRequest(name=name, address=host.address))
        vms = await until(
            lambda: stub.ListVms(service_pb2.ListVmsRequest()), lambda answer: len(answer.vms) == len(names)
        )
        before = {vm.id: vm.name for vm in vms.vms}
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        async with _vpxd(tmp_path) as (process, stub):
            vms = await stub.ListVms(service_pb2.ListVmsRequest())
            assert {vm.id: vm.name for vm in vms.vms} == before
            await until(
                lambda: stub.ListHosts(service_pb2.ListHostsRequest()),
                lambda answer: all(host.connection_state == 1 for host in answer.hosts),
            )
            await asyncio.sleep(2)
            resident_mib = psutil.Process(process.pid).memory_info().rss / 2**20
            print(f"vpxd with {len(names)} hosts idles at {resident_mib:.1f} MiB")
            assert resident_mib < _IDLE_LIMIT_MIB
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    finally:
        for host in fakes.hosts.values():
            await host.close()


def test_bad_setting_ends_with_its_name_and_status_2(tmp_path: Path) -> None:
    settings = {"VPXD_STATE_DIR": str(tmp_path), "VPXD_HEARTBEAT_TIMEOUT_S": "soon"}
    ended = subprocess.run(
        [sys.executable, "-m", "vpxd"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "VPXD_HEARTBEAT_TIMEOUT_S" in ended.stderr
    assert "Traceback" not in ended.stderr
