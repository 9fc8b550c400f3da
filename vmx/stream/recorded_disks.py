"""The disks of a recorded stream, checked as recorded.py checks the rest: from the bytes alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from vmx.stream import frames
from vmx.stream.errors import StreamError
from vmx.stream.frames import ControlCode, FrameHeader, FrameType
from vmx.stream.spec import CONTROL_CHANNEL, ChannelPlan, ChannelRole, DiskExtent


class RecordingError(StreamError):
    """The recording breaks the protocol: on `channel_index` (None: across channels), `rule` says which rule."""

    def __init__(self, channel_index: int | None, rule: str) -> None:
        place = "the stream" if channel_index is None else f"channel {channel_index}"
        super().__init__(f"The recording of {place} breaks the protocol: {rule}.")
        self.channel_index = channel_index
        self.rule = rule


@dataclass
class RecordedFrame:
    """One frame, opened."""

    header: FrameHeader
    body: bytes


@dataclass(frozen=True)
class DiskWrite:
    """A range of a disk that bulk data, a mirrored write or mirrored zeros covered."""

    key: int
    offset: int
    length: int


@dataclass(frozen=True)
class RecordedDisks:
    """What went to the disks, and how many barriers were acknowledged. `bulk` is sorted, `mirrored` as it was sent."""

    bulk: tuple[DiskWrite, ...]
    mirrored: tuple[DiskWrite, ...]
    barriers: int


_Both = tuple[list[RecordedFrame], list[RecordedFrame]]
_WRITES: Final = frozenset({FrameType.MIRROR_WRITE, FrameType.MIRROR_ZERO})


def check_announcement(forth: list[RecordedFrame], disks: tuple[DiskExtent, ...]) -> None:
    """DISKS comes once, right after LAYOUT, and names exactly `disks`; never in a stream that has none.

    :raises RecordingError: it is not so.
    """
    said = [at for at, frame in enumerate(forth) if frame.header.type is FrameType.DISKS]
    if said != ([1] if disks else []):
        raise RecordingError(
            CONTROL_CHANNEL, "DISKS is not said exactly once, after LAYOUT, where there are disks"
        )
    if said and frames.decode_disks(forth[1].header, forth[1].body) != disks:
        raise RecordingError(CONTROL_CHANNEL, "DISKS names other disks")


def check_disks(plan: ChannelPlan, channels: Mapping[int, _Both]) -> RecordedDisks:
    """Check the disk channels, the mirror, and what control says of them.

    :raises RecordingError: the first rule that is broken.
    """
    acks = [f.header for f in channels[CONTROL_CHANNEL][1] if f.header.type is FrameType.DISK_SYNC_ACK]
    if not plan.disks:
        if acks:
            raise RecordingError(CONTROL_CHANNEL, "a stream without disks acknowledges some")
        return RecordedDisks((), (), 0)
    bulk: list[DiskWrite] = []
    syncs: list[list[FrameHeader]] = []
    covered: dict[int, list[DiskWrite]] = {}
    for index in range(plan.total):
        if plan.role(index) is ChannelRole.DISKS:
            syncs.append(_check_channel(index, channels[index][0], covered))
    for number, writes in covered.items():
        _check_once(number, writes)
        bulk += writes
    _check_acks(syncs, acks)
    mirrored = _check_mirror(plan.total - 1, channels[plan.total - 1], bool(acks and acks[-1].count))
    _check_ready(channels[CONTROL_CHANNEL][1])
    bulk.sort(key=lambda write: (write.key, write.offset))
    return RecordedDisks(tuple(bulk), tuple(mirrored), len(acks))


def _check_channel(
    index: int, found: list[RecordedFrame], covered: dict[int, list[DiskWrite]]
) -> list[FrameHeader]:
    syncs: list[FrameHeader] = []
    sent: list[DiskWrite] = []
    for frame in found:
        header = frame.header
        if header.type not in frames.DISK_CHANNEL_TYPES:
            raise RecordingError(index, f"a {header.type.name} frame is on a disk channel")
        if header.iteration != len(syncs):
            raise RecordingError(index, f"barrier {header.iteration} is out of order")
        if syncs and syncs[-1].count:
            raise RecordingError(index, "it goes on after the final barrier")
        if header.type is FrameType.DISK_DATA:
            sent.append(DiskWrite(header.count, header.first, header.total))
            continue
        if (header.first, header.total) != (sum(write.length for write in sent), len(sent)):
            raise RecordingError(
                index, f"DISK_SYNC of barrier {header.iteration} counts other data than was sent"
            )
        covered.setdefault(header.iteration, []).extend(sent)
        syncs.append(header)
        sent = []
    if sent:
        raise RecordingError(index, f"barrier {len(syncs)} does not end")
    return syncs


def _check_once(number: int, writes: list[DiskWrite]) -> None:
    in_order = sorted(writes, key=lambda write: (write.key, write.offset))
    for one, other in pairwise(in_order):
        if one.key == other.key and one.offset + one.length > other.offset:
            raise RecordingError(None, f"a range of disk {one.key} was sent twice in barrier {number}")


def _check_acks(syncs: list[list[FrameHeader]], acks: list[FrameHeader]) -> None:
    if len({len(channel) for channel in syncs}) != 1:
        raise RecordingError(None, "the disk channels did not go through the same barriers")
    wanted = []
    for parts in zip(*syncs, strict=True):
        if len({part.count for part in parts}) != 1:
            raise RecordingError(None, "a barrier is final for some channels only")
        sums = sum(part.first for part in parts), sum(part.total for part in parts)
        wanted.append(FrameHeader(FrameType.DISK_SYNC_ACK, 0, parts[0].iteration, parts[0].count, *sums))
    if acks != wanted:
        raise RecordingError(CONTROL_CHANNEL, "the acks don't match the barriers")


def _check_mirror(index: int, both: _Both, final: bool) -> list[DiskWrite]:
    forth, back = both
    for number, frame in enumerate(forth):
        if frame.header.type not in frames.MIRROR_REQUEST_TYPES:
            raise RecordingError(index, f"a {frame.header.type.name} frame is on the mirror channel")
        if frame.header.iteration != number % frames.REQUEST_NUMBERS:
            raise RecordingError(index, f"request {frame.header.iteration} is out of order")
    answered: set[int] = set()
    for frame in back:
        number = frame.header.iteration
        if frame.header.type not in frames.MIRROR_REPLY_TYPES or number in answered or number >= len(forth):
            raise RecordingError(index, f"reply {number} answers no request, or one that was answered")
        answered.add(number)
    if final and (len(answered) != len(forth) or any(frame.header.count for frame in back)):
        raise RecordingError(index, "the disks were handed over with a mirrored write undone")
    return [
        DiskWrite(frame.header.count, frame.header.first, frame.header.total)
        for frame in forth
        if frame.header.type in _WRITES
    ]


def _check_ready(back: list[RecordedFrame]) -> None:
    final = False
    for frame in back:
        if frame.header.type is FrameType.DISK_SYNC_ACK:
            final = bool(frame.header.count)
        if frame.header.type is FrameType.CONTROL and frame.header.count == ControlCode.READY and not final:
            raise RecordingError(CONTROL_CHANNEL, "READY was said before the disks were handed over")
