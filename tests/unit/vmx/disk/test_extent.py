"""The target's extent: bulk and mirrored data in any order end as the mirror left them; no hostile range gets in."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmx.disk.contract import DiskFormat, DiskLayout
from vmx.disk.errors import DiskFull, DiskRangeError, DiskSpecError, DiskWriteFailed
from vmx.disk.extent import ExtentWriter

SECTOR = 512
SECTORS = 96
CAPACITY = SECTORS * SECTOR
FORMATS = [DiskFormat.THIN, DiskFormat.THICK_LAZY_ZEROED]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["bulk", "write", "zero"]),
        st.integers(0, SECTORS - 1),
        st.integers(1, 24),
        st.integers(1, 255),
    ),
    max_size=25,
)


def extent(path: Path, capacity_bytes: int = CAPACITY) -> Path:
    with path.open("wb") as file:
        file.truncate(capacity_bytes)
    return path


@settings(deadline=None, max_examples=150)
@given(operations=OPERATIONS, disk_format=st.sampled_from(FORMATS))
def test_extent_any_order_ends_as_the_mirror_says(
    operations: list[tuple[str, int, int, int]], disk_format: DiskFormat
) -> None:
    model, mirrored = bytearray(CAPACITY), set[int]()
    with tempfile.TemporaryDirectory() as folder:
        path = extent(Path(folder) / "disk")
        with ExtentWriter(path, DiskLayout(2000, CAPACITY, disk_format)) as writer:
            for kind, first, wanted, byte in operations:
                count, fill = min(wanted, SECTORS - first), 0 if kind == "zero" else byte
                data = bytes([fill]) * (count * SECTOR)
                sectors = range(first, first + count)
                if kind == "bulk":
                    writer.write_bulk(first * SECTOR, memoryview(data))
                    sectors = [sector for sector in sectors if sector not in mirrored]  # type: ignore[assignment]
                elif kind == "write":
                    writer.write_mirrored(first * SECTOR, memoryview(data))
                    mirrored.update(sectors)
                else:
                    writer.zero_mirrored(first * SECTOR, len(data))
                    mirrored.update(sectors)
                for sector in sectors:
                    model[sector * SECTOR : (sector + 1) * SECTOR] = bytes([fill]) * SECTOR
            writer.flush()
        assert path.read_bytes() == bytes(model)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-512, 512), (0, CAPACITY + 512), (CAPACITY, 512), (1, 512), (0, 511), (1 << 63, 512), (512, -512)],
)
def test_extent_hostile_range_is_refused_untouched(tmp_path: Path, offset: int, length: int) -> None:
    path = extent(tmp_path / "disk")
    data = memoryview(b"x" * max(0, min(length, 2 * CAPACITY)))
    with ExtentWriter(path, DiskLayout(2000, CAPACITY, DiskFormat.THIN)) as writer:
        with pytest.raises(DiskRangeError):
            writer.zero_mirrored(offset, length)
        if length >= 0:
            for write in (writer.write_bulk, writer.write_mirrored):
                with pytest.raises(DiskRangeError):
                    write(offset, data)
    assert path.read_bytes() == bytes(CAPACITY)


@pytest.mark.parametrize(("disk_format", "keeps"), [(FORMATS[0], False), (FORMATS[1], True)])
def test_extent_zeroing_frees_blocks_of_thin_only(
    tmp_path: Path, disk_format: DiskFormat, keeps: bool
) -> None:
    size = 1 << 20
    path = extent(tmp_path / "disk", size)
    with ExtentWriter(path, DiskLayout(2000, size, disk_format)) as writer:
        writer.write_mirrored(0, memoryview(b"x" * size))
        writer.flush()
        writer.zero_mirrored(0, size)
        writer.flush()
        assert path.read_bytes() == bytes(size)
        assert (path.stat().st_blocks * 512 >= size) is keeps


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs")
def test_extent_file_system_without_zero_range_gets_real_zeros() -> None:
    size = 3 << 20
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = extent(Path(folder) / "disk", size)
        layout = DiskLayout(2000, size, DiskFormat.THICK_EAGER_ZEROED)
        with ExtentWriter(path, layout) as writer:
            writer.write_mirrored(0, memoryview(b"x" * size))
            writer.zero_mirrored(512, size - 1024)
            writer.write_bulk(0, memoryview(b"y" * size))
        assert path.read_bytes() == b"x" * 512 + bytes(size - 1024) + b"x" * 512
        assert path.stat().st_blocks * 512 >= size


def test_extent_no_room_is_disk_full_with_its_fields(tmp_path: Path) -> None:
    path = extent(tmp_path / "disk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExtentWriter(path, DiskLayout(2000, CAPACITY, DiskFormat.THIN)) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(DiskFull) as full:
                writer.write_mirrored(2048, memoryview(b"x" * 4096))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (full.value.offset, full.value.errno, full.value.needed_bytes) == (4096, errno.EFBIG, 2048)
        # What failed was the mirror's: older bulk data must not come in its place.
        writer.write_bulk(0, memoryview(b"y" * CAPACITY))
    assert path.read_bytes()[2048:6144] == b"x" * 2048 + bytes(2048)


def test_extent_bulk_after_its_end_is_refused_and_the_mirror_goes_on(tmp_path: Path) -> None:
    path = extent(tmp_path / "disk")
    with ExtentWriter(path, DiskLayout(2000, CAPACITY, DiskFormat.THIN)) as writer:
        writer.bulk_finished()
        writer.bulk_finished()
        writer.write_mirrored(0, memoryview(b"x" * 512))
        writer.zero_mirrored(512, 512)
        with pytest.raises(DiskWriteFailed):
            writer.write_bulk(0, memoryview(b"y" * 512))
    assert path.read_bytes()[:512] == b"x" * 512


def test_extent_that_does_not_fit_the_disk_is_refused(tmp_path: Path) -> None:
    path = extent(tmp_path / "disk")
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskSpecError, match="capacity_bytes"):
        ExtentWriter(path, DiskLayout(2000, CAPACITY + 512, DiskFormat.THIN))
    with pytest.raises(DiskSpecError, match="format"):
        ExtentWriter(path, DiskLayout(2000, CAPACITY, DiskFormat.QCOW2))
    with pytest.raises(DiskWriteFailed):
        ExtentWriter(tmp_path / "none", DiskLayout(2000, CAPACITY, DiskFormat.THIN))
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_extent_closed_takes_nothing(tmp_path: Path) -> None:
    writer = ExtentWriter(extent(tmp_path / "disk"), DiskLayout(2000, CAPACITY, DiskFormat.THIN))
    writer.close()
    writer.close()
    with pytest.raises(DiskWriteFailed):
        writer.write_mirrored(0, memoryview(b"x" * 512))
    with pytest.raises(DiskWriteFailed):
        writer.zero_mirrored(0, 512)
    with pytest.raises(DiskWriteFailed):
        writer.flush()


@pytest.mark.parametrize(
    ("field", "values"), [("key", (-1, 512)), ("capacity_bytes", (1, 0)), ("capacity_bytes", (1, 513))]
)
def test_layout_unfit_field_is_refused_by_name(field: str, values: tuple[int, int]) -> None:
    with pytest.raises(DiskSpecError) as refused:
        DiskLayout(*values, DiskFormat.THIN)
    assert refused.value.field == field
