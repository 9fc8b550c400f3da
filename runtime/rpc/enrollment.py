"""How a host gets its identity: the joining half of the Enrollment service.

    host                                        vpxd's join port (TLS, no client certificate)
     1 fetch the chain, trust nothing      <--   certificate, CA
     2 CA's sha256 == the given fingerprint?     no: stop, the token was never sent
     3 new key, TLS with that CA as the only root, server must be a vpxd
     4 Enroll(token, name, request)        -->   certificate
     5 certificate is of that CA, for this key, name and role?

The private key is made here and never leaves the host.
"""

import asyncio
import select
import socket
import time

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc
from runtime.faults import HostNotReachable, InvalidArgument, NotAuthenticated, TimedOut
from runtime.rpc.channel import enrollment_channel
from runtime.rpc.faults import remote_faults
from runtime.rpc.identity import (
    Identity,
    PeerIdentity,
    Role,
    check_name,
    fingerprint_of,
    peer_of_certificate,
    same_fingerprint,
)

_FETCH_TIMEOUT_S = 10.0
_ENROLL_TIMEOUT_S = 20.0


async def join(
    join_address: str, token: str, ca_fingerprint: str, host_name: str, management_address: str
) -> Identity:
    """A host's new identity in the cluster whose CA has the fingerprint. Nothing is written: the caller saves it.

    The token is sent only to the holder of a vpxd certificate of that CA.

    :raises InvalidArgument: an argument can't be.
    :raises HostNotReachable: :raises TimedOut: nobody answers at `join_address` ("address:port").
    :raises NotAuthenticated: who answers isn't of that cluster, or gave something else than was asked for.
    :raises InvalidJoinToken: and the other faults of Enrollment.Enroll.
    """
    check_name(host_name)
    host, port = _split(join_address)
    server, ca_pem = await asyncio.to_thread(_fetch_server, host, port, ca_fingerprint)
    key_pem, csr_pem = await asyncio.to_thread(Identity.create_key_and_csr, host_name)
    request = enrollment_pb2.EnrollRequest(
        token=token, host_name=host_name, csr_pem=csr_pem, management_address=management_address
    )
    async with enrollment_channel(join_address, ca_pem, server) as channel:
        with remote_faults(server.peer):
            stub = enrollment_pb2_grpc.EnrollmentStub(channel)
            response = await stub.Enroll(request, timeout=_ENROLL_TIMEOUT_S)
    try:
        identity = Identity.of(key_pem, response.certificate_pem.encode(), ca_pem)
    except InvalidArgument as error:
        raise NotAuthenticated("The certificate that came back isn't for this host's key.") from error
    if identity.peer != PeerIdentity(Role.HOST, host_name):
        raise NotAuthenticated(f"The certificate that came back is for {identity.peer.peer}.")
    return identity


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f'{address[:80]!r} isn\'t "address:port".', "join_address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _fetch_server(host: str, port: int, ca_fingerprint: str) -> tuple[PeerIdentity, bytes]:
    """What the server calls itself (unproven) and the CA of the fingerprint (PEM), from its unverified chain."""
    deadline = time.monotonic() + _FETCH_TIMEOUT_S
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_alpn_protos([b"h2"])
    context.set_verify(SSL.VERIFY_NONE)  # nothing is trusted here but the fingerprint; nothing is sent either
    try:
        with socket.create_connection((host, port), timeout=_FETCH_TIMEOUT_S) as sock:
            sock.setblocking(False)
            connection = SSL.Connection(context, sock)
            connection.set_connect_state()
            _handshake(connection, sock, deadline)
            chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    except TimeoutError as error:
        raise TimedOut(f"No answer from {host}:{port} in time.", "join", _FETCH_TIMEOUT_S) from error
    except (OSError, SSL.Error) as error:
        address = f"{host}:{port}"
        raise HostNotReachable(f"No TLS connection to {address}.", address, address) from error
    for certificate in chain:
        if same_fingerprint(
            fingerprint_of(certificate.public_bytes(serialization.Encoding.DER)), ca_fingerprint
        ):
            server = peer_of_certificate(chain[0])
            if server.role is not Role.VPXD:
                raise NotAuthenticated(f"{host}:{port} isn't a vpxd.")
            return server, certificate.public_bytes(serialization.Encoding.PEM)
    raise NotAuthenticated(
        f"The CA of {host}:{port} doesn't have the given fingerprint: the token wasn't sent."
    )


def _handshake(connection: SSL.Connection, sock: socket.socket, deadline: float) -> None:
    """:raises TimeoutError: :raises SSL.Error: :raises OSError:"""
    poll = select.poll()
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            wanted = select.POLLIN
        except SSL.WantWriteError:
            wanted = select.POLLOUT
        else:
            return
        poll.register(sock, wanted)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
