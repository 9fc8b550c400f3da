"""Pure: no I/O, no clock, no logging. Which sectors of a disk the mirror has written.

It has to be exact to the sector (a guest may write single ones beside data that only the bulk copy brings), small
for a disk that is hardly written, and cheap for one hostile request that covers everything:

    disk = regions of 1 GiB = 512 chunks of 2 MiB = 4096 sectors each
    region.full       one bit per chunk: all of its sectors are set (64 bytes for 1 GiB)
    region.partial    chunk -> one bit per sector (about 0.6 KiB each), only for chunks that are neither empty nor full

A disk of 1 TiB costs nothing untouched, 0.2 MiB when all of it is set, and 0.35 GiB in the worst case, one that no
guest reaches by accident: every chunk set in part. Python's integers are the bit strings: setting and searching a range
of one is a handful of operations on 512 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from vmx.disk.contract import SECTOR_BYTES

__all__ = ["SectorMap"]

_CHUNK_SECTORS: Final = (2 << 20) // SECTOR_BYTES
_CHUNK_FULL: Final = (1 << _CHUNK_SECTORS) - 1
_REGION_CHUNKS: Final = 512


@dataclass
class _Region:
    full: int = 0
    partial: dict[int, int] = field(default_factory=dict)


class SectorMap:
    """A set of sector numbers. Not safe for threads: its owner has a lock anyway."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}

    def add(self, first: int, count: int) -> None:
        """Add the sectors [first, first + count)."""
        end = first + count
        while first < end:
            chunk, start = divmod(first, _CHUNK_SECTORS)
            region_index, chunk_index = divmod(chunk, _REGION_CHUNKS)
            region = self._regions.setdefault(region_index, _Region())
            if start == 0 and end - first >= _CHUNK_SECTORS:
                whole = min((end - first) // _CHUNK_SECTORS, _REGION_CHUNKS - chunk_index)
                region.full |= _ones(chunk_index, whole)
                for covered in [key for key in region.partial if chunk_index <= key < chunk_index + whole]:
                    del region.partial[covered]
                first += whole * _CHUNK_SECTORS
            else:
                piece = min(end - first, _CHUNK_SECTORS - start)
                _add_part(region, chunk_index, _ones(start, piece))
                first += piece

    def missing(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The runs (first, count) of sectors in [first, first + count) that are not in the set, in order.

        Runs end at a chunk's end at the latest. The map must not change while they are gone through.
        """
        end = first + count
        while first < end:
            chunk, start = divmod(first, _CHUNK_SECTORS)
            piece = min(end - first, _CHUNK_SECTORS - start)
            bits = self._chunk_bits(chunk)
            if bits == 0:
                yield first, piece
            elif bits != _CHUNK_FULL:
                for run_start, run_count in _runs_of_ones(~bits & _ones(start, piece)):
                    yield chunk * _CHUNK_SECTORS + run_start, run_count
            first += piece

    def _chunk_bits(self, chunk: int) -> int:
        region_index, chunk_index = divmod(chunk, _REGION_CHUNKS)
        region = self._regions.get(region_index)
        if region is None:
            return 0
        if region.full >> chunk_index & 1:
            return _CHUNK_FULL
        return region.partial.get(chunk_index, 0)


def _add_part(region: _Region, chunk_index: int, bits: int) -> None:
    if region.full >> chunk_index & 1:
        return
    bits |= region.partial.get(chunk_index, 0)
    if bits == _CHUNK_FULL:
        region.full |= 1 << chunk_index
        region.partial.pop(chunk_index, None)
    else:
        region.partial[chunk_index] = bits


def _ones(start: int, count: int) -> int:
    return ((1 << count) - 1) << start


def _runs_of_ones(bits: int) -> Iterator[tuple[int, int]]:
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        # The lowest zero above the ones: adding one carries through them.
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield position + zeros, ones
        bits >>= ones
        position += zeros + ones
