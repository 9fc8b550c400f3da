"""What became of pings, in a span of time; and that the pinging process tells it."""

import asyncio

import pytest

from demo.cluster_layout import PROJECT
from demo.ping_observer import PingObserver, PingSettings
from demo.pings import PingRecord, span_of

_SENT = [number / 100 for number in range(100)]


def test_span_counts_only_pings_sent_in_it() -> None:
    answered = {number: at_s + 0.001 for number, at_s in enumerate(_SENT) if number not in (10, 50, 51)}
    span = span_of(PingRecord(10.0, _SENT, answered), 0.4, 0.6)
    assert (span.sent, span.lost) == (21, 2)
    assert span.longest_gap_ms == 30.0
    assert span.sender_gap_ms == 10.0


def test_span_gap_that_began_before_it_counts() -> None:
    answered = {number: at_s for number, at_s in enumerate(_SENT) if not 30 <= number < 45}
    assert span_of(PingRecord(10.0, _SENT, answered), 0.4, 0.6).longest_gap_ms == 160.0


def test_span_without_pings_is_empty() -> None:
    span = span_of(PingRecord(announced_s=[1.0, 2.0]), 1.5, 2.5)
    assert (span.sent, span.lost, span.longest_gap_ms, span.announcements) == (0, 0, 0.0, 1)


@pytest.mark.parametrize(("stun_ms", "allowed"), [(0.0, 1), (9.9, 1), (61.4, 7)])
def test_span_allows_the_stun_and_one_ping(stun_ms: float, allowed: int) -> None:
    assert span_of(PingRecord(), 0, 1).allowed(stun_ms, 10.0) == allowed


async def test_pinging_process_tells_its_record_when_it_is_ended() -> None:
    """Nobody is there: it asks for the target's MAC in vain, so no ping leaves."""
    settings = PingSettings(
        "127.0.254.250", ["127.0.254.1"], 7, "02:00:00:00:00:fe", "10.0.0.9", "10.0.0.5", "02:00:00:00:00:05"
    )
    observer = PingObserver(settings)
    async with observer.pinging(PROJECT):
        with pytest.raises(TimeoutError):
            await observer.answers(1, 0.5)
        await asyncio.sleep(0)
    assert observer.record == PingRecord(10.0, [], {}, 0, [])
