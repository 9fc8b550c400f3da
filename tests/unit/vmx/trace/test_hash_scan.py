"""The hash tracer's bookkeeping, without a guest: what counts as sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.trace.contract import TraceTarget
from vmx.trace.errors import TracerStateError
from vmx.trace.hash_scan import HashScanTracer


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory.create("hashed-ram", 64 * PAGE_BYTES)
    yield guest
    guest.close()


@pytest.fixture
def tracer(memory: GuestMemory) -> Iterator[HashScanTracer]:
    scanner = HashScanTracer(TraceTarget(0, memory, None))
    yield scanner
    scanner.stop()


def put(memory: GuestMemory, page: int, value: int) -> None:
    with memory.mapped() as mapped:
        mapped.pages[page] = value


def page_of(value: int) -> memoryview:
    return memoryview(bytes([value]) * PAGE_BYTES)


def test_collect_listed_but_never_recorded_stays_listed(memory: GuestMemory, tracer: HashScanTracer) -> None:
    put(memory, 3, 1)
    tracer.start()
    assert tracer.collect().tolist() == [[3, 1]]
    assert tracer.collect().tolist() == [[3, 1]]
    tracer.record_sent(3, page_of(1))
    assert tracer.collect().tolist() == []


def test_collect_sent_content_was_a_passing_one_is_listed(
    memory: GuestMemory, tracer: HashScanTracer
) -> None:
    put(memory, 3, 1)
    tracer.start()
    tracer.record_sent(3, page_of(2))
    assert tracer.collect().tolist() == [[3, 1]]


def test_collect_hole_filled_with_zeros_equals_what_the_destination_has(
    memory: GuestMemory, tracer: HashScanTracer
) -> None:
    tracer.start()
    put(memory, 5, 0)
    assert memory.populated_runs().tolist() == [[5, 1]]
    assert tracer.collect().tolist() == []


def test_collect_sent_page_punched_out_is_listed(memory: GuestMemory, tracer: HashScanTracer) -> None:
    put(memory, 3, 1)
    tracer.start()
    tracer.record_sent(3, page_of(1))
    memory.clear()
    assert tracer.collect().tolist() == [[3, 1]]
    assert len(memory.populated_runs()) == 0, "a scan fills no holes"


@pytest.mark.parametrize(
    ("page", "size"), [(-1, PAGE_BYTES), (64, PAGE_BYTES), (63, 2 * PAGE_BYTES), (0, 100)]
)
def test_record_sent_not_pages_of_this_memory_is_refused(
    tracer: HashScanTracer, page: int, size: int
) -> None:
    tracer.start()
    with pytest.raises(ValueError, match="whole pages"):
        tracer.record_sent(page, memoryview(bytes(size)))


def test_record_sent_stopped_is_refused(tracer: HashScanTracer) -> None:
    with pytest.raises(TracerStateError):
        tracer.record_sent(0, page_of(0))


def test_stop_unmaps_the_memory(memory: GuestMemory, tracer: HashScanTracer) -> None:
    tracer.start()
    tracer.stop()
    with open("/proc/self/maps", encoding="ascii") as maps:
        assert "memfd:hashed-ram" not in maps.read()
