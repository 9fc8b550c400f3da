"""The capture's table of moves."""

from __future__ import annotations

from vmx.checkpoint.capture import _MOVES, CaptureLimits, CaptureState, GuestStop


def test_capture_moves_cover_every_state_and_end() -> None:
    assert set(_MOVES) == set(CaptureState)
    assert _MOVES[CaptureState.CANCELLED] == frozenset()
    for state in set(CaptureState) - {CaptureState.CANCELLED}:
        assert CaptureState.CANCELLED in _MOVES[state], "cancel works in every state"


def test_capture_saved_state_is_reached_only_through_stopped() -> None:
    assert [state for state, moves in _MOVES.items() if CaptureState.SAVED in moves] == [CaptureState.STOPPED]


def test_capture_limits_hold_what_the_design_allows() -> None:
    assert CaptureLimits().ram_transferred_bytes == 4 << 20


def test_guest_stop_times_are_in_milliseconds() -> None:
    assert GuestStop(ordered_ns=1_000_000, stopped_ns=3_500_000).stop_ms == 2.5
