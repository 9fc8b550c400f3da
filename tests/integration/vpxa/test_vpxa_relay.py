"""A real vpxa between a client with the cluster's certificates and a hostd, fake or real."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from proto.host.v1 import operations_pb2, storage_pb2, storage_pb2_grpc
from proto.vim.v1 import host_pb2
from proto.vpxa.v1 import service_pb2_grpc
from runtime.faults import (
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    HostNotReachable,
    InvalidArgument,
    ManagedObjectNotFound,
    NoDiskSpace,
    NoPermission,
    SystemFault,
    TaskInProgress,
    TimedOut,
)
from runtime.rpc.faults import remote_faults
from runtime.rpc.identity import ClusterAuthority, Identity, Role
from runtime.rpc.operation_id import METADATA_KEY
from runtime.rpc.upload import answer_of
from tests.framework.fake_hostd import PIECE_BYTES, FakeHostd
from tests.framework.hostd_process import ROOT, HostdHost, read_one, small_vm, upload_of
from tests.framework.vpxa_process import VpxaAgent

pytestmark = pytest.mark.cluster
ADDRESS = "127.0.1.44"


@dataclass
class Chain:
    """vpxd's place, vpxa, and a fake hostd."""

    authority: ClusterAuthority
    vpxd: Identity
    vpxa: VpxaAgent
    hostd: FakeHostd
    stub: "service_pb2_grpc.VpxaAsyncStub"


@pytest.fixture
def authority(tmp_path: Path) -> ClusterAuthority:
    return ClusterAuthority.create(tmp_path / "ca", "test")


@pytest.fixture
async def chain(tmp_path: Path, authority: ClusterAuthority) -> AsyncIterator[Chain]:
    run_directory = Path(tempfile.mkdtemp(prefix="vp", dir="/tmp"))
    environment = {
        **os.environ,
        "HOST_NAME": "esx44",
        "HOST_STATE_DIR": str(tmp_path / "esx44"),
        "HOST_RUN_DIR": str(run_directory),
        "HOST_MANAGEMENT_ADDRESS": ADDRESS,
    }
    vpxa = VpxaAgent(environment, tmp_path)
    vpxa.enroll(authority)
    vpxd = authority.new_identity(Role.VPXD, "vpxd")
    hostd = FakeHostd(run_directory / "hostd.sock")  # type: ignore[abstract]  # a fake: not all rpcs
    await hostd.start()
    vpxa.start()
    try:
        await vpxa.until_serving(vpxd)
        async with vpxa.channel(vpxd) as channel:
            yield Chain(authority, vpxd, vpxa, hostd, service_pb2_grpc.VpxaStub(channel))
    finally:
        vpxa.end()
        await hostd.stop()
        shutil.rmtree(run_directory)


async def test_relay_passes_operation_id_and_deadline(chain: Chain) -> None:
    response = await chain.stub.GetHost(
        operations_pb2.GetHostRequest(), timeout=7, metadata=((METADATA_KEY, "abc-1"),)
    )
    assert response.host.name == "fake"
    assert chain.hostd.operation_ids[-1] == "abc-1"
    assert 5 < chain.hostd.time_left_s[-1] < 7.5


async def test_relay_faults_of_hostd_pass_unchanged(chain: Chain) -> None:
    with pytest.raises(TaskInProgress) as caught, remote_faults("vpxa"):
        await chain.stub.PowerOnVm(operations_pb2.VmRequest(), timeout=5)
    fault = caught.value
    assert (fault.entity, fault.task, fault.operation) == ("vm-1", "task-7", "emigrating")
    assert fault.origin == "hostd@fake"
    assert isinstance(fault.__cause__, FileLocked)
    assert fault.__cause__.owner == "esx09"
    with pytest.raises(SystemFault) as defect, remote_faults("vpxa"):
        await chain.stub.PowerOffVm(operations_pb2.VmRequest(), timeout=5)
    assert defect.value.origin == "hostd@fake"
    assert "secret" not in str(defect.value)


async def test_relay_stream_passes_messages_and_the_fault_at_its_end(chain: Chain) -> None:
    seen = []

    async def read_all() -> None:
        with remote_faults("vpxa"):
            async for status in chain.stub.WatchMigration(operations_pb2.MigrationRequest(), timeout=5):
                seen.append(status.status.iteration)

    with pytest.raises(TaskInProgress) as caught:
        await read_all()
    assert seen == [1, 2]
    assert (caught.value.task, caught.value.origin) == ("task-8", "hostd@fake")


