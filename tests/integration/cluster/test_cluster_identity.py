"""Who gets in where: every port and socket that the cluster's processes really listen on, and everybody who may not."""

import asyncio
import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from demo.cluster_layout import PROJECT
from proto.vpxa.v1 import service_pb2 as vpxa_pb2
from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc, service_pb2
from runtime import faults
from runtime.rpc.channel import enrollment_channel, network_channel
from runtime.rpc.identity import ClusterAuthority, Identity, PeerIdentity, Role
from runtime.rpc.server import enrollment_server
from tests.framework.cluster_rig import ClusterRig, refusal
from tests.framework.tcp_sockets import tcp_sockets
from tests.framework.unix_sockets import listening_unix_sockets

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, 3.4
HEALTH = "/grpc.health.v1.Health/Check"


@pytest_asyncio.fixture(scope="module", loop_scope="package", autouse=True)
async def web01(rig: ClusterRig) -> AsyncIterator[None]:
    """A VM that runs: vmx and QEMU are among the processes."""
    await rig.power_on_new("web01", "esx01")
    yield
    await rig.assert_alive("web01", "esx01")
    await rig.remove("web01")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> ClusterAuthority:
    """The CA of another cluster."""
    return ClusterAuthority.create(tmp_path_factory.mktemp("other"), "another cluster")


def pids(rig: ClusterRig) -> list[int]:
    daemons = [rig.cluster.process(daemon.name) for daemon in rig.layout.daemons()]
    return [one.pid for one in (*daemons, *rig.cluster.vm_processes()) if one is not None]


def listening_ports(rig: ClusterRig) -> set[tuple[str, int]]:
    """By the kernel's tables, not by the settings."""
    assert len(pids(rig)) == 9, "vpxd, three times hostd and vpxa, vmx and QEMU"
    return {(one.address, one.port) for one in tcp_sockets(pids(rig)) if one.listens}


def join_port(rig: ClusterRig) -> tuple[str, int]:
    return ("127.0.0.1", rig.layout.join_port)


async def test_only_the_known_ports_are_open_and_only_on_the_management_network(rig: ClusterRig) -> None:
    wanted = {("127.0.0.1", rig.layout.vpxd_port), join_port(rig)}
    wanted |= {(rig.layout.management_address(number), 8443) for number in (1, 2, 3)}
    assert listening_ports(rig) == wanted


async def talk(address: tuple[str, int], context: ssl.SSLContext | None) -> bytes:
    """What a port answers to the begin of an HTTP/2 connection, with TLS or in the clear."""

    def exchange() -> bytes:
        answer = b""
        with socket.create_connection(address, timeout=5) as plain:
            try:
                sock = context.wrap_socket(plain) if context is not None else plain
                with sock:
                    sock.sendall(PREFACE)
                    while len(answer) < 9 and (part := sock.recv(4096)):
                        answer += part
            except OSError:  # refused in the handshake, or thrown out
                return answer
        return answer

    return await asyncio.to_thread(exchange)


