"""The tracers' contract, kept by both, against a real process that writes its memory while it is traced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from tests.framework.fake_ram_writer import FakeRamWriter, fake_ram_writer
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, page_indexes, page_total, split
from vmx.trace.errors import TargetGoneError, TargetMappingError, TracerStateError
from vmx.trace.hash_scan import HashScanTracer
from vmx.trace.pagemap_scan import PagemapScanTracer, end_leftover_tracing
from vmx.trace.tracer import Tracer, TracerKind, TraceTarget
from vmx.trace.userfault import find_userfaultfd, obtain_userfaultfd

PAGE_COUNT = 4096
RAM_BYTES = PAGE_COUNT * PAGE_BYTES


@dataclass
class Copy:
    """A destination: receives pages as a sender would send them, straight or from a copy, as the tracer wants it."""

    memory: GuestMemory
    tracer: Tracer
    pages: npt.NDArray[np.uint8] = field(
        default_factory=lambda: np.zeros((PAGE_COUNT, PAGE_BYTES), dtype=np.uint8)
    )

    def send(self, runs: PageRuns) -> None:
        with self.memory.mapped(writable=False) as source:
            for first, count in split(runs, 64).tolist():
                if self.tracer.sends_from_copy:
                    copied = bytes(source.view[first * PAGE_BYTES : (first + count) * PAGE_BYTES])
                    self.tracer.record_sent(first, memoryview(copied))
                    self.pages[first : first + count] = np.frombuffer(copied, dtype=np.uint8).reshape(
                        -1, PAGE_BYTES
                    )
                else:
                    self.pages[first : first + count] = source.pages[first : first + count]

    def assert_equals_source(self) -> None:
        with self.memory.mapped(writable=False) as source:
            differing = np.flatnonzero((source.pages != self.pages).any(axis=1))
        assert differing.size == 0, f"{differing.size} pages differ, the first is {differing[0]}"


@dataclass
class Rig:
    """A fake guest, its tracer and a destination."""

    guest: FakeRamWriter
    target: TraceTarget
    tracer: Tracer
    copy: Copy

    def attempt(self) -> None:
        """Trace, and send phase -1 to a destination of zeros."""
        self.copy = Copy(self.target.memory, self.tracer)
        self.copy.send(self.tracer.start())


Build = Callable[[str], Rig]
MAKERS: dict[TracerKind, Callable[[TraceTarget], Tracer]] = {
    TracerKind.PAGEMAP_SCAN: PagemapScanTracer,
    TracerKind.HASH_SCAN: HashScanTracer,
}


@pytest.fixture(params=list(TracerKind))
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    with ExitStack() as stack:

        def build_rig(layout: str) -> Rig:
            memory = GuestMemory.create("test-ram", RAM_BYTES)
            stack.callback(memory.close)
            guest = stack.enter_context(fake_ram_writer(memory, layout))
            fd = obtain_userfaultfd(guest.pid)
            stack.callback(os.close, fd)
            target = TraceTarget(guest.pid, memory, fd)
            tracer: Tracer = MAKERS[request.param](target)
            stack.callback(tracer.stop)
            return Rig(guest, target, tracer, Copy(memory, tracer))

        yield build_rig


@pytest.fixture
def rig(build: Build) -> Rig:
    return build("whole")


def test_start_some_pages_populated_returns_exactly_them(rig: Rig) -> None:
    rig.guest.write(10, 5, 1)
    rig.guest.write(4000, 1, 1)
    assert rig.tracer.start().tolist() == [[10, 5], [4000, 1]]


@pytest.mark.parametrize("layout", ["whole", "pieces", "twice"])
def test_collect_pages_written_are_reported_once(build: Build, layout: str) -> None:
    rig = build(layout)
    rig.guest.write(0, 3000, 1)
    rig.attempt()
    assert page_total(rig.tracer.collect()) == 0
    written = [0, 1, 7, 2047, 2048, 2999, 3500, PAGE_COUNT - 1]
    rig.guest.stamp(written, 2)
    collected = rig.tracer.collect()
    assert page_indexes(collected).tolist() == written
    rig.copy.send(collected)
    assert page_total(rig.tracer.collect()) == 0
    rig.copy.assert_equals_source()


def test_collect_more_ranges_than_one_scan_takes_reports_all(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmx.trace.pagemap_scan._RANGES_PER_SCAN", 7)
    rig.guest.write(0, PAGE_COUNT, 1)
    rig.attempt()
    every_other = list(range(0, PAGE_COUNT, 2))
    rig.guest.stamp(every_other, 2)
    assert page_indexes(rig.tracer.collect()).tolist() == every_other


def test_collect_write_between_start_and_copy_is_reported_or_copied(rig: Rig) -> None:
    rig.guest.write(0, 100, 1)
    first = rig.tracer.start()
    rig.guest.stamp([5, 50], 2)
    rig.copy.send(first)
    rig.copy.send(rig.tracer.collect())
    rig.copy.assert_equals_source()


def test_collect_write_between_collect_and_copy_is_reported_or_copied(rig: Rig) -> None:
    rig.guest.write(0, 100, 1)
    rig.attempt()
    rig.guest.stamp([5, 50], 2)
    collected = rig.tracer.collect()
    rig.guest.stamp([5, 60], 3)
    rig.copy.send(collected)
    rig.copy.send(rig.tracer.collect())
    rig.copy.assert_equals_source()


def test_collect_page_changed_for_the_copy_and_changed_back_is_not_lost(rig: Rig) -> None:
    rig.guest.write(0, 100, 1)
    rig.attempt()
    rig.guest.stamp([5], 2)
    collected = rig.tracer.collect()
    rig.guest.stamp([5], 3)
    rig.copy.send(collected)
    rig.guest.stamp([5], 2)
    rig.copy.send(rig.tracer.collect())
    rig.copy.assert_equals_source()


def test_collect_writes_to_holes_are_reported(rig: Rig) -> None:
    rig.guest.write(0, 10, 1)
    rig.attempt()
    rig.guest.write(1000, 2, 9)
    rig.guest.stamp([3000], 9)
    collected = rig.tracer.collect()
    assert collected.tolist() == [[1000, 2], [3000, 1]]
    rig.copy.send(collected)
    rig.copy.assert_equals_source()


def test_collect_pages_only_read_are_not_reported(rig: Rig) -> None:
    rig.guest.write(0, 10, 1)
    rig.attempt()
    rig.guest.read(0, 10)
    rig.guest.read(2000, 50)
    assert page_total(rig.tracer.collect()) == 0


def test_collect_write_storm_during_scans_and_copies_loses_nothing(rig: Rig) -> None:
    rig.guest.write(0, PAGE_COUNT // 2, 1)
    rig.guest.start_storm(3)
    rig.attempt()
    for _ in range(25):
        rig.copy.send(rig.tracer.collect())
    assert rig.guest.stop_storm() > 0
    rig.copy.send(rig.tracer.collect())
    rig.copy.assert_equals_source()
    assert page_total(rig.tracer.collect()) == 0


def test_start_after_stop_is_a_full_copy_again(rig: Rig) -> None:
    rig.guest.write(0, 100, 1)
    rig.attempt()
    rig.guest.stamp([3, 2000], 2)
    rig.tracer.collect()
    rig.tracer.stop()
    rig.guest.stamp([4, 2001], 2)
    for _ in range(2):
        rig.attempt()
        rig.copy.assert_equals_source()
        rig.guest.stamp([7, 2002], 3)
        rig.copy.send(rig.tracer.collect())
        rig.copy.assert_equals_source()
        rig.tracer.stop()


def test_stop_guest_pays_nothing_for_writes_afterwards(rig: Rig) -> None:
    rig.guest.write(0, 1000, 1)
    rig.attempt()
    rig.guest.write(0, 500, 2)
    rig.tracer.collect()
    rig.tracer.stop()
    # A page's first write may take one ordinary fault, in which the kernel makes it writable again.
    before = rig.guest.minor_faults()
    rig.guest.write(0, 1000, 3)
    assert rig.guest.minor_faults() - before < 1100
    before = rig.guest.minor_faults()
    rig.guest.write(0, 1000, 4)
    assert rig.guest.minor_faults() - before < 20


def test_calls_out_of_order_are_refused_and_harm_nothing(rig: Rig) -> None:
    with pytest.raises(TracerStateError):
        rig.tracer.collect()
    rig.tracer.stop()
    rig.guest.write(0, 10, 1)
    rig.attempt()
    with pytest.raises(TracerStateError):
        rig.tracer.start()
    rig.guest.stamp([4], 2)
    rig.copy.send(rig.tracer.collect())
    rig.copy.assert_equals_source()
    rig.tracer.stop()
    rig.tracer.stop()


def test_stop_guest_dead_is_fine(rig: Rig) -> None:
    rig.guest.write(0, 10, 1)
    rig.attempt()
    rig.guest.kill()
    rig.tracer.stop()
    rig.tracer.stop()
    with pytest.raises(TracerStateError):
        rig.tracer.collect()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest_memory = GuestMemory.create("test-ram", RAM_BYTES)
    yield guest_memory
    guest_memory.close()


@pytest.mark.parametrize("reaped", [True, False])
def test_pagemap_scan_guest_dies_while_traced_says_so(memory: GuestMemory, reaped: bool) -> None:
    with fake_ram_writer(memory) as guest, ExitStack() as stack:
        fd = obtain_userfaultfd(guest.pid)
        stack.callback(os.close, fd)
        tracer = PagemapScanTracer(TraceTarget(guest.pid, memory, fd))
        tracer.start()
        guest.process.kill()
        if reaped:
            guest.process.wait()
        else:
            os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetGoneError):
            tracer.collect()
        with pytest.raises(TracerStateError):
            tracer.collect()
        tracer.stop()
        with pytest.raises(TargetGoneError):
            tracer.start()


def test_pagemap_scan_memory_not_mapped_there_is_refused(memory: GuestMemory) -> None:
    other = GuestMemory.create("other-ram", RAM_BYTES)
    with fake_ram_writer(other) as guest, ExitStack() as stack:
        stack.callback(other.close)
        fd = obtain_userfaultfd(guest.pid)
        stack.callback(os.close, fd)
        tracer = PagemapScanTracer(TraceTarget(guest.pid, memory, fd))
        with pytest.raises(TargetMappingError):
            tracer.start()
        with pytest.raises(TracerStateError):
            tracer.collect()


def test_pagemap_scan_adopter_finds_the_descriptor_and_traces(memory: GuestMemory) -> None:
    with fake_ram_writer(memory) as guest, ExitStack() as stack:
        guest.write(0, 100, 1)
        first = obtain_userfaultfd(guest.pid)
        PagemapScanTracer(TraceTarget(guest.pid, memory, first)).start()
        os.close(first)  # as the end of a vmx in the middle of a migration does

        found = find_userfaultfd(guest.pid)
        assert found is not None
        stack.callback(os.close, found)
        target = TraceTarget(guest.pid, memory, found)
        end_leftover_tracing(target)
        guest.write(0, 100, 2)
        before = guest.minor_faults()
        guest.write(0, 100, 3)
        assert guest.minor_faults() - before < 20

        tracer = PagemapScanTracer(target)
        assert tracer.start().tolist() == [[0, 100]]
        guest.stamp([9], 4)
        assert tracer.collect().tolist() == [[9, 1]]
        tracer.stop()
