"""A real hostd's HostStorage service: datastores mounted and unmounted, files, disks, imports; with what it refuses."""

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from proto.host.v1 import operations_pb2, storage_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from runtime.faults import (
    CannotAccessFile,
    DuplicateName,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InaccessibleDatastore,
    InvalidArgument,
    InvalidDatastorePath,
    ManagedObjectNotFound,
    NoDiskSpace,
    NotSupported,
    ResourceInUse,
    VimFault,
)
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import RunLock
from runtime.rpc.faults import remote_faults
from runtime.rpc.upload import answer_of
from tests.framework.hostd_process import MIB, HostdHost, read_one, small_vm, upload_of

pytestmark = pytest.mark.cluster
THIN, LAZY, QCOW2 = (
    vm_config_pb2.DISK_FORMAT_THIN,
    vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED,
    vm_config_pb2.DISK_FORMAT_QCOW2,
)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
async def host(tmp_path: Path, shared: Path) -> AsyncIterator[HostdHost]:
    host = HostdHost(tmp_path, 41, shared)
    try:
        await host.start()
        yield host
    finally:
        await host.end()


async def mount(host: HostdHost, name: str, location: Path | str) -> host_pb2.Datastore:
    with remote_faults("hostd"):
        request = storage_pb2.MountDatastoreRequest(name=name, location=str(location))
        return (await host.storage.MountDatastore(request, timeout=10)).datastore


async def unmount(host: HostdHost, name: str) -> None:
    with remote_faults("hostd"):
        await host.storage.UnmountDatastore(storage_pb2.UnmountDatastoreRequest(name=name), timeout=10)


async def download(host: HostdHost, path: str, offset: int = 0) -> bytes:
    with remote_faults("hostd"):
        call = host.storage.ReadFile(storage_pb2.ReadFileRequest(path=path, offset=offset), timeout=20)
        return b"".join([piece.data async for piece in call])


async def make_folder(host: HostdHost, path: str) -> None:
    with remote_faults("hostd"):
        await host.storage.MakeFolder(storage_pb2.FileRequest(path=path), timeout=10)


async def create_disk(host: HostdHost, path: str, mib: int, disk_format: int = THIN) -> storage_pb2.DiskInfo:
    request = storage_pb2.CreateDiskRequest(path=path, capacity_bytes=mib * MIB, format=disk_format)  # type: ignore[arg-type]
    with remote_faults("hostd"):
        return await host.storage.CreateDisk(request, timeout=30)


async def import_disk(
    host: HostdHost, image: str, path: str, disk_format: int = 0, capacity_bytes: int = 0
) -> storage_pb2.DiskInfo:
    request = storage_pb2.ImportDiskRequest(
        image=image,
        path=path,
        format=disk_format,  # type: ignore[arg-type]
        capacity_bytes=capacity_bytes,
    )
    with remote_faults("hostd"):
        return await host.storage.ImportDisk(request, timeout=60)


def qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".datastore.json")


# ---- datastores


