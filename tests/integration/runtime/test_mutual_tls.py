"""Who gets through to a network server, and whom a channel speaks to. Real sockets, real handshakes."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.host.v1 import operations_pb2
from proto.vpxa.v1 import service_pb2_grpc
from runtime.faults import HostNotReachable, InvalidArgument, NoPermission, ResourceInUse, SystemFault
from runtime.rpc.channel import enrollment_channel, network_channel
from runtime.rpc.faults import remote_faults
from runtime.rpc.identity import Identity, PeerIdentity, Role, peer_of
from runtime.rpc.server import MAX_MESSAGE_BYTES, Context, RpcServer, network_server
from tests.integration.runtime.conftest import Pki

Serve = Callable[[RpcServer], Awaitable[RpcServer]]
_TIMEOUT_S = 10.0


class _FakeVpxa(service_pb2_grpc.VpxaServicer):
    def __init__(self) -> None:
        self.callers: list[PeerIdentity] = []

    async def GetHost(
        self, request: operations_pb2.GetHostRequest, context: Context
    ) -> operations_pb2.GetHostResponse:
        self.callers.append(peer_of(context))
        return operations_pb2.GetHostResponse()


def _vpxa(
    pki: Pki, identity: Identity | None = None, address: str = "127.0.0.1:0"
) -> tuple[RpcServer, _FakeVpxa]:
    server = network_server(address, identity or pki.host, frozenset({Role.VPXD}), "vpxa@esx01")
    servicer = _FakeVpxa()  # type: ignore[abstract]
    service_pb2_grpc.add_VpxaServicer_to_server(servicer, server.grpc)
    return server, servicer


async def _get_host(channel: grpc.aio.Channel) -> None:
    async with channel:
        with remote_faults("vpxa@esx01"):
            stub = service_pb2_grpc.VpxaStub(channel)
            await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)


async def test_server_answers_the_allowed_role_and_knows_who_calls(pki: Pki, serve: Serve) -> None:
    server, servicer = _vpxa(pki)
    await serve(server)
    await _get_host(network_channel(server.address, pki.vpxd, Role.HOST, "esx01"))
    assert servicer.callers == [PeerIdentity(Role.VPXD, "vpxd")]


@pytest.mark.parametrize("role", [Role.HOST, Role.CLIENT])
async def test_server_refuses_a_role_that_isnt_allowed(pki: Pki, serve: Serve, role: Role) -> None:
    server, servicer = _vpxa(pki)
    await serve(server)
    caller = pki.authority.new_identity(role, "esx02")
    with pytest.raises(NoPermission) as caught:
        await _get_host(network_channel(server.address, caller, Role.HOST, "esx01"))
    assert (caught.value.role, caught.value.required, caught.value.origin) == (
        role.value,
        "vpxd",
        "vpxa@esx01",
    )
    assert servicer.callers == []


async def test_health_answers_every_role_of_the_cluster(pki: Pki, serve: Serve) -> None:
    server, _ = _vpxa(pki)
    await serve(server)
    async with network_channel(server.address, pki.host, Role.HOST, "esx01") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("who", ["no certificate", "another cluster's", "expired", "plaintext"])
async def test_server_gives_a_stranger_nothing(pki: Pki, serve: Serve, who: str) -> None:
    server, servicer = _vpxa(pki)
    await serve(server)
    expected = PeerIdentity(Role.HOST, "esx01")
    match who:
        case "no certificate":
            channel = enrollment_channel(server.address, pki.authority.certificate_pem, expected)
        case "another cluster's":
            foreign = pki.foreign.new_identity(Role.VPXD, "vpxd")
            mixed = Identity(
                Role.VPXD, "vpxd", foreign.key_pem, foreign.certificate_pem, pki.authority.certificate_pem
            )
            channel = network_channel(server.address, mixed, Role.HOST, "esx01")
        case "expired":
            expired = pki.authority.new_identity(Role.VPXD, "vpxd", days=-1 / 1440)
            channel = network_channel(server.address, expired, Role.HOST, "esx01")
        case _:
            channel = grpc.aio.insecure_channel(server.address)
    with pytest.raises(HostNotReachable):
        await _get_host(channel)
    async with channel, network_channel(server.address, pki.vpxd, Role.HOST, "esx01") as good:
        stub = service_pb2_grpc.VpxaStub(good)
        await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)
    assert servicer.callers == [PeerIdentity(Role.VPXD, "vpxd")]


@pytest.mark.parametrize("whose", ["wrong name", "wrong role", "another cluster's", "expired"])
async def test_channel_never_speaks_to_a_server_that_isnt_the_expected_one(
    pki: Pki, serve: Serve, whose: str
) -> None:
    identity = {
        "wrong name": pki.authority.new_identity(Role.HOST, "esx02"),
        "wrong role": pki.authority.new_identity(Role.CLIENT, "esx01"),
        "another cluster's": pki.foreign.new_identity(Role.HOST, "esx01"),
        "expired": pki.authority.new_identity(Role.HOST, "esx01", days=-1 / 1440),
    }[whose]
    server, servicer = _vpxa(pki, identity)
    await serve(server)
    with pytest.raises(HostNotReachable):
        await _get_host(network_channel(server.address, pki.vpxd, Role.HOST, "esx01"))
    assert servicer.callers == []


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_server_closes_on_garbage_and_serves_on(pki: Pki, serve: Serve, garbage: bytes) -> None:
    server, servicer = _vpxa(pki)
    await serve(server)
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(garbage)
    answer = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await reader.read()
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    assert b"HTTP" not in answer
    await _get_host(network_channel(server.address, pki.vpxd, Role.HOST, "esx01"))
    assert len(servicer.callers) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_server_without_our_certificate_sends_no_application_data(
    pki: Pki, serve: Serve, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    server, _ = _vpxa(pki)
    await serve(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.authority.certificate_pem.decode())
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    host, port = server.address.split(":")

    def attempt() -> bytes:
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname="esx01.host.vpx") as tls,
        ):
            return tls.recv(1)  # under TLS 1.3 the client's handshake ends before the server has judged it

    try:
        received = await asyncio.to_thread(attempt)
    except (ssl.SSLError, ConnectionResetError):
        received = b""
    assert received == b""


async def test_server_with_our_certificate_speaks_tls_1_3(pki: Pki, serve: Serve, tmp_path: Path) -> None:
    server, _ = _vpxa(pki)
    await serve(server)
    pki.vpxd.save(tmp_path / "identity")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.authority.certificate_pem.decode())
    context.load_cert_chain(tmp_path / "identity" / "cert.pem", tmp_path / "identity" / "key.pem")
    context.set_alpn_protocols(["h2"])
    host, port = server.address.split(":")

    def attempt() -> tuple[str | None, bytes]:
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname="esx01.host.vpx") as tls,
        ):
            return tls.version(), tls.recv(9)

    version, settings_frame = await asyncio.to_thread(attempt)
    assert version == "TLSv1.3"
    assert settings_frame[3:5] == b"\x04\x00"  # HTTP/2 SETTINGS: here the server does speak


async def test_message_above_the_limit_is_refused_and_the_channel_lives_on(pki: Pki, serve: Serve) -> None:
    server, servicer = _vpxa(pki)
    await serve(server)
    async with network_channel(server.address, pki.vpxd, Role.HOST, "esx01") as channel:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/proto.vpxa.v1.Vpxa/GetHost"
        )
        with pytest.raises(SystemFault), remote_faults("vpxa@esx01"):
            await send(b"x" * (MAX_MESSAGE_BYTES + 1), timeout=_TIMEOUT_S)
        with pytest.raises(InvalidArgument, match="isn't the message"), remote_faults("vpxa@esx01"):
            await send(b"\xff\xff\xff", timeout=_TIMEOUT_S)  # no protobuf message
        stub = service_pb2_grpc.VpxaStub(channel)
        await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)
    assert len(servicer.callers) == 1


async def test_second_server_on_the_same_port_is_refused(pki: Pki, serve: Serve) -> None:
    server, _ = _vpxa(pki)
    await serve(server)
    second, _ = _vpxa(pki, address=server.address)
    with pytest.raises(ResourceInUse):
        await serve(second)


async def test_channel_reconnects_to_a_server_that_came_back(pki: Pki, serve: Serve) -> None:
    server, _ = _vpxa(pki)
    await serve(server)
    async with network_channel(server.address, pki.vpxd, Role.HOST, "esx01") as channel:
        stub = service_pb2_grpc.VpxaStub(channel)
        await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)
        await server.stop(0.0)
        with pytest.raises(HostNotReachable), remote_faults("vpxa@esx01"):
            await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)
        again, servicer = _vpxa(pki, address=server.address)
        await serve(again)
        await stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S, wait_for_ready=True)
    assert len(servicer.callers) == 1
