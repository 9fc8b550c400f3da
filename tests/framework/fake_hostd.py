"""A fake hostd: the Hostd service on its unix socket, inside the test's process, with scripted answers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from proto.host.v1 import operations_pb2
from proto.hostd.v1 import service_pb2_grpc
from runtime.faults import FileLocked, TaskInProgress
from runtime.rpc.operation_id import current_operation_id
from runtime.rpc.server import RpcServer, unix_server

PIECE_BYTES = 64 * 1024


class FakeHostd(service_pb2_grpc.HostdServicer):
    """`stream_ended` is set when a ReadConsole's caller has left; `pieces_sent` counts what it took before."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.operation_ids: list[str] = []
        self.time_left_s: list[float] = []
        self.unary_canceled = asyncio.Event()
        self.stream_ended = asyncio.Event()
        self.pieces_sent = 0
        self._server: RpcServer | None = None

    async def start(self) -> None:
        """Serve; a fake that was stopped can be started again."""
        self._server = unix_server(self.socket_path, "hostd@fake")
        service_pb2_grpc.add_HostdServicer_to_server(self, self._server.grpc)
        await self._server.start()

    async def stop(self) -> None:
        """As if hostd were killed: nothing is ended in good order."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def GetHost(
        self, request: operations_pb2.GetHostRequest, context: Any
    ) -> operations_pb2.GetHostResponse:
        self.operation_ids.append(current_operation_id())
        self.time_left_s.append(context.time_remaining())
        response = operations_pb2.GetHostResponse()
        response.host.name = "fake"
        return response

    async def PowerOnVm(self, request: operations_pb2.VmRequest, context: Any) -> operations_pb2.VmResponse:
        """A fault with details and a cause."""
        cause = FileLocked("The run lock is held.", path="x.runlock", owner="esx09")
        raise TaskInProgress("Locked.", entity="vm-1", task="task-7", operation="emigrating") from cause

    async def PowerOffVm(self, request: operations_pb2.VmRequest, context: Any) -> operations_pb2.VmResponse:
        """A defect."""
        raise RuntimeError("secret text of a defect")

    async def ResetVm(self, request: operations_pb2.VmRequest, context: Any) -> operations_pb2.VmResponse:
        """Never answers."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.unary_canceled.set()
            raise
        return operations_pb2.VmResponse()

    async def ReadConsole(
        self, request: operations_pb2.ReadConsoleRequest, context: Any
    ) -> AsyncIterator[operations_pb2.ReadConsoleResponse]:
        """An endless stream, as fast as it is taken."""
        try:
            while True:
                yield operations_pb2.ReadConsoleResponse(data=bytes(PIECE_BYTES))
                self.pieces_sent += 1
        finally:
            self.stream_ended.set()

    async def WatchMigration(
        self, request: operations_pb2.MigrationRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchMigrationResponse]:
        """Two statuses, then a fault."""
        for iteration in (1, 2):
            response = operations_pb2.WatchMigrationResponse()
            response.status.iteration = iteration
            yield response
        raise TaskInProgress("In the middle.", task="task-8")
