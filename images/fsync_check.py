"""Reads the fsync checker's area from the host: `python -m images.fsync_check DISK --acknowledged N`.

The guest's checker (images/fsync_checker.c, which draws the area) tells which records its disk has acknowledged; this
finds them in the disk's bytes, with no guest in between. DISK is a whole raw disk or flat extent, whose partition 3 is
the area, or the area itself. Of a guest that runs the last records are still under way: stop it first.
"""

import argparse
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 4096
SECTOR_BYTES = 512
HEADER_MAGIC = 0x4145524148435346
RECORD_MAGIC = 0x4452524348435346
DEFAULT_PARTITION = 3
_MASK = (1 << 64) - 1
_PATTERN_STEP = 0x9E3779B97F4A7C15
_FACTOR = 0xD6E8FEB86659FD93
_WORDS = struct.Struct("<512Q")
_WEIGHTS = tuple(range(1, 1023, 2))  # of the 511 words before the checksum
_STEPS = tuple(step * _PATTERN_STEP & _MASK for step in range(507))
_ZEROS = bytes(BLOCK_BYTES)
_CHUNK_BLOCKS = 256
_PARTITION_TABLE = 446
_MAX_WRONG_TOLD = 100


class FsyncAreaError(Exception):
    """The disk has no area of the checker. `path`: the disk."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class WrongRecord:
    """A slot that doesn't hold what was acknowledged. `holds`: "zero", "torn", or "record" with the number `found`."""

    slot: int
    expected: int
    holds: str
    found: int


@dataclass(frozen=True)
class FsyncCheck:
    """What the area holds.

    :ivar area: its name, as the guest tells it
    :ivar slots: how many records it keeps
    :ivar highest: the highest whole record
    :ivar acknowledged: what the caller said was acknowledged
    :ivar checked: records that had to be there and were looked at
    :ivar wrong: those that weren't as they must be, 100 at most
    :ivar wrong_count: how many they were
    """

    area: int
    slots: int
    highest: int
    acknowledged: int
    checked: int
    wrong: tuple[WrongRecord, ...]
    wrong_count: int

    @property
    def ok(self) -> bool:
        """Whether every acknowledged record is there."""
        return self.wrong_count == 0 and self.highest >= self.acknowledged


def check_area(disk: Path, acknowledged: int = 0, partition: int = DEFAULT_PARTITION) -> FsyncCheck:
    """Looks for every acknowledged record that the ring still has to hold.

    Records after the acknowledged ones may or may not be there, and the last write may have been cut off: one slot,
    that after the highest record, may hold anything.

    :param acknowledged: the highest number that an observer has read from the guest.
    :param partition: which one of the disk is the area; 0: the file is the area itself.
    :raises FsyncAreaError: there is no area.
    :raises OSError: the disk can't be read.
    """
    with disk.open("rb") as source:
        start = _partition_start(disk, source, partition) if partition else 0
        source.seek(start)
        header = _parse(source.read(BLOCK_BYTES))
        if header is None or header.magic != HEADER_MAGIC or header.slots < 2:
            raise FsyncAreaError(disk, "no area of the fsync checker begins there")
        found = _read_slots(disk, source, header)
    highest = max((sequence for _holds, sequence in found if _holds == "record"), default=0)
    return _judge(header, found, highest, acknowledged)


@dataclass(frozen=True)
class _Block:
    magic: int
    area: int
    sequence: int
    slots: int


_Found = tuple[str, int]


def _partition_start(disk: Path, source: BinaryIO, partition: int) -> int:
    table = source.read(SECTOR_BYTES)
    if len(table) < SECTOR_BYTES or table[510:] != b"\x55\xaa" or not 1 <= partition <= 4:
        raise FsyncAreaError(disk, "no table of partitions")
    entry = table[_PARTITION_TABLE + (partition - 1) * 16 : _PARTITION_TABLE + partition * 16]
    first, count = struct.unpack_from("<II", entry, 8)
    if count == 0:
        raise FsyncAreaError(disk, f"no partition {partition}")
    return int(first) * SECTOR_BYTES


