"""Calls to one host's datastores, in vpxd's own values. Every call has a deadline; every failure is a VimFault.

Files pass through in pieces: a piece is read only when the one before it is gone, so that neither a slow client nor a
slow host makes vpxd hold more than one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc

from proto.host.v1 import operations_pb2, storage_pb2, storage_pb2_grpc
from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidArgument, SystemFault, TimedOut, VimFault
from runtime.rpc.channel import ACTION_TIMEOUT_S, QUERY_TIMEOUT_S
from runtime.rpc.faults import remote_faults
from runtime.rpc.upload import answer_of
from vpxd.inventory.values import DiskFormat, HostDatastore
from vpxd.storage.deadlines import HEAD_BYTES, transfer_s

MAX_PIECE_BYTES = 1024 * 1024
SILENCE_S = 60.0  # the longest pause between two pieces of a file
BROWSE_TIMEOUT_S = 30.0  # a folder of ten thousand disks, each opened


class StorageClient:
    """One host's datastores over its vpxa's channel. Faults are those of HostStorage, HostNotReachable and TimedOut.

    Paths name the datastore as the host does.
    """

    def __init__(self, channel: grpc.aio.Channel, host_name: str) -> None:
        self._stub = storage_pb2_grpc.HostStorageStub(channel)
        self._peer = f"vpxa@{host_name}"

    async def mount(self, name: str, location: str) -> HostDatastore:
        """Mounts a directory of the host."""
        request = storage_pb2.MountDatastoreRequest(name=name, location=location)
        with remote_faults(self._peer):
            answer = await self._stub.MountDatastore(request, timeout=ACTION_TIMEOUT_S)
        store = answer.datastore
        return HostDatastore(
            name=store.name,
            uuid=store.uuid,
            capacity_bytes=store.capacity_bytes,
            free_bytes=store.free_bytes,
            accessible=store.accessible,
            location=store.location,
        )

    async def unmount(self, name: str) -> None:
        """Forgets a datastore; its files stay."""
        with remote_faults(self._peer):
            await self._stub.UnmountDatastore(
                storage_pb2.UnmountDatastoreRequest(name=name), timeout=ACTION_TIMEOUT_S
            )

    async def browse(self, path: str) -> storage_pb2.BrowseFolderResponse:
        """The files of a folder."""
        with remote_faults(self._peer):
            return await self._stub.BrowseFolder(storage_pb2.FileRequest(path=path), timeout=BROWSE_TIMEOUT_S)

    async def make_folder(self, path: str) -> operations_pb2.EmptyResponse:
        """Makes a folder with its parents."""
        with remote_faults(self._peer):
            return await self._stub.MakeFolder(storage_pb2.FileRequest(path=path), timeout=ACTION_TIMEOUT_S)

    async def delete(self, path: str, *, recursive: bool) -> operations_pb2.EmptyResponse:
        """Deletes a file, a disk or a folder."""
        request = storage_pb2.FileRequest(path=path, recursive=recursive)
        with remote_faults(self._peer):
            return await self._stub.DeleteFile(request, timeout=ACTION_TIMEOUT_S)

    async def inspect_disk(self, path: str) -> storage_pb2.DiskInfo:
        """What a disk is and takes."""
        with remote_faults(self._peer):
            return await self._stub.InspectDisk(storage_pb2.FileRequest(path=path), timeout=QUERY_TIMEOUT_S)

    async def create_disk(
        self, path: str, capacity_bytes: int, disk_format: DiskFormat, timeout_s: float
    ) -> storage_pb2.DiskInfo:
        """Makes an empty disk. Canceled, it ends on the host too, which leaves nothing."""
        request = storage_pb2.CreateDiskRequest(
            path=path, capacity_bytes=capacity_bytes, format=_format(disk_format)
        )
        with remote_faults(self._peer):
            return await self._stub.CreateDisk(request, timeout=timeout_s)

    async def import_disk(
        self, request: storage_pb2.ImportDiskRequest, timeout_s: float
    ) -> storage_pb2.DiskInfo:
        """Makes a disk of an image. Canceled, it ends on the host too, which leaves nothing."""
        with remote_faults(self._peer):
            return await self._stub.ImportDisk(request, timeout=timeout_s)

    async def read_head(self, path: str) -> tuple[bytes, int]:
        """A file's first HEAD_BYTES (fewer where it is shorter), and its size in bytes."""
        head, size_bytes = b"", 0
        async with aclosing(self.read(path, 0)) as pieces:
            async for piece in pieces:
                size_bytes = size_bytes or piece.size_bytes
                head += piece.data[:HEAD_BYTES]
                if len(head) >= min(HEAD_BYTES, size_bytes):
                    break
        return head[:HEAD_BYTES], size_bytes

    async def read(self, path: str, offset: int) -> AsyncGenerator[storage_pb2.ReadFileResponse, None]:
        """A file's bytes from `offset`. :raises TimedOut: the host paused for SILENCE_S."""
        with remote_faults(self._peer):
            call = self._stub.ReadFile(storage_pb2.ReadFileRequest(path=path, offset=offset))
            try:
                while True:
                    try:
                        async with asyncio.timeout(SILENCE_S):
                            piece = await call.read()
                    except TimeoutError as error:
                        text = f"{self._peer} sent nothing for {SILENCE_S:g} s"
                        raise TimedOut(text, operation="ReadFile", timeout_s=SILENCE_S) from error
                    if not isinstance(piece, storage_pb2.ReadFileResponse):
                        return  # the end of the stream
                    yield piece
            finally:
                call.cancel()

    async def write(self, path: str, size_bytes: int, pieces: AsyncIterator[bytes]) -> str:
        """Writes a new file of what the pieces give; answers its sha256. Whatever fails, the host leaves nothing.

        :raises Exception: what `pieces` raises.
        """
        requests = _Requests(path, size_bytes, pieces)
        with remote_faults(self._peer):
            call = self._stub.WriteFile(requests.all(), timeout=transfer_s(size_bytes))
            requests.cancel = call.cancel
            try:
                answer = await answer_of(call)
            except asyncio.CancelledError:
                if requests.failure is not None:
                    raise requests.failure from None
                raise
        return answer.sha256


