"""Pure: no I/O, no clock, no logging.

Reads the lines that the guest prints on its two serial ports, for tests, demonstrations and monitors.

A line may be cut (it was read while it was being written) or be something else (the kernel's or the shell's):
such lines are None, never an error.
"""

import re
from dataclasses import dataclass

READY = "GUEST READY"
FAILED = "GUEST FAILED"

# The terminal keeps no line apart from what a shell has just echoed, so console lines are searched, not matched.
_HEARTBEAT = re.compile(r"HB (\d{1,20}) (\d{1,20}) (\d{1,20})\n?", re.ASCII)
_STATUS = re.compile(
    r"STAMP ok passes=(\d{1,20}) pages=(\d{1,20}) checked=(\d{1,20}) wrong=(\d{1,20}) rate_mib_s=(\d{1,18}\.\d)\s*$",
    re.ASCII,
)
_WRONG = re.compile(
    r"STAMP WRONG page=(\d{1,20}) word=(\d{1,3}) expected=([0-9a-f]{16}) found=([0-9a-f]{16})"
    r" generation=(\d{1,10}) wrong_words=(\d{1,3}) holds=(\S+)\s*$",
    re.ASCII,
)
_PING = re.compile(
    r"PING sent=(\d{1,20}) received=(\d{1,20}) lost=(\d{1,20}) duplicates=(\d{1,20}) gap_ms=(\d{1,20})\n?",
    re.ASCII,
)
_CPU = re.compile(r"CPU (\d{1,20})((?: [a-z0-9.]{1,16}=(?:ok|SIGILL|WRONG|absent))+)\n?", re.ASCII)
_ORIGIN = re.compile(r"page:(\d{1,20}),generation:(\d{1,10})", re.ASCII)


_FSYNC_BEGIN = re.compile(
    r"FSYNC BEGIN area=([0-9a-f]{16}) slots=(\d{1,20}) found=(\d{1,20}) wrong=(\d{1,20})\s*$", re.ASCII
)
_FSYNC_STATE = re.compile(
    r"FSYNC acknowledged=(\d{1,20}) checked=(\d{1,20}) wrong=(\d{1,20}) passes=(\d{1,20}) longest_ms=(\d{1,20})\s*$",
    re.ASCII,
)
_FSYNC_WRONG = re.compile(
    r"FSYNC WRONG slot=(\d{1,20}) expected=(\d{1,20}) holds=(zero|torn|record) found=(\d{1,20})\s*$", re.ASCII
)


@dataclass(frozen=True)
class Heartbeat:
    """One beat. `sequence` begins at 0 with each boot; `guest_ms` is the guest's own monotonic clock."""

    sequence: int
    guest_ms: int
    wrong: int


@dataclass(frozen=True)
class StampStatus:
    """The stamper's line of each second. `wrong` counts since boot; `rate_mib_s` is what was really rewritten."""

    passes: int
    pages: int
    checked: int
    wrong: int
    rate_mib_s: float


@dataclass(frozen=True)
class WrongStamp:
    """A page of the working set that was not as the guest had left it.

    :ivar page: its number in the working set
    :ivar word: the first 8-byte word that was wrong
    :ivar generation: the generation it had to carry
    :ivar wrong_words: how many of its 512 words were wrong
    :ivar holds: "zero", "foreign" (no stamp of this guest), or "stamp": the next two fields say which
    :ivar holds_page: the page whose stamp was found there, or None
    :ivar holds_generation: the generation that was found there, or None; the own page's older one is a stale page
    """

    page: int
    word: int
    expected: int
    found: int
    generation: int
    wrong_words: int
    holds: str
    holds_page: int | None
    holds_generation: int | None


@dataclass(frozen=True)
class PingStatus:
    """The pinger's line of each half second: counted from the first answer on. `lost` had no answer within a second."""

    sent: int
    received: int
    lost: int
    duplicates: int
    gap_ms: int


@dataclass(frozen=True)
class CpuExercise:
    """One execution of CPU features. `results` by QEMU's name: "ok", "SIGILL", "WRONG", or "absent" in CPUID."""

    sequence: int
    results: dict[str, str]


def parse_cpu_exercise(line: str) -> CpuExercise | None:
    """The execution that one whole line of the heartbeat port tells of, or None."""
    match = _CPU.fullmatch(line)
    if match is None:
        return None
    pairs = (word.partition("=") for word in match[2].split())
    return CpuExercise(int(match[1]), {name: result for name, _, result in pairs})


@dataclass(frozen=True)
class FsyncBegin:
    """The fsync checker has looked at what was there. `found`: the highest record; `wrong`: acknowledged ones lost."""

    area: int
    slots: int
    found: int
    wrong: int


@dataclass(frozen=True)
class FsyncState:
    """The fsync checker's line.

    :ivar acknowledged: the highest record that the disk said is safe
    :ivar checked: how many records were read back since boot
    :ivar wrong: how many of them were not as they were written
    :ivar passes: how often all of them were read back
    :ivar longest_ms: the longest write with its fsync since the line before, as the guest felt it
    """

    acknowledged: int
    checked: int
    wrong: int
    passes: int
    longest_ms: int


@dataclass(frozen=True)
class FsyncWrong:
    """An acknowledged record that is not there. `holds`: "zero", "torn", or "record": that with the number `found`."""

    slot: int
    expected: int
    holds: str
    found: int


def parse_fsync_begin(line: str) -> FsyncBegin | None:
    """The fsync checker's first line, or None."""
    match = _FSYNC_BEGIN.search(line)
    if match is None:
        return None
    area, slots, found, wrong = match.groups()
    return FsyncBegin(int(area, 16), int(slots), int(found), int(wrong))


def parse_fsync_state(line: str) -> FsyncState | None:
    """The fsync checker's state in one line of either port, or None."""
    match = _FSYNC_STATE.search(line)
    return None if match is None else FsyncState(*(int(number) for number in match.groups()))


def parse_fsync_wrong(line: str) -> FsyncWrong | None:
    """The lost record that one line of either port tells of, or None."""
    match = _FSYNC_WRONG.search(line)
    if match is None:
        return None
    slot, expected, holds, found = match.groups()
    return FsyncWrong(int(slot), int(expected), holds, int(found))


def parse_heartbeat(line: str) -> Heartbeat | None:
    """The beat in one whole line of the heartbeat port, or None."""
    match = _HEARTBEAT.fullmatch(line)
    return None if match is None else Heartbeat(*(int(number) for number in match.groups()))


def parse_ping(line: str) -> PingStatus | None:
    """The pinger's count in one whole line of the heartbeat port, or None."""
    match = _PING.fullmatch(line)
    return None if match is None else PingStatus(*(int(number) for number in match.groups()))


def parse_status(line: str) -> StampStatus | None:
    """The stamper's status in one line of the console, or None."""
    match = _STATUS.search(line)
    if match is None:
        return None
    passes, pages, checked, wrong, rate = match.groups()
    return StampStatus(int(passes), int(pages), int(checked), int(wrong), float(rate))


def parse_wrong(line: str) -> WrongStamp | None:
    """The wrong page that one line of either port tells of, or None."""
    match = _WRONG.search(line)
    if match is None:
        return None
    page, word, expected, found, generation, words, holds = match.groups()
    origin = _ORIGIN.fullmatch(holds)
    return WrongStamp(
        page=int(page),
        word=int(word),
        expected=int(expected, 16),
        found=int(found, 16),
        generation=int(generation),
        wrong_words=int(words),
        holds=holds if origin is None else "stamp",
        holds_page=None if origin is None else int(origin[1]),
        holds_generation=None if origin is None else int(origin[2]),
    )
