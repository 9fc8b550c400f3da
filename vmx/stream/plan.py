"""Pure: no I/O, no clock, no logging. How the pages of one iteration are cut into frames.

Long runs are sent straight from guest RAM, at most MAX_FRAME_PAGES to a frame; short ones are pooled, so that
scattered pages also travel 256 to a frame. A plan is a few arrays: no page, and no run, is a Python object.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.guest.pages import PageRuns, split
from vmx.stream.frames import MAX_FRAME_PAGES

# Below 128 KiB the fixed cost of a frame (two records, one system call on each side) beats that of a gathering copy.
MIN_DIRECT_PAGES: Final = 32


class FramePlan:
    """The frames of one iteration, by number. Safe to read from many threads."""

    def __init__(self, runs: PageRuns) -> None:
        """Cut `runs` (a valid PageRuns) into frames."""
        long = runs[:, 1] >= MIN_DIRECT_PAGES
        self._direct = split(runs[long], MAX_FRAME_PAGES)
        self._pooled, self._offsets = _pool(runs[~long])

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self._direct) + len(self._offsets) - 1

    def runs(self, number: int) -> PageRuns:
        """The runs of frame `number`: sorted, disjoint, MAX_FRAME_PAGES pages at most."""
        if number < len(self._direct):
            return self._direct[number : number + 1]
        number -= len(self._direct)
        return self._pooled[self._offsets[number] : self._offsets[number + 1]]


def _pool(runs: PageRuns) -> tuple[PageRuns, NDArray[np.int64]]:
    """Cut the runs wherever the count of pages so far reaches a multiple of MAX_FRAME_PAGES.

    :returns: the cut runs, and the row at which each frame begins, with the end of the last one.
    """
    ends = np.cumsum(runs[:, 1])
    total = int(ends[-1]) if len(ends) else 0
    begins = ends - runs[:, 1]
    frame_begins = np.arange(0, total, MAX_FRAME_PAGES, dtype=np.int64)
    cuts = np.union1d(begins, frame_begins)
    row = np.searchsorted(ends, cuts, side="right")
    first = runs[row, 0] + cuts - begins[row]
    count = np.diff(cuts, append=total)
    offsets = np.append(np.searchsorted(cuts, frame_begins), len(cuts))
    return np.column_stack((first, count)), offsets
