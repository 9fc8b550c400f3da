"""FAKE HostStorage: datastores whose files are bytes in memory, for the FAKE vpxa hosts.

    FakeFiles         what is on all datastores, by the datastore's uuid: hosts that see one uuid share its files
    FakeHostStorage   the service of one host

It keeps the contract of proto/host/v1/storage.proto as far as vpxd can see it. A disk is its descriptor and its extent;
its blocks aren't there. `received_bytes` counts what an upload has brought so far.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from proto.host.v1 import operations_pb2 as ops
from proto.host.v1 import storage_pb2 as api
from proto.host.v1 import storage_pb2_grpc
from proto.vim.v1 import host_pb2, vm_config_pb2
from runtime.faults import (
    DuplicateName,
    FileAlreadyExists,
    FileNotFound,
    InaccessibleDatastore,
    InvalidArgument,
    InvalidDiskFormat,
    ManagedObjectNotFound,
    NoDiskSpace,
)
from runtime.ondisk.datastore_path import DatastorePath

_Context = grpc.aio.ServicerContext[object, object]
GIB = 1024**3
PIECE_BYTES = 1024 * 1024


@dataclass
class FakeDisk:
    """A virtual disk."""

    capacity_bytes: int
    format: vm_config_pb2.DiskFormat.ValueType


@dataclass
class FakeStore:
    """One datastore's content, by path on it."""

    files: dict[str, bytes] = field(default_factory=dict)
    disks: dict[str, FakeDisk] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


class FakeFiles:
    """All datastores' content. `directories`: which datastore a host's directory is; one for hosts that share it."""

    def __init__(self) -> None:
        self.stores: dict[str, FakeStore] = {}
        self.directories: dict[tuple[str, str], str] = {}
        self.received_bytes = 0

    def store(self, store_uuid: str) -> FakeStore:
        return self.stores.setdefault(store_uuid, FakeStore())

    def share(self, location: str, *host_names: str) -> str:
        """Makes a directory that these hosts share; answers its uuid."""
        store_uuid = str(uuid.uuid4())
        for name in host_names:
            self.directories[name, location] = store_uuid
        return store_uuid


class FakeHost(Protocol):
    """What the service needs of its host."""

    info: host_pb2.HostInfo

    async def enter(self, rpc: str) -> None: ...
    def changed(self) -> None: ...