def _parse(block: bytes) -> _Block | None:
    """A block that is whole, else None."""
    if len(block) != BLOCK_BYTES:
        return None
    words = _WORDS.unpack(block)
    magic, area, sequence, slots = words[:4]
    if sum(map(mul, words[:-1], _WEIGHTS)) & _MASK != words[-1]:
        return None
    start = _pattern_start(area, sequence)
    if words[4:-1] != tuple([start + step & _MASK for step in _STEPS]):
        return None
    return _Block(magic, area, sequence, slots)


def _pattern_start(area: int, sequence: int) -> int:
    value = area ^ (sequence * _FACTOR & _MASK)
    value ^= value >> 32
    value = value * _FACTOR & _MASK
    return value ^ (value >> 32)


def _read_slots(disk: Path, source: BinaryIO, header: _Block) -> list[_Found]:
    """What each slot holds."""
    found: list[_Found] = []
    while len(found) < header.slots:
        count = min(_CHUNK_BLOCKS, header.slots - len(found))
        chunk = source.read(count * BLOCK_BYTES)
        if len(chunk) != count * BLOCK_BYTES:
            raise FsyncAreaError(disk, f"the area ends after {len(found)} of {header.slots} records")
        for offset in range(0, len(chunk), BLOCK_BYTES):
            found.append(_look(chunk[offset : offset + BLOCK_BYTES], header, len(found)))
    return found


def _look(block: bytes, header: _Block, slot: int) -> _Found:
    if block == _ZEROS:
        return "zero", 0
    record = _parse(block)
    if record is None:
        return "torn", 0
    own = record.magic == RECORD_MAGIC and record.area == header.area and record.sequence > 0
    if not own or (record.sequence - 1) % header.slots != slot:
        return "foreign", record.sequence
    return "record", record.sequence


def _judge(header: _Block, found: list[_Found], highest: int, acknowledged: int) -> FsyncCheck:
    known = max(highest, acknowledged)
    under_way = highest % header.slots
    wrong: list[WrongRecord] = []
    checked = wrong_count = 0
    for slot, (holds, sequence) in enumerate(found):
        if known <= slot:
            continue  # nothing was written there yet
        expected = slot + 1 + (known - slot - 1) // header.slots * header.slots
        if slot == under_way and acknowledged <= highest and holds != "record":
            continue  # the write that was cut off
        checked += 1
        if holds != "record" or sequence != expected:
            wrong_count += 1
            if len(wrong) < _MAX_WRONG_TOLD:
                wrong.append(WrongRecord(slot, expected, holds, sequence))
    return FsyncCheck(header.area, header.slots, highest, acknowledged, checked, tuple(wrong), wrong_count)


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """The command. Returns the exit code: 0 when every acknowledged record is there, 1 when not, 2 without an area."""
    parser = argparse.ArgumentParser(
        prog="python -m images.fsync_check",
        description="Finds the records that the guest's fsync checker was told are safe.",
    )
    parser.add_argument("disk", type=Path, help="raw disk, flat extent, or the area itself")
    parser.add_argument(
        "--acknowledged", type=int, default=0, help="highest number that the guest told (%(default)s)"
    )
    parser.add_argument(
        "--partition", type=int, default=DEFAULT_PARTITION, help="0: the file is the area (%(default)s)"
    )
    parsed = parser.parse_args(arguments)
    try:
        result = check_area(parsed.disk, parsed.acknowledged, parsed.partition)
    except (FsyncAreaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for record in result.wrong:
        say(f"WRONG slot={record.slot} expected={record.expected} holds={record.holds} found={record.found}")
    say(
        f"{'ok' if result.ok else 'WRONG'}: area={result.area:016x} slots={result.slots} highest={result.highest} "
        f"acknowledged={result.acknowledged} checked={result.checked} wrong={result.wrong_count}"
    )
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
