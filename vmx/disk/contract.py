"""Pure: no I/O, no clock, no logging. What the parts of a disk's move agree on.

    source extent -- bulk copy ---- write_bulk ------+
                                                     v
                                                  DiskSink = the target: an extent on this host, or a stream to one
                                                     ^
    guest's write -- QEMU's mirror - *_mirrored -----+

Bulk data is the source as it was at some time after the mirror began; a mirrored write is newer than every bulk
write of the same sectors, whichever of them comes first. So a sink keeps, for every sector, what the mirror said
last, and takes bulk data only where the mirror has said nothing. Neither side has to wait for the other, and a
stream may carry both in any order as long as mirrored writes keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from vmx.disk.errors import DiskRangeError, DiskSpecError

__all__ = ["SECTOR_BYTES", "DiskFormat", "DiskLayout", "DiskSink", "check_range"]

SECTOR_BYTES: Final = 512
# VMFS's own largest file; also keeps offset + length far away from any overflow.
CAPACITY_MAX_BYTES: Final = 62 << 40


class DiskFormat(StrEnum):
    """How a disk lies in its extent. The names are those of the .vmx entries."""

    THIN = "thin"
    THICK_LAZY_ZEROED = "zeroedthick"
    THICK_EAGER_ZEROED = "eagerzeroedthick"
    QCOW2 = "qcow2"

    @property
    def is_raw(self) -> bool:
        """Whether byte N of the disk is byte N of its extent."""
        return self is not DiskFormat.QCOW2


@dataclass(frozen=True)
class DiskLayout:
    """One disk: its device key, how much the guest sees, and the format of the extent meant (source or target).

    :raises DiskSpecError: naming the field that is not fit.
    """

    key: int
    capacity_bytes: int
    format: DiskFormat

    def __post_init__(self) -> None:
        if self.key < 0:
            raise DiskSpecError("key", f"{self.key} is negative")
        if not 0 < self.capacity_bytes <= CAPACITY_MAX_BYTES or self.capacity_bytes % SECTOR_BYTES:
            raise DiskSpecError(
                "capacity_bytes", f"{self.capacity_bytes} is no count of sectors up to 62 TiB"
            )


class DiskSink(Protocol):
    """Where a disk's data goes. All calls block, may come from several threads at once, and raise DiskError.

    Offsets and lengths are bytes and multiples of SECTOR_BYTES, inside the disk; else DiskRangeError. A sink must
    not keep `data` after the call: its memory is used again. Calls of the mirror (`*_mirrored`) for overlapping
    ranges never run at the same time, and what they say is in the order of the calls.

    A call may return as soon as its data is on its way in the order of the calls: the guest's write is acknowledged
    by then, but the source has it too, so nothing is lost if it never arrives. What fails later is raised by the next
    call, and by `flush` at the latest. Only what came before a `flush` that returned is known to be at the target.
    """

    def write_bulk(self, offset: int, data: memoryview) -> None:
        """Data of the bulk copy: taken for the sectors that the mirror has not written, now or before.

        What is never written reads as zeros: the bulk copy leaves zeros out.
        """

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        """Data that the guest has written: replaces whatever is there."""

    def zero_mirrored(self, offset: int, length: int) -> None:
        """The guest has zeroed or discarded this range: it reads as zeros afterwards."""

    def flush(self) -> None:
        """Returns when everything of the calls that have returned is durable at the target."""


def check_range(offset: int, length: int, capacity_bytes: int) -> None:
    """Check that a range is whole sectors inside the disk; an empty one is.

    :raises DiskRangeError: it is not.
    """
    if (
        offset < 0
        or length < 0
        or offset + length > capacity_bytes
        or offset % SECTOR_BYTES
        or length % SECTOR_BYTES
    ):
        raise DiskRangeError(offset, length, capacity_bytes)