class FakeHostStorage(storage_pb2_grpc.HostStorageServicer):
    """The service of one host."""

    def __init__(self, host: FakeHost, files: FakeFiles) -> None:
        self._host = host
        self._files = files

    async def MountDatastore(
        self, request: api.MountDatastoreRequest, context: _Context
    ) -> api.DatastoreResponse:
        await self._host.enter("MountDatastore")
        if any(store.name == request.name for store in self._host.info.datastores):
            raise DuplicateName("there is such a datastore", kind="datastore", name=request.name)
        store_uuid = self._files.directories.get((self._host.info.name, request.location))
        if store_uuid is None:
            raise FileNotFound("there is no such directory", path=request.location)
        store = host_pb2.Datastore(
            name=request.name,
            uuid=store_uuid,
            capacity_bytes=20 * GIB,
            free_bytes=8 * GIB,
            accessible=True,
            location=request.location,
        )
        self._host.info.datastores.append(store)
        self._host.changed()
        return api.DatastoreResponse(datastore=store)

    async def UnmountDatastore(
        self, request: api.UnmountDatastoreRequest, context: _Context
    ) -> ops.EmptyResponse:
        await self._host.enter("UnmountDatastore")
        kept = [store for store in self._host.info.datastores if store.name != request.name]
        if len(kept) == len(self._host.info.datastores):
            raise ManagedObjectNotFound("no such datastore here", kind="datastore", key=request.name)
        del self._host.info.datastores[:]
        self._host.info.datastores.extend(kept)
        self._host.changed()
        return ops.EmptyResponse()

    async def BrowseFolder(self, request: api.FileRequest, context: _Context) -> api.BrowseFolderResponse:
        await self._host.enter("BrowseFolder")
        store, path = self._find(request.path)
        prefix = f"{path.relative}/" if path.relative else ""
        names = {key.removeprefix(prefix).split("/")[0] for key in self._all(store) if key.startswith(prefix)}
        if not names and path.relative and path.relative not in store.folders:
            raise FileNotFound("there is no such folder", path=request.path)
        found = [self._info(store, prefix + name, name) for name in sorted(names - {""})]
        return api.BrowseFolderResponse(files=found)

    async def MakeFolder(self, request: api.FileRequest, context: _Context) -> ops.EmptyResponse:
        await self._host.enter("MakeFolder")
        store, path = self._find(request.path)
        if path.relative in store.files:
            raise FileAlreadyExists("it is a file", path=request.path)
        store.folders.add(path.relative)
        return ops.EmptyResponse()

    async def DeleteFile(self, request: api.FileRequest, context: _Context) -> ops.EmptyResponse:
        await self._host.enter("DeleteFile")
        store, path = self._find(request.path)
        below = [key for key in self._all(store) if key.startswith(f"{path.relative}/")]
        if not below and path.relative not in self._all(store):
            raise FileNotFound("there is no such file", path=request.path)
        if below and not request.recursive:
            raise InvalidArgument("it isn't empty", argument="recursive")
        for key in (*below, path.relative):
            store.files.pop(key, None)
            store.disks.pop(key, None)
            store.folders.discard(key)
        return ops.EmptyResponse()

    async def ReadFile(
        self, request: api.ReadFileRequest, context: _Context
    ) -> AsyncIterator[api.ReadFileResponse]:
        await self._host.enter("ReadFile")
        store, path = self._find(request.path)
        content = store.files.get(path.relative)
        if content is None:
            raise FileNotFound("there is no such file", path=request.path)
        yield api.ReadFileResponse(
            size_bytes=len(content), data=content[request.offset : request.offset + PIECE_BYTES]
        )
        for offset in range(request.offset + PIECE_BYTES, len(content), PIECE_BYTES):
            yield api.ReadFileResponse(data=content[offset : offset + PIECE_BYTES])

    async def WriteFile(
        self, request_iterator: AsyncIterator[api.WriteFileRequest], context: _Context
    ) -> api.WriteFileResponse:
        await self._host.enter("WriteFile")
        first = await anext(aiter(request_iterator))
        store, path = self._find(first.path)
        if path.relative in store.files:
            raise FileAlreadyExists("there is such a file", path=first.path)
        if first.size_bytes > self._store_info(path.datastore).free_bytes:
            raise NoDiskSpace("it is full", datastore=path.datastore, requested_bytes=first.size_bytes)
        content = bytearray(first.data)
        async for message in request_iterator:
            content += message.data
            self._files.received_bytes += len(message.data)
            await self._host.enter("WriteFile piece")
        if len(content) != first.size_bytes:
            raise InvalidArgument("not as many bytes as was said", argument="size_bytes")
        store.files[path.relative] = bytes(content)
        return api.WriteFileResponse(sha256=hashlib.sha256(content).hexdigest())

    async def CreateDisk(self, request: api.CreateDiskRequest, context: _Context) -> api.DiskInfo:
        store, path = self._find(request.path)
        try:
            await self._host.enter("CreateDisk")
        except asyncio.CancelledError:
            store.files.pop(path.relative, None)
            raise
        return self._new_disk(store, path, request.capacity_bytes, request.format)

    async def InspectDisk(self, request: api.FileRequest, context: _Context) -> api.DiskInfo:
        await self._host.enter("InspectDisk")
        store, path = self._find(request.path)
        disk = store.disks.get(path.relative)
        if disk is None:
            raise InvalidDiskFormat("it is no descriptor", path=request.path)
        return api.DiskInfo(
            path=request.path, capacity_bytes=disk.capacity_bytes, format=disk.format, allocated_bytes=4096
        )

    async def ImportDisk(self, request: api.ImportDiskRequest, context: _Context) -> api.DiskInfo:
        await self._host.enter("ImportDisk")
        source, image = self._find(request.image)
        content = source.files.get(image.relative)
        if content is None:
            raise FileNotFound("there is no such image", path=request.image)
        store, path = self._find(request.path)
        return self._new_disk(store, path, max(request.capacity_bytes, len(content)), request.format)

    def _new_disk(
        self,
        store: FakeStore,
        path: DatastorePath,
        capacity_bytes: int,
        disk_format: vm_config_pb2.DiskFormat.ValueType,
    ) -> api.DiskInfo:
        if path.relative in store.disks:
            raise FileAlreadyExists("there is such a disk", path=str(path))
        store.disks[path.relative] = FakeDisk(capacity_bytes, disk_format)
        return api.DiskInfo(path=str(path), capacity_bytes=capacity_bytes, format=disk_format)

    def _find(self, text: str) -> tuple[FakeStore, DatastorePath]:
        path = DatastorePath.parse(text)
        return self._files.store(self._store_info(path.datastore).uuid), path

    def _store_info(self, name: str) -> host_pb2.Datastore:
        for store in self._host.info.datastores:
            if store.name == name:
                return store
        raise InaccessibleDatastore("no such datastore here", datastore=name, host=self._host.info.name)

    @staticmethod
    def _all(store: FakeStore) -> set[str]:
        return {*store.files, *store.disks, *store.folders}

    @staticmethod
    def _info(store: FakeStore, key: str, name: str) -> api.FileInfo:
        if key in store.disks:
            return api.FileInfo(
                name=name, type=api.FILE_TYPE_DISK, size_bytes=store.disks[key].capacity_bytes, modified_s=1.0
            )
        if key in store.files:
            return api.FileInfo(
                name=name, type=api.FILE_TYPE_FILE, size_bytes=len(store.files[key]), modified_s=1.0
            )
        return api.FileInfo(name=name, type=api.FILE_TYPE_FOLDER, modified_s=1.0)