async def test_mounted_datastore_shows_at_once_and_stays_until_unmounted(
    host: HostdHost, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    watch = host.hostd.WatchHost(operations_pb2.WatchHostRequest(heartbeat_s=60), timeout=30)
    await read_one(watch)
    mounted = await mount(host, "more", tmp_path / "more")
    assert (mounted.accessible, mounted.location) == (True, str(tmp_path / "more"))
    assert mounted.capacity_bytes > 0
    told = await read_one(watch)
    assert {store.name for store in told.host.datastores} == {"shared", "local", "more"}
    await host.stop(signal.SIGKILL)
    await host.start()
    found = {store.name: store for store in (await host.info()).host.datastores}
    assert (found["more"].uuid, found["more"].accessible) == (mounted.uuid, True)
    await unmount(host, "more")
    assert {store.name for store in (await host.info()).host.datastores} == {"shared", "local"}
    assert (tmp_path / "more" / ".datastore.json").exists()
    await host.stop()
    await host.start()
    assert {store.name for store in (await host.info()).host.datastores} == {"shared", "local"}


async def test_mount_what_cannot_be_is_refused(host: HostdHost, tmp_path: Path, shared: Path) -> None:
    (tmp_path / "more").mkdir()
    (shared / "inner").mkdir()
    (tmp_path / "alias").symlink_to(shared)
    (tmp_path / "file").write_text("x")
    cases: list[tuple[str, Path | str, type[VimFault]]] = [
        ("shared", tmp_path / "more", DuplicateName),
        ("other", shared, DuplicateName),
        ("other", tmp_path / "alias", DuplicateName),
        ("other", shared / "inner", InvalidArgument),
        ("other", tmp_path, InvalidArgument),
        ("other", "/", InvalidArgument),
        ("other", host.state_directory / "hostd", InvalidArgument),
        ("other", host.run_directory, InvalidArgument),
        ("other", "relative", InvalidArgument),
        ("[other]", tmp_path / "more", InvalidArgument),
        ("", tmp_path / "more", InvalidArgument),
        ("other", tmp_path / "none", FileNotFound),
        ("other", tmp_path / "file", FileNotFound),
        ("other", "/proc/self", CannotAccessFile),
    ]
    for name, location, fault in cases:
        with pytest.raises(fault):
            await mount(host, name, location)
    (tmp_path / "more" / ".datastore.json").write_bytes((shared / ".datastore.json").read_bytes())
    with pytest.raises(DuplicateName):
        await mount(host, "other", tmp_path / "more")
    assert {store.name for store in (await host.info()).host.datastores} == {"shared", "local"}


async def test_unmount_datastore_that_a_vm_uses_or_the_settings_have_is_refused(
    host: HostdHost, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    await mount(host, "more", tmp_path / "more")
    config = small_vm("db")
    config.disks.add(path="[more] data.vmdk", capacity_bytes=MIB)
    disk_user = await host.create(config)
    home_user = await host.create(small_vm("web"), "more")
    for user in (disk_user, home_user):
        with pytest.raises(ResourceInUse):
            await unmount(host, "more")
        await host.call("UnregisterVm", user.uuid)
    await unmount(host, "more")
    with pytest.raises(ManagedObjectNotFound):
        await unmount(host, "more")
    with pytest.raises(NotSupported):
        await unmount(host, "local")


# ---- files


async def test_files_go_up_come_down_are_listed_and_deleted(host: HostdHost) -> None:
    content = os.urandom(3 * MIB + 17) + bytes(2 * MIB)
    await make_folder(host, "[local] iso/linux")
    digest = await host.upload("[local] iso/linux/a.img", content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert await download(host, "[local] iso/linux/a.img") == content
    assert await download(host, "[local] iso/linux/a.img", 3 * MIB) == content[3 * MIB :]
    assert await download(host, "[local] iso/linux/a.img", len(content)) == b""
    listed = await host.browse("[local] iso/linux")
    assert (listed["a.img"].type, listed["a.img"].size_bytes) == (storage_pb2.FILE_TYPE_FILE, len(content))
    assert (await host.browse("[local]"))["iso"].type == storage_pb2.FILE_TYPE_FOLDER
    await host.upload("[local] iso/empty", b"")
    with pytest.raises(InvalidArgument):
        await host.delete("[local] iso")
    await host.delete("[local] iso/empty")
    await host.delete("[local] iso", recursive=True)
    assert names(host.local) == []


async def test_browse_shows_disks_and_configurations_and_no_links(host: HostdHost, shared: Path) -> None:
    config = small_vm("web")
    config.disks.add(capacity_bytes=4 * MIB, format=LAZY)
    vm = await host.create(config)
    (shared / "web" / "link").symlink_to("/etc/passwd")
    os.mkfifo(shared / "web" / "pipe")
    (shared / "web" / "bad.vmdk").write_text("# Disk DescriptorFile\nnonsense")
    listed = await host.browse("[shared] web")
    assert "link" not in listed
    assert "pipe" not in listed
    assert listed["web.vmx"].type == storage_pb2.FILE_TYPE_VM_CONFIG
    assert listed["bad.vmdk"].type == storage_pb2.FILE_TYPE_FILE
    disk = listed["web.vmdk"]
    assert (disk.type, disk.size_bytes) == (storage_pb2.FILE_TYPE_DISK, 4 * MIB)
    assert disk.allocated_bytes >= 4 * MIB
    assert ".datastore.json" not in await host.browse("[shared]")
    assert vm.config.disks[0].path == "[shared] web/web.vmdk"


async def test_paths_that_lead_out_are_refused_by_every_call(
    host: HostdHost, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (shared / "out").symlink_to(tmp_path / "secret")
    (shared / "disk.vmdk").symlink_to(tmp_path / "secret" / "key")
    for path in ("[shared] ../secret/key", "[shared] /etc/passwd", "[shared] out/key", "nonsense"):
        for attempt in (
            download(host, path),
            host.browse(path),
            host.delete(path),
            make_folder(host, path),
            host.upload(path, b"x"),
            create_disk(host, f"{path}.vmdk", 1),
            import_disk(host, path, "[shared] new.vmdk"),
        ):
            with pytest.raises((InvalidDatastorePath, InvalidArgument)):
                await attempt
    with pytest.raises(InvalidDatastorePath):
        await host.delete("[shared] disk.vmdk")
    with pytest.raises(InaccessibleDatastore):
        await host.browse("[none]")
    with pytest.raises(ResourceInUse):
        await host.delete("[shared] .datastore.json")
    with pytest.raises(InvalidArgument):
        await host.delete("[shared]", recursive=True)
    assert (tmp_path / "secret" / "key").read_text() == "secret"
    assert names(tmp_path / "secret") == ["key"]


async def test_upload_that_is_not_as_said_leaves_nothing(host: HostdHost) -> None:
    path = "[local] a.img"
    for content, said in ((b"abc", 2), (b"abc", 4), (bytes(3 * MIB), 3 * MIB - 1)):
        with pytest.raises(InvalidArgument):
            await host.upload(path, content, said)

    async def sent(*messages: storage_pb2.WriteFileRequest) -> None:
        with remote_faults("hostd"):
            await answer_of(host.storage.WriteFile(iter_of(messages), timeout=20))

    first = storage_pb2.WriteFileRequest(path=path, size_bytes=2 * MIB)
    for bad in (
        (),
        (storage_pb2.WriteFileRequest(data=b"x"),),
        (first, first),
        (first, storage_pb2.WriteFileRequest(data=bytes(2 * MIB))),
    ):
        with pytest.raises(InvalidArgument):
            await sent(*bad)
    with pytest.raises(FileNotFound):
        await host.upload("[local] none/a.img", b"x")
    with pytest.raises(NoDiskSpace) as caught:
        await host.upload(path, b"", 1 << 60)
    assert (caught.value.datastore, caught.value.requested_bytes) == ("local", 1 << 60)
    assert names(host.local) == []
    await host.upload(path, b"first")
    with pytest.raises(FileAlreadyExists):
        await host.upload(path, b"second")
    assert (host.local / "a.img").read_bytes() == b"first"


async def iter_of(
    messages: tuple[storage_pb2.WriteFileRequest, ...],
) -> AsyncIterator[storage_pb2.WriteFileRequest]:
    for message in messages:
        yield message


async def test_upload_whose_sender_leaves_or_whose_hostd_dies_leaves_nothing(host: HostdHost) -> None:
    for death in (False, True):
        waiting = asyncio.Event()

        async def half(
            path: str, waiting: asyncio.Event = waiting
        ) -> AsyncIterator[storage_pb2.WriteFileRequest]:
            async for message in upload_of(path, bytes(range(256)) * 4096 * 3, 64 * MIB):
                yield message
            waiting.set()
            await asyncio.Event().wait()

        call = host.storage.WriteFile(half("[local] a.img"))
        task = asyncio.ensure_future(call)
        await asyncio.wait_for(waiting.wait(), 20)
        if death:
            await host.stop(signal.SIGKILL)
        else:
            task.cancel()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await task
        if death:
            await host.start()
        assert names(host.local) == []


async def test_upload_that_is_refused_at_once_tells_the_fault_whatever_was_on_its_way(
    host: HostdHost,
) -> None:
    for _ in range(20):
        with pytest.raises(FileNotFound):
            await host.upload("[local] none/a.img", bytes(8 * MIB))
    assert names(host.local) == []


async def test_two_uploads_of_one_name_one_wins_whole(host: HostdHost) -> None:
    results = await asyncio.gather(
        *(host.upload("[local] a.img", bytes([number]) * MIB) for number in range(1, 5)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, FileAlreadyExists) for result in results) == 3
    assert len(set((host.local / "a.img").read_bytes())) == 1


async def test_files_of_vms_are_not_deleted(host: HostdHost, shared: Path) -> None:
    config = small_vm("web")
    config.disks.add(capacity_bytes=MIB)
    config.disks.add(path="[local] data.vmdk", capacity_bytes=MIB)
    vm = await host.create(config)
    await host.upload("[shared] web/notes", b"x")
    for path in (
        "[shared] web/web.vmx",
        "[shared] web/web.owner",
        "[shared] web/web.vmdk",
        "[shared] web/web-flat.vmdk",
        "[local] data.vmdk",
        "[local] data-flat.vmdk",
        "[shared] web",
    ):
        with pytest.raises(ResourceInUse):
            await host.delete(path, recursive=True)
    await host.delete("[shared] web/notes")
    await host.call("UnregisterVm", vm.uuid)
    lock = RunLock.open(shared / "web" / "web.runlock")
    lock.acquire()
    for path in ("[shared] web", "[shared] web/web.vmx", "[shared] web/web.vmdk"):
        with pytest.raises(FileLocked):
            await host.delete(path, recursive=True)
    lock.close()
    await host.delete("[local] data.vmdk")
    assert names(host.local) == []
    await host.delete("[shared] web", recursive=True)
    assert names(shared) == []


async def test_files_of_another_hosts_vm_are_not_deleted(host: HostdHost, shared: Path) -> None:
    (shared / "other").mkdir()
    (shared / "other" / "other.vmx").write_text("x")
    elsewhere = "99999999-9999-4999-8999-999999999999"
    owner_record.create(shared / "other" / "other.owner", "88888888-8888-4888-8888-888888888888", elsewhere)
    for path in ("[shared] other", "[shared] other/other.vmx"):
        with pytest.raises(FileLocked) as caught:
            await host.delete(path, recursive=True)
        assert caught.value.owner == elsewhere


async def test_full_datastore_in_the_middle_of_anything_leaves_nothing(
    host: HostdHost, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        await mount(host, "small", small)
        qemu_img("create", "-f", "qcow2", "-o", "preallocation=off", str(host.local / "big.qcow2"), "64M")
        subprocess.run(
            ["qemu-io", "-c", "write -z 0 1M", "-c", "write 0 32M", str(host.local / "big.qcow2")],
            check=True,
            capture_output=True,
        )
        compressed = str(host.local / "packed.qcow2")
        qemu_img("convert", "-c", "-O", "qcow2", str(host.local / "big.qcow2"), compressed)
        for image, disk_format in (("big.qcow2", THIN), ("packed.qcow2", THIN), ("packed.qcow2", LAZY)):
            with pytest.raises(NoDiskSpace) as caught:
                await import_disk(host, f"[local] {image}", "[small] d.vmdk", disk_format)
            assert caught.value.datastore == "small"
        with pytest.raises(NoDiskSpace):
            await create_disk(host, "[small] d.vmdk", 16, LAZY)
        config = small_vm("web")
        config.disks.add(capacity_bytes=2 * MIB)
        config.disks.add(capacity_bytes=16 * MIB, format=LAZY)
        with pytest.raises(NoDiskSpace):
            await host.create(config, "small")
        assert names(small) == []

        async def grows() -> AsyncIterator[storage_pb2.WriteFileRequest]:
            """The space is there at first, and then it isn't."""
            pieces = 0
            async for message in upload_of("[small] a", b"x" * (7 * MIB)):
                yield message
                pieces += 1
                if pieces == 2:
                    (small / "eater").write_bytes(b"x" * (4 * MIB))

        with pytest.raises(NoDiskSpace) as full, remote_faults("hostd"):
            await answer_of(host.storage.WriteFile(grows(), timeout=20))
        assert (full.value.datastore, full.value.requested_bytes) == ("small", 7 * MIB)
        assert names(small) == ["eater"]
        free = {store.name: store.free_bytes for store in (await host.info()).host.datastores}["small"]
        assert free <= 8 * MIB
    finally:
        await host.end()
        subprocess.run(["umount", str(small)], check=True)
