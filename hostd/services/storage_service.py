"""The HostStorage service: from message to call and back, and who may touch what.

What deletes or mounts runs to its end even when its caller leaves, as in the Hostd service. What takes long and appears
only when it is whole (uploads, imports, new disks) ends with its caller, and leaves nothing.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog

from hostd.datastore.disk_descriptor import THIN
from hostd.datastore.files import PIECE_BYTES, DatastoreFiles, FileEntry, Upload
from hostd.datastore.image_import import ImageImport, ImportOrder
from hostd.datastore.interruptible import interruptible
from hostd.datastore.mount import Datastores
from hostd.datastore.new_file import file_faults
from hostd.datastore.virtual_disk import VirtualDisk, VirtualDisks
from hostd.host.changes import Changes
from hostd.vm.files_in_use import FilesInUse
from proto.host.v1 import operations_pb2, storage_pb2, storage_pb2_grpc
from runtime.faults import InvalidArgument, ResourceInUse, TimedOut
from runtime.ondisk.datastore_path import DatastorePath

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)
_UPLOAD_SILENCE_S = 60.0


@dataclass(frozen=True)
class StorageCalls:
    """What the service calls."""

    datastores: Datastores
    in_use: FilesInUse
    files: DatastoreFiles
    disks: VirtualDisks
    images: ImageImport
    changes: Changes


class StorageServicer(storage_pb2_grpc.HostStorageServicer):
    """The rpcs, in the order of the .proto file."""

    def __init__(self, calls: StorageCalls) -> None:
        self._calls = calls

    async def MountDatastore(
        self, request: storage_pb2.MountDatastoreRequest, context: _Context
    ) -> storage_pb2.DatastoreResponse:
        datastores = self._calls.datastores
        mounted = await _whole(lambda: datastores.mount(request.name, request.location))
        self._calls.changes.ring()
        return storage_pb2.DatastoreResponse(datastore=mounted.to_proto())

    async def UnmountDatastore(
        self, request: storage_pb2.UnmountDatastoreRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        self._calls.datastores.require_unmountable(request.name)
        root = DatastorePath(request.name, "")
        user = self._calls.in_use.user_below(root)
        if user:
            message = f"Datastore {request.name} is in use by {user}."
            raise ResourceInUse(message, kind="Datastore", name=request.name)
        with self._calls.in_use.claimed([root], "an unmount"):
            await _whole(lambda: self._calls.datastores.unmount(request.name))
        _log.info("datastore_unmounted", datastore=request.name)
        self._calls.changes.ring()
        return operations_pb2.EmptyResponse()

    async def BrowseFolder(
        self, request: storage_pb2.FileRequest, context: _Context
    ) -> storage_pb2.BrowseFolderResponse:
        path = DatastorePath.parse(request.path)
        entries, truncated = await asyncio.to_thread(self._calls.files.browse, path)
        return storage_pb2.BrowseFolderResponse(files=map(_file_info, entries), truncated=truncated)

    async def MakeFolder(
        self, request: storage_pb2.FileRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        path = DatastorePath.parse(request.path)
        await _whole(lambda: self._calls.files.make_folder(path))
        await self._changed(path)
        return operations_pb2.EmptyResponse()

    async def DeleteFile(
        self, request: storage_pb2.FileRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        path = DatastorePath.parse(request.path)
        in_use = self._calls.in_use
        user = in_use.user_below(path)
        if user:
            raise ResourceInUse(f"{path} is in use by {user}.", kind="file", name=str(path))
        with in_use.claimed([path], "a deletion"):
            await _whole(lambda: self._calls.files.delete(path, recursive=request.recursive))
        _log.info("file_deleted", path=str(path))
        await self._changed(path)
        return operations_pb2.EmptyResponse()

    async def ReadFile(
        self, request: storage_pb2.ReadFileRequest, context: _Context
    ) -> AsyncIterator[storage_pb2.ReadFileResponse]:
        path = DatastorePath.parse(request.path)
        opened, size = await asyncio.to_thread(self._calls.files.open_to_read, path, request.offset)
        try:
            yield storage_pb2.ReadFileResponse(size_bytes=size)
            offset = request.offset
            while offset < size:
                with file_faults(path):
                    data = await asyncio.to_thread(os.pread, opened, min(PIECE_BYTES, size - offset), offset)
                if not data:
                    return
                offset += len(data)
                yield storage_pb2.ReadFileResponse(data=data)
        finally:
            os.close(opened)

    async def WriteFile(
        self, requests: AsyncIterator[storage_pb2.WriteFileRequest], context: _Context
    ) -> storage_pb2.WriteFileResponse:
        first = await _next(requests)
        if first is None or not first.path:
            raise InvalidArgument("The first message doesn't name the file.", "path")
        path = DatastorePath.parse(first.path)
        uploads: list[Upload] = []
        try:
            await interruptible(
                lambda _: uploads.append(self._calls.files.open_to_write(path, first.size_bytes))
            )
            digest = await self._received(uploads[0], first, requests)
        finally:
            for upload in uploads:
                await asyncio.shield(asyncio.to_thread(upload.close))
        _log.info("file_written", path=str(path), size_bytes=first.size_bytes)
        await self._changed(path)
        return storage_pb2.WriteFileResponse(sha256=digest)

    async def CreateDisk(
        self, request: storage_pb2.CreateDiskRequest, context: _Context
    ) -> storage_pb2.DiskInfo:
        path = DatastorePath.parse(request.path)
        disks = self._calls.disks
        disk_format = request.format or THIN
        await interruptible(lambda stop: disks.create(path, request.capacity_bytes, disk_format, stop))
        await self._changed(path)
        return _disk_info(await asyncio.to_thread(disks.inspect, path))

    async def InspectDisk(self, request: storage_pb2.FileRequest, context: _Context) -> storage_pb2.DiskInfo:
        path = DatastorePath.parse(request.path)
        return _disk_info(await asyncio.to_thread(self._calls.disks.inspect, path))

    async def ImportDisk(
        self, request: storage_pb2.ImportDiskRequest, context: _Context
    ) -> storage_pb2.DiskInfo:
        order = ImportOrder(
            image=DatastorePath.parse(request.image),
            path=DatastorePath.parse(request.path),
            format=request.format or THIN,
            capacity_bytes=request.capacity_bytes,
        )
        made = await self._calls.images.run(order)
        _log.info("disk_imported", image=request.image, disk=request.path)
        await self._changed(order.path)
        return _disk_info(made)

    async def _received(
        self,
        upload: Upload,
        first: storage_pb2.WriteFileRequest,
        requests: AsyncIterator[storage_pb2.WriteFileRequest],
    ) -> str:
        message: storage_pb2.WriteFileRequest | None = first
        while message is not None:
            data = message.data
            if message is not first and (message.path or message.size_bytes):
                raise InvalidArgument("Only the first message names the file.", "path")
            if len(data) > PIECE_BYTES:
                raise InvalidArgument(f"A message has more than {PIECE_BYTES} bytes.", "data")
            if data:
                await interruptible(lambda _, data=data: upload.write(data))  # type: ignore[misc]
            message = await _next(requests)
        return await interruptible(lambda _: upload.finish())

    async def _changed(self, path: DatastorePath) -> None:
        """Let the picture show the space that is free now."""
        await asyncio.to_thread(self._calls.datastores.refresh_one, path.datastore)
        self._calls.changes.ring()


async def _next(
    requests: AsyncIterator[storage_pb2.WriteFileRequest],
) -> storage_pb2.WriteFileRequest | None:
    """The next message; None at the end. :raises TimedOut: the sender is silent."""
    try:
        async with asyncio.timeout(_UPLOAD_SILENCE_S):
            return await anext(requests, None)
    except TimeoutError as error:
        message = f"Nothing was sent for {_UPLOAD_SILENCE_S:.0f} s."
        raise TimedOut(message, operation="WriteFile", timeout_s=_UPLOAD_SILENCE_S) from error


async def _whole(work: Callable[[], _T]) -> _T:
    """What `work` returns, done in a thread to its end, also when the caller leaves."""
    return await interruptible(lambda _: work())


def _file_info(entry: FileEntry) -> storage_pb2.FileInfo:
    kind = storage_pb2.FILE_TYPE_FILE
    if entry.is_folder:
        kind = storage_pb2.FILE_TYPE_FOLDER
    elif entry.is_disk:
        kind = storage_pb2.FILE_TYPE_DISK
    elif entry.is_vm_config:
        kind = storage_pb2.FILE_TYPE_VM_CONFIG
    return storage_pb2.FileInfo(
        name=entry.name,
        type=kind,
        size_bytes=entry.size_bytes,
        allocated_bytes=entry.allocated_bytes,
        modified_s=entry.modified_s,
    )


def _disk_info(disk: VirtualDisk) -> storage_pb2.DiskInfo:
    return storage_pb2.DiskInfo(
        path=str(disk.path),
        capacity_bytes=disk.descriptor.capacity_bytes,
        format=disk.descriptor.format,
        allocated_bytes=disk.allocated_bytes,
    )
