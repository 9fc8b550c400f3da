"""`python -m vpxa join` against an enrollment server, and what it does when that refuses."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc
from runtime.faults import InvalidJoinToken
from runtime.rpc.identity import ClusterAuthority, Identity, PeerIdentity, Role
from runtime.rpc.server import RpcServer, enrollment_server
from tests.framework.hostd_process import ROOT

pytestmark = pytest.mark.cluster


class FakeEnrollment(enrollment_pb2_grpc.EnrollmentServicer):
    """Takes one token, as vpxd's does."""

    def __init__(self, authority: ClusterAuthority) -> None:
        self._authority = authority
        self.requests: list[enrollment_pb2.EnrollRequest] = []

    async def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: Any
    ) -> enrollment_pb2.EnrollResponse:
        self.requests.append(request)
        if request.token != "good":
            raise InvalidJoinToken("The join token isn't valid.", host=request.host_name)
        certificate = self._authority.issue(request.csr_pem, Role.HOST, request.host_name)
        return enrollment_pb2.EnrollResponse(
            certificate_pem=certificate.decode(), ca_pem=self._authority.certificate_pem.decode()
        )


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[ClusterAuthority, FakeEnrollment, RpcServer]]:
    authority = ClusterAuthority.create(tmp_path / "ca", "test")
    servicer = FakeEnrollment(authority)
    server = enrollment_server("127.0.0.1:0", authority.new_identity(Role.VPXD, "vpxd"), "vpxd")
    enrollment_pb2_grpc.add_EnrollmentServicer_to_server(servicer, server.grpc)
    await server.start()
    yield authority, servicer, server
    await server.stop(0)


async def join(state: Path, address: str, token: str, fingerprint: str) -> tuple[int, str]:
    """Exit status and what was said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vpxa", "join", "--vpxd", address),
        *("--token", token, "--ca-fingerprint", fingerprint),
        env={**os.environ, "HOST_NAME": "esx45", "HOST_STATE_DIR": str(state), "HOST_RUN_DIR": str(state)},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_join_with_a_good_token_keeps_an_identity_of_the_host(
    tmp_path: Path, cluster: tuple[ClusterAuthority, FakeEnrollment, RpcServer]
) -> None:
    authority, servicer, server = cluster
    status, said = await join(tmp_path / "s", server.address, "good", authority.fingerprint)
    assert (status, "has joined" in said) == (0, True), said
    identity = Identity.load(tmp_path / "s" / "vpxa" / "identity")
    assert identity.peer == PeerIdentity(Role.HOST, "esx45")
    assert identity.ca_pem == authority.certificate_pem
    assert servicer.requests[0].management_address == "127.0.1.1:8443"


async def test_join_with_a_bad_token_or_ca_keeps_nothing(
    tmp_path: Path, cluster: tuple[ClusterAuthority, FakeEnrollment, RpcServer]
) -> None:
    authority, servicer, server = cluster
    status, said = await join(tmp_path / "s", server.address, "bad", authority.fingerprint)
    assert (status, "token" in said, "Traceback" in said) == (1, True, False), said
    status, said = await join(tmp_path / "s", server.address, "good", "0" * 64)
    assert (status, "fingerprint" in said, "Traceback" in said) == (1, True, False), said
    assert len(servicer.requests) == 1  # the second token was never sent
    assert not (tmp_path / "s").exists()
