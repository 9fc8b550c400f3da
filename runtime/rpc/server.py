"""The only place where gRPC servers are made.

    network_server     mutual TLS: without a certificate of this cluster nothing gets past the handshake; the roles that
                       may call are checked for every rpc
    enrollment_server  TLS without client certificates: the one port that a host without a certificate can call
    unix_server        no TLS: a socket that only its user can open

Every rpc passes one interceptor: it checks the caller's role, takes up the operation id, and turns what a servicer
raises into a status with a Fault. No traceback and no text of a foreign exception reaches a caller.
"""

import os
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from runtime.faults import InvalidArgument, NoPermission, NotSupported, ResourceInUse
from runtime.rpc.faults import fault_to_proto, status_of
from runtime.rpc.identity import Identity, PeerIdentity, Role, peer_of
from runtime.rpc.operation_id import METADATA_KEY, new_operation_id, use_operation_id

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
METADATA_BYTES = 64 * 1024  # a fault with its causes travels in the trailers: more than gRPC's 8 KiB
MAX_UNIX_PATH_BYTES = 107  # sun_path of unix(7), less the terminating zero
_MAX_CONCURRENT_STREAMS = 256
_HEALTH_PREFIX = "/grpc.health.v1.Health/"

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.max_concurrent_streams", _MAX_CONCURRENT_STREAMS),
    ("grpc.so_reuseport", 0),  # else a second daemon could share the port in silence
    # A peer that is gone without a word (power cut, cable) is noticed in ~20 s, so that its streams end.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Our channels ping every 5 s; whoever pings much more often is cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 3),
)

if TYPE_CHECKING:  # generic in their stubs only; servicers annotate with Context
    _Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    _Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext


class RpcServer:
    """One listening gRPC server, with the health service if wished; add servicers to `.grpc`, then `start()`."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        interceptor: "_Interceptor",
        *,
        tells_health: bool = True,
    ) -> None:
        self.grpc: grpc.aio.Server = grpc.aio.server(interceptors=(interceptor,), options=_OPTIONS)
        self.address = address
        self._credentials = credentials
        self._health = health_aio.HealthServicer()
        if tells_health:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)

    async def start(self) -> None:
        """Listens; then `.address` has the real port.

        :raises ResourceInUse: the address is taken, or isn't one of this machine.
        :raises InvalidArgument: a unix socket's path is too long.
        """
        if self._credentials is None:
            self._bind_unix(Path(self.address.removeprefix("unix:")))
        else:
            try:
                port = self.grpc.add_secure_port(self.address, self._credentials)
            except RuntimeError as error:
                raise ResourceInUse(f"Can't listen on {self.address}.", "address", self.address) from error
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self.grpc.start()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Takes no new calls, lets running ones end for `grace_s`, then cancels them. Idempotent."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)  # removes a unix socket, too

    def _bind_unix(self, path: Path) -> None:
        if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
            message = f"The socket's path is longer than {MAX_UNIX_PATH_BYTES} bytes: {path}"
            raise InvalidArgument(message, "path")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)  # before the socket exists: the folder guards it until its own mode is set
        _remove_stale_socket(path)
        try:
            self.grpc.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ResourceInUse(f"Can't listen on {path}.", "address", str(path)) from error
        path.chmod(0o600)


def network_server(
    address: str, identity: Identity, allowed_roles: frozenset[Role], origin: str
) -> RpcServer:
    """A server on "ip:port" (port 0: any) that only holders of this cluster's certificates can call.

    Of those, only the allowed roles; the health service answers every role. `origin` ("vpxa@esx01") names this daemon
    in its faults.
    """
    pair = (identity.key_pem, identity.certificate_pem)
    credentials = grpc.ssl_server_credentials([pair], identity.ca_pem, require_client_auth=True)
    return RpcServer(address, credentials, _Interceptor(origin, allowed_roles))


def enrollment_server(address: str, identity: Identity, origin: str) -> RpcServer:
    """A TLS server that anyone can call: only the Enrollment service belongs on it.

    It sends the CA behind its certificate, so that a joining host can check the fingerprint that it was given. It
    doesn't even tell its health: whoever has no certificate of this cluster gets nothing.
    """
    pair = (identity.key_pem, identity.certificate_pem + identity.ca_pem)
    credentials = grpc.ssl_server_credentials([pair])
    return RpcServer(address, credentials, _Interceptor(origin, None), tells_health=False)


def unix_server(path: Path, origin: str) -> RpcServer:
    """A server on a unix socket of mode 0600 in a folder of mode 0700; a socket that nobody serves is replaced."""
    return RpcServer(f"unix:{path}", None, _Interceptor(origin, None))


def _remove_stale_socket(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ResourceInUse(f"{path} is there and is no socket.", "address", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # a listener with a full backlog
            pass
    raise ResourceInUse(f"Another process serves {path}.", "address", str(path))


class _Interceptor(grpc.aio.ServerInterceptor):
    """Role, operation id and faults of every rpc. `allowed_roles` None: the transport has no client certificates."""

    def __init__(self, origin: str, allowed_roles: frozenset[Role] | None) -> None:
        self._origin = origin
        self._allowed_roles = allowed_roles

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler  # gRPC answers UNIMPLEMENTED
        guard = _Guard(self._origin, self._allowed_roles, handler_call_details)
        make, behavior = _variant(handler)
        parse = handler.request_deserializer
        if parse is not None and not handler.request_streaming:
            # Left to gRPC a request would be read before its caller may call, and answered with the parser's own words.
            behavior, parse = _parsing(behavior, parse), None
        wrapped = guard.stream(behavior) if handler.response_streaming else guard.unary(behavior)
        return make(  # type: ignore[no-any-return]
            wrapped,
            request_deserializer=parse,
            response_serializer=handler.response_serializer,
        )


def _variant(handler: _Handler) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The constructor for a handler of the same kind, and the servicer's method in it."""
    match (handler.request_streaming, handler.response_streaming):
        case (False, False):
            made = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case (False, True):
            made = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case (True, False):
            made = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            made = grpc.stream_stream_rpc_method_handler, handler.stream_stream
    return made  # type: ignore[return-value]