def tls(identity: Identity | None, folder: Path) -> ssl.SSLContext:
    """A client that takes every server, with this certificate or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        identity.save(folder)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def speaks_http2(answer: bytes) -> bool:
    """Whether it begins with a SETTINGS frame (RFC 9113, 6.5)."""
    return len(answer) >= 9 and answer[3] == 4


async def test_no_port_speaks_to_a_peer_without_a_certificate_of_this_cluster(
    rig: ClusterRig, stranger: ClusterAuthority, tmp_path: Path
) -> None:
    ours = rig.authority
    peers = {
        "in the clear": None,
        "no certificate": tls(None, tmp_path),
        "another cluster's": tls(stranger.new_identity(Role.VPXD, "vpxd"), tmp_path / "other"),
        "expired": tls(ours.new_identity(Role.VPXD, "vpxd", days=-0.001), tmp_path / "expired"),
    }
    member = tls(ours.new_identity(Role.CLIENT, "tester"), tmp_path / "member")
    for address in sorted(listening_ports(rig) - {join_port(rig)}):
        assert speaks_http2(await talk(address, member)), "the control: who belongs here is spoken to"
        for name, context in peers.items():
            answer = await talk(address, context)
            assert not speaks_http2(answer), (address, name)
            assert b"HTTP" not in answer
            assert len(answer) <= 9, (address, name, answer)  # a TLS alert at most
    assert not speaks_http2(await talk(join_port(rig), None))


async def test_the_join_port_answers_nothing_but_a_valid_token(rig: ClusterRig) -> None:
    server = PeerIdentity(Role.VPXD, "vpxd")
    ca_pem = rig.authority.certificate_pem
    async with enrollment_channel(f"127.0.0.1:{rig.layout.join_port}", ca_pem, server) as channel:
        for method in (HEALTH, "/proc.vpxd.v1.Vpxd/ListVms", "/proto.vpxd.v1.Vpxd/CreateJoinToken"):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        for token in ("", "x", "\0" * 5000):
            _key, csr = Identity.create_key_and_csr("esx09")
            request = enrollment_pb2.EnrollRequest(
                token=token, host_name="esx09", csr_pem=csr, management_address="127.0.1.9:8443"
            )
            refused = await refusal(stub.Enroll(request, timeout=5))
            assert isinstance(refused, faults.InvalidJoinToken)
            assert refused.origin == "vpxd"


async def test_each_role_may_call_only_its_own_daemon(rig: ClusterRig) -> None:
    host, client = rig.host_identity("esx02"), rig.authority.new_identity(Role.CLIENT, "tester")
    vpxd = service_pb2.DESCRIPTOR.services_by_name["Vpxd"]
    vpxa = vpxa_pb2.DESCRIPTOR.services_by_name["Vpxa"]
    cases = [
        (rig.layout.server, Role.VPXD, "vpxd", vpxd, host),
        (rig.layout.server, Role.VPXD, "vpxd", vpxd, rig.vpxd_identity),
        (rig.vpxa_address("esx01"), Role.HOST, "esx01", vpxa, client),
        (rig.vpxa_address("esx01"), Role.HOST, "esx01", vpxa, host),
    ]
    for target, role, name, service, caller in cases:
        async with network_channel(target, caller, role, name) as channel:
            assert len(service.methods) > 10
            for method in service.methods:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"/{service.full_name}/{method.name}"
                )
                for request in (b"", b"\xff\xff no message"):
                    refused = await refusal(call(request, timeout=5))
                    assert isinstance(refused, faults.NoPermission), (method.name, refused)
                    assert refused.role == caller.role.value


async def test_unix_sockets_are_for_their_user_alone(rig: ClusterRig) -> None:
    task = await rig.start_slow("web01", "esx02", mib_s=0.5)
    paths = listening_unix_sockets(pids(rig))
    modes = {path: (os.lstat(path), os.lstat(os.path.dirname(path))) for path in paths}
    await rig.cancel(task)
    await rig.ended(task)
    names = sorted(Path(path).name for path in paths if "esx02" in path)
    assert {"hostd.sock", "vmx.sock", "console.sock"} <= set(names), names
    for path in paths:
        assert path.startswith(f"{rig.layout.run_directory}/"), path
        found, folder = modes[path]
        assert stat.S_IMODE(folder.st_mode) == 0o700, path
        assert stat.S_IMODE(found.st_mode) == 0o600, path
        assert (found.st_uid, folder.st_uid) == (os.getuid(), os.getuid())


async def test_private_keys_are_for_their_user_alone(rig: ClusterRig) -> None:
    keys = list(rig.layout.directory.rglob("*key*.pem"))
    assert len(keys) == 6, "the CA's, vpxd's, the administrator's, three hosts'"
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700, key


# -- joining ----------------------------------------------------------------------------------------------------------


async def new_token(rig: ClusterRig, host: str, valid_s: int = 60) -> service_pb2.CreateJoinTokenResponse:
    request = service_pb2.CreateJoinTokenRequest(host_name=host, valid_s=valid_s)
    return await rig.client.call(rig.client.stub.CreateJoinToken, request)


async def join(folder: Path, host: str, address: str, token: str, fingerprint: str) -> tuple[int, str]:
    """`python -m vpxa join` as on that host: exit status and output."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HOST_NAME": host,
        "HOST_STATE_DIR": str(folder / "state"),
        "HOST_RUN_DIR": str(folder / "run"),
        "HOST_MANAGEMENT_ADDRESS": "127.0.1.9",
    }
    words = ("join", "--vpxd", address, "--token", token, "--ca-fingerprint", fingerprint)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "vpxa", *words],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


