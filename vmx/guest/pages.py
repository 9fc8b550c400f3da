"""Pure: no I/O, no clock, no logging. Sets of guest pages, kept as runs.

Tracer, policy, sender and receiver all speak of "these pages of guest RAM". Two gigabytes are half a million
pages, so a set of them is one numpy array and every operation on it is a few vector operations; nothing here
loops over pages in Python.

PageRuns is an int64 array of shape (n, 2); a row is [first_page, page_count]:

    [[ 0, 3],        pages 0 1 2
     [ 7, 1],        page  7
     [ 8, 2]]        pages 8 9

Rows are sorted by first_page, never empty, and disjoint; rows that touch (as the last two) are allowed, since
`split` makes them. `runs_from_bounds`, `union`, `subtract` and `complement` join rows that touch. A page is
PAGE_BYTES long on every architecture supported.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096

PageRuns = npt.NDArray[np.int64]


class PageRunsError(ValueError):
    """An array is not a valid PageRuns for this memory: `reason` says which rule it breaks, `row` where
    (None when it is the array as a whole)."""

    def __init__(self, reason: str, row: int | None = None) -> None:
        where = "" if row is None else f" (row {row})"
        super().__init__(f"not a valid list of page runs: {reason}{where}")
        self.reason = reason
        self.row = row


def empty_runs() -> PageRuns:
    """A set with no page in it."""
    return np.empty((0, 2), dtype=np.int64)


def page_total(runs: PageRuns) -> int:
    """How many pages the set holds."""
    return int(runs[:, 1].sum())


def runs_from_bounds(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> PageRuns:
    """The set covered by the half-open page ranges [starts[i], ends[i]): any order, overlapping or empty."""
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    if starts.size == 0:
        return empty_runs()
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    opens = np.empty(starts.size, dtype=bool)
    opens[0] = True
    np.greater(starts[1:], reach[:-1], out=opens[1:])
    first = starts[opens]
    last = np.append(np.flatnonzero(opens)[1:] - 1, starts.size - 1)
    return np.column_stack((first, reach[last] - first))


def runs_from_bool(mask: npt.NDArray[np.bool_]) -> PageRuns:
    """The set of the pages whose entry in `mask` (one entry per page) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    bounds = edges.astype(np.int64).reshape(-1, 2)
    return np.column_stack((bounds[:, 0], bounds[:, 1] - bounds[:, 0]))


def runs_from_indexes(indexes: npt.NDArray[np.int64]) -> PageRuns:
    """The set of the page numbers in `indexes`, which must be sorted; a page named twice counts once."""
    if indexes.size == 0:
        return empty_runs()
    wide = indexes.astype(np.int64, copy=False)
    opens = np.flatnonzero(np.concatenate(([True], np.diff(wide) > 1)))
    first = wide[opens]
    last = wide[np.append(opens[1:] - 1, wide.size - 1)]
    return np.column_stack((first, last - first + 1))


def page_indexes(runs: PageRuns) -> npt.NDArray[np.int64]:
    """Every page number of the set, sorted."""
    first, count = runs[:, 0], runs[:, 1]
    begins = np.cumsum(count) - count
    return np.repeat(first - begins, count) + np.arange(int(count.sum()), dtype=np.int64)


def split(runs: PageRuns, max_pages: int) -> PageRuns:
    """The same set with no row longer than `max_pages`.

    :raises PageRunsError: `max_pages` is not positive.
    """
    if max_pages < 1:
        raise PageRunsError(f"a run can't be split into pieces of {max_pages} pages")
    first, count = runs[:, 0], runs[:, 1]
    pieces = -(-count // max_pages)
    begins = np.cumsum(pieces) - pieces
    within = np.arange(int(pieces.sum()), dtype=np.int64) - np.repeat(begins, pieces)
    starts = np.repeat(first, pieces) + within * max_pages
    counts = np.minimum(np.repeat(count, pieces) - within * max_pages, max_pages)
    return np.column_stack((starts, counts))


def union(a: PageRuns, b: PageRuns) -> PageRuns:
    """The pages in `a` or in `b`, rows that touch joined."""
    both = np.concatenate((a, b))
    return runs_from_bounds(both[:, 0], both[:, 0] + both[:, 1])


def intersect(a: PageRuns, b: PageRuns) -> PageRuns:
    """The pages in both `a` and `b`, rows that touch joined."""
    both = np.concatenate((a, b))
    edges = np.concatenate((both[:, 0], both[:, 0] + both[:, 1]))
    steps = np.concatenate((np.ones(len(both), dtype=np.int64), np.full(len(both), -1, dtype=np.int64)))
    order = np.argsort(edges, kind="stable")
    edges, depth = edges[order], np.cumsum(steps[order])
    covered_twice = np.flatnonzero(depth[:-1] == 2)
    return runs_from_bounds(edges[covered_twice], edges[covered_twice + 1])


def complement(runs: PageRuns, page_count: int) -> PageRuns:
    """The pages of a memory of `page_count` pages that are not in the set."""
    starts = np.concatenate((np.zeros(1, dtype=np.int64), runs[:, 0] + runs[:, 1]))
    ends = np.append(runs[:, 0], np.int64(page_count))
    return runs_from_bounds(starts, ends)


def subtract(a: PageRuns, b: PageRuns) -> PageRuns:
    """The pages in `a` that are not in `b`, rows that touch joined."""
    if len(a) == 0:
        return empty_runs()
    return intersect(a, complement(b, int(a[-1, 0] + a[-1, 1])))


def validate(runs: PageRuns, page_count: int) -> None:
    """Check an array that came from outside against a memory of `page_count` pages.

    :raises PageRunsError: wrong type or shape, a row that is empty, reaches outside the memory, or is not
        behind the row before it.
    """
    if runs.dtype != np.int64 or runs.ndim != 2 or runs.shape[1] != 2:
        raise PageRunsError(f"int64 of shape (n, 2) expected, {runs.dtype} of shape {runs.shape} found")
    first, count = runs[:, 0], runs[:, 1]
    _refuse("page count not positive", count < 1)
    _refuse("negative page number", first < 0)
    # The sum first + count could overflow with hostile numbers; the difference can't, both being positive.
    _refuse(f"beyond the last of {page_count} pages", (first > page_count) | (count > page_count - first))
    _refuse("overlaps or precedes the row before", np.append(False, first[1:] < first[:-1] + count[:-1]))


def _refuse(reason: str, bad: npt.NDArray[np.bool_]) -> None:
    if bad.any():
        raise PageRunsError(reason, int(np.argmax(bad)))
