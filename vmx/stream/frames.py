"""Pure: no I/O, no clock, no logging. The frames of a migration stream, to bytes and back (PROTOCOL.md).

A frame is a header of 32 bytes and, where the header says so, a body. Everything that a header or a run table claims
is checked here, against fixed limits, the guest's own page count and its disks' capacities, before the caller
allocates, reads or writes anything for it. Arbitrary bytes raise ProtocolViolation (or its LimitExceeded) and nothing
else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from struct import Struct
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.disk.contract import SECTOR_BYTES
from vmx.guest.pages import PAGE_BYTES, PageRuns
from vmx.stream.errors import DiskFaultCode, LimitExceeded, ProtocolViolation
from vmx.stream.spec import MAX_DISKS, DiskExtent

HEADER_BYTES: Final = 32
RUN_BYTES: Final = 16
DIGEST_BYTES: Final = 8

MAX_FRAME_PAGES: Final = 256
MAX_ZERO_RUNS: Final = 4096
MAX_DEVICE_STATE_CHUNK_BYTES: Final = 256 * 1024
MAX_DEVICE_STATE_BYTES: Final = 64 * 1024 * 1024
MAX_DIGESTS: Final = 65536
MAX_TEXT_BYTES: Final = 4096
MAX_RUN_TABLE_BYTES: Final = MAX_FRAME_PAGES * RUN_BYTES
MAX_PAGES_BODY_BYTES: Final = MAX_RUN_TABLE_BYTES + MAX_FRAME_PAGES * PAGE_BYTES
MAX_NUMBER: Final = 2**63 - 1
DISK_ROW_BYTES: Final = 16
MAX_DISK_BODY_BYTES: Final = 1024 * 1024
MAX_MIRROR_ZERO_BYTES: Final = 1024 * 1024 * 1024
# Mirror requests that may be unanswered at a time; their numbers are counted modulo 2**32.
MAX_MIRROR_REQUESTS: Final = 128
REQUEST_NUMBERS: Final = 2**32

# The disks of a stream as a header is checked against them: key -> capacity in bytes.
DiskCapacities = Mapping[int, int]
NO_DISKS: Final[DiskCapacities] = MappingProxyType({})

_HEADER: Final = Struct("<BBHIIIQQ")
_ROW_TYPE: Final = np.dtype("<i8")
_DIGEST_TYPE: Final = np.dtype("<u8")
_DISK_ROW: Final = Struct("<QQ")


class FrameType(IntEnum):
    """What a frame carries. The numbers are on the wire: append, and never use a retired one again."""

    PAGES = 16
    ZERO = 17
    SYNC = 18
    SYNC_ACK = 19
    DEVICE_STATE = 32
    DIGESTS = 33
    DISKS = 34
    CONTROL = 48
    KEEPALIVE = 49
    DISK_DATA = 64
    DISK_SYNC = 65
    DISK_SYNC_ACK = 66
    MIRROR_WRITE = 72
    MIRROR_ZERO = 73
    MIRROR_FLUSH = 74
    MIRROR_REPLY = 75


PAGE_CHANNEL_TYPES: Final = frozenset({FrameType.PAGES, FrameType.ZERO, FrameType.SYNC})
DISK_CHANNEL_TYPES: Final = frozenset({FrameType.DISK_DATA, FrameType.DISK_SYNC})
MIRROR_REQUEST_TYPES: Final = frozenset(
    {FrameType.MIRROR_WRITE, FrameType.MIRROR_ZERO, FrameType.MIRROR_FLUSH}
)
MIRROR_REPLY_TYPES: Final = frozenset({FrameType.MIRROR_REPLY})
TO_DESTINATION_TYPES: Final = frozenset(
    {FrameType.DEVICE_STATE, FrameType.DIGESTS, FrameType.DISKS, FrameType.CONTROL, FrameType.KEEPALIVE}
)
TO_SOURCE_TYPES: Final = frozenset(
    {FrameType.SYNC_ACK, FrameType.DISK_SYNC_ACK, FrameType.DIGESTS, FrameType.CONTROL, FrameType.KEEPALIVE}
)


class ControlCode(IntEnum):
    """What a CONTROL frame says. The numbers are on the wire: append, and never use a retired one again."""

    LAYOUT = 1  # source: value = bytes of guest RAM; the first frame on the control channel
    READY = 2  # destination: everything is loaded, it waits for COMMIT; value = epoch of the record it could give up
    COMMIT = 3  # source: the owner record names the destination; value = the record's epoch
    RESUMED = 4  # destination: the guest runs there
    FAILED = (
        5  # either: this side's part failed; text = why; value: what failed of a disk (failed_value), or 0
    )
    GIVE_BACK = 6  # destination: the owner record names the source again; value = the record's epoch
    CANCEL = 7  # either: the migration is given up on request; text = why
    DIGESTS_WANTED = 8  # source: send the digest table
    VERIFIED = 9  # source: after RESUMED, nothing speaks against keeping the guest
    WRONG_MEMORY = 10  # source: after RESUMED, `value` destination pages aren't as they should be
    SETTLED = 11  # destination: it keeps the guest for good; value = the record's epoch


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The 32 bytes before every body. What `count`, `first` and `total` mean depends on the type:

    ============  ==========================  =============================  =============================
    type          count                       first                          total
    ============  ==========================  =============================  =============================
    PAGES, ZERO   runs                        first page of the first run    pages in all runs
    SYNC          0                           data pages in this iteration   zero pages in this iteration
    SYNC_ACK      0                           the same over all channels     the same over all channels
    DEVICE_STATE  1 on the last chunk, or 0   offset of this chunk           0
    DIGESTS       0                           first page                     pages
    CONTROL       code                        value                          0
    KEEPALIVE     0                           0                              0
    DISKS         disks                       0                              0
    DISK_DATA     the disk's key              offset                         bytes
    DISK_SYNC     1 on the final one, or 0    bytes sent since the last      frames sent since the last
    DISK_SYNC_ACK the same                    the same over all channels     the same over all channels
    MIRROR_WRITE  the disk's key              offset                         bytes
    MIRROR_ZERO   the disk's key              offset                         bytes
    MIRROR_FLUSH  the disk's key              0                              0
    MIRROR_REPLY  0, or a DiskFaultCode       0                              0
    ============  ==========================  =============================  =============================

    `iteration` is a disk frame's barrier, and the number of a mirror's request and of the reply to it.
    """

    type: FrameType
    body_bytes: int = 0
    iteration: int = 0
    count: int = 0
    first: int = 0
    total: int = 0

    @property
    def table_bytes(self) -> int:
        """The run table's part of a PAGES or ZERO body: a single run is in the header and needs none."""
        return 0 if self.count == 1 else self.count * RUN_BYTES


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """One step of the hand-over. `value` and `text` mean what the code says (ControlCode)."""

    code: ControlCode
    value: int = 0
    text: str = ""


