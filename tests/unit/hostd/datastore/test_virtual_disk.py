"""Virtual disks: each format takes the blocks that it says, and nothing half made stays."""

import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.datastore.disk_descriptor import EAGER, LAZY, QCOW2, THIN, DiskFormat
from hostd.datastore.mount import Datastores
from hostd.datastore.new_file import Interrupted
from hostd.datastore.virtual_disk import VirtualDisks
from runtime.faults import (
    CannotAccessFile,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidDiskFormat,
    NoDiskSpace,
)
from runtime.ondisk.datastore_path import DatastorePath

MIB = 1 << 20
PATH = DatastorePath.parse("[local] vm/root.vmdk")


def disks_on(root: Path) -> VirtualDisks:
    (root / "vm").mkdir(parents=True, exist_ok=True)
    datastores = Datastores({"local": root}, "esx01")
    datastores.refresh()
    return VirtualDisks(datastores)


@pytest.fixture
def disks(tmp_path: Path) -> VirtualDisks:
    return disks_on(tmp_path / "local")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "local" / "vm"


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[VirtualDisks]:
    """Disks on a file system of 8 MiB."""
    root = tmp_path / "local"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield disks_on(root)
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("disk_format", [THIN, LAZY, EAGER])
def test_create_then_inspect_tells_it_and_takes_its_blocks(
    disks: VirtualDisks, folder: Path, disk_format: DiskFormat
) -> None:
    files = disks.create(PATH, 8 * MIB, disk_format)
    assert files.extent_path == folder / "root-flat.vmdk"
    found = disks.inspect(PATH)
    assert (found.descriptor.capacity_bytes, found.descriptor.format) == (8 * MIB, disk_format)
    assert files.extent_path.stat().st_size == 8 * MIB
    assert not any(files.extent_path.read_bytes())
    assert (found.allocated_bytes >= 8 * MIB) == (disk_format != THIN)
    if disk_format == THIN:
        assert found.allocated_bytes < MIB
    assert sorted(path.name for path in folder.iterdir()) == ["root-flat.vmdk", "root.vmdk"]


@pytest.mark.parametrize("taken", ["root.vmdk", "root-flat.vmdk"])
def test_create_over_a_file_is_refused_and_touches_nothing(
    disks: VirtualDisks, folder: Path, taken: str
) -> None:
    (folder / taken).write_text("mine")
    with pytest.raises(FileAlreadyExists) as caught:
        disks.create(PATH, MIB, THIN)
    assert caught.value.path == f"[local] vm/{taken}"
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(taken, "mine")]


@pytest.mark.parametrize(
    ("path", "capacity", "disk_format"),
    [
        (PATH, 0, THIN),
        (PATH, MIB + 512, THIN),
        (PATH, (62 << 40) + MIB, THIN),
        (PATH, MIB, QCOW2),
        (PATH, MIB, 9),
        (DatastorePath.parse("[local] vm/root.img"), MIB, THIN),
        (DatastorePath.parse("[local] vm/.vmdk"), MIB, THIN),
        (DatastorePath("local", f"vm/{'x' * 250}.vmdk"), MIB, THIN),
    ],
)
def test_create_what_cannot_be_is_refused(
    disks: VirtualDisks, folder: Path, path: DatastorePath, capacity: int, disk_format: DiskFormat
) -> None:
    with pytest.raises(InvalidArgument):
        disks.create(path, capacity, disk_format)
    assert list(folder.iterdir()) == []


def test_create_without_folder_or_through_a_link_is_refused(
    disks: VirtualDisks, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFound):
        disks.create(DatastorePath.parse("[local] none/root.vmdk"), MIB, THIN)
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(InvalidDatastorePath):
        disks.create(DatastorePath.parse("[local] link/root.vmdk"), MIB, THIN)
    assert list(folder.iterdir()) == []