async def test_relay_caller_that_leaves_cancels_hostds_call(chain: Chain) -> None:
    call = chain.stub.ResetVm(operations_pb2.VmRequest(), timeout=30)
    await asyncio.sleep(0.2)
    call.cancel()
    await asyncio.wait_for(chain.hostd.unary_canceled.wait(), 10)
    stream = chain.stub.ReadConsole(operations_pb2.ReadConsoleRequest())
    assert len((await read_one(stream)).data) == PIECE_BYTES
    stream.cancel()
    await asyncio.wait_for(chain.hostd.stream_ended.wait(), 10)


async def test_relay_deadline_of_the_caller_ends_hostds_call(chain: Chain) -> None:
    with pytest.raises(TimedOut), remote_faults("vpxa"):
        await chain.stub.ResetVm(operations_pb2.VmRequest(), timeout=0.3)
    await asyncio.wait_for(chain.hostd.unary_canceled.wait(), 10)


async def test_relay_slow_reader_holds_hostds_stream_back(chain: Chain) -> None:
    """What isn't read stays at hostd: flow control fills some buffers and then stops it."""
    stream = chain.stub.ReadConsole(operations_pb2.ReadConsoleRequest(), timeout=60)
    await read_one(stream)
    before = -1
    while before != chain.hostd.pieces_sent:  # until it stands still for a while
        before = chain.hostd.pieces_sent
        await asyncio.sleep(0.5)
    assert chain.hostd.pieces_sent * PIECE_BYTES < 32 << 20
    held = chain.hostd.pieces_sent
    for _ in range(held + 10):
        await read_one(stream)
    assert chain.hostd.pieces_sent > held
    stream.cancel()


async def test_relay_without_hostd_says_so_and_reconnects_by_itself(chain: Chain) -> None:
    await chain.hostd.stop()
    with pytest.raises(HostNotReachable) as caught, remote_faults("esx44"):
        await chain.stub.GetHost(operations_pb2.GetHostRequest(), timeout=10)
    assert (caught.value.host, caught.value.origin) == ("esx44", "vpxa@esx44")
    with pytest.raises(HostNotReachable), remote_faults("esx44"):
        async for _ in chain.stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=10):
            pass
    await chain.hostd.start()
    async with asyncio.timeout(15):
        while True:
            try:
                await chain.stub.GetHost(operations_pb2.GetHostRequest(), timeout=5)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)


