"""Copies a disk in bulk into a DiskSink: as fast as plain file copying, while the guest goes on writing.

    holes           never read: SEEK_DATA and SEEK_HOLE of lseek(2), or an NBD server's block status
    zeros           read, found out, and left out in pieces of 64 KiB: a target that is not written reads as zeros
    all else        handed to the sink in pieces as long as possible, up to the chunk of 1 MiB

A few threads each take the next chunk, read it and hand it on, so that reading one chunk and writing another overlap.
For a running guest the mirror must be on before the copy begins: only then is data that changes behind the copy's
back brought over by somebody.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from vmx.disk.contract import SECTOR_BYTES, DiskSink
from vmx.disk.errors import DiskCopyCancelled, DiskError, DiskReadFailed, DiskSpecError

__all__ = ["BulkCopy", "BulkOptions", "BulkProgress", "BulkSource", "RawSource", "data_ranges"]

_PIECE_BYTES: Final = 64 << 10
_WORDS: Final = _PIECE_BYTES // 8
# Words looked at first: a piece of data has nearly always one among them, and then needn't be searched.
_PROBES: Final = tuple(range(0, _WORDS, _WORDS // 8))


class BulkSource(Protocol):
    """A disk that can be read. `read_into` may be called by several threads, `data_ranges` by one at a time."""

    @property
    def name(self) -> str:
        """For messages."""

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges (offset, length) that may hold anything but zeros: whole sectors, in order, disjoint.

        :raises DiskReadFailed: it can't be found out.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the disk's data from `offset` on. :raises DiskReadFailed:"""


@dataclass(frozen=True)
class BulkOptions:
    """How to copy. `throttle` is called with a count of bytes before they go to the sink, and may wait."""

    threads: int = 2
    chunk_bytes: int = 1 << 20
    throttle: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise DiskSpecError("threads", f"{self.threads} is less than one")
        if self.chunk_bytes < _PIECE_BYTES or self.chunk_bytes % _PIECE_BYTES:
            raise DiskSpecError("chunk_bytes", f"{self.chunk_bytes} is not a multiple of 64 KiB")


@dataclass(frozen=True)
class BulkProgress:
    """How far a copy is: of `data_bytes` in the source that are no holes, `copied_bytes` are done.

    `zero_bytes` of those were zeros and went nowhere. `duration_ms` is the time since the copy began, or the time it
    took.
    """

    data_bytes: int
    copied_bytes: int
    zero_bytes: int
    duration_ms: float


