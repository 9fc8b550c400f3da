"""Page runs against plain Python sets: every operation must give the set the definition says, in valid form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.guest import pages
from vmx.guest.pages import PageRuns, PageRunsError

PAGE_COUNT = 96
page_sets = st.sets(st.integers(0, PAGE_COUNT - 1))


def runs_of(numbers: set[int]) -> PageRuns:
    return pages.runs_from_indexes(np.array(sorted(numbers), dtype=np.int64))


def set_of(runs: PageRuns) -> set[int]:
    pages.validate(runs, PAGE_COUNT)
    assert pages.page_total(runs) == sum(int(count) for _, count in runs)
    return {first + offset for first, count in runs.tolist() for offset in range(count)}


@given(page_sets)
def test_runs_from_indexes_any_set_holds_exactly_it(numbers: set[int]) -> None:
    assert set_of(runs_of(numbers)) == numbers
    assert pages.page_indexes(runs_of(numbers)).tolist() == sorted(numbers)


@given(page_sets)
def test_runs_from_bool_any_mask_equals_runs_from_indexes(numbers: set[int]) -> None:
    mask = np.zeros(PAGE_COUNT, dtype=bool)
    mask[list(numbers)] = True
    assert np.array_equal(pages.runs_from_bool(mask), runs_of(numbers))


@given(page_sets, page_sets)
def test_set_operations_any_two_sets_follow_set_algebra(a: set[int], b: set[int]) -> None:
    assert set_of(pages.union(runs_of(a), runs_of(b))) == a | b
    assert set_of(pages.subtract(runs_of(a), runs_of(b))) == a - b
    assert set_of(pages.intersect(runs_of(a), runs_of(b))) == a & b
    assert set_of(pages.complement(runs_of(a), PAGE_COUNT)) == set(range(PAGE_COUNT)) - a


@given(page_sets, page_sets, st.integers(1, 7))
def test_set_operations_rows_that_touch_follow_set_algebra(a: set[int], b: set[int], longest: int) -> None:
    cut_a, cut_b = pages.split(runs_of(a), longest), pages.split(runs_of(b), longest)
    assert set_of(pages.union(cut_a, cut_b)) == a | b
    assert set_of(pages.subtract(cut_a, cut_b)) == a - b
    assert set_of(pages.intersect(cut_a, cut_b)) == a & b
    assert np.array_equal(pages.union(cut_a, pages.empty_runs()), runs_of(a)), "touching rows are joined"


@given(page_sets, st.integers(1, 100))
def test_split_any_limit_keeps_the_set_and_the_limit(numbers: set[int], longest: int) -> None:
    cut = pages.split(runs_of(numbers), longest)
    assert set_of(cut) == numbers
    assert all(count <= longest for _, count in cut.tolist())


@given(st.lists(st.tuples(st.integers(0, PAGE_COUNT), st.integers(0, PAGE_COUNT))))
def test_runs_from_bounds_overlapping_empty_unsorted_gives_their_union(bounds: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in bounds], dtype=np.int64)
    ends = np.array([end for _, end in bounds], dtype=np.int64)
    expected = {page for start, end in bounds for page in range(start, end)}
    assert set_of(pages.runs_from_bounds(starts, ends)) == expected


def test_split_limit_of_zero_is_refused() -> None:
    with pytest.raises(PageRunsError):
        pages.split(runs_of({1}), 0)


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        ([[0, 0]], 0),
        ([[0, -1]], 0),
        ([[-1, 1]], 0),
        ([[0, 1], [PAGE_COUNT, 1]], 1),
        ([[0, PAGE_COUNT + 1]], 0),
        ([[1, HUGE]], 0),
        ([[HUGE, 1]], 0),
        ([[HUGE, HUGE]], 0),
        ([[4, 2], [5, 1]], 1),
        ([[4, 2], [1, 1]], 1),
    ],
)
def test_validate_hostile_rows_names_the_row(rows: list[list[int]], row: int) -> None:
    with pytest.raises(PageRunsError) as refused:
        pages.validate(np.array(rows, dtype=np.int64), PAGE_COUNT)
    assert refused.value.row == row


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 2), dtype=np.uint32), np.zeros(2, dtype=np.int64), np.zeros((1, 3), dtype=np.int64)],
)
def test_validate_wrong_shape_or_type_is_refused(array: PageRuns) -> None:
    with pytest.raises(PageRunsError) as refused:
        pages.validate(array, PAGE_COUNT)
    assert refused.value.row is None


def test_validate_empty_and_full_are_accepted() -> None:
    pages.validate(pages.empty_runs(), PAGE_COUNT)
    everything = pages.complement(pages.empty_runs(), PAGE_COUNT)
    pages.validate(everything, PAGE_COUNT)
    assert pages.page_total(everything) == PAGE_COUNT