async def test_only_vpxd_of_this_cluster_gets_anything(chain: Chain, tmp_path: Path) -> None:
    for role in (Role.CLIENT, Role.HOST):
        async with chain.vpxa.channel(chain.authority.new_identity(role, "someone")) as channel:
            stub = service_pb2_grpc.VpxaStub(channel)
            with pytest.raises(NoPermission) as caught, remote_faults("vpxa"):
                await stub.GetHost(operations_pb2.GetHostRequest(), timeout=5)
            assert caught.value.role == role.value
            with pytest.raises(NoPermission), remote_faults("vpxa"):
                async for _ in stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=5):
                    pass
    other = ClusterAuthority.create(tmp_path / "other", "other").new_identity(Role.VPXD, "vpxd")
    strangers = (
        Identity(Role.VPXD, "vpxd", other.key_pem, other.certificate_pem, chain.vpxd.ca_pem),
        other,
    )
    for stranger in strangers:
        async with chain.vpxa.channel(stranger) as channel:
            stub = service_pb2_grpc.VpxaStub(channel)
            with pytest.raises(HostNotReachable), remote_faults("vpxa"):
                await stub.GetHost(operations_pb2.GetHostRequest(), timeout=5)
    async with grpc.aio.insecure_channel(chain.vpxa.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await service_pb2_grpc.VpxaStub(channel).GetHost(operations_pb2.GetHostRequest(), timeout=5)
    counted = len(chain.hostd.operation_ids)
    await chain.stub.GetHost(operations_pb2.GetHostRequest(), timeout=5)
    assert len(chain.hostd.operation_ids) == counted + 1  # none of the others' calls came through


async def test_vpxa_serves_nothing_without_an_identity_and_takes_it_up(chain: Chain, tmp_path: Path) -> None:
    environment = {**chain.vpxa.environment, "HOST_STATE_DIR": str(tmp_path / "new"), "HOST_NAME": "esx45"}
    (tmp_path / "log45").mkdir()
    vpxa = VpxaAgent(environment, tmp_path / "log45")
    vpxa.start()
    try:
        while "waiting_for_identity" not in vpxa.log():
            await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(ADDRESS, int(vpxa.address.rpartition(":")[2]))
        vpxa.enroll(chain.authority)
        await vpxa.until_serving(chain.vpxd)
        assert vpxa.process is not None
        vpxa.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(vpxa.process.wait, 10) == 0
    finally:
        vpxa.end()


async def test_vpxa_with_another_hosts_identity_does_not_serve(chain: Chain, tmp_path: Path) -> None:
    environment = {**chain.vpxa.environment, "HOST_STATE_DIR": str(tmp_path / "new"), "HOST_NAME": "esx45"}
    (tmp_path / "log45").mkdir()
    vpxa = VpxaAgent(environment, tmp_path / "log45")
    vpxa.enroll(chain.authority, "esx46")
    vpxa.start()
    try:
        assert vpxa.process is not None
        assert await asyncio.to_thread(vpxa.process.wait, 20) == 1
        assert "esx46" in vpxa.log()
    finally:
        vpxa.end()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--vpxd", "127.0.0.1:1", "--token", "t", "--ca-fingerprint", "ab"], 1),
        (["--vpxd", "nonsense", "--token", "t", "--ca-fingerprint", "ab"], 1),
        (["--token", "t"], 2),
    ],
)
def test_join_that_cannot_be_says_why_in_a_line(tmp_path: Path, arguments: list[str], status: int) -> None:
    environment = {
        **os.environ,
        "HOST_NAME": "esx45",
        "HOST_STATE_DIR": str(tmp_path),
        "HOST_RUN_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "vpxa", "join", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert b"Traceback" not in done.stderr
    assert done.stderr.strip()
    assert not (tmp_path / "vpxa").exists()


async def check_storage_through(storage: "storage_pb2_grpc.HostStorageAsyncStub", host: HostdHost) -> None:
    """Uploads, downloads and faults of the second service pass as those of the first."""
    content = os.urandom(3 << 20) + b"end"
    answer = await answer_of(storage.WriteFile(upload_of("[local] a", content), timeout=20))
    assert answer.sha256 == hashlib.sha256(content).hexdigest()
    pieces = storage.ReadFile(storage_pb2.ReadFileRequest(path="[local] a"), timeout=20)
    assert b"".join([piece.data async for piece in pieces]) == content
    for path, said, fault in (
        ("[local] none/a", None, FileNotFound),
        ("[local] a", None, FileAlreadyExists),
        ("[local] b", len(content) - 1, InvalidArgument),
        ("[local] b", 1 << 60, NoDiskSpace),
    ):
        with pytest.raises(fault) as caught, remote_faults("vpxa"):
            await answer_of(storage.WriteFile(upload_of(path, content, said), timeout=20))
        assert caught.value.origin == f"hostd@{host.name}"
    begun = asyncio.Event()

    async def half() -> AsyncIterator[storage_pb2.WriteFileRequest]:
        async for message in upload_of("[local] b", content, 2 * len(content)):
            yield message
        begun.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(storage.WriteFile(half()))
    await asyncio.wait_for(begun.wait(), 20)
    call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call
    browsed = await storage.BrowseFolder(storage_pb2.FileRequest(path="[local]"), timeout=5)
    assert [file.name for file in browsed.files] == ["a"]


async def test_chain_with_a_real_hostd_through_its_death_and_restart(
    tmp_path: Path, authority: ClusterAuthority
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    host = HostdHost(tmp_path, 43, shared)
    vpxa = VpxaAgent(host.environment, tmp_path)
    vpxa.enroll(authority)
    vpxd = authority.new_identity(Role.VPXD, "vpxd")
    try:
        await host.start()
        vpxa.start()
        await vpxa.until_serving(vpxd)
        async with vpxa.channel(vpxd) as channel:
            stub = service_pb2_grpc.VpxaStub(channel)
            watch = stub.WatchHost(operations_pb2.WatchHostRequest())
            assert (await read_one(watch)).host.name == "esx43"
            request = operations_pb2.CreateVmRequest(config=small_vm("web01"), datastore="shared")
            vm = (await stub.CreateVm(request, timeout=20)).vm
            on = await stub.PowerOnVm(operations_pb2.VmRequest(vm_uuid=vm.uuid), timeout=30)
            assert on.vm.power_state == host_pb2.POWER_STATE_POWERED_ON
            with pytest.raises(ManagedObjectNotFound) as caught, remote_faults("vpxa"):
                await stub.PowerOnVm(operations_pb2.VmRequest(vm_uuid="none"), timeout=5)
            assert caught.value.origin == "hostd@esx43"
            await check_storage_through(storage_pb2_grpc.HostStorageStub(channel), host)
            await host.stop(signal.SIGKILL)
            with pytest.raises(HostNotReachable), remote_faults("vpxa"):
                async for _ in watch:
                    pass
            await host.start()
            async with asyncio.timeout(15):
                while True:
                    try:
                        again = stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=10)
                        first = await read_one(again)
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.1)
            assert [vm.name for vm in first.vms] == ["web01"]
            assert first.vms[0].power_state == host_pb2.POWER_STATE_POWERED_ON
            again.cancel()
    finally:
        vpxa.end()
        await host.end()
