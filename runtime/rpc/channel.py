"""The only place where gRPC channels are made.

A network channel accepts one peer only: the holder of a certificate of this cluster with the expected role and name,
whatever address it was reached at. Channels reconnect by themselves; a peer that died without a word is noticed in
about 10 s, when its calls end with UNAVAILABLE. Each call needs a deadline: the constants here are the usual ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from runtime.rpc.identity import Identity, PeerIdentity, Role, check_name
from runtime.rpc.operation_id import METADATA_KEY, current_operation_id, new_operation_id
from runtime.rpc.server import MAX_MESSAGE_BYTES, METADATA_BYTES

QUERY_TIMEOUT_S = 5.0  # the peer looks something up
ACTION_TIMEOUT_S = 60.0  # the peer does something: power, create, prepare
KEEPALIVE_TIME_S = 5.0
KEEPALIVE_TIMEOUT_S = 5.0

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # channels share no connection: each has its own backoff and identity
    ("grpc.enable_retries", 0),  # who retries what is decided where the call is made
    ("grpc.enable_http_proxy", 0),
)
_KEEPALIVE: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),  # measured: without it, 60 s
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # 0: no limit
)


def network_channel(
    target: str, identity: Identity, expected_role: Role, expected_name: str
) -> grpc.aio.Channel:
    """A mutual TLS channel to "address:port"; connects at the first call and again whenever needed. Close it.

    A peer with another role or name, or of another cluster, is never spoken to: calls end with UNAVAILABLE.

    :raises InvalidArgument: the expected name can't be one.
    """
    pair = {"private_key": identity.key_pem, "certificate_chain": identity.certificate_pem}
    credentials = grpc.ssl_channel_credentials(identity.ca_pem, **pair)
    return _secure_channel(target, credentials, PeerIdentity(expected_role, check_name(expected_name)))


def enrollment_channel(target: str, ca_pem: bytes, expected: PeerIdentity) -> grpc.aio.Channel:
    """A TLS channel without a certificate of our own, to the one service that takes it; `ca_pem` is the only root."""
    return _secure_channel(target, grpc.ssl_channel_credentials(ca_pem), expected)


def unix_channel(path: Path) -> grpc.aio.Channel:
    """A channel to a daemon on this host; the folder's and the socket's modes guard it. Close it."""
    options = (*_OPTIONS, ("grpc.default_authority", "localhost"))
    return grpc.aio.insecure_channel(f"unix:{path}", options=options, interceptors=_interceptors())


def _secure_channel(
    target: str, credentials: grpc.ChannelCredentials, expected: PeerIdentity
) -> grpc.aio.Channel:
    options = (*_OPTIONS, *_KEEPALIVE, ("grpc.ssl_target_name_override", expected.dns_name))
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=_interceptors())


def _interceptors() -> list[grpc.aio.ClientInterceptor]:
    # One object per kind of rpc: grpc.aio files an interceptor under the first kind that it is.
    return [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]


def _with_operation_id(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if METADATA_KEY not in metadata.keys():  # noqa: SIM118 - of gRPC's Metadata only keys() is typed
        metadata.add(METADATA_KEY, current_operation_id() or new_operation_id())
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


_Continuation = Callable[..., Any]


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_operation_id(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_operation_id(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: _Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(_with_operation_id(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: _Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(_with_operation_id(client_call_details), request_iterator)
