"""The bulk copy: what is read, what is left out, and how it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmx.disk.bulk import BulkCopy, BulkOptions, RawSource, data_ranges
from vmx.disk.errors import DiskCopyCancelled, DiskReadFailed, DiskSpecError, DiskWriteFailed

SECTOR = 512
PIECE = 64 << 10


class FakeSink:
    """Keeps what it is given. Fails or does something else where `on_write` does."""

    def __init__(self, capacity_bytes: int, on_write: Callable[[int], None] = lambda _offset: None) -> None:
        self.content = bytearray(capacity_bytes)
        self.written_bytes = 0
        self._on_write = on_write
        self._lock = threading.Lock()

    def write_bulk(self, offset: int, data: memoryview) -> None:
        self._on_write(offset)
        with self._lock:
            self.content[offset : offset + len(data)] = data
            self.written_bytes += len(data)

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        raise AssertionError("not the bulk copy's")

    def zero_mirrored(self, offset: int, length: int) -> None:
        raise AssertionError("not the bulk copy's")

    def flush(self) -> None:
        raise AssertionError("not the bulk copy's")


class FakeSource:
    """A disk in memory, whose ranges are given."""

    name = "fake disk"

    def __init__(self, content: bytes, ranges: list[tuple[int, int]]) -> None:
        self.content = content
        self.ranges = ranges

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        return iter(self.ranges)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.content[offset : offset + len(buffer)]


def sparse_file(path: Path, capacity_bytes: int, data: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(capacity_bytes)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    return path


def test_data_ranges_holes_are_left_out(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "disk", 1 << 20, {65536: b"x" * 100, 1 << 19: b"y" * 70_000})
    descriptor = os.open(path, os.O_RDONLY)
    try:
        ranges = list(data_ranges(descriptor, 1 << 20))
        shortened = list(data_ranges(descriptor, 65536 + SECTOR))
    finally:
        os.close(descriptor)
    covered = {start // 4096 for begin, length in ranges for start in range(begin, begin + length, 4096)}
    assert {16, *range(128, 146)} <= covered
    assert all(offset % SECTOR == 0 and length % SECTOR == 0 for offset, length in ranges)
    assert sum(length for _, length in ranges) < 200_000
    assert shortened == [(65536, SECTOR)]


@pytest.mark.parametrize("data", [{}, {0: b"x" * 3 * SECTOR}])
def test_data_ranges_empty_and_full_file(tmp_path: Path, data: dict[int, bytes]) -> None:
    path = sparse_file(tmp_path / "disk", 3 * SECTOR, data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert sum(length for _, length in data_ranges(descriptor, 3 * SECTOR)) == (3 * SECTOR if data else 0)
    finally:
        os.close(descriptor)


@settings(deadline=None, max_examples=60)
@given(
    filled=st.sets(st.integers(0, 6 * PIECE // SECTOR - 1), max_size=12),
    ranges=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 400)), max_size=4),
    threads=st.integers(1, 3),
)
def test_bulk_copy_any_data_arrives_and_zero_pieces_do_not(
    filled: set[int], ranges: list[tuple[int, int]], threads: int
) -> None:
    sectors = 6 * PIECE // SECTOR
    content = bytearray(sectors * SECTOR)
    for sector in filled:
        # One byte in the middle of a sector is enough to be data.
        content[sector * SECTOR + 300] = 1
    wanted, cut, position = bytearray(len(content)), [], 0
    for gap, count in ranges:
        first = position + gap
        last = min(sectors, first + count)
        if first < last:
            cut.append((first * SECTOR, (last - first) * SECTOR))
            wanted[first * SECTOR : last * SECTOR] = content[first * SECTOR : last * SECTOR]
        position = last
    sink = FakeSink(len(content))
    copy = BulkCopy(FakeSource(bytes(content), cut), sink, BulkOptions(threads, 2 * PIECE))
    progress = copy.run()
    assert sink.content == wanted
    assert progress.copied_bytes == progress.data_bytes == sum(length for _, length in cut)
    assert progress.zero_bytes == progress.data_bytes - sink.written_bytes
    if not any(wanted):
        assert sink.written_bytes == 0


def test_bulk_copy_cancelled_ends_between_chunks() -> None:
    content = b"x" * 8 * PIECE
    sink = FakeSink(len(content), lambda _offset: copy.cancel())
    copy = BulkCopy(FakeSource(content, [(0, len(content))]), sink, BulkOptions(1, PIECE))
    with pytest.raises(DiskCopyCancelled):
        copy.run()
    assert sink.written_bytes == PIECE
    assert copy.progress.copied_bytes == PIECE


def test_bulk_copy_sink_fails_raises_its_error_and_stops() -> None:
    content = b"x" * 64 * PIECE

    def fail(offset: int) -> None:
        if offset >= 2 * PIECE:
            raise DiskWriteFailed("target", offset, 5, "no more")

    sink = FakeSink(len(content), fail)
    copy = BulkCopy(FakeSource(content, [(0, len(content))]), sink, BulkOptions(2, PIECE))
    with pytest.raises(DiskWriteFailed):
        copy.run()
    assert sink.written_bytes <= 4 * PIECE


def test_bulk_copy_throttle_is_asked_for_data_only() -> None:
    content = b"x" * PIECE + bytes(PIECE) + b"y" * PIECE
    asked: list[int] = []
    sink = FakeSink(len(content))
    BulkCopy(
        FakeSource(content, [(0, len(content))]), sink, BulkOptions(1, 4 * PIECE, throttle=asked.append)
    ).run()
    assert asked == [PIECE, PIECE]


def test_raw_source_that_becomes_shorter_is_a_read_error(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "disk", 8192, {0: b"x" * 8192})
    with RawSource(path, 8192) as source:
        os.truncate(path, 4096)
        with pytest.raises(DiskReadFailed) as failed:
            source.read_into(0, memoryview(bytearray(8192)))
    assert failed.value.offset == 4096


def test_raw_source_missing_or_short_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskReadFailed):
        RawSource(tmp_path / "none", 512)
    with pytest.raises(DiskSpecError):
        RawSource(sparse_file(tmp_path / "disk", 512, {}), 1024)


@pytest.mark.parametrize(("threads", "chunk"), [(0, PIECE), (1, PIECE - 512), (1, 0)])
def test_bulk_options_unfit_are_refused(threads: int, chunk: int) -> None:
    with pytest.raises(DiskSpecError):
        BulkOptions(threads, chunk)