def data_ranges(fd: int, capacity_bytes: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that are not holes, rounded outwards to sectors (SEEK_DATA, SEEK_HOLE: lseek(2)).

    Moves the descriptor's file offset. :raises OSError:
    """
    position = 0
    while position < capacity_bytes:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= capacity_bytes:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        start -= start % SECTOR_BYTES
        end = min(capacity_bytes, end + -end % SECTOR_BYTES)
        # A hole that begins and ends inside one sector must not give that sector twice.
        start = max(start, position)
        if end > start:
            yield start, end - start
        position = max(end, position + SECTOR_BYTES)


class RawSource:
    """A raw extent, read through the page cache: what a running QEMU has written there is seen at once."""

    def __init__(self, path: Path, capacity_bytes: int) -> None:
        """Opens it. :raises DiskReadFailed: it can't be opened. :raises DiskSpecError: it is too short."""
        self._path = str(path)
        self._capacity_bytes = capacity_bytes
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DiskReadFailed(self._path, 0, str(error)) from error
        length = os.fstat(self._fd).st_size
        if length < capacity_bytes:
            self.close()
            raise DiskSpecError("capacity_bytes", f"{path} has {length} bytes, the disk {capacity_bytes}")
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def name(self) -> str:
        """The extent's path."""
        return self._path

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """See BulkSource."""
        try:
            yield from data_ranges(self._fd, self._capacity_bytes)
        except OSError as error:
            raise DiskReadFailed(self._path, 0, str(error)) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See BulkSource."""
        while buffer:
            try:
                count = os.preadv(self._fd, [buffer], offset)
            except OSError as error:
                raise DiskReadFailed(self._path, offset, str(error)) from error
            if count == 0:
                raise DiskReadFailed(self._path, offset, "the file has become shorter")
            offset += count
            buffer = buffer[count:]

    def close(self) -> None:
        """Closes the extent. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BulkCopy:
    """One copy of one disk. `run` blocks; `progress` and `cancel` may be used from anywhere meanwhile."""

    def __init__(self, source: BulkSource, sink: DiskSink, options: BulkOptions | None = None) -> None:
        self._source = source
        self._sink = sink
        self._options = options or BulkOptions()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._cancelled = False
        self._failure: DiskError | None = None
        self._chunks: Iterator[tuple[int, int]] = iter(())
        self._data_bytes = 0
        self._copied_bytes = 0
        self._zero_bytes = 0
        self._began_ns = 0
        self._ended_ns = 0

    @property
    def progress(self) -> BulkProgress:
        """How far it is. Never waits for the copy."""
        duration_ns = (self._ended_ns or time.monotonic_ns()) - self._began_ns if self._began_ns else 0
        data_bytes = max(self._data_bytes, self._copied_bytes)
        return BulkProgress(data_bytes, self._copied_bytes, self._zero_bytes, duration_ns / 1e6)

    def cancel(self) -> None:
        """Makes `run` end between two chunks. Idempotent; nothing happens after its end."""
        self._cancelled = True
        self._stopped.set()

    def run(self) -> BulkProgress:
        """Copies everything; once, in a thread of the caller's. Doesn't flush the sink.

        :raises DiskCopyCancelled: by `cancel`.
        :raises DiskError: the first that the source or the sink raised; the target is of no use then.
        """
        self._began_ns = time.monotonic_ns()
        try:
            self._count_data()
            self._chunks = self._cut(self._source.data_ranges())
            count = self._options.threads
            with ThreadPoolExecutor(count, thread_name_prefix="disk-bulk") as pool:
                for worker in [pool.submit(self._copy_chunks) for _ in range(count)]:
                    worker.result()
            self._raise_if_ended()
            # The guest fills holes and makes new ones meanwhile: what was there in the end is what was copied.
            self._data_bytes = self._copied_bytes
        finally:
            self._ended_ns = time.monotonic_ns()
        return self.progress

    def _raise_if_ended(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._cancelled:
            raise DiskCopyCancelled(self._source.name)

    def _count_data(self) -> None:
        # The ranges are gone through twice instead of being kept: there may be millions of them.
        for _offset, length in self._source.data_ranges():
            self._data_bytes += length
            if self._stopped.is_set():
                self._raise_if_ended()

    def _cut(self, ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Chunks that end at multiples of their size, so that one touches few blocks of the target's file."""
        size = self._options.chunk_bytes
        for start, length in ranges:
            offset, end = start, start + length
            while offset < end:
                chunk_end = min(end, offset - offset % size + size)
                yield offset, chunk_end - offset
                offset = chunk_end

    def _copy_chunks(self) -> None:
        buffer = memoryview(bytearray(self._options.chunk_bytes))
        try:
            while not self._stopped.is_set():
                with self._lock:
                    chunk = next(self._chunks, None)
                if chunk is None:
                    return
                offset, length = chunk
                data = buffer[:length]
                self._source.read_into(offset, data)
                zero_bytes = length - self._hand_on(offset, data)
                with self._lock:
                    self._copied_bytes += length
                    self._zero_bytes += zero_bytes
        except DiskError as error:
            with self._lock:
                self._failure = self._failure or error
            self._stopped.set()
        except BaseException:
            self._stopped.set()
            raise

    def _hand_on(self, offset: int, data: memoryview) -> int:
        """Gives everything that is not zeros to the sink; returns how many bytes that were."""
        handed_bytes = 0
        for start, end in _runs_of_data(data):
            if self._options.throttle is not None:
                self._options.throttle(end - start)
            self._sink.write_bulk(offset + start, data[start:end])
            handed_bytes += end - start
        return handed_bytes


def _runs_of_data(data: memoryview) -> list[tuple[int, int]]:
    """Where `data` is not zeros, in pieces of 64 KiB joined where they touch. Its length is whole sectors."""
    whole = len(data) // _PIECE_BYTES
    words = np.frombuffer(data, dtype=np.uint64)
    has_data = [bool(flag) for flag in _pieces_with_data(words[: whole * _WORDS].reshape(whole, _WORDS))]
    if len(data) % _PIECE_BYTES:
        has_data.append(bool(words[whole * _WORDS :].any()))
    runs: list[tuple[int, int]] = []
    for index, flag in enumerate(has_data):
        if not flag:
            continue
        start, end = index * _PIECE_BYTES, min(len(data), (index + 1) * _PIECE_BYTES)
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    return runs


def _pieces_with_data(pieces: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    found = np.asarray(pieces[:, _PROBES].any(axis=1), dtype=np.bool_)
    for index in np.flatnonzero(~found):
        found[index] = pieces[index].any()
    return found
