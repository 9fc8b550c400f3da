"""Cutting an iteration into frames, and the vectorised search for zero pages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.guest.pages import (
    PAGE_BYTES,
    PageRuns,
    empty_runs,
    page_indexes,
    page_total,
    runs_from_bool,
    validate,
)
from vmx.stream.frames import MAX_FRAME_PAGES
from vmx.stream.plan import MIN_DIRECT_PAGES, FramePlan
from vmx.stream.sender import zero_mask


@st.composite
def random_runs(draw: st.DrawFn) -> PageRuns:
    gaps = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 700)), max_size=60))
    rows, at = [], 0
    for gap, count in gaps:
        rows.append((at + gap, count if count < 200 else count - 199 if count % 2 else count))
        at = rows[-1][0] + rows[-1][1]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


@given(random_runs())
def test_plan_covers_every_page_once(runs: PageRuns) -> None:
    plan = FramePlan(runs)
    found = [plan.runs(number) for number in range(len(plan))]
    for part in found:
        validate(part, 10**6)
        assert 1 <= page_total(part) <= MAX_FRAME_PAGES
    pages = np.concatenate([page_indexes(part) for part in found] or [page_indexes(runs)])
    assert (np.sort(pages) == page_indexes(runs)).all()


@given(random_runs())
def test_plan_sends_long_runs_without_gathering(runs: PageRuns) -> None:
    plan = FramePlan(runs)
    long = runs[runs[:, 1] >= MIN_DIRECT_PAGES]
    direct = int(-(-long[:, 1] // MAX_FRAME_PAGES).sum())
    assert all(len(plan.runs(number)) == 1 for number in range(direct))
    pooled = page_total(runs) - page_total(long)
    assert len(plan) == direct + -(-pooled // MAX_FRAME_PAGES)


def test_plan_scattered_pages_fill_frames() -> None:
    runs = np.column_stack((np.arange(0, 2000, 2), np.ones(1000, dtype=np.int64)))
    plan = FramePlan(runs)
    assert [page_total(plan.runs(n)) for n in range(len(plan))] == [256, 256, 256, 232]


def test_plan_nothing_to_send_has_no_frames() -> None:
    assert len(FramePlan(empty_runs())) == 0


@given(st.lists(st.sampled_from(["zero", "first", "last", "middle", "full"]), min_size=1, max_size=40))
def test_zero_mask_finds_exactly_the_zero_pages(kinds: list[str]) -> None:
    pages = np.zeros((len(kinds), PAGE_BYTES), dtype=np.uint8)
    for page, kind in zip(pages, kinds, strict=True):
        if kind != "zero":
            at = {
                "first": slice(0, 1),
                "last": slice(-1, None),
                "middle": slice(2000, 2001),
                "full": slice(None),
            }
            page[at[kind]] = 7
    mask = zero_mask(pages)
    wanted = np.array([kind == "zero" for kind in kinds])
    assert (mask is None) == (not wanted.any())
    if mask is not None:
        assert (mask == wanted).all()
        assert page_total(runs_from_bool(mask)) == wanted.sum()


def test_zero_mask_read_only_pages_are_fine() -> None:
    pages = np.frombuffer(bytes(2 * PAGE_BYTES), dtype=np.uint8).reshape(2, PAGE_BYTES)
    mask = zero_mask(pages)
    assert mask is not None
    assert mask.all()


@pytest.mark.parametrize("count", [MIN_DIRECT_PAGES - 1, MIN_DIRECT_PAGES, 256, 257, 1000])
def test_plan_one_run_is_never_gathered(count: int) -> None:
    plan = FramePlan(np.array([[5, count]], dtype=np.int64))
    assert all(len(plan.runs(number)) == 1 for number in range(len(plan)))
