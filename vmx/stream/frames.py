"""Pure: no I/O, no clock, no logging. The frames of a migration stream, to bytes and back (PROTOCOL.md).

A frame is a header of 32 bytes and, where the header says so, a body. Everything that a header or a run table claims
is checked here, against fixed limits and the guest's own page count, before the caller allocates, reads or writes
anything for it. Arbitrary bytes raise ProtocolViolation (or its LimitExceeded) and nothing else.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.guest.pages import PAGE_BYTES, PageRuns
from vmx.stream.errors import LimitExceeded, ProtocolViolation

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

_HEADER: Final = Struct("<BBHIIIQQ")
_ROW_TYPE: Final = np.dtype("<i8")
_DIGEST_TYPE: Final = np.dtype("<u8")


class FrameType(IntEnum):
    """What a frame carries. The numbers are on the wire: append, and never use a retired one again."""

    PAGES = 16
    ZERO = 17
    SYNC = 18
    SYNC_ACK = 19
    DEVICE_STATE = 32
    DIGESTS = 33
    CONTROL = 48
    KEEPALIVE = 49


PAGE_CHANNEL_TYPES: Final = frozenset({FrameType.PAGES, FrameType.ZERO, FrameType.SYNC})
TO_DESTINATION_TYPES: Final = frozenset(
    {FrameType.DEVICE_STATE, FrameType.DIGESTS, FrameType.CONTROL, FrameType.KEEPALIVE}
)
TO_SOURCE_TYPES: Final = frozenset(
    {FrameType.SYNC_ACK, FrameType.DIGESTS, FrameType.CONTROL, FrameType.KEEPALIVE}
)


class ControlCode(IntEnum):
    """What a CONTROL frame says. The numbers are on the wire: append, and never use a retired one again."""

    LAYOUT = 1  # source: value = bytes of guest RAM; the first frame on the control channel
    READY = 2  # destination: everything is loaded, it waits for COMMIT; value = epoch of the record it could give up
    COMMIT = 3  # source: the owner record names the destination; value = the record's epoch
    RESUMED = 4  # destination: the guest runs there
    FAILED = 5  # either: this side's part failed; text = why
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
    ============  ==========================  =============================  =============================
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


def decode_header(data: bytes | bytearray | memoryview, page_count: int) -> FrameHeader:
    """Read and check a header for a guest of `page_count` pages.

    :raises ProtocolViolation: not 32 bytes, an unknown type, a reserved field in use, a length that can't be.
    :raises LimitExceeded: a number beyond its limit or beyond the guest.
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
    _CHECKS[frame_type](header, page_count)
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
