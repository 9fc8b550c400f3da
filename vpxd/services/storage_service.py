"""The Storage service: datastores, files, disks and policies."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from proto.host.v1 import operations_pb2, storage_pb2
from proto.vim.v1.task_pb2 import TaskInfo
from proto.vpxd.v1 import inventory_pb2, storage_pb2_grpc
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import InvalidArgument
from runtime.rpc.identity import peer_of
from vpxd.operations import storage_datastores, storage_disks, storage_files, storage_policies
from vpxd.operations.storage_files import Upload
from vpxd.services import mapping, mapping_storage
from vpxd.services.base import Context, ServiceParts
from vpxd.services.mapping import task_info

Uploads = AsyncIterator[api.UploadFileRequest]


class StorageService(storage_pb2_grpc.StorageServicer):
    """All rpcs of proto/vpxd/v1/storage.proto."""

    def __init__(self, services: ServiceParts) -> None:
        self._parts = services.parts

    async def MountDatastore(self, request: api.MountDatastoreRequest, context: Context) -> TaskInfo:
        user, hosts = peer_of(context).name, tuple(request.hosts)
        return task_info(
            await storage_datastores.mount(self._parts, request.name, request.location, hosts, user)
        )

    async def UnmountDatastore(self, request: api.UnmountDatastoreRequest, context: Context) -> TaskInfo:
        user, hosts = peer_of(context).name, tuple(request.hosts)
        return task_info(await storage_datastores.unmount(self._parts, request.datastore, hosts, user))

    async def TagDatastore(
        self, request: api.TagDatastoreRequest, context: Context
    ) -> inventory_pb2.Datastore:
        record = await storage_datastores.tag(self._parts, request.datastore, tuple(request.tags))
        return mapping.datastore(self._parts, record)

    async def BrowseFolder(
        self, request: api.DatastoreFileRequest, context: Context
    ) -> storage_pb2.BrowseFolderResponse:
        return await storage_files.browse(self._parts, request.path, request.host)

    async def MakeFolder(
        self, request: api.DatastoreFileRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        return await storage_files.make_folder(self._parts, request.path, request.host)

    async def DeleteFile(
        self, request: api.DatastoreFileRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        return await storage_files.delete(
            self._parts, request.path, request.host, recursive=request.recursive
        )

    async def DownloadFile(
        self, request: api.DatastoreFileRequest, context: Context
    ) -> AsyncIterator[storage_pb2.ReadFileResponse]:
        pieces = storage_files.download(self._parts, request.path, request.host, request.offset)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def UploadFile(self, request_iterator: Uploads, context: Context) -> storage_pb2.WriteFileResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidArgument("the first message names the file", argument="path")
        target = Upload(first.path, first.host, first.size_bytes)
        digest = await storage_files.upload(self._parts, target, _data(first, request_iterator))
        return storage_pb2.WriteFileResponse(sha256=digest)

    async def CreateDisk(self, request: api.CreateDiskRequest, context: Context) -> TaskInfo:
        disk = mapping_storage.new_disk(request)
        return task_info(await storage_disks.create(self._parts, disk, peer_of(context).name))

    async def InspectDisk(self, request: api.DatastoreFileRequest, context: Context) -> storage_pb2.DiskInfo:
        return await storage_disks.inspect(self._parts, request.path, request.host)

    async def ImportDisk(self, request: api.ImportDiskRequest, context: Context) -> TaskInfo:
        disk, user = mapping_storage.new_disk(request), peer_of(context).name
        return task_info(await storage_disks.import_image(self._parts, request.image, disk, user))

    async def SetPolicy(self, request: api.StoragePolicy, context: Context) -> api.StoragePolicy:
        wanted = mapping_storage.policy_from_wire(request)
        return mapping_storage.policy(await storage_policies.set_policy(self._parts, wanted))

    async def DeletePolicy(
        self, request: api.PolicyRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        await storage_policies.delete_policy(self._parts, request.policy)
        return operations_pb2.EmptyResponse()

    async def ListPolicies(
        self, request: api.ListPoliciesRequest, context: Context
    ) -> api.ListPoliciesResponse:
        policies = sorted(self._parts.store.inventory.storage_policies.values(), key=lambda entry: entry.name)
        return api.ListPoliciesResponse(policies=[mapping_storage.policy(entry) for entry in policies])

    async def CheckPolicy(self, request: api.PolicyRequest, context: Context) -> api.CheckPolicyResponse:
        fits = storage_policies.check(self._parts, request.policy)
        return api.CheckPolicyResponse(datastores=[mapping_storage.policy_fit(fit) for fit in fits])

    async def SetVmPolicies(self, request: api.SetVmPoliciesRequest, context: Context) -> api.VmPolicies:
        wanted = mapping_storage.vm_policies_from_wire(request)
        return mapping_storage.vm_policies(await storage_policies.set_of_vm(self._parts, wanted))

    async def GetVmPolicies(self, request: api.GetVmPoliciesRequest, context: Context) -> api.VmPolicies:
        return mapping_storage.vm_policies(storage_policies.of_vm(self._parts, request.vm))


async def _data(first: api.UploadFileRequest, rest: Uploads) -> AsyncGenerator[bytes, None]:
    """The bytes of an upload's messages. :raises InvalidArgument: a later one names a file again."""
    if first.data:
        yield first.data
    async for message in rest:
        if message.path or message.host or message.size_bytes:
            raise InvalidArgument("only the first message names the file", argument="path")
        if message.data:
            yield message.data
