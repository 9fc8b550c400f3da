"""Joining a cluster: the token goes to the right server only, and what comes back is checked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc
from runtime.faults import HostNotReachable, InvalidArgument, InvalidJoinToken, NotAuthenticated, TimedOut
from runtime.rpc import enrollment
from runtime.rpc.enrollment import join
from runtime.rpc.identity import Identity, PeerIdentity, Role
from runtime.rpc.server import Context, RpcServer, enrollment_server
from tests.integration.runtime.conftest import Pki

Serve = Callable[[RpcServer], Awaitable[RpcServer]]


@dataclass
class _FakeEnrollment(enrollment_pb2_grpc.EnrollmentServicer):
    pki: Pki
    issue_to: PeerIdentity | None = None
    issue_for_key_of: Identity | None = None
    requests: list[enrollment_pb2.EnrollRequest] = field(default_factory=list)

    async def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: Context
    ) -> enrollment_pb2.EnrollResponse:
        self.requests.append(request)
        if request.token != "good":
            raise InvalidJoinToken("The token isn't valid.", request.host_name)
        peer = self.issue_to or PeerIdentity(Role.HOST, request.host_name)
        certificate = self.pki.authority.issue(
            request.csr_pem, peer.role, peer.name, [request.management_address]
        )
        if self.issue_for_key_of is not None:
            certificate = self.issue_for_key_of.certificate_pem
        return enrollment_pb2.EnrollResponse(
            certificate_pem=certificate.decode(), ca_pem=self.pki.authority.certificate_pem.decode()
        )


async def _start(serve: Serve, pki: Pki, identity: Identity | None = None) -> tuple[str, _FakeEnrollment]:
    server = enrollment_server("127.0.0.1:0", identity or pki.vpxd, "vpxd@vpxd")
    servicer = _FakeEnrollment(pki)
    enrollment_pb2_grpc.add_EnrollmentServicer_to_server(servicer, server.grpc)
    await serve(server)
    return server.address, servicer


async def test_join_gives_the_host_an_identity_of_the_cluster(pki: Pki, serve: Serve) -> None:
    address, servicer = await _start(serve, pki)
    identity = await join(address, "good", pki.authority.fingerprint.upper(), "esx05", "127.0.1.5:8443")
    assert identity.peer == PeerIdentity(Role.HOST, "esx05")
    assert identity.ca_pem == pki.authority.certificate_pem
    assert b"PRIVATE" not in servicer.requests[0].SerializeToString()


@pytest.mark.parametrize("fingerprint", ["0" * 64, "", "no hex", "ä" * 64])
async def test_join_with_a_wrong_fingerprint_never_sends_the_token(
    pki: Pki, serve: Serve, fingerprint: str
) -> None:
    address, servicer = await _start(serve, pki)
    with pytest.raises(NotAuthenticated):
        await join(address, "good", fingerprint, "esx05", "127.0.1.5:8443")
    assert servicer.requests == []


async def test_join_isnt_fooled_by_a_stranger_who_shows_the_right_ca(pki: Pki, serve: Serve) -> None:
    stranger = pki.foreign.new_identity(Role.VPXD, "vpxd")
    posing = Identity(
        Role.VPXD, "vpxd", stranger.key_pem, stranger.certificate_pem, pki.authority.certificate_pem
    )
    address, servicer = await _start(serve, pki, posing)
    with pytest.raises(HostNotReachable):
        await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
    assert servicer.requests == []


async def test_join_refuses_a_host_of_the_cluster_that_poses_as_vpxd(pki: Pki, serve: Serve) -> None:
    address, servicer = await _start(serve, pki, pki.host)
    with pytest.raises(NotAuthenticated):
        await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
    assert servicer.requests == []


async def test_join_with_a_bad_token_says_so(pki: Pki, serve: Serve) -> None:
    address, _ = await _start(serve, pki)
    with pytest.raises(InvalidJoinToken) as caught:
        await join(address, "bad", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
    assert (caught.value.host, caught.value.origin) == ("esx05", "vpxd@vpxd")


async def test_join_refuses_a_certificate_for_someone_else(pki: Pki, serve: Serve) -> None:
    address, servicer = await _start(serve, pki)
    for peer in (PeerIdentity(Role.HOST, "esx06"), PeerIdentity(Role.CLIENT, "esx05")):
        servicer.issue_to = peer
        with pytest.raises(NotAuthenticated):
            await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
    servicer.issue_for_key_of = pki.host
    with pytest.raises(NotAuthenticated):
        await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")


@pytest.mark.parametrize(
    "address", ["", "nowhere", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:x"]
)
async def test_join_address_that_cant_be_one_is_refused(pki: Pki, address: str) -> None:
    with pytest.raises(InvalidArgument):
        await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")


async def test_join_where_nobody_or_no_tls_answers_is_told(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    async def speak_plainly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    plain = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
    address = f"127.0.0.1:{plain.sockets[0].getsockname()[1]}"
    async with plain:
        with pytest.raises(HostNotReachable):
            await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
    with pytest.raises(HostNotReachable):
        await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")


async def test_join_at_a_server_that_says_nothing_ends_at_its_deadline(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrollment, "_FETCH_TIMEOUT_S", 0.3)
    gone = asyncio.Event()

    async def stay_silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    silent = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent:
        with pytest.raises(TimedOut):
            await join(address, "good", pki.authority.fingerprint, "esx05", "127.0.1.5:8443")
        gone.set()
