"""A typed client of vpxd for Python programs; `vpx` is made with it.

    async with connect(config_from_environment()) as vpxd:
        hosts = await vpxd.call(vpxd.stub.ListHosts, ListHostsRequest())
        task = await vpxd.call(vpxd.stub.PowerOnVm, VmOperationRequest(vm="web01"))
        await vpxd.wait(task.id)

Every call has a deadline, and what goes wrong arrives as a fault of runtime.faults with its typed fields. A watched
task outlives a restart of vpxd: the stream is opened again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import clusters_pb2_grpc, service_pb2, service_pb2_grpc, storage_pb2_grpc
from runtime.faults import VimFault
from runtime.rpc.channel import network_channel
from runtime.rpc.faults import fault_from_proto, fault_of
from runtime.rpc.identity import Identity, Role
from runtime.rpc.upload import answer_of
from vpxd.cli.config import ClientConfig
from vpxd.cli.errors import NoAnswer, NoConfiguration, NoConnection

if TYPE_CHECKING:
    from proto.vpxd.v1.clusters_pb2_grpc import ClustersAsyncStub
    from proto.vpxd.v1.service_pb2_grpc import VpxdAsyncStub
    from proto.vpxd.v1.storage_pb2_grpc import StorageAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")

CALL_TIMEOUT_S = 15.0
RECONNECT_S = 30.0  # how long a watch waits for vpxd to come back
_STREAM_S = 3600.0  # a watch opens a new stream this often: no stream without a deadline
_RETRY_S = 0.25  # between two tries to reach a vpxd that went away: gRPC tells no event for it
ENDED = frozenset({task_pb2.TASK_STATE_SUCCESS, task_pb2.TASK_STATE_ERROR})


class VpxdClient:
    """One connection to vpxd; make it with `connect`.

    `stub` has the rpcs of proto/vpxd/v1/service.proto, `clusters` those of clusters.proto, `storage` those
    of storage.proto.
    """

    def __init__(self, channel: grpc.aio.Channel, config: ClientConfig) -> None:
        self.config = config
        self.stub: VpxdAsyncStub = service_pb2_grpc.VpxdStub(channel)
        self.clusters: ClustersAsyncStub = clusters_pb2_grpc.ClustersStub(channel)
        self.storage: StorageAsyncStub = storage_pb2_grpc.StorageStub(channel)

    async def call(
        self,
        method: "Callable[..., grpc.aio.UnaryUnaryCall[Request, Response]]",
        request: Request,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Response:
        """The answer to one rpc.

        :raises VimFault: the fault that vpxd answered.  :raises NoConnection: vpxd isn't there.
        :raises NoAnswer: `timeout_s` went by.
        """
        with self._errors():
            return await method(request, timeout=timeout_s)

    async def upload(
        self,
        method: "Callable[..., grpc.aio.StreamUnaryCall[Request, Response]]",
        requests: AsyncIterator[Request],
        timeout_s: float,
    ) -> Response:
        """The answer to an rpc that takes a stream, which must not raise. Raises as `call`."""
        with self._errors():
            return await answer_of(method(requests, timeout=timeout_s))

    async def stream(
        self,
        method: "Callable[..., grpc.aio.UnaryStreamCall[Request, Response]]",
        request: Request,
        timeout_s: float = _STREAM_S,
    ) -> AsyncGenerator[Response, None]:
        """The answers to a streaming rpc until it ends. Raises as `call`."""
        with self._errors():
            call = method(request, timeout=timeout_s)
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()

    async def watch(
        self, task: str, timeout_s: float | None = None
    ) -> AsyncGenerator[task_pb2.TaskInfo, None]:
        """The task now and at its changes, down to its last state, which is always told.

        :raises NoAnswer: `timeout_s` went by; the task goes on.  Else as `call`; a vpxd that went away is waited for
            RECONNECT_S.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s if timeout_s is not None else None
        lost_at: float | None = None
        request = service_pb2.GetTaskRequest(task=task)
        while True:
            left_s = _STREAM_S if deadline is None else deadline - loop.time()
            if left_s <= 0:
                raise NoAnswer(f"{task} hasn't ended within {timeout_s:g} s.")
            try:
                async with aclosing(
                    self.stream(self.stub.WatchTask, request, min(left_s, _STREAM_S))
                ) as stream:
                    async for info in stream:
                        lost_at = None
                        yield info
                        if info.state in ENDED:
                            return
            except NoAnswer:
                continue
            except NoConnection:
                lost_at = lost_at or loop.time()
                if loop.time() - lost_at > RECONNECT_S:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def wait(self, task: str, timeout_s: float | None = None) -> task_pb2.TaskInfo:
        """Waits for the task's success.

        :raises VimFault: the task's error, with its causes.  Else as `watch`.
        """
        async with aclosing(self.watch(task, timeout_s)) as states:
            async for info in states:
                if info.state == task_pb2.TASK_STATE_ERROR:
                    raise task_error(info)
                if info.state == task_pb2.TASK_STATE_SUCCESS:
                    return info
        raise NoConnection(f"vpxd stopped telling about {task}.")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            fault = fault_of(error, "vpxd")
            if fault.origin:
                raise fault from fault.__cause__
            raise self._connection_error(error, fault) from error

    def _connection_error(self, error: grpc.RpcError, fault: VimFault) -> Exception:
        """Of an rpc that didn't get as far as vpxd's own code."""
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        where = f"vpxd at {self.config.server}"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return NoAnswer(f"No answer from {where} in time.")
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return fault
        text = str(error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else ""
        if "refused" in text:
            return NoConnection(f"No connection to {where}: nothing listens there.", "Is vpxd running?")
        if "handshake" in text or "erification" in text or "certificate" in text:
            hint = f"Is {self.config.identity_directory} of this cluster?"
            return NoConnection(
                f"{where[0].upper()}{where[1:]} and this client don't trust each other.", hint
            )
        return NoConnection(f"No connection to {where}: {' '.join(text.split())[:200] or 'unavailable'}.")


@asynccontextmanager
async def connect(config: ClientConfig) -> AsyncIterator[VpxdClient]:
    """A client with the identity of `config`; the connection is made at the first call.

    :raises NoConfiguration: key, certificate or CA are missing or don't belong together.
    """
    try:
        identity = await asyncio.to_thread(Identity.load, config.identity_directory)
        channel = network_channel(config.server, identity, Role.VPXD, config.server_name)
    except VimFault as fault:
        directory = config.identity_directory
        raise NoConfiguration(f"The client's identity in {directory} can't be used: {fault}") from fault
    async with channel:
        yield VpxdClient(channel, config)


def task_error(info: task_pb2.TaskInfo) -> VimFault:
    """The exception that a failed task's error stands for, with its causes."""
    return fault_from_proto(info.error)
