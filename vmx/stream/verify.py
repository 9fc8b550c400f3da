"""Proof that two guest memories are equal: one digest per page, two tables compared.

A digest is xxh3_64 of the page's 4096 bytes: two pages that differ by accident have the same one with a chance of
2**-64. It is no defence against a forger; the stream's records are. A page that never came, or that is a hole, has the
digest of a zero page, so holes cost nothing.

The destination keeps its table up to date while pages arrive (receiver.py); the source makes its own when its RAM is
frozen, which may be after the destination has resumed: the stun does not grow.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, split
from vmx.stream.errors import LayoutMismatch

DigestTable = NDArray[np.uint64]

ZERO_PAGE_DIGEST: Final[int] = xxhash.xxh3_64_intdigest(bytes(PAGE_BYTES))
MAX_REPORTED_PAGES: Final = 64
# The interpreter's lock is held over a piece: 256 pages are about 70 us, short beside the 5 ms switch interval.
_PIECE_PAGES: Final = 256


@dataclass(frozen=True)
class Comparison:
    """What two tables say: how many pages differ, and the first of them (at most MAX_REPORTED_PAGES)."""

    page_count: int
    differing_count: int
    differing_pages: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Every page of one memory matches its page in the other."""
        return self.differing_count == 0


def digest_pages(pages: NDArray[np.uint8]) -> DigestTable:
    """The digest of each row of `pages` (shape (n, 4096), rows contiguous)."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, pages), dtype=np.uint64, count=len(pages))


def zero_table(page_count: int) -> DigestTable:
    """The table of a memory that nothing was written to."""
    return np.full(page_count, ZERO_PAGE_DIGEST, dtype=np.uint64)


def digest_runs_into(table: DigestTable, pages: NDArray[np.uint8], runs: PageRuns) -> None:
    """Digest the pages of `runs` as they lie in `pages` (all of RAM) into their places in `table`."""
    for first, count in split(runs, _PIECE_PAGES).tolist():
        table[first : first + count] = digest_pages(pages[first : first + count])


def digest_memory(memory: GuestMemory) -> DigestTable:
    """The table of a frozen guest RAM. Blocking: for a thread. Holes are neither read nor filled.

    :raises GuestMemoryError: the memory can't be mapped.
    """
    table = zero_table(memory.page_count)
    runs = memory.populated_runs()
    with memory.mapped(writable=False) as mapped:
        digest_runs_into(table, mapped.pages, runs)
    return table


def compare(source: DigestTable, destination: DigestTable) -> Comparison:
    """Compare two tables page by page.

    :raises LayoutMismatch: they are of different lengths.
    """
    if len(source) != len(destination):
        raise LayoutMismatch(len(source) * PAGE_BYTES, len(destination) * PAGE_BYTES)
    differing = np.flatnonzero(source != destination)
    first = tuple(differing[:MAX_REPORTED_PAGES].tolist())
    return Comparison(len(source), len(differing), first)
