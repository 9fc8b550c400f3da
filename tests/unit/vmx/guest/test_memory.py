"""Guest RAM: what is populated, what a mapping's end does to views, what is taken for guest RAM."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

from vmx.guest.memory import (
    GuestMemory,
    MemoryAdoptionError,
    MemoryAllocationError,
    MemoryClosedError,
    MemoryStillViewedError,
)
from vmx.guest.pages import PAGE_BYTES

RAM_BYTES = 256 * PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory.create("test-ram", RAM_BYTES)
    yield guest
    guest.close()


def test_create_fresh_memory_has_nothing_populated(memory: GuestMemory) -> None:
    assert (memory.ram_bytes, memory.page_count) == (RAM_BYTES, 256)
    assert len(memory.populated_runs()) == 0
    assert os.fstat(memory.fd).st_size == RAM_BYTES
    assert not os.get_inheritable(memory.fd)


@pytest.mark.parametrize("ram_bytes", [0, -PAGE_BYTES, PAGE_BYTES + 1])
def test_create_size_not_in_pages_is_refused(ram_bytes: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        GuestMemory.create("test-ram", ram_bytes)


def test_mapped_more_than_an_address_space_holds_is_typed() -> None:
    guest = GuestMemory.create("test-ram", 2**50)
    with pytest.raises(MemoryAllocationError) as refused, guest.mapped():
        pass
    assert (refused.value.operation, refused.value.ram_bytes) == ("mmap", 2**50)
    guest.close()


def test_create_sealed_size_can_not_be_shortened(memory: GuestMemory) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, PAGE_BYTES)


def test_populated_runs_written_pages_are_listed_without_filling_holes(memory: GuestMemory) -> None:
    with memory.mapped() as mapped:
        mapped.pages[3] = 7
        mapped.pages[10:13] = 8
        mapped.view[255 * PAGE_BYTES] = 9
    assert memory.populated_runs().tolist() == [[3, 1], [10, 3], [255, 1]]
    assert memory.populated_runs().tolist() == [[3, 1], [10, 3], [255, 1]]


def test_mapped_view_and_pages_are_the_same_bytes(memory: GuestMemory) -> None:
    with memory.mapped() as mapped:
        mapped.pages[2, 5] = 42
        assert mapped.view[2 * PAGE_BYTES + 5] == 42
        assert mapped.pages.shape == (256, PAGE_BYTES)
    with memory.mapped() as again:
        assert again.view[2 * PAGE_BYTES + 5] == 42


def test_mapped_read_only_refuses_writes(memory: GuestMemory) -> None:
    with memory.mapped(writable=False) as mapped:
        assert mapped.view.readonly
        with pytest.raises(ValueError, match="read-only"):
            mapped.pages[0] = 1


def test_mapped_left_is_unmapped_and_unusable(memory: GuestMemory) -> None:
    with memory.mapped() as mapped:
        view = mapped.view
        assert "memfd:test-ram" in _maps()
    assert "memfd:test-ram" not in _maps()
    with pytest.raises(MemoryClosedError):
        _ = mapped.view
    with pytest.raises(MemoryClosedError):
        _ = mapped.pages
    with pytest.raises(ValueError, match="released"):
        _ = view[0]


@pytest.mark.parametrize("shape", ["memoryview", "array"])
def test_mapped_left_with_a_view_held_is_a_clear_error(memory: GuestMemory, shape: str) -> None:
    held: object = None
    with pytest.raises(MemoryStillViewedError), memory.mapped() as mapped:
        held = mapped.view[8:16] if shape == "memoryview" else mapped.pages[1:2]
    assert "memfd:test-ram" in _maps(), "what the view points at must stay mapped"
    del held, mapped
    assert "memfd:test-ram" not in _maps()


def test_mapped_block_fails_with_a_view_held_keeps_its_own_error(memory: GuestMemory) -> None:
    def copy_that_fails() -> None:
        with memory.mapped() as mapped:
            held = mapped.view[8:16]
            raise RuntimeError(f"copy failed after {len(held)} bytes")

    with pytest.raises(RuntimeError, match="copy failed") as failed:
        copy_that_fails()
    assert any("still held" in note for note in failed.value.__notes__)


def test_clear_populated_memory_reads_zero_and_is_unpopulated(memory: GuestMemory) -> None:
    with memory.mapped() as mapped:
        mapped.pages[:] = 0xAA
        memory.clear()
        assert len(memory.populated_runs()) == 0
        assert not mapped.pages.any()
    assert os.fstat(memory.fd).st_size == RAM_BYTES


def test_from_fd_duplicate_shares_the_memory(memory: GuestMemory) -> None:
    with memory.mapped() as mapped:
        mapped.pages[1] = 5
    other = GuestMemory.from_fd(os.dup(memory.fd), RAM_BYTES)
    try:
        with other.mapped() as mapped:
            assert np.array_equal(mapped.pages[1], np.full(PAGE_BYTES, 5, dtype=np.uint8))
    finally:
        other.close()


def test_from_fd_wrong_size_or_kind_is_refused_and_fd_stays_the_callers(memory: GuestMemory) -> None:
    with pytest.raises(MemoryAdoptionError):
        GuestMemory.from_fd(memory.fd, RAM_BYTES * 2)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as plain:
        plain.truncate(RAM_BYTES)
        os.ftruncate(unsealed, RAM_BYTES)
        for wrong in (unsealed, read_end, plain.fileno()):
            with pytest.raises(MemoryAdoptionError):
                GuestMemory.from_fd(wrong, RAM_BYTES)
            assert fcntl.fcntl(wrong, fcntl.F_GETFD) >= 0
    for fd in (unsealed, read_end, write_end):
        os.close(fd)


def test_close_twice_is_harmless_and_later_use_is_typed() -> None:
    guest = GuestMemory.create("test-ram", RAM_BYTES)
    guest.close()
    guest.close()
    with pytest.raises(MemoryClosedError):
        _ = guest.fd


def _maps() -> str:
    with open("/proc/self/maps", encoding="ascii") as maps:
        return maps.read()
