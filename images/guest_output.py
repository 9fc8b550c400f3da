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
_ORIGIN = re.compile(r"page:(\d{1,20}),generation:(\d{1,10})", re.ASCII)


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


def parse_heartbeat(line: str) -> Heartbeat | None:
    """The beat in one whole line of the heartbeat port, or None."""
    match = _HEARTBEAT.fullmatch(line)
    return None if match is None else Heartbeat(*(int(number) for number in match.groups()))


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
