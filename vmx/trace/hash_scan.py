"""The fallback tracer, good on every kernel: a page is to be sent when its hash differs from what was last sent.

The rule that makes it exact: a page's hash is taken from the very bytes that go out. The sender copies pages to a
buffer of its own, hands that to record_sent(), and sends the buffer. Were the hash taken from guest RAM, a little
before or after the copy, this could happen, and does with every lock word that flips to and fro:

    hash of page: A      copy sent: B      final hash, guest stopped: A   -> "unchanged", and the destination has B

With the hash of what was sent (B) the final scan sees A, differs, and sends it. A page that was listed but never
recorded stays listed, so a sender that forgets to record converges never, and loses nothing either.

A page that nobody touched is a hole in the memfd. Holes read as zeros at both ends, count as sent, and are neither read
(that would fill them) nor hashed.

Hash: xxh3, 128 bits, so that two contents meet by chance once in 2^64 pages seen. It isn't proof against an adversary,
who could only spoil his own guest with it.

Cost: start() is that of SEEK_DATA. Each collect() reads all populated memory, 10-16 GB/s on one core (250-350 ns
a page, of which a third is Python's call), so 2 GiB take 0.14-0.2 s, in the stun too; record_sent() together with
the sender's copy 4 GB/s. 16 bytes of memory per page. One-shot calls on slices of the mapping were the cheapest
way: 128-bit digests joined as bytes beat 64-bit ones turned into Python integers. Hashing larger blocks first to
skip what is unchanged would gain a third and no more, memory being the limit. The GIL is held except at the
interpreter's switch interval (5 ms): a call in a thread delays the event loop by that much at a time.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import xxhash

from vmx.guest.memory import MappedMemory
from vmx.guest.pages import (
    PAGE_BYTES,
    PageRuns,
    complement,
    page_indexes,
    runs_from_bool,
    split,
)
from vmx.trace.contract import TracerKind, TraceTarget
from vmx.trace.errors import TracerStateError

_HASH_BYTES = 16
_CHUNK_PAGES = 1024

_Hashes = npt.NDArray[np.uint64]  # shape (n, 2)


class HashScanTracer:
    """Tracer by comparing hashes; see the module. The target's process isn't touched."""

    kind = TracerKind.HASH_SCAN
    sends_from_copy = True

    def __init__(self, target: TraceTarget) -> None:
        self._memory = target.memory
        self._stack = ExitStack()
        self._mapped: MappedMemory | None = None
        self._sent: _Hashes = np.empty((0, 2), dtype=np.uint64)
        self._unsent: npt.NDArray[np.bool_] = np.empty(0, dtype=bool)

    def start(self) -> PageRuns:
        """See Tracer.start."""
        if self._mapped is not None:
            raise TracerStateError("start", "tracing")
        mapped = self._stack.enter_context(self._memory.mapped(writable=False))
        try:
            populated = self._memory.populated_runs()
            self._sent = np.repeat(_ZERO_PAGE_HASH, self._memory.page_count, axis=0)
            self._unsent = np.zeros(self._memory.page_count, dtype=bool)
            self._unsent[page_indexes(populated)] = True
        except BaseException:
            self.stop()
            raise
        self._mapped = mapped
        return populated

    def collect(self) -> PageRuns:
        """See Tracer.collect."""
        if self._mapped is None:
            raise TracerStateError("collect", "stopped")
        populated = self._memory.populated_runs()
        differs = self._unsent.copy()
        for first, count in split(populated, _CHUNK_PAGES).tolist():
            chunk = slice(first, first + count)
            if differs[chunk].all():
                continue  # all to be sent anyway
            current = _hash_pages(self._mapped.view[first * PAGE_BYTES : (first + count) * PAGE_BYTES])
            differs[chunk] |= (current != self._sent[chunk]).any(axis=1)
        # A page that was given back (a hole again) reads as zeros now.
        for first, count in complement(populated, self._memory.page_count).tolist():
            chunk = slice(first, first + count)
            differs[chunk] |= (self._sent[chunk] != _ZERO_PAGE_HASH).any(axis=1)
        return runs_from_bool(differs)

    def record_sent(self, first_page: int, copied: memoryview) -> None:
        """See Tracer.record_sent."""
        if self._mapped is None:
            raise TracerStateError("record_sent", "stopped")
        count, rest = divmod(copied.nbytes, PAGE_BYTES)
        if rest or first_page < 0 or first_page + count > self._memory.page_count:
            raise ValueError(f"{copied.nbytes} bytes at page {first_page} are not whole pages of guest RAM")
        self._sent[first_page : first_page + count] = _hash_pages(copied)
        self._unsent[first_page : first_page + count] = False

    def stop(self) -> None:
        """See Tracer.stop."""
        self._mapped = None
        self._sent = np.empty((0, 2), dtype=np.uint64)
        self._unsent = np.empty(0, dtype=bool)
        self._stack.close()


def _hash_pages(pages: memoryview) -> _Hashes:
    digest = xxhash.xxh3_128_digest
    digests = [digest(pages[at : at + PAGE_BYTES]) for at in range(0, pages.nbytes, PAGE_BYTES)]
    return np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, _HASH_BYTES // 8)


_ZERO_PAGE_HASH = _hash_pages(memoryview(bytes(PAGE_BYTES)))