def test_create_interrupted_leaves_nothing(disks: VirtualDisks, folder: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        disks.create(PATH, 64 * MIB, EAGER, stop)
    assert list(folder.iterdir()) == []


def test_create_like_keeps_capacity_and_content_id(disks: VirtualDisks, folder: Path) -> None:
    disks.create(PATH, 4 * MIB, LAZY)
    source = disks.inspect(PATH).descriptor
    copy = DatastorePath.parse("[local] vm/copy.vmdk")
    disks.create_like(source, copy, THIN)
    found = disks.inspect(copy).descriptor
    assert (found.capacity_bytes, found.content_id, found.format) == (4 * MIB, source.content_id, THIN)
    image = disks.create_like(source, DatastorePath.parse("[local] vm/image.vmdk"), QCOW2)
    assert (image.extent_path.name, image.extent_path.stat().st_size) == ("image.qcow2", 0)


@pytest.mark.parametrize("disk_format", [LAZY, EAGER])
def test_create_thick_beyond_the_space_is_refused_before(
    small_disks: VirtualDisks, folder: Path, disk_format: DiskFormat
) -> None:
    with pytest.raises(NoDiskSpace) as caught:
        small_disks.create(PATH, 9 * MIB, disk_format)
    fault = caught.value
    assert (fault.datastore, fault.requested_bytes) == ("local", 9 * MIB)
    assert 0 < fault.free_bytes <= 8 * MIB
    assert list(folder.iterdir()) == []
    small_disks.create(PATH, 9 * MIB, THIN)  # needs none yet


def test_extend_beyond_the_space_leaves_the_disk_as_it_was(small_disks: VirtualDisks, folder: Path) -> None:
    small_disks.create(PATH, 4 * MIB, LAZY)
    with pytest.raises(NoDiskSpace):
        small_disks.extend(PATH, 16 * MIB)
    assert small_disks.inspect(PATH).descriptor.capacity_bytes == 4 * MIB


@pytest.mark.parametrize("disk_format", [THIN, LAZY, EAGER])
def test_extend_grows_in_its_format_and_keeps_the_data(
    disks: VirtualDisks, folder: Path, disk_format: DiskFormat
) -> None:
    files = disks.create(PATH, 2 * MIB, disk_format)
    with open(files.extent_path, "r+b") as extent:
        extent.write(b"data")
    before = disks.extend(PATH, 4 * MIB)
    found = disks.inspect(PATH)
    assert found.descriptor.capacity_bytes == 4 * MIB
    assert found.descriptor.content_id == before.content_id
    assert files.extent_path.read_bytes() == b"data" + bytes(4 * MIB - 4)
    assert (found.allocated_bytes >= 4 * MIB) == (disk_format != THIN)
    assert disks.extend(PATH, 4 * MIB).capacity_bytes == 4 * MIB
    for capacity in (2 * MIB, 4 * MIB + 1):
        with pytest.raises(InvalidArgument):
            disks.extend(PATH, capacity)
    disks.shrink_back(PATH, before)
    assert disks.inspect(PATH).descriptor.capacity_bytes == 2 * MIB


def test_extend_interrupted_is_undone(disks: VirtualDisks) -> None:
    disks.create(PATH, 2 * MIB, EAGER)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        disks.extend(PATH, 4 * MIB, stop)
    assert disks.inspect(PATH).descriptor.capacity_bytes == 2 * MIB


def test_inspect_extent_that_is_not_as_said_is_refused(
    disks: VirtualDisks, folder: Path, tmp_path: Path
) -> None:
    files = disks.create(PATH, 2 * MIB, THIN)
    os.truncate(files.extent_path, 2 * MIB + 512)
    with pytest.raises(InvalidDiskFormat):
        disks.inspect(PATH)
    files.extent_path.unlink()
    with pytest.raises(FileNotFound) as caught:
        disks.inspect(PATH)
    assert caught.value.path == "[local] vm/root-flat.vmdk"
    (tmp_path / "secret").write_bytes(bytes(2 * MIB))
    files.extent_path.symlink_to(tmp_path / "secret")
    with pytest.raises(CannotAccessFile):
        disks.inspect(PATH)
    files.extent_path.unlink()
    os.mkfifo(files.extent_path)
    with pytest.raises(CannotAccessFile):
        disks.inspect(PATH)


def test_inspect_descriptor_of_another_disks_extent_is_refused(disks: VirtualDisks, folder: Path) -> None:
    disks.create(PATH, 2 * MIB, THIN)
    (folder / "thief.vmdk").write_bytes((folder / "root.vmdk").read_bytes())
    with pytest.raises(InvalidDiskFormat):
        disks.inspect(DatastorePath.parse("[local] vm/thief.vmdk"))
    with pytest.raises(InvalidDiskFormat):
        disks.delete(DatastorePath.parse("[local] vm/thief.vmdk"))
    (folder / "big.vmdk").write_bytes(b"x" * 100_000)
    with pytest.raises(InvalidDiskFormat):
        disks.inspect(DatastorePath.parse("[local] vm/big.vmdk"))
    assert (folder / "root-flat.vmdk").exists()


def test_delete_takes_both_files_and_only_them(disks: VirtualDisks, folder: Path) -> None:
    disks.create(PATH, MIB, THIN)
    (folder / "other").write_text("x")
    disks.delete(PATH)
    assert [path.name for path in folder.iterdir()] == ["other"]
    with pytest.raises(FileNotFound):
        disks.delete(PATH)
    disks.delete(PATH, THIN)


def test_delete_disk_that_a_process_has_locked_is_refused(disks: VirtualDisks, folder: Path) -> None:
    """As QEMU locks its images: a shared lock on some bytes."""
    files = disks.create(PATH, MIB, THIN)
    with open(files.extent_path, "rb") as extent:
        lock = struct.Struct("hhqqi4x").pack(fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(extent, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(FileLocked):
            disks.delete(PATH)
        with pytest.raises(FileLocked):
            disks.extend(PATH, 2 * MIB)
        assert disks.inspect(PATH).descriptor.capacity_bytes == MIB
    disks.delete(PATH)
