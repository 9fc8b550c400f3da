"""Which tracer is taken, and that the log says why."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.trace.errors import TracerUnavailable
from vmx.trace.tracer import TracerKind, TraceTarget, choose_tracer


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory.create("test-ram", 16 * PAGE_BYTES)
    yield guest
    guest.close()


def test_choose_without_userfaultfd_falls_back_to_hashes_and_says_why(memory: GuestMemory) -> None:
    with structlog.testing.capture_logs() as logs:
        tracer = choose_tracer(TraceTarget(os.getpid(), memory, None), None, structlog.get_logger())
    assert tracer.kind is TracerKind.HASH_SCAN
    (line,) = logs
    assert (line["event"], line["tracer"]) == ("tracer_chosen", "hash_scan")
    assert "no userfaultfd" in line["reason"]


def test_choose_pagemap_forced_but_unavailable_is_an_error(memory: GuestMemory) -> None:
    with pytest.raises(TracerUnavailable):
        choose_tracer(TraceTarget(os.getpid(), memory, None), TracerKind.PAGEMAP_SCAN, structlog.get_logger())


def test_choose_hash_forced_is_taken(memory: GuestMemory) -> None:
    target = TraceTarget(os.getpid(), memory, None)
    assert choose_tracer(target, TracerKind.HASH_SCAN, structlog.get_logger()).kind is TracerKind.HASH_SCAN
