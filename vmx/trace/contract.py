"""What every page tracer promises, so that pre-copy never asks which one it has.

    stopped ──start()──> tracing ──collect()──> tracing
       ^                    │  │
       └──────stop()────────┘  └─ScanError─> broken ──stop()──> stopped

The contract, for a guest that goes on writing all the time:

- start() returns the pages to send first. Every page not in it reads as zeros, at the destination too.
- Every page written after start() or a collect() began is in a later collect(), unless the guest put back the
  very bytes that were sent.
- So after a collect() made while the guest can't run, sending what it returned makes both memories equal.

Pages must be read for sending after the call that returned them. A failed attempt has consumed what it had
collected: after stop() only a new start(), a full copy, is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PageRuns


class TracerKind(StrEnum):
    """How written pages are found."""

    PAGEMAP_SCAN = "pagemap_scan"
    HASH_SCAN = "hash_scan"


@dataclass(frozen=True)
class TraceTarget:
    """The guest to trace: its process, its RAM, and the userfaultfd of its address space if there is one. The
    descriptors stay the caller's, and open as long as a tracer of this target is used."""

    pid: int
    memory: GuestMemory
    userfault_fd: int | None


class Tracer(Protocol):
    """One guest's page tracer. start(), collect() and stop() block (call them in a thread, one at a time);
    record_sent() may be called by several sender threads at once, for different pages."""

    @property
    def kind(self) -> TracerKind:
        """How this tracer finds written pages."""

    @property
    def sends_from_copy(self) -> bool:
        """Whether the sender must copy pages to a buffer of its own, hand that to record_sent(), and send from
        that buffer. If false it may send straight from guest RAM and leave record_sent() out."""

    def start(self) -> PageRuns:
        """Begin tracing, then return the pages to send in phase -1.

        :raises TracerUnavailable: the kernel refuses; nothing is traced.
        :raises TraceError: see the tree in vmx.trace.errors; nothing is traced.
        """

    def collect(self) -> PageRuns:
        """The pages to send now: those written since start() or the last collect().

        :raises TracerStateError: not tracing.
        :raises TraceError: the tracer is broken until stop() and start().
        """

    def record_sent(self, first_page: int, copied: memoryview) -> None:
        """Take note that exactly the bytes `copied` were sent as the pages from `first_page` on.

        :raises TracerStateError: not tracing.
        :raises ValueError: not whole pages of this memory.
        """

    def stop(self) -> None:
        """End tracing; the guest pays nothing afterwards. Idempotent, and fine after the guest's process ended.

        :raises ScanError: the kernel refused to let go of a living process.
        """
