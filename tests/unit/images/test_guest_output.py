"""The guest's lines: parsed exactly, anything else is no line of the guest's."""

import pytest

from images.guest_output import (
    CpuExercise,
    Heartbeat,
    PingStatus,
    StampStatus,
    parse_cpu_exercise,
    parse_heartbeat,
    parse_ping,
    parse_status,
    parse_wrong,
)

STATUS = "STAMP ok passes=3 pages=4096 checked=18493 wrong=0 rate_mib_s=19.9"
WRONG = "STAMP WRONG page=7 word=77 expected=00000000000000ff found=0000000000000000 generation=9 wrong_words=12 holds="


def test_parse_heartbeat_of_a_whole_line_reads_it() -> None:
    assert parse_heartbeat("HB 726 9001 2\n") == Heartbeat(726, 9001, 2)


@pytest.mark.parametrize(
    "line", ["", "HB", "B 726 9001 0\n", "HB 726 9001", "HB 1 2 3 4\n", "HB -1 2 0\n", "HB \u0661 2 0\n"]
)
def test_parse_heartbeat_of_another_line_is_none(line: str) -> None:
    assert parse_heartbeat(line) is None


def test_parse_ping_of_a_whole_line_reads_it() -> None:
    line = "PING sent=1200 received=1199 lost=1 duplicates=0 gap_ms=14\n"
    assert parse_ping(line) == PingStatus(1200, 1199, 1, 0, 14)
    assert parse_ping(line[1:]) is None
    assert parse_ping(line[:-10]) is None


@pytest.mark.parametrize("line", [STATUS, STATUS + "\r\n", "/ # \x1b[6n" + STATUS + "\r\n"])
def test_parse_status_finds_it_even_behind_a_prompt(line: str) -> None:
    assert parse_status(line) == StampStatus(3, 4096, 18493, 0, 19.9)


@pytest.mark.parametrize("line", [STATUS[:-2], "GUEST READY\r\n", WRONG + "zero\r\n"])
def test_parse_status_of_another_line_is_none(line: str) -> None:
    assert parse_status(line) is None


@pytest.mark.parametrize(
    ("holds", "kind", "page", "generation"),
    [
        ("zero", "zero", None, None),
        ("foreign", "foreign", None, None),
        ("page:7,generation:8", "stamp", 7, 8),
    ],
)
def test_parse_wrong_tells_what_was_found(
    holds: str, kind: str, page: int | None, generation: int | None
) -> None:
    wrong = parse_wrong(WRONG + holds + "\r\n")

    assert wrong is not None
    assert (wrong.page, wrong.word, wrong.expected, wrong.found) == (7, 77, 0xFF, 0)
    assert (wrong.generation, wrong.wrong_words) == (9, 12)
    assert (wrong.holds, wrong.holds_page, wrong.holds_generation) == (kind, page, generation)


@pytest.mark.parametrize("line", ["", STATUS, WRONG, WRONG[:40]])
def test_parse_wrong_of_another_line_is_none(line: str) -> None:
    assert parse_wrong(line) is None


def test_parse_cpu_exercise_of_a_whole_line_reads_it() -> None:
    line = "CPU 7 sse4.2=ok avx=SIGILL avx2=absent\n"
    assert parse_cpu_exercise(line) == CpuExercise(7, {"sse4.2": "ok", "avx": "SIGILL", "avx2": "absent"})


@pytest.mark.parametrize(
    "line", ["", "CPU 7\n", "CPU 7 avx=o", "HB 1 2 3\n", "CPU x avx=ok\n", "CPU 7 avx=fine\n"]
)
def test_parse_cpu_exercise_of_another_line_is_none(line: str) -> None:
    assert parse_cpu_exercise(line) is None