def encode_header(header: FrameHeader) -> bytes:
    """The header's 32 bytes."""
    return _HEADER.pack(
        header.type, 0, 0, header.body_bytes, header.iteration, header.count, header.first, header.total
    )


def decode_header(
    data: bytes | bytearray | memoryview, page_count: int, disks: DiskCapacities = NO_DISKS
) -> FrameHeader:
    """Read and check a header for a guest of `page_count` pages and these disks.

    :raises ProtocolViolation: not 32 bytes, an unknown type, a reserved field in use, a length that can't be.
    :raises LimitExceeded: a number beyond its limit, beyond the guest or beyond the disk.
    """
    if len(data) != HEADER_BYTES:
        raise ProtocolViolation(f"A frame header has {len(data)} bytes instead of {HEADER_BYTES}.")
    number, flags, reserved, body_bytes, iteration, count, first, total = _HEADER.unpack(data)
    try:
        frame_type = FrameType(number)
    except ValueError:
        raise ProtocolViolation(f"The frame type {number} is unknown.") from None
    if flags or reserved:
        raise ProtocolViolation("A reserved header field is in use.")
    header = FrameHeader(frame_type, body_bytes, iteration, count, first, total)
    _within("first", first, MAX_NUMBER)
    _within("total", total, MAX_NUMBER)
    if frame_type in _CHECKS:
        _CHECKS[frame_type](header, page_count)
    else:
        _DISK_CHECKS[frame_type](header, disks)
    return header