class _Requests:
    """The messages of one WriteFile. gRPC pulls them; an error among them ends the call instead of the stream.

    A stream that just ended would look whole to the host if by chance its size were right.
    """

    def __init__(self, path: str, size_bytes: int, pieces: AsyncIterator[bytes]) -> None:
        self._first = storage_pb2.WriteFileRequest(path=path, size_bytes=size_bytes)
        self._left_bytes = size_bytes
        self._pieces = pieces
        self.failure: VimFault | None = None
        self.cancel = _nothing

    async def all(self) -> AsyncGenerator[storage_pb2.WriteFileRequest, None]:
        """The first message, then one for each piece."""
        yield self._first
        try:
            async for data in self._pieces:
                self._left_bytes -= len(data)
                if len(data) > MAX_PIECE_BYTES or self._left_bytes < 0:
                    raise InvalidArgument(
                        f"a piece has {MAX_PIECE_BYTES} bytes at most, and all together as many as was said",
                        argument="data",
                    )
                yield storage_pb2.WriteFileRequest(data=data)
            if self._left_bytes:
                raise InvalidArgument(
                    f"the file ended {self._left_bytes} bytes before its size", argument="size_bytes"
                )
        except VimFault as fault:
            self._fail(fault)
        except grpc.RpcError:
            self._fail(SystemFault("the client's stream broke"))

    def _fail(self, fault: VimFault) -> None:
        self.failure = fault
        self.cancel()


def _nothing() -> bool:
    return False


def _format(value: DiskFormat) -> vm_config_pb2.DiskFormat.ValueType:
    return vm_config_pb2.DiskFormat.ValueType(value)