async def test_join_token_works_once_for_its_host_until_it_expires(rig: ClusterRig, tmp_path: Path) -> None:
    expired = await new_token(rig, "esx09", valid_s=1)
    made = await new_token(rig, "esx09")
    address, fingerprint = made.join_address, made.ca_fingerprint
    other, first = await asyncio.gather(
        join(tmp_path / "other", "esx08", address, made.token, fingerprint),
        asyncio.sleep(1.1, None),
    )
    assert first is None
    assert other[0] != 0, "the token is for esx09"
    assert "token" in other[1]
    status, text = await join(tmp_path / "first", "esx09", address, made.token, fingerprint)
    assert status == 0, text
    again, late = await asyncio.gather(
        join(tmp_path / "again", "esx09", address, made.token, fingerprint),
        join(tmp_path / "late", "esx09", address, expired.token, fingerprint),
    )
    assert again[0] != 0
    assert late[0] != 0
    identity = Identity.load(tmp_path / "first" / "state" / "vpxa" / "identity")
    assert (identity.role, identity.name) == (Role.HOST, "esx09")
    for folder in ("other", "again", "late"):
        assert not list((tmp_path / folder).rglob("*.pem")), "nothing is left of a join that was refused"
    # Joined isn't added: the inventory is as it was.
    inventory = await rig.client.call(rig.client.stub.ListHosts, service_pb2.ListHostsRequest())
    assert [host.name for host in inventory.hosts] == ["esx01", "esx02", "esx03"]


async def test_join_tokens_can_be_written_on_a_command_line(rig: ClusterRig) -> None:
    tokens = {(await new_token(rig, "esx09")).token for _ in range(8)}
    assert len(tokens) == 8
    assert all(token.isalnum() and len(token) >= 40 for token in tokens), tokens


class Impostor(enrollment_pb2_grpc.EnrollmentServicer):
    """Poses as a vpxd and collects tokens."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    async def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> enrollment_pb2.EnrollResponse:
        self.tokens.append(request.token)
        return enrollment_pb2.EnrollResponse()


async def test_wrong_fingerprint_refuses_before_the_token_is_sent(
    rig: ClusterRig, stranger: ClusterAuthority, tmp_path: Path
) -> None:
    made = await new_token(rig, "esx07")
    # To the right vpxd with another fingerprint: the token isn't used up.
    status, text = await join(tmp_path / "a", "esx07", made.join_address, made.token, stranger.fingerprint)
    assert status != 0
    assert "the token wasn't sent" in text
    # With the right fingerprint to another cluster's vpxd, who would take the token.
    impostor = Impostor()
    server = enrollment_server("127.0.0.1:0", stranger.new_identity(Role.VPXD, "vpxd"), "impostor")
    enrollment_pb2_grpc.add_EnrollmentServicer_to_server(impostor, server.grpc)
    await server.start()
    try:
        status, text = await join(tmp_path / "b", "esx07", server.address, made.token, made.ca_fingerprint)
        assert status != 0
        assert impostor.tokens == []
        # The control: who is fooled about the fingerprint gives the token away.
        await join(tmp_path / "c", "esx07", server.address, made.token, stranger.fingerprint)
        assert impostor.tokens == [made.token]
    finally:
        await server.stop()
    status, text = await join(tmp_path / "d", "esx07", made.join_address, made.token, made.ca_fingerprint)
    assert status == 0, text
