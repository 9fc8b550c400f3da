"""Where arriving pages are put: from the wire into guest RAM, with as few passes over the bytes as there can be.

Three ways in, by what the frame is and what lies there already (measured per GiB, sealed, one thread):

- one run, pages that exist: the record is opened straight into the mapping: 0.11 s once they are mapped;
- one run, pages that don't exist yet (nearly all of phase -1): opened into a scratch buffer that stays in the cache,
  then pwrite(2): 0.47 s against 0.86 s through the mapping, where the kernel takes a fault per page and zeroes what
  is overwritten at once;
- scattered pages: opened into scratch, then one numpy scatter.

A zero page that does not exist stays a hole; one that does is filled with zeros through the mapping: a few vector
operations for a whole frame, where punching holes would be a system call per run.
"""

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.guest.memory import GuestMemory, MappedMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, page_indexes, split
from vmx.stream import frames
from vmx.stream.connection import PageReceiver
from vmx.stream.errors import PlacementFailed
from vmx.stream.frames import FrameHeader
from vmx.stream.verify import ZERO_PAGE_DIGEST, DigestTable, digest_pages, digest_runs_into, zero_table

# Missing runs of fewer pages than this on average are scattered by numpy: a system call per run would cost more.
_MIN_WRITTEN_RUN_PAGES: Final = 8
# The kernel's default fault_around_bytes is 64 KiB (mm/memory.c, do_fault_around).
_FAULT_AROUND_PAGES: Final = 16


class GuestPlaces:
    """One guest's RAM as the page threads of a stream share it. Threads place disjoint pages within an iteration."""

    def __init__(self, memory: GuestMemory, mapped: MappedMemory, keep_digests: bool) -> None:
        """Note what is populated already. With `keep_digests` that is read and digested, so the table is true from the
        start whatever lies there. Blocking: for a thread."""
        self.fd = memory.fd
        self.mapped = mapped
        self.page_count = memory.page_count
        populated = memory.populated_runs()
        self.present = np.zeros(memory.page_count, dtype=np.bool_)
        for first, count in populated.tolist():
            self.present[first : first + count] = True
        self.digests: DigestTable | None = None
        if keep_digests:
            self.digests = zero_table(memory.page_count)
            digest_runs_into(self.digests, mapped.pages, populated)


class ChannelPlacer:
    """Places the frames of one channel; for that channel's thread alone."""

    def __init__(self, places: GuestPlaces, channel: PageReceiver) -> None:
        self._places = places
        self._channel = channel
        self._scratch = np.empty(frames.MAX_PAGES_BODY_BYTES, dtype=np.uint8)

    def place_pages(self, header: FrameHeader) -> None:
        """Receive the body of a PAGES header and put its pages into guest RAM.

        :raises StreamError: the body did not arrive whole, or its run table breaks the rules (then nothing was placed).
        """
        if header.count == 1:
            self._place_run(header)
        else:
            self._place_scattered(header)

    def _place_run(self, header: FrameHeader) -> None:
        places, first, end = self._places, header.first, header.first + header.total
        if places.present[first:end].all():
            self._map_around(slice(first, end, _FAULT_AROUND_PAGES))
            target = places.mapped.view[first * PAGE_BYTES : end * PAGE_BYTES]
            self._channel.receive_body_into(header, target)
        else:
            body = self._scratch.data[: header.body_bytes]
            self._channel.receive_body_into(header, body)
            self._write(body, first)
            places.present[first:end] = True
        if places.digests is not None:
            places.digests[first:end] = digest_pages(places.mapped.pages[first:end])

    def _place_scattered(self, header: FrameHeader) -> None:
        places = self._places
        body = self._scratch.data[: header.body_bytes]
        self._channel.receive_body_into(header, body)
        runs = frames.decode_runs(header, body[: header.table_bytes], places.page_count)
        indexes = page_indexes(runs)
        data = body[header.table_bytes :]
        missing = not places.present[indexes].all()
        if missing and header.total >= header.count * _MIN_WRITTEN_RUN_PAGES:
            self._write_runs(data, runs)
        else:
            self._map_around(indexes)
            places.mapped.pages[indexes] = np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        if missing:
            places.present[indexes] = True
        if places.digests is not None:
            # Read back from guest RAM, not from the scratch: the table speaks of what lies there.
            places.digests[indexes] = digest_pages(places.mapped.pages[indexes])

    def place_zero(self, header: FrameHeader) -> None:
        """Receive a ZERO frame's table and clear its pages; those that are holes stay holes.

        :raises StreamError: the table did not arrive whole or breaks the rules (then nothing was cleared).
        """
        places = self._places
        body = self._scratch.data[: header.body_bytes]
        if header.body_bytes:
            self._channel.receive_body_into(header, body)
        runs = frames.decode_runs(header, body, places.page_count)
        for first, count in runs.tolist():
            if places.present[first : first + count].any():
                self._clear_run(first, count)
            if places.digests is not None:
                places.digests[first : first + count] = ZERO_PAGE_DIGEST

    def _clear_run(self, first: int, count: int) -> None:
        places = self._places
        for start, length in split(np.array([[first, count]]), frames.MAX_FRAME_PAGES).tolist():
            present = np.flatnonzero(places.present[start : start + length])
            places.mapped.pages[start + present] = 0

    def _map_around(self, pages: slice | NDArray[np.int64]) -> None:
        """Read a byte of each of these pages before they are written. A first write through the mapping faults page
        by page (1.8 us each); a first read maps its populated neighbours too, writable: 0.17 s/GiB, not 0.46 s."""
        self._places.mapped.pages[pages, 0].max(initial=0)

    def _write(self, data: memoryview, first_page: int) -> None:
        at, offset = 0, first_page * PAGE_BYTES
        try:
            while at < len(data):
                at += os.pwrite(self._places.fd, data[at:], offset + at)
        except OSError as error:
            raise PlacementFailed(first_page, str(error)) from None

    def _write_runs(self, data: memoryview, runs: PageRuns) -> None:
        at = 0
        for first, count in runs.tolist():
            self._write(data[at : at + count * PAGE_BYTES], first)
            at += count * PAGE_BYTES
