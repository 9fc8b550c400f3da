"""Pure: no I/O, no clock, no logging. When does pre-copy end?

After each pass the source knows what the guest wrote meanwhile and how fast pages go over. The rule, after vMotion's
("only n pages left to send, which can be sent within the switchover time goal"), with one refinement: inside the goal
it goes on as long as another pass still shrinks what is left, because every page that isn't left is stun saved.

    nothing left, or less than the floor       -> SWITCH_OVER
    within the goal and still shrinking        -> CONTINUE
    within the goal, no longer shrinking       -> SWITCH_OVER at a local minimum: when what is left is near its best
    above the goal and still shrinking         -> CONTINUE
    above the goal, stalled or out of passes   -> FAIL

Clark et al., "Live Migration of Virtual Machines" (NSDI 2005), describe why the writable working set bounds the gain of
further passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

PAGE_BYTES = 4096
DEFAULT_SWITCHOVER_GOAL_MS = 500.0
DEFAULT_MAX_ITERATIONS = 30


class Verdict(Enum):
    """What the pre-copy loop does next."""

    CONTINUE = "continue"
    SWITCH_OVER = "switch over"
    FAIL = "fail"


@dataclass(frozen=True)
class PassStats:
    """One finished pass. `data_pages` had content to send; zero pages cost next to nothing."""

    number: int
    data_pages: int
    duration_ms: float
    dirty_pages: int


@dataclass(frozen=True)
class Limits:
    """What the specification allows.

    `floor_ms`: what is left counts as nothing below it; another pass would take longer than it saves.
    `shrink`: a pass pays when it leaves less than this share of what the pass before left.
    `patience`: passes without a new best before the migration counts as stalled.
    """

    switchover_goal_ms: float = DEFAULT_SWITCHOVER_GOAL_MS
    max_iterations: int = DEFAULT_MAX_ITERATIONS
    floor_ms: float = 1.0
    shrink: float = 0.8
    patience: int = 4


@dataclass(frozen=True)
class Decision:
    """The verdict with its reason in words, and the expected time to send what is left."""

    verdict: Verdict
    reason: str
    expected_ms: float


def decide(passes: Sequence[PassStats], limits: Limits) -> Decision:
    """Decide after the last of `passes` (at least one).

    :raises ValueError: `passes` is empty.
    """
    if not passes:
        raise ValueError("decide() needs at least one pass")
    left = passes[-1].dirty_pages
    rate = bandwidth_bytes_per_s(passes)
    expected_ms = left * PAGE_BYTES / rate * 1000 if rate > 0 else float("inf")
    if left == 0:
        return Decision(Verdict.SWITCH_OVER, "nothing is left to send", 0.0)
    what = f"{left} pages left to send in about {expected_ms:.1f} ms at {rate / 1e6:.0f} MB/s"
    if expected_ms <= limits.floor_ms:
        return Decision(Verdict.SWITCH_OVER, f"only {what}", expected_ms)
    within_goal = expected_ms <= limits.switchover_goal_ms
    out_of_passes = len(passes) >= limits.max_iterations
    if not out_of_passes and _shrinking(passes, limits):
        return Decision(Verdict.CONTINUE, f"{what}, still shrinking", expected_ms)
    if within_goal:
        return _at_local_minimum(passes, limits, what, expected_ms)
    goal = f"the switchover goal is {limits.switchover_goal_ms:.0f} ms"
    if out_of_passes:
        return Decision(Verdict.FAIL, f"{what} after {len(passes)} passes; {goal}", expected_ms)
    if _passes_since_best(passes) >= limits.patience:
        stalled = f"no progress in {limits.patience} passes: the guest writes as fast as can be sent"
        return Decision(Verdict.FAIL, f"{what}; {goal}; {stalled}", expected_ms)
    return Decision(Verdict.CONTINUE, f"{what}; {goal}", expected_ms)


def bandwidth_bytes_per_s(passes: Sequence[PassStats]) -> float:
    """What the path carries: the best of the passes that sent enough data to tell, else of all; 0.0 if none tells."""
    telling = [one for one in passes if one.data_pages >= 256 and one.duration_ms > 0]
    rated = telling or [one for one in passes if one.data_pages > 0 and one.duration_ms > 0]
    return max((one.data_pages * PAGE_BYTES / one.duration_ms * 1000 for one in rated), default=0.0)


def _shrinking(passes: Sequence[PassStats], limits: Limits) -> bool:
    if len(passes) == 1:
        return True
    return passes[-1].dirty_pages < limits.shrink * min(one.dirty_pages for one in passes[:-1])


def _passes_since_best(passes: Sequence[PassStats]) -> int:
    best = min(range(len(passes)), key=lambda index: passes[index].dirty_pages)
    return len(passes) - 1 - best


def _at_local_minimum(passes: Sequence[PassStats], limits: Limits, what: str, expected_ms: float) -> Decision:
    """Within the goal and no longer shrinking: wait for a pass near the best one, but not for ever."""
    best = min(one.dirty_pages for one in passes)
    waited = _passes_since_best(passes) >= limits.patience or len(passes) >= limits.max_iterations
    if waited or passes[-1].dirty_pages <= 1.1 * best:
        return Decision(Verdict.SWITCH_OVER, f"only {what}, and more passes gain nothing", expected_ms)
    return Decision(Verdict.CONTINUE, f"{what}, above the best pass so far ({best} pages)", expected_ms)
