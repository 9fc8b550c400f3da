"""Virtual disks: made empty, made of an image, looked at."""

from dataclasses import dataclass

from proto.host.v1 import storage_pb2
from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidArgument, NotSupported
from vpxd.inventory.values import DiskFormat
from vpxd.operations import storage_place
from vpxd.operations.parts import Parts
from vpxd.storage.deadlines import creation_s, import_s
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

MIB = 1 << 20
DESCRIPTOR_SUFFIX = ".vmdk"
MAX_CAPACITY_BYTES = 62 << 40  # VMFS's own largest file


@dataclass(frozen=True)
class NewDisk:
    """A disk to be made. `path` is its descriptor's. `capacity_bytes` 0: the image's."""

    path: str
    host: str
    capacity_bytes: int
    format: int


async def create(parts: Parts, disk: NewDisk, user: str) -> TaskRecord:
    """Makes an empty disk; the task's result is its path. :raises VimFault: as the rpc says."""
    wanted = _format(disk.format)
    if wanted is DiskFormat.QCOW2:
        raise NotSupported("an empty disk can't be qcow2: that is for images as they come", feature="qcow2")
    _require_capacity(disk.capacity_bytes, least_bytes=MIB)
    where = _place(parts, disk)
    timeout_s = creation_s(disk.capacity_bytes, wanted)

    async def work(task: Task) -> str:
        task.advance(5, f"making {where.path} on {where.host.name}")
        storage = storage_place.storage_of(parts, where)
        made = storage.create_disk(str(where.path), disk.capacity_bytes, wanted, timeout_s)
        return (await task.unless_canceled(made, "create")).path

    return await parts.tasks.submit(_spec("VirtualDiskManager.createVirtualDisk", where, user), work)


async def import_image(parts: Parts, image: str, disk: NewDisk, user: str) -> TaskRecord:
    """Makes a disk of an image on a datastore; the task's result is its path. :raises VimFault: as the rpc says."""
    wanted = _format(disk.format)
    _require_capacity(disk.capacity_bytes, least_bytes=0)
    where = _place(parts, disk)
    source = storage_place.place(parts, image, where.host.id)

    async def work(task: Task) -> str:
        task.advance(1, f"looking at {source.path} on {where.host.name}")
        storage = storage_place.storage_of(parts, where)
        head, size_bytes = await storage.read_head(str(source.path))
        request = storage_pb2.ImportDiskRequest(
            image=str(source.path),
            path=str(where.path),
            format=vm_config_pb2.DiskFormat.ValueType(wanted),
            capacity_bytes=disk.capacity_bytes,
        )
        task.advance(5, f"making {where.path} of {source.path} on {where.host.name}")
        made = storage.import_disk(request, import_s(head, size_bytes, disk.capacity_bytes))
        return (await task.unless_canceled(made, "import")).path

    return await parts.tasks.submit(_spec("VirtualDiskManager.importUnmanagedDisk", where, user), work)


async def inspect(parts: Parts, path: str, host_key: str) -> storage_pb2.DiskInfo:
    """What a disk is and takes. :raises VimFault: as the rpc says."""
    where = storage_place.place(parts, path, host_key)
    return await storage_place.storage_of(parts, where).inspect_disk(str(where.path))


def _place(parts: Parts, disk: NewDisk) -> storage_place.Place:
    where = storage_place.place(parts, disk.path, disk.host)
    if not where.path.name.endswith(DESCRIPTOR_SUFFIX) or where.path.name == DESCRIPTOR_SUFFIX:
        raise InvalidArgument(
            f"a disk's path is that of its descriptor and ends in {DESCRIPTOR_SUFFIX}: {where.path}",
            argument="path",
        )
    return where


def _format(number: int) -> DiskFormat:
    """Thin where none is named. :raises InvalidArgument: no format has this number."""
    try:
        return DiskFormat(number) or DiskFormat.THIN
    except ValueError as error:
        raise InvalidArgument(f"there is no disk format {number}", argument="format") from error


def _require_capacity(capacity_bytes: int, least_bytes: int) -> None:
    if not least_bytes <= capacity_bytes <= MAX_CAPACITY_BYTES or capacity_bytes % MIB:
        raise InvalidArgument(
            f"a capacity is a multiple of {MIB} bytes, {MAX_CAPACITY_BYTES} at most, not {capacity_bytes}",
            argument="capacity_bytes",
        )


def _spec(operation: str, where: storage_place.Place, user: str) -> TaskSpec:
    return TaskSpec(
        operation,
        where.datastore.id,
        str(where.path),
        user,
        exclusive=(where.lock_key,),
        shared=(where.host.id, where.datastore.uuid),
        cancelable=True,
    )
