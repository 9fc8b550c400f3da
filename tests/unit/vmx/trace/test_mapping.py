"""Guest RAM found in a process's memory map, in one piece or several; this process is its own example."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.trace.errors import TargetGoneError, TargetMappingError
from vmx.trace.mapping import RamMapping, TargetProcess

RAM_BYTES = 16 * PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory.create("test-ram", RAM_BYTES)
    yield guest
    guest.close()


@pytest.fixture
def process() -> Iterator[TargetProcess]:
    this = TargetProcess(os.getpid())
    yield this
    this.close()


def test_ram_mappings_split_by_the_kernel_is_one_piece(memory: GuestMemory, process: TargetProcess) -> None:
    with mmap.mmap(memory.fd, RAM_BYTES) as ram:
        ram.madvise(mmap.MADV_DONTDUMP, 4 * PAGE_BYTES, 4 * PAGE_BYTES)
        with open("/proc/self/maps", encoding="ascii") as maps:
            assert maps.read().count("memfd:test-ram") == 3
        (piece,) = process.ram_mappings(memory)
        assert (piece.end - piece.start, piece.offset) == (RAM_BYTES, 0)


def test_ram_mappings_half_of_it_only_is_refused(memory: GuestMemory, process: TargetProcess) -> None:
    with (
        mmap.mmap(memory.fd, RAM_BYTES // 2, offset=RAM_BYTES // 2),
        pytest.raises(TargetMappingError, match="8 of 16"),
    ):
        process.ram_mappings(memory)


@pytest.mark.parametrize(
    ("flags", "access"),
    [(mmap.MAP_SHARED, mmap.PROT_READ), (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)],
)
def test_ram_mappings_not_shared_or_not_writable_do_not_count(
    memory: GuestMemory, process: TargetProcess, flags: int, access: int
) -> None:
    with mmap.mmap(memory.fd, RAM_BYTES, flags=flags, prot=access), pytest.raises(TargetMappingError):
        process.ram_mappings(memory)


def test_ram_mappings_two_halves_keep_their_offsets(memory: GuestMemory, process: TargetProcess) -> None:
    with ExitStack() as stack:
        for offset in (RAM_BYTES // 2, 0):
            stack.enter_context(mmap.mmap(memory.fd, RAM_BYTES // 2, offset=offset))
        pieces = process.ram_mappings(memory)
        assert sum(piece.end - piece.start for piece in pieces) == RAM_BYTES
        assert {piece.offset for piece in pieces} in ({0}, {0, RAM_BYTES // 2})


def test_target_process_that_never_was_is_gone() -> None:
    with pytest.raises(TargetGoneError):
        TargetProcess(2**22 + 1)


def test_still_maps_as_found_holds(memory: GuestMemory, process: TargetProcess) -> None:
    with mmap.mmap(memory.fd, RAM_BYTES) as ram:
        pieces = process.ram_mappings(memory)
        assert process.still_maps(pieces, memory)
        ram.madvise(mmap.MADV_DONTDUMP, 4 * PAGE_BYTES, 4 * PAGE_BYTES)
        assert process.still_maps(pieces, memory)


def test_still_maps_unmapped_or_replaced_does_not_hold(memory: GuestMemory, process: TargetProcess) -> None:
    ram = mmap.mmap(memory.fd, RAM_BYTES)
    pieces = process.ram_mappings(memory)
    ram.close()
    assert not process.still_maps(pieces, memory)
    shifted = [RamMapping(piece.start, piece.end, piece.offset + PAGE_BYTES) for piece in pieces]
    with mmap.mmap(memory.fd, RAM_BYTES):
        assert not process.still_maps(shifted, memory)


def test_still_maps_kernel_that_can_not_be_asked_reads_all_of_maps(
    memory: GuestMemory, process: TargetProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmx.trace.mapping._PROCMAP_QUERY", 0x6600)  # ENOTTY
    with mmap.mmap(memory.fd, RAM_BYTES):
        pieces = process.ram_mappings(memory)
        assert process.still_maps(pieces, memory)
        assert not process.still_maps([RamMapping(0, RAM_BYTES, 0)], memory)
