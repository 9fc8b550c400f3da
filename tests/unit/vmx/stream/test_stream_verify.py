"""Digest tables, the bandwidth cap, and the stream specification's own checks."""

import dataclasses
import threading

import numpy as np
import pytest

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.stream.bandwidth import BandwidthCap
from vmx.stream.errors import LayoutMismatch, SpecInvalid
from vmx.stream.spec import ReceiverSpec, StreamSecret, StreamSpec
from vmx.stream.verify import MAX_REPORTED_PAGES, compare, digest_memory, zero_table

SECRET = StreamSecret(7, bytes(32), bytes(32))
SPEC = StreamSpec(SECRET, "127.0.2.1", "127.0.2.2", 8000, 1 << 20)
RECEIVER = ReceiverSpec(SECRET, "127.0.2.2", ("127.0.2.1",))


def test_digest_memory_empty_equals_zero_table_and_stays_empty() -> None:
    memory = GuestMemory.create("digest", 64 * PAGE_BYTES)
    try:
        assert compare(digest_memory(memory), zero_table(64)).equal
        assert len(memory.populated_runs()) == 0
    finally:
        memory.close()


def test_digest_memory_one_bit_changed_names_the_page() -> None:
    memory = GuestMemory.create("digest", 600 * PAGE_BYTES)
    try:
        with memory.mapped() as mapped:
            mapped.pages[:] = np.random.default_rng(1).integers(
                0, 256, size=(600, PAGE_BYTES), dtype=np.uint8
            )
        before = digest_memory(memory)
        with memory.mapped() as mapped:
            mapped.pages[513, 4095] ^= 1
        found = compare(before, digest_memory(memory))
        assert (found.equal, found.differing_count, found.differing_pages) == (False, 1, (513,))
    finally:
        memory.close()


def test_compare_many_differences_reports_a_bounded_list() -> None:
    table = zero_table(1000)
    found = compare(table, table + np.uint64(1))
    assert found.differing_count == 1000
    assert found.differing_pages == tuple(range(MAX_REPORTED_PAGES))


def test_compare_other_length_raises() -> None:
    with pytest.raises(LayoutMismatch):
        compare(zero_table(3), zero_table(4))


def test_bandwidth_cap_books_bytes_at_the_cap() -> None:
    now = [100.0]
    cap = BandwidthCap(1000, clock=lambda: now[0])
    assert cap.reserve(500) == 0.0
    assert cap.reserve(500) == pytest.approx(0.5)
    now[0] += 0.75
    assert cap.reserve(100) == pytest.approx(0.25)


def test_bandwidth_cap_pause_gives_only_a_short_burst() -> None:
    now = [0.0]
    cap = BandwidthCap(1000, clock=lambda: now[0])
    now[0] = 60.0
    assert cap.reserve(50) == 0.0
    assert cap.reserve(100) == 0.0
    assert cap.reserve(1) == pytest.approx(0.1)


def test_bandwidth_cap_none_never_waits() -> None:
    assert BandwidthCap(0).reserve(10**15) == 0.0


def test_bandwidth_cap_stopped_returns_at_once() -> None:
    cap = BandwidthCap(1)
    cap.take(10**9)
    waiting = threading.Thread(target=cap.take, args=(1,), daemon=True)
    waiting.start()
    cap.stop()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_address", "esx01"),
        ("destination_address", ""),
        ("port", 0),
        ("channel_count", 0),
        ("channel_count", 17),
        ("bandwidth_bytes_per_s", -1),
        ("secret", StreamSecret(0, bytes(32), bytes(32))),
        ("secret", StreamSecret(2**63, bytes(32), bytes(32))),
        ("secret", StreamSecret(1, bytes(16), bytes(32))),
        ("secret", StreamSecret(1, bytes(32), b"")),
        ("ram_bytes", 4095),
    ],
)
def test_stream_spec_senseless_raises(field: str, value: object) -> None:
    with pytest.raises(SpecInvalid):
        dataclasses.replace(SPEC, **{field: value}).check()  # type: ignore[arg-type]


def test_receiver_spec_without_sources_raises() -> None:
    with pytest.raises(SpecInvalid):
        dataclasses.replace(RECEIVER, source_addresses=()).check()


def test_specs_that_make_sense_pass() -> None:
    SPEC.check()
    RECEIVER.check()


def test_secret_never_shows_in_its_repr() -> None:
    shown = repr(StreamSecret(1, b"K" * 32, b"T" * 32))
    assert "KK" not in shown
    assert "TT" not in shown
