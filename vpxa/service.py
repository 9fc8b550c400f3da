"""The services that vpxd calls: every rpc is handed to hostd's of the same name, and its answer back. One relay.

    vpxd ──Vpxa/X─────────▶ relay ──Hostd/X────────▶ hostd
         ──HostStorage/X──▶       ──HostStorage/X──▶
         ◀─────answer─────        ◀─────answer─────

Both sides have the same messages (proto/host/v1), so they pass as bytes, unread. What passes with them: the operation
id, the time that is left of the caller's deadline, cancellation downwards, and the end of a stream. The next message of
a stream is taken from one side when the other has taken the last one by gRPC's flow control: whoever is slow slows the
other and fills no memory here. Faults of hostd pass unchanged, with hostd as their origin; only "hostd isn't there" is
vpxa's own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from proto.host.v1 import storage_pb2
from proto.hostd.v1 import service_pb2 as hostd_pb2
from proto.vpxa.v1 import service_pb2 as vpxa_pb2
from runtime.faults import HostNotReachable, VimFault
from runtime.rpc.faults import fault_of
from runtime.rpc.upload import answer_of

_Context = grpc.aio.ServicerContext[bytes, bytes]
_HOSTD = hostd_pb2.DESCRIPTOR.services_by_name["Hostd"]
_VPXA = vpxa_pb2.DESCRIPTOR.services_by_name["Vpxa"]
_STORAGE = storage_pb2.DESCRIPTOR.services_by_name["HostStorage"]
# What is served, and hostd's service behind it.
_SERVICES = ((_VPXA, _HOSTD), (_STORAGE, _STORAGE))


class HostdRelay:
    """Makes the handlers of all services, on a channel to hostd that reconnects by itself."""

    def __init__(self, hostd: grpc.aio.Channel, host_name: str) -> None:
        self._hostd = hostd
        self._host_name = host_name

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What a gRPC server needs to serve them."""
        return tuple(self._handler(served, behind) for served, behind in _SERVICES)

    def _handler(self, served: ServiceDescriptor, behind: ServiceDescriptor) -> grpc.GenericRpcHandler:
        methods: dict[str, Any] = {}
        for method in served.methods:
            path = f"/{behind.full_name}/{method.name}"
            if method.client_streaming:  # none streams both ways
                methods[method.name] = grpc.stream_unary_rpc_method_handler(self._upload(path))
            elif method.server_streaming:
                methods[method.name] = grpc.unary_stream_rpc_method_handler(self._stream(path))
            else:
                methods[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(path))
        return grpc.method_handlers_generic_handler(served.full_name, methods)

    def _unary(self, path: str) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        call_hostd: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._hostd.unary_unary(path)

        async def relay(request: bytes, context: _Context) -> bytes:
            try:
                response: bytes = await call_hostd(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                fault = self._fault_of(error)
                raise fault from fault.__cause__
            return response

        return relay

    def _upload(self, path: str) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[bytes]]:
        call_hostd: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._hostd.stream_unary(path)

        async def relay(requests: AsyncIterator[bytes], context: _Context) -> bytes:
            call = call_hostd(requests, timeout=context.time_remaining())
            try:
                response: bytes = await answer_of(call)
            except grpc.aio.AioRpcError as error:
                fault = self._fault_of(error)
                raise fault from fault.__cause__
            finally:
                call.cancel()  # the caller has left: nothing happens to a call that has ended
            return response

        return relay

    def _stream(self, path: str) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
        call_hostd: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._hostd.unary_stream(path)

        async def relay(request: bytes, context: _Context) -> AsyncIterator[bytes]:
            call = call_hostd(request, timeout=context.time_remaining())
            try:
                async for response in call:
                    yield response
            except grpc.aio.AioRpcError as error:
                fault = self._fault_of(error)
                raise fault from fault.__cause__
            finally:
                call.cancel()  # the caller has left: nothing happens to a stream that has ended

        return relay

    def _fault_of(self, error: grpc.aio.AioRpcError) -> VimFault:
        """hostd's fault with its causes; where hostd didn't answer, a HostNotReachable of vpxa's."""
        fault = fault_of(error, f"hostd@{self._host_name}")
        if not fault.origin and isinstance(fault, HostNotReachable):
            return HostNotReachable(f"hostd on {self._host_name} doesn't answer.", host=self._host_name)
        return fault
