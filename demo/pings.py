"""Pure: no I/O, no clock, no logging.

What became of pings that were sent all the time, in any span of it. Times are seconds of CLOCK_MONOTONIC.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ANSWER_WITHIN_S = 1.0


@dataclass(frozen=True)
class PingRecord:
    """Every ping and its first answer, by number. `announced_s`: when RARP frames of the target's MAC were heard."""

    interval_ms: float = 10.0
    sent_s: Sequence[float] = ()
    answered_s: Mapping[int, float] = field(default_factory=dict)
    duplicates: int = 0
    announced_s: Sequence[float] = ()


@dataclass(frozen=True)
class PingSpan:
    """The pings of a span of time.

    :ivar longest_gap_ms: the longest time between two answers, those beside the span included
    :ivar sender_gap_ms: the longest time between two pings: what is beyond the interval is the sender's own lateness
    """

    sent: int
    lost: int
    longest_gap_ms: float
    sender_gap_ms: float
    announcements: int

    def allowed(self, stun_ms: float, interval_ms: float) -> int:
        """How many may be lost: those of the stun, and one."""
        return int(stun_ms / interval_ms) + 1


def span_of(record: PingRecord, begin_s: float, end_s: float) -> PingSpan:
    """Those that were sent from begin to end. One without an answer is lost, so look a second after the end."""
    inside = [number for number, at_s in enumerate(record.sent_s) if begin_s <= at_s <= end_s]
    lost = sum(1 for number in inside if number not in record.answered_s)
    return PingSpan(
        sent=len(inside),
        lost=lost,
        longest_gap_ms=_longest_ms(sorted(record.answered_s.values()), begin_s, end_s),
        sender_gap_ms=_longest_ms(record.sent_s, begin_s, end_s),
        announcements=sum(1 for at_s in record.announced_s if begin_s <= at_s <= end_s),
    )


def _longest_ms(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    gaps = [later - at_s for at_s, later in itertools.pairwise(times_s) if later >= begin_s and at_s <= end_s]
    return round(max(gaps, default=0.0) * 1000, 2)
