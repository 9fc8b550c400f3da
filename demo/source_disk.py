"""The disk that the storage demonstration moves, made as an administrator would: an image uploaded and imported.

images.root_disk ──copy, own command line──> image ──upload──> [local] disks/<vm>.img ──import──> <vm>.vmdk
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from demo.cluster_layout import ClusterLayout
from demo.local_cluster import GUEST_IMAGES
from demo.orders import TASK_TIMEOUT_S, order
from images.cmdline import kernel_command_line
from images.root_disk import DiskOptions, build_root_disk, copy_disk, set_command_line
from images.root_disk_settings import FsyncSettings, address_word, root_disk_command_line
from proto.vim.v1 import vm_config_pb2
from proto.vpxd.v1 import storage_pb2
from runtime.ondisk.datastore_path import DatastorePath
from vpxd.cli.client import VpxdClient

MIB = 1 << 20
FOLDER = "disks"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class GuestPlan:
    """What the guest does and what its disk holds. `capacity_mib`: of the disk, at least what `disk` takes."""

    disk: DiskOptions
    capacity_mib: int
    address: str = "10.0.0.5/24"
    fsync_rate: int = 200
    check_mib_s: int = 16
    stamper_mib: int = 32
    stamper_mib_s: int = 10

    def command_line(self) -> str:
        """Of the guest's kernel, on the disk."""
        words = kernel_command_line(self.stamper_mib, self.stamper_mib_s)
        fsync = FsyncSettings(rate=self.fsync_rate, check_mib_s=self.check_mib_s)
        return root_disk_command_line(words, fsync, (address_word(self.address),))


async def provide_disk(client: VpxdClient, host: str, name: str, plan: GuestPlan) -> str:
    """A thick, lazily zeroed disk on the host's local datastore; answers its path.

    :raises ImageError: the image can't be built. :raises VimFault: it isn't taken. Else as VpxdClient.call.
    """
    folder, path = f"[local] {FOLDER}", f"[local] {FOLDER}/{name}.vmdk"
    uploaded = f"[local] {FOLDER}/{name}.img"
    await client.call(client.storage.MakeFolder, storage_pb2.DatastoreFileRequest(path=folder, host=host))
    with tempfile.TemporaryDirectory(dir=GUEST_IMAGES, prefix=".demo-disk-") as work:
        image = await asyncio.to_thread(_make_image, Path(work) / "root.raw", plan)
        target = storage_pb2.UploadFileRequest(
            path=uploaded, host=host, size_bytes=plan.disk.layout.size_bytes
        )
        await client.upload(client.storage.UploadFile, _messages(image, target), TASK_TIMEOUT_S)
    request = storage_pb2.ImportDiskRequest(
        image=uploaded,
        path=path,
        host=host,
        format=vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED,
        capacity_bytes=plan.capacity_mib * MIB,
    )
    await order(client, client.storage.ImportDisk, request)
    await client.call(client.storage.DeleteFile, storage_pb2.DatastoreFileRequest(path=uploaded, host=host))
    return path


def folder_of(layout: ClusterLayout, host: str, datastore: str) -> Path:
    """Where a datastore of a host lies on this machine."""
    return layout.shared_datastore if datastore == "shared" else layout.local_datastore(host)


def file_of(layout: ClusterLayout, host: str, text: str) -> Path:
    """A datastore path's file on this machine. :raises InvalidDatastorePath: it is none."""
    path = DatastorePath.parse(text)
    return folder_of(layout, host, path.datastore) / path.relative


def extent_of(layout: ClusterLayout, host: str, text: str) -> Path:
    """The raw extent of the disk with this descriptor."""
    descriptor = file_of(layout, host, text)
    return descriptor.with_name(f"{descriptor.stem}-flat.vmdk")


def _make_image(path: Path, plan: GuestPlan) -> Path:
    copy_disk(build_root_disk(options=plan.disk), path)
    set_command_line(path, plan.command_line(), plan.disk.layout)
    return path


async def _messages(
    image: Path, target: storage_pb2.UploadFileRequest
) -> AsyncIterator[storage_pb2.UploadFileRequest]:
    yield target
    with image.open("rb") as source:
        while data := await asyncio.to_thread(source.read, _PIECE_BYTES):
            yield storage_pb2.UploadFileRequest(data=data)
