"""Files and disks through vpxd: relayed piece by piece, nothing left behind, a VM's files kept."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from itertools import repeat
from pathlib import Path

import pytest

from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vpxd.v1 import service_pb2
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import (
    FileAlreadyExists,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    NoDiskSpace,
    NotSupported,
    ResourceInUse,
    TaskInProgress,
)
from tests.framework.fake_host_storage import FakeStore
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig

MIB = 1 << 20
THIN = vm_config_pb2.DISK_FORMAT_THIN


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02") as running:
        yield running


def shared(rig: VpxdRig) -> FakeStore:
    return rig.fakes.files.store(rig.fakes.shared.uuid)


async def messages(path: str, size: int, pieces: Iterable[bytes]) -> AsyncIterator[api.UploadFileRequest]:
    yield api.UploadFileRequest(path=path, size_bytes=size)
    for piece in pieces:
        yield api.UploadFileRequest(data=piece)


def file(path: str, *, recursive: bool = False) -> api.DatastoreFileRequest:
    return api.DatastoreFileRequest(path=path, recursive=recursive)


async def test_file_uploaded_and_downloaded_is_the_same(rig: VpxdRig) -> None:
    content = os.urandom(3 * MIB + 17)
    pieces = [content[offset : offset + MIB] for offset in range(0, len(content), MIB)]

    answer = await rig.storage.UploadFile(messages("[shared] iso/a.img", len(content), pieces))
    answers = rig.storage.DownloadFile(file("[shared] iso/a.img"))
    got = [piece async for piece in answers]
    tail = rig.storage.DownloadFile(api.DatastoreFileRequest(path="[shared] iso/a.img", offset=3 * MIB))

    assert answer.sha256 == hashlib.sha256(content).hexdigest()
    assert b"".join(piece.data for piece in got) == content
    assert got[0].size_bytes == len(content)
    assert b"".join([piece.data async for piece in tail]) == content[3 * MIB :]


async def test_empty_file_can_be_uploaded(rig: VpxdRig) -> None:
    await rig.storage.UploadFile(messages("[shared] empty", 0, []))

    assert shared(rig).files["empty"] == b""


@pytest.mark.parametrize(
    ("size", "pieces"), [(10, [b"12345"]), (3, [b"12345"]), (2 * MIB, [bytes(MIB + 1), bytes(MIB - 1)])]
)
async def test_upload_of_another_size_or_of_too_large_pieces_leaves_nothing(
    rig: VpxdRig, size: int, pieces: list[bytes]
) -> None:
    fault = await rig.fault(rig.storage.UploadFile(messages("[shared] a", size, pieces)))

    assert isinstance(fault, InvalidArgument)
    assert "a" not in shared(rig).files


async def test_upload_that_names_a_second_file_leaves_nothing(rig: VpxdRig) -> None:
    async def two_names() -> AsyncIterator[api.UploadFileRequest]:
        yield api.UploadFileRequest(path="[shared] a", size_bytes=2)
        yield api.UploadFileRequest(data=b"1")
        yield api.UploadFileRequest(path="[shared] b", data=b"2")

    fault = await rig.fault(rig.storage.UploadFile(two_names()))

    assert isinstance(fault, InvalidArgument)
    assert not shared(rig).files


async def test_upload_broken_off_by_the_client_leaves_nothing(rig: VpxdRig) -> None:
    host = rig.fakes.hosts["esx01"]
    never = asyncio.Event()

    async def endless() -> AsyncIterator[api.UploadFileRequest]:
        yield api.UploadFileRequest(path="[shared] a", size_bytes=2 * MIB)
        yield api.UploadFileRequest(data=bytes(MIB))
        await never.wait()

    call = rig.storage.UploadFile(endless())
    await until(lambda: _count(host.calls, "WriteFile piece"), lambda count: count == 1)
    call.cancel()
    host.hold["BrowseFolder"] = asyncio.Event()
    host.hold["BrowseFolder"].set()
    answer = await rig.storage.BrowseFolder(file("[shared]"))

    assert not answer.files
    assert "a" not in shared(rig).files


async def _count(calls: list[str], name: str) -> int:
    return calls.count(name)


async def test_upload_to_a_slow_host_is_held_back_and_not_kept_in_memory(rig: VpxdRig) -> None:
    host = rig.fakes.hosts["esx01"]
    host.hold["WriteFile piece"] = asyncio.Event()
    sent = 0

    async def many() -> AsyncIterator[api.UploadFileRequest]:
        nonlocal sent
        yield api.UploadFileRequest(path="[shared] a", size_bytes=64 * MIB)
        for _ in range(64):
            yield api.UploadFileRequest(data=bytes(MIB))
            sent += 1

    call = asyncio.ensure_future(_await(rig.storage.UploadFile(many())))
    await until(lambda: _count(host.calls, "WriteFile piece"), lambda count: count == 1)
    await asyncio.sleep(0.5)
    assert sent < 32, "the client could send what the host hadn't taken"
    host.hold.pop("WriteFile piece").set()
    await call

    assert len(shared(rig).files["a"]) == 64 * MIB


async def _await(call: object) -> object:
    return await call  # type: ignore[misc]


async def test_upload_refused_by_the_host_tells_its_fault(rig: VpxdRig) -> None:
    shared(rig).files["a"] = b"x"

    there = await rig.fault(rig.storage.UploadFile(messages("[shared] a", MIB, [bytes(MIB)])))
    full = await rig.fault(rig.storage.UploadFile(messages("[shared] b", 1 << 50, repeat(bytes(MIB)))))

    assert isinstance(there, FileAlreadyExists)
    assert isinstance(full, NoDiskSpace)


async def test_download_of_what_is_not_there_is_refused(rig: VpxdRig) -> None:
    async def all_of(path: str) -> None:
        async for _piece in rig.storage.DownloadFile(file(path)):
            pass

    assert isinstance(await rig.fault(all_of("[shared] nope")), FileNotFound)
    assert isinstance(await rig.fault(all_of("[shared] ../etc/passwd")), InvalidDatastorePath)


async def test_folders_are_made_and_deleted_with_what_is_in_them(rig: VpxdRig) -> None:
    await rig.storage.MakeFolder(file("[shared] iso/old"))
    await rig.storage.UploadFile(messages("[shared] iso/old/a", 1, [b"1"]))

    full = await rig.fault(rig.storage.DeleteFile(file("[shared] iso/old")))
    await rig.storage.DeleteFile(file("[shared] iso/old", recursive=True))

    assert isinstance(full, InvalidArgument)
    assert not shared(rig).files
    assert isinstance(
        await rig.fault(rig.storage.DeleteFile(file("[shared]", recursive=True))), InvalidArgument
    )


async def test_files_of_a_vm_on_another_host_are_not_deleted(rig: VpxdRig) -> None:
    await rig.create("web01", "esx02")

    for path in ("[shared] web01", "[shared] web01/web01.vmx", "[shared] web01/web01.owner"):
        fault = await rig.fault(
            rig.storage.DeleteFile(api.DatastoreFileRequest(path=path, host="esx01", recursive=True))
        )
        assert isinstance(fault, ResourceInUse)
        assert "web01" in fault.message
    assert "DeleteFile" not in rig.fakes.hosts["esx01"].calls


async def test_disk_is_made_and_inspected(rig: VpxdRig) -> None:
    request = api.CreateDiskRequest(path="[shared] data.vmdk", capacity_bytes=64 * MIB)

    task = await rig.done(rig.storage.CreateDisk(request))
    info = await rig.storage.InspectDisk(file(task.result))

    assert (info.path, info.capacity_bytes, info.format) == ("[shared] data.vmdk", 64 * MIB, THIN)


@pytest.mark.parametrize(
    ("path", "capacity", "disk_format", "kind"),
    [
        ("[shared] data", MIB, THIN, InvalidArgument),
        ("[shared] data.vmdk", MIB + 1, THIN, InvalidArgument),
        ("[shared] data.vmdk", 0, THIN, InvalidArgument),
        ("[shared] data.vmdk", MIB, vm_config_pb2.DISK_FORMAT_QCOW2, NotSupported),
        ("[local] data.vmdk", MIB, THIN, InvalidArgument),
        ("data.vmdk", MIB, THIN, InvalidDatastorePath),
    ],
)
async def test_disk_that_cannot_be_is_refused_at_once(
    rig: VpxdRig,
    path: str,
    capacity: int,
    disk_format: vm_config_pb2.DiskFormat.ValueType,
    kind: type[Exception],
) -> None:
    request = api.CreateDiskRequest(path=path, capacity_bytes=capacity, format=disk_format)

    assert isinstance(await rig.fault(rig.storage.CreateDisk(request)), kind)


async def test_disk_being_made_holds_its_path_and_can_be_canceled(rig: VpxdRig) -> None:
    host = rig.fakes.hosts["esx01"]
    host.hold["CreateDisk"] = asyncio.Event()
    request = api.CreateDiskRequest(
        path="[shared] data.vmdk", capacity_bytes=MIB, format=vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED
    )
    task = await rig.storage.CreateDisk(request)
    await until(lambda: _count(host.calls, "CreateDisk"), lambda count: count == 1)

    second = await rig.fault(rig.storage.CreateDisk(request))
    unmounted = await rig.fault(rig.storage.UnmountDatastore(api.UnmountDatastoreRequest(datastore="shared")))
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    ended = await rig.end_of(task.id)

    assert isinstance(second, TaskInProgress)
    assert isinstance(unmounted, TaskInProgress)
    assert ended.state == task_pb2.TASK_STATE_ERROR
    assert "data.vmdk" not in shared(rig).disks


async def test_image_is_imported_on_the_host_that_has_both(rig: VpxdRig) -> None:
    host_id = (await rig.host("esx02")).id
    stores = (await rig.stub.ListDatastores(service_pb2.ListDatastoresRequest())).datastores
    local = next(store for store in stores if store.name == "local" and list(store.hosts) == [host_id])
    shared(rig).files["iso/a.qcow2"] = b"QFI\xfb" + bytes(2 * MIB)
    request = api.ImportDiskRequest(
        image="[shared] iso/a.qcow2", path="[local] a.vmdk", host="esx02", capacity_bytes=8 * MIB
    )

    task = await rig.done(rig.storage.ImportDisk(request))

    assert task.result == "[local] a.vmdk"
    assert rig.fakes.files.store(local.uuid).disks["a.vmdk"].capacity_bytes == 8 * MIB
    missing = api.ImportDiskRequest(image="[shared] nope", path="[shared] b.vmdk")
    with pytest.raises(FileNotFound):
        await rig.done(rig.storage.ImportDisk(missing))
