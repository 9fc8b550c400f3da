"""The termination rule: a table of situations, and what must hold for every history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.precopy.policy import Decision, Limits, PassStats, Verdict, bandwidth_bytes_per_s, decide

MB_PER_S_1000 = 1000 * 1_000_000 / 1000 / 4096  # pages per ms at 1000 MB/s


def history(*dirty: int, data_pages: int = 131072) -> list[PassStats]:
    """Passes at 1000 MB/s that left `dirty` pages each."""
    sizes = [data_pages, *dirty]
    return [
        PassStats(number, sizes[number], max(sizes[number], 1) / MB_PER_S_1000, left)
        for number, left in enumerate(dirty)
    ]


@pytest.mark.parametrize(
    ("dirty", "limits", "verdict"),
    [
        ([0], Limits(), Verdict.SWITCH_OVER),
        ([100], Limits(), Verdict.SWITCH_OVER),  # 0.4 ms: below the floor
        (
            [20000],
            Limits(),
            Verdict.CONTINUE,
        ),  # 82 ms, within the goal, but the first pass: more will shrink it
        ([20000, 3000], Limits(), Verdict.CONTINUE),
        ([20000, 3000, 2900], Limits(), Verdict.SWITCH_OVER),  # a plateau within the goal
        ([20000, 3000, 9000], Limits(), Verdict.CONTINUE),  # worse than the best: wait for a local minimum
        ([20000, 3000, 9000, 9000, 9000, 9000], Limits(), Verdict.SWITCH_OVER),  # ... but not for ever
        ([20000, 3000, 9000, 3100], Limits(), Verdict.SWITCH_OVER),
        ([20000] * 5, Limits(switchover_goal_ms=10), Verdict.FAIL),
        ([20000] * 4, Limits(switchover_goal_ms=10), Verdict.CONTINUE),
        ([20000, 20000], Limits(switchover_goal_ms=10, max_iterations=2), Verdict.FAIL),
        ([20000, 15000], Limits(max_iterations=2), Verdict.SWITCH_OVER),
    ],
)
def test_decide_table(dirty: list[int], limits: Limits, verdict: Verdict) -> None:
    assert decide(history(*dirty), limits).verdict is verdict


def test_decide_without_passes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pass"):
        decide([], Limits())


def test_bandwidth_ignores_passes_too_small_to_tell() -> None:
    passes = [PassStats(0, 10000, 10.0, 5), PassStats(1, 5, 5.0, 5)]
    assert bandwidth_bytes_per_s(passes) == pytest.approx(10000 * 4096 / 0.010)


def test_decide_with_only_zero_pages_sent_doesnt_divide_by_zero() -> None:
    decision = decide([PassStats(0, 0, 0.0, 7)], Limits())
    assert decision == Decision(Verdict.CONTINUE, decision.reason, float("inf"))


passes_strategy = st.lists(
    st.tuples(st.integers(0, 1 << 24), st.floats(0, 1e6), st.integers(0, 1 << 24)), min_size=1, max_size=60
).map(lambda rows: [PassStats(number, *row) for number, row in enumerate(rows)])


@given(passes_strategy, st.floats(1, 1e5), st.integers(1, 40))
def test_decide_always_ends_and_never_exceeds_the_goal(
    passes: list[PassStats], goal_ms: float, max_iterations: int
) -> None:
    limits = Limits(switchover_goal_ms=goal_ms, max_iterations=max_iterations)
    decision = decide(passes, limits)
    if len(passes) >= max_iterations:
        assert decision.verdict is not Verdict.CONTINUE
    if decision.verdict is Verdict.SWITCH_OVER:
        assert decision.expected_ms <= max(goal_ms, limits.floor_ms)
    assert decision.reason
