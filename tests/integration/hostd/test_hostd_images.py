"""A real hostd's virtual disks and the images that become one, with the images that are refused."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.host.v1 import storage_pb2
from proto.vim.v1 import vm_config_pb2
from proto.vim.v1.vm_config_pb2 import VirtualDisk
from runtime.faults import (
    FileAlreadyExists,
    FileNotFound,
    InvalidArgument,
    InvalidDiskFormat,
    NoDiskSpace,
)
from runtime.rpc.faults import remote_faults
from tests.framework.hostd_process import MIB, HostdHost, small_vm

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


async def test_disk_is_created_inspected_and_deleted_with_its_extent(host: HostdHost) -> None:
    made = await create_disk(host, "[local] d.vmdk", 4, LAZY)
    assert (made.capacity_bytes, made.format) == (4 * MIB, LAZY)
    assert made.allocated_bytes >= 4 * MIB
    with remote_faults("hostd"):
        found = await host.storage.InspectDisk(storage_pb2.FileRequest(path="[local] d.vmdk"), timeout=5)
    assert found == made
    with pytest.raises(FileAlreadyExists):
        await create_disk(host, "[local] d.vmdk", 4)
    assert (await create_disk(host, "[local] t.vmdk", 4, 0)).format == THIN
    await host.delete("[local] d.vmdk")
    await host.delete("[local] t.vmdk")
    assert names(host.local) == []


@pytest.mark.parametrize("source", ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"])
async def test_image_of_any_format_becomes_a_disk_with_its_data(
    host: HostdHost, tmp_path: Path, source: str
) -> None:
    data = os.urandom(MIB) + bytes(3 * MIB) + os.urandom(MIB) + bytes(5 * MIB)
    (tmp_path / "raw").write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", source, str(tmp_path / "raw"), str(host.local / f"image.{source}"))
    for number, disk_format in enumerate((THIN, LAZY, vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED)):
        made = await import_disk(host, f"[local] image.{source}", f"[local] d{number}.vmdk", disk_format)
        assert made.format == disk_format
        content = (host.local / f"d{number}-flat.vmdk").read_bytes()
        assert content == data + bytes(len(content) - len(data))
        assert made.capacity_bytes == len(content) >= len(data)
        assert (made.allocated_bytes < 3 * MIB) == (disk_format == THIN)
    kept = await import_disk(host, f"[local] image.{source}", "[local] q.vmdk", QCOW2, 16 * MIB)
    assert (kept.capacity_bytes, kept.format) == (16 * MIB, QCOW2)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", str(host.local / "q.qcow2"), str(tmp_path / "raw"))
    again = await import_disk(
        host, "[local] q.vmdk", "[local] clone.vmdk", THIN
    )  # a disk of ours is an image, too
    assert again.capacity_bytes == 16 * MIB
    assert (host.local / "clone-flat.vmdk").read_bytes() == data + bytes(6 * MIB)


async def test_image_that_needs_another_file_is_refused_and_leaves_nothing(
    host: HostdHost, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * MIB)
    local = host.local
    qemu_img("create", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(local / "backing.qcow2"))
    data_file = f"data_file={tmp_path / 'data'},data_file_raw=on"
    qemu_img("create", "-f", "qcow2", "-o", data_file, str(local / "external.qcow2"), "1M")
    qemu_img("create", "-f", "qcow", "-b", str(secret), "-F", "raw", str(local / "old.qcow"))
    qemu_img("create", "-f", "qed", "-b", str(secret), "-F", "raw", str(local / "old.qed"))
    flat = (
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n'
    )
    (local / "flat.vmdk").write_text(flat)
    (local / "blank.vmdk").write_text(f" \n{flat}")
    (local / "bare.vmdk").write_text(flat.partition("\n")[2])
    (local / "wrapped.vmdk").write_bytes(
        b"KDMV" + bytes(24) + b"\x01" + bytes(7) + b"\x02" + bytes(475) + flat.encode()
    )
    qemu_img("create", "-f", "vmdk", str(local / "parent.vmdk"), "1M")
    qemu_img(
        "create", "-f", "vmdk", "-b", str(local / "parent.vmdk"), "-F", "vmdk", str(local / "child.vmdk")
    )
    (local / "luks").write_bytes(b"LUKS\xba\xbe\x00\x01" + bytes(4096))
    before = names(local)
    refused = [name for name in before if name not in ("parent.vmdk",)]
    for name in refused:
        with pytest.raises(InvalidDiskFormat):
            await import_disk(host, f"[local] {name}", "[local] new.vmdk")
    assert names(local) == before


async def test_uploaded_disk_whose_image_needs_another_file_is_not_attached(
    host: HostdHost, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(bytes(MIB))
    qemu_img(
        "create", "-f", "qcow2", "-b", str(tmp_path / "secret"), "-F", "raw", str(host.local / "d.qcow2")
    )
    (host.local / "d.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="custom"\nRW 2048 SPARSE "d.qcow2"\n'
        'ddb.vpx.imageFormat = "qcow2"\n'
    )
    config = small_vm("thief")
    config.disks.append(VirtualDisk(path="[local] d.vmdk"))
    with pytest.raises(InvalidDiskFormat):
        await host.create(config)
    assert await host.vms() == {}


async def test_import_what_cannot_be_is_refused(host: HostdHost) -> None:
    await host.upload("[local] image", os.urandom(2 * MIB))
    with pytest.raises(InvalidArgument):
        await import_disk(host, "[local] image", "[local] d.vmdk", THIN, MIB)
    with pytest.raises(InvalidArgument):
        await import_disk(host, "[local] image", "[local] d.img")
    with pytest.raises(InvalidArgument):
        await import_disk(host, "[local] image", "[local] d.vmdk", 77)
    with pytest.raises(FileNotFound):
        await import_disk(host, "[local] none", "[local] d.vmdk")
    with pytest.raises(FileNotFound):
        await import_disk(host, "[local] image", "[local] none/d.vmdk")
    with pytest.raises(NoDiskSpace):
        await import_disk(host, "[local] image", "[local] d.vmdk", LAZY, 1 << 45)
    await host.upload(
        "[local] damaged", b"QFI\xfb\0\0\0\x03" + bytes(16) + b"\0\0\0\x00\0\x10\0\0" + bytes(90)
    )
    with pytest.raises(InvalidDiskFormat):
        await import_disk(host, "[local] damaged", "[local] d.vmdk")
    assert names(host.local) == ["damaged", "image"]


async def test_import_whose_caller_leaves_ends_its_child_and_leaves_nothing(
    host: HostdHost, tmp_path: Path
) -> None:
    """A stand-in for qemu-img that tells the image and then never ends its conversion."""
    script = tmp_path / "slow-qemu-img"
    script.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        'info) echo \'{"format": "raw", "virtual-size": 1048576, "actual-size": 4096}\' ;;\n'
        f"*) echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 120 ;;\nesac\n"
    )
    script.chmod(0o755)
    await host.stop()
    host.environment["HOST_QEMU_IMG"] = str(script)
    await host.start()
    await host.upload("[local] image", bytes(MIB))
    task = asyncio.create_task(import_disk(host, "[local] image", "[local] d.vmdk"))
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
        assert os.getpriority(os.PRIO_PROCESS, pid) == 10
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.05)
    assert names(host.local) == ["image"]