def _parsing(behavior: Callable[..., Any], parse: Callable[[bytes], Any]) -> Callable[[bytes, Context], Any]:
    """The servicer's method, called with the bytes of its request. :raises InvalidArgument: they are none."""

    def handle(request: bytes, context: Context) -> Any:
        try:
            message = parse(request)
        except DecodeError as error:
            raise InvalidArgument("The request isn't the message that this call takes.", "request") from error
        return behavior(message, context)

    return handle


class _Guard:
    """What is done around one rpc. The request is a message, or an iterator of them: it is only passed on."""

    def __init__(
        self, origin: str, allowed_roles: frozenset[Role] | None, details: grpc.HandlerCallDetails
    ) -> None:
        self._origin = origin
        self._allowed_roles = allowed_roles
        self._details = details

    def unary(self, behavior: Callable[..., Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            try:
                self._admit(context)
                return await behavior(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the outer edge of an rpc's task
                await self._abort(context, error)

        return handle

    def stream(self, behavior: Callable[..., Any]) -> Callable[[Any, Context], Awaitable[None]]:
        async def handle(request: Any, context: Context) -> None:
            try:
                self._admit(context)
                responses = behavior(request, context)
                if not isinstance(responses, AsyncGenerator):  # a coroutine that writes to the context itself
                    await responses
                    return
                async with aclosing(
                    responses
                ):  # its `finally` runs when the caller leaves, not when it is collected
                    async for response in responses:
                        await context.write(response)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the outer edge of an rpc's task
                await self._abort(context, error)

        return handle

    def _admit(self, context: Context) -> None:
        """:raises NotAuthenticated: :raises NoPermission: the caller may not."""
        # gRPC runs each rpc in a task of its own: what is bound here ends with it.
        metadata = dict(self._details.invocation_metadata or ())
        operation_id = metadata.get(METADATA_KEY, "")
        use_operation_id(operation_id if isinstance(operation_id, str) else new_operation_id())
        if self._allowed_roles is None:
            return
        peer = peer_of(context)
        structlog.contextvars.bind_contextvars(peer=peer.peer)
        method = self._details.method
        if peer.role not in self._allowed_roles and not method.startswith(_HEALTH_PREFIX):
            raise self._refusal(peer, method)

    def _refusal(self, peer: PeerIdentity, method: str) -> NoPermission:
        required = ",".join(sorted(role.value for role in self._allowed_roles or ()))
        return NoPermission(f"A {peer.role.value} may not call {method}.", peer.role.value, required)

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, NotImplementedError):  # what the generated servicers raise
            error = NotSupported("This daemon doesn't do that.", self._details.method)
        code, message, trailers = status_of(fault_to_proto(error, self._origin))
        await context.abort(code, message, trailers)
        raise AssertionError("abort() raises")