def _within(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitExceeded(field, value, limit)


def _exactly(field: str, value: int, wanted: int) -> None:
    if value != wanted:
        raise ProtocolViolation(f"{field} is {value} instead of {wanted}.")


def _check_runs_header(header: FrameHeader, page_count: int, max_runs: int) -> None:
    _within("run count", header.count, max_runs)
    if not 1 <= header.count <= header.total:
        raise ProtocolViolation(f"{header.count} runs can't hold {header.total} pages.")
    _within("last page", header.first + header.total - 1, page_count - 1)


def _check_pages(header: FrameHeader, page_count: int) -> None:
    _within("pages in a frame", header.total, MAX_FRAME_PAGES)
    _check_runs_header(header, page_count, MAX_FRAME_PAGES)
    _exactly("body length", header.body_bytes, header.table_bytes + header.total * PAGE_BYTES)


def _check_zero(header: FrameHeader, page_count: int) -> None:
    _check_runs_header(header, page_count, MAX_ZERO_RUNS)
    _exactly("body length", header.body_bytes, header.table_bytes)


def _check_sync(header: FrameHeader, page_count: int) -> None:
    _exactly("body length", header.body_bytes, 0)
    _exactly("count", header.count, 0)
    _within("pages of an iteration", header.first + header.total, page_count)


def _check_device_state(header: FrameHeader, _page_count: int) -> None:
    _within("device state chunk", header.body_bytes, MAX_DEVICE_STATE_CHUNK_BYTES)
    _within("last mark", header.count, 1)
    _within("device state", header.first + header.body_bytes, MAX_DEVICE_STATE_BYTES)
    _exactly("total", header.total, 0)
    _exactly("iteration", header.iteration, 0)


def _check_digests(header: FrameHeader, page_count: int) -> None:
    _within("digests in a frame", header.total, MAX_DIGESTS)
    _within("last page", header.first + header.total, page_count)
    _exactly("body length", header.body_bytes, header.total * DIGEST_BYTES)
    _exactly("count", header.count, 0)
    _exactly("iteration", header.iteration, 0)


def _check_control(header: FrameHeader, _page_count: int) -> None:
    if header.count not in ControlCode.__members__.values():
        raise ProtocolViolation(f"The control code {header.count} is unknown.")
    _within("text", header.body_bytes, MAX_TEXT_BYTES)
    _exactly("total", header.total, 0)
    _exactly("iteration", header.iteration, 0)


def _check_keepalive(header: FrameHeader, _page_count: int) -> None:
    for field, value in (
        ("body length", header.body_bytes),
        ("iteration", header.iteration),
        ("count", header.count),
        ("first", header.first),
        ("total", header.total),
    ):
        _exactly(field, value, 0)


_CHECKS: Final = {
    FrameType.PAGES: _check_pages,
    FrameType.ZERO: _check_zero,
    FrameType.SYNC: _check_sync,
    FrameType.SYNC_ACK: _check_sync,
    FrameType.DEVICE_STATE: _check_device_state,
    FrameType.DIGESTS: _check_digests,
    FrameType.CONTROL: _check_control,
    FrameType.KEEPALIVE: _check_keepalive,
}


def _check_range(header: FrameHeader, disks: DiskCapacities, max_bytes: int) -> None:
    if header.count not in disks:
        raise ProtocolViolation(f"The disk {header.count} is unknown.")
    _within("bytes of a disk", header.total, max_bytes)
    _within("end of a range", header.first + header.total, disks[header.count])
    if not header.total or header.first % SECTOR_BYTES or header.total % SECTOR_BYTES:
        raise ProtocolViolation(f"{header.total} bytes at {header.first} are no whole sectors.")


def _check_disk_data(header: FrameHeader, disks: DiskCapacities) -> None:
    _check_range(header, disks, MAX_DISK_BODY_BYTES)
    _exactly("body length", header.body_bytes, header.total)


def _check_mirror_zero(header: FrameHeader, disks: DiskCapacities) -> None:
    _check_range(header, disks, MAX_MIRROR_ZERO_BYTES)
    _exactly("body length", header.body_bytes, 0)


def _check_mirror_flush(header: FrameHeader, disks: DiskCapacities) -> None:
    if header.count not in disks:
        raise ProtocolViolation(f"The disk {header.count} is unknown.")
    for field, value in (
        ("body length", header.body_bytes),
        ("first", header.first),
        ("total", header.total),
    ):
        _exactly(field, value, 0)


def _check_mirror_reply(header: FrameHeader, _disks: DiskCapacities) -> None:
    if header.count and header.count not in DiskFaultCode.__members__.values():
        raise ProtocolViolation(f"The disk fault {header.count} is unknown.")
    _within("text", header.body_bytes, MAX_TEXT_BYTES if header.count else 0)
    _exactly("first", header.first, 0)
    _exactly("total", header.total, 0)


def _check_disk_sync(header: FrameHeader, _disks: DiskCapacities) -> None:
    _exactly("body length", header.body_bytes, 0)
    _within("final mark", header.count, 1)
    _within("frames of a barrier", header.total, header.first)


def _check_disks(header: FrameHeader, _disks: DiskCapacities) -> None:
    if not 1 <= header.count <= MAX_DISKS:
        raise LimitExceeded("disks", header.count, MAX_DISKS)
    _exactly("body length", header.body_bytes, header.count * DISK_ROW_BYTES)
    for field, value in (("iteration", header.iteration), ("first", header.first), ("total", header.total)):
        _exactly(field, value, 0)


_DISK_CHECKS: Final = {
    FrameType.DISKS: _check_disks,
    FrameType.DISK_DATA: _check_disk_data,
    FrameType.DISK_SYNC: _check_disk_sync,
    FrameType.DISK_SYNC_ACK: _check_disk_sync,
    FrameType.MIRROR_WRITE: _check_disk_data,
    FrameType.MIRROR_ZERO: _check_mirror_zero,
    FrameType.MIRROR_FLUSH: _check_mirror_flush,
    FrameType.MIRROR_REPLY: _check_mirror_reply,
}


def runs_header(frame_type: FrameType, iteration: int, runs: PageRuns) -> FrameHeader:
    """The header of a PAGES or ZERO frame over `runs` (at least one)."""
    count, pages = len(runs), int(runs[:, 1].sum())
    table_bytes = 0 if count == 1 else count * RUN_BYTES
    data_bytes = pages * PAGE_BYTES if frame_type is FrameType.PAGES else 0
    return FrameHeader(frame_type, table_bytes + data_bytes, iteration, count, int(runs[0, 0]), pages)


def encode_runs(runs: PageRuns) -> bytes:
    """The run table of a frame with more than one run: rows of (first page, page count), 8 bytes each."""
    return runs.astype(_ROW_TYPE, copy=False).tobytes()


def decode_runs(
    header: FrameHeader, table: bytes | bytearray | memoryview | NDArray[np.uint8], page_count: int
) -> PageRuns:
    """The runs of a checked PAGES or ZERO header. `table` is empty where the header holds the only run.

    :raises ProtocolViolation: the table does not fit the header, or its runs are empty, unsorted or overlapping.
    :raises LimitExceeded: a run reaches beyond the guest.
    """
    if len(table) != header.table_bytes:
        raise ProtocolViolation(f"A run table has {len(table)} bytes instead of {header.table_bytes}.")
    if header.count == 1:
        return np.array([[header.first, header.total]], dtype=np.int64)
    runs = np.frombuffer(table, dtype=_ROW_TYPE).reshape(header.count, 2).astype(np.int64, copy=False)
    first, count = runs[:, 0], runs[:, 1]
    # Each value is bounded before anything is added up, so that no sum can wrap.
    if int(first.min()) < 0 or int(count.min()) < 1:
        raise ProtocolViolation("A run table holds a negative page or an empty run.")
    _within("first page", int(first.max()), page_count - 1)
    _within("page count", int(count.max()), page_count)
    ends = first + count
    _within("last page", int(ends.max()) - 1, page_count - 1)
    if bool((first[1:] < ends[:-1]).any()):
        raise ProtocolViolation("A run table's runs are not sorted and apart.")
    _exactly("first page", int(first[0]), header.first)
    _exactly("pages in the run table", int(count.sum()), header.total)
    return runs


def control_frame(message: ControlMessage) -> tuple[FrameHeader, bytes]:
    """A control message as header and body. A text too long for a frame is cut, never refused: it explains."""
    text = message.text.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
    return FrameHeader(FrameType.CONTROL, len(text), 0, int(message.code), message.value), text


def decode_control(header: FrameHeader, body: bytes | bytearray | memoryview) -> ControlMessage:
    """The message of a checked CONTROL header. Bytes that are no UTF-8 are shown as replacement characters."""
    _exactly("body", len(body), header.body_bytes)
    return ControlMessage(ControlCode(header.count), header.first, bytes(body).decode("utf-8", "replace"))


def encode_digests(digests: NDArray[np.uint64]) -> bytes:
    """The body of a DIGESTS frame."""
    return digests.astype(_DIGEST_TYPE, copy=False).tobytes()


def decode_digests(header: FrameHeader, body: bytes | bytearray | memoryview) -> NDArray[np.uint64]:
    """The digests of a checked DIGESTS header."""
    _exactly("body", len(body), header.body_bytes)
    return np.frombuffer(bytes(body), dtype=_DIGEST_TYPE).astype(np.uint64, copy=False)


def disks_frame(disks: tuple[DiskExtent, ...]) -> tuple[FrameHeader, bytes]:
    """The layout of the disks (at least one, keys rising) as header and body."""
    body = b"".join(_DISK_ROW.pack(disk.key, disk.capacity_bytes) for disk in disks)
    return FrameHeader(FrameType.DISKS, len(body), count=len(disks)), body


def decode_disks(header: FrameHeader, body: bytes | bytearray | memoryview) -> tuple[DiskExtent, ...]:
    """The disks of a checked DISKS header; whether they are the right ones is for the caller.

    :raises ProtocolViolation: their keys don't rise.
    """
    _exactly("body", len(body), header.body_bytes)
    disks = tuple(DiskExtent(key, capacity_bytes) for key, capacity_bytes in _DISK_ROW.iter_unpack(body))
    if any(one.key >= other.key for one, other in pairwise(disks)):
        raise ProtocolViolation("The keys of the disks don't rise.")
    return disks


def failed_value(key: int, code: DiskFaultCode) -> int:
    """The value of a FAILED that speaks of a disk: the code in the low 8 bits, the key in the 32 above."""
    return key << 8 | code


def decode_failed_value(value: int) -> tuple[int, DiskFaultCode] | None:
    """The disk's key and what befell it, or None where a FAILED speaks of no disk, or of nothing known."""
    code = value & 0xFF
    if code not in DiskFaultCode.__members__.values() or value >> 40:
        return None
    return value >> 8, DiskFaultCode(code)
