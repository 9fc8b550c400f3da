"""The guest's silence as seen from outside."""

import asyncio
from pathlib import Path

from demo.cluster_layout import PROJECT
from demo.heartbeat_observer import Beat, HeartbeatObserver, guest_gap_ms, silences_ms

_MS = 1_000_000


def _beats(*at_ms: float) -> list[Beat]:
    return [Beat(int(ms * _MS), f"HB {number}") for number, ms in enumerate(at_ms)]


def test_gap_is_the_longest_silence_beyond_the_period() -> None:
    beats = _beats(0, 10, 20, 65, 75, 200)
    assert guest_gap_ms(beats, 5 * _MS, 80 * _MS, 10) == 115.0, "the next beat ends the last silence"
    assert guest_gap_ms(beats, 5 * _MS, 66 * _MS, 10) == 35.0


def test_gap_silence_that_began_before_counts() -> None:
    assert guest_gap_ms(_beats(0, 90, 100), 50 * _MS, 120 * _MS, 10) == 80.0


def test_gap_is_never_negative() -> None:
    assert guest_gap_ms(_beats(0, 9, 18), 0, 20 * _MS, 10) == 0.0


def test_gap_without_a_beat_is_unknown() -> None:
    assert guest_gap_ms(_beats(0, 10), 20 * _MS, 30 * _MS, 10) is None
    assert silences_ms([], 0, 1, 10) == []


async def test_observer_sees_whole_lines_only_from_its_start_on(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.log"
    path.write_text("HB 1 10 0\nHB 2 2")
    observer = HeartbeatObserver()
    async with observer.watching(PROJECT, path):
        await observer.ready()
        with path.open("a") as file:
            for text in ("0 0\nHB 3 30 0\nHB 4", " 40 0\n", "HB 5 50 0\n"):
                file.write(text)
                file.flush()
        async with asyncio.timeout(10):
            while len(observer.beats) < 3:
                await asyncio.sleep(0.01)
    assert [beat.line for beat in observer.beats] == ["HB 3 30 0", "HB 4 40 0", "HB 5 50 0"]
    times = [beat.at_ns for beat in observer.beats]
    assert times == sorted(times)


async def test_observer_follows_a_home_that_moves_and_joins_the_line_it_tore(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name / "heartbeat.log" for name in ("a", "b", "c"))
    first.parent.mkdir()
    first.touch()
    observer = HeartbeatObserver()
    async with observer.watching(PROJECT, first, second, third):
        await observer.ready()
        _append(first, "HB 1 10 0\nHB 2")
        _append(second, " 20 0\nHB 3 30 0\n")
        await _until_seen(observer, 3)
        _append(third, "HB 4 40 0\n")
        await _until_seen(observer, 4)
    assert [beat.line for beat in observer.beats] == [f"HB {n} {n}0 0" for n in range(1, 5)]


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)


async def _until_seen(observer: HeartbeatObserver, count: int) -> None:
    async with asyncio.timeout(10):
        while len(observer.beats) < count:
            await asyncio.sleep(0.01)
