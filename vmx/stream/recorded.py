"""Checks a recorded stream: given the bytes of every connection, both directions, and the migration's secret.

It shares the codec and the key derivation with the stream, and none of its senders, receivers or threads: what they
did is judged here against PROTOCOL.md from the bytes alone. Nothing may be left over: each byte belongs to a
handshake or to a frame. Used by tests behind a recording relay, and fit for a capture off a real vMotion network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.guest.pages import PAGE_BYTES, PageRuns, page_indexes
from vmx.stream import frames, handshake, recorded_disks
from vmx.stream.frames import (
    HEADER_BYTES,
    ControlCode,
    ControlMessage,
    DiskCapacities,
    FrameType,
)
from vmx.stream.recorded_disks import RecordedDisks, RecordedFrame, RecordingError
from vmx.stream.records import Opener
from vmx.stream.spec import CONTROL_CHANNEL, ChannelPlan, ChannelRole, DiskExtent, StreamSecret

_MAX_BODY_BYTES: Final = max(frames.MAX_PAGES_BODY_BYTES, frames.MAX_DIGESTS * frames.DIGEST_BYTES)


@dataclass(frozen=True)
class ConnectionRecording:
    """All bytes of one connection, in the order they were sent."""

    to_destination: bytes
    to_source: bytes


@dataclass(frozen=True)
class IterationRecord:
    """What one iteration carried over all page channels."""

    iteration: int
    data_pages: int
    zero_pages: int


@dataclass(frozen=True)
class RecordedStream:
    """What a recording that keeps all rules contains. `sent_pages`: those that came at least once."""

    iterations: tuple[IterationRecord, ...]
    sent_pages: NDArray[np.int64]
    device_state: bytes
    to_destination: tuple[ControlMessage, ...]
    to_source: tuple[ControlMessage, ...]
    disks: RecordedDisks


@dataclass
class _Pages:
    """What one page channel carried in one iteration."""

    data: list[PageRuns] = field(default_factory=list)
    zero: list[PageRuns] = field(default_factory=list)


def check_recording(
    secret: StreamSecret,
    page_count: int,
    recordings: Sequence[ConnectionRecording],
    disks: tuple[DiskExtent, ...] = (),
) -> RecordedStream:
    """Check a whole stream, of a guest of `page_count` pages and these disks, against the protocol.

    :raises RecordingError: the first rule that is broken.
    :raises StreamError: bytes that no handshake message, record or frame can be.
    """
    channels: dict[int, _Both] = {}
    plans: set[ChannelPlan] = set()
    capacities = {disk.key: disk.capacity_bytes for disk in disks}
    for recording in recordings:
        index, plan, both = _open(secret, page_count, capacities, recording)
        if index in channels:
            raise RecordingError(index, "it was opened twice")
        channels[index] = both
        plans.add(plan)
    if len(plans) != 1 or set(channels) != set(range(next(iter(plans)).total)):
        raise RecordingError(None, "not all channels were opened")
    role = next(iter(plans)).role
    iterations: list[dict[int, _Pages]] = []
    for index in range(1, len(channels)):
        if role(index) is not ChannelRole.MIRROR and channels[index][1]:
            raise RecordingError(index, "it carries frames to the source")
        if role(index) is ChannelRole.PAGES:
            iterations.append(_check_page_channel(index, channels[index][0], page_count))
    records, sent = _check_iterations(iterations)
    control = channels[CONTROL_CHANNEL]
    device_state, forth, back = _check_control(control, page_count, records)
    recorded_disks.check_announcement(control[0], disks)
    found = recorded_disks.check_disks(next(iter(plans)), channels)
    return RecordedStream(tuple(records), sent, device_state, forth, back, found)


# What a connection carried: to the destination, and to the source.
_Both = tuple[list[RecordedFrame], list[RecordedFrame]]


def _open(
    secret: StreamSecret, page_count: int, disks: DiskCapacities, recording: ConnectionRecording
) -> tuple[int, ChannelPlan, _Both]:
    hello_bytes = recording.to_destination[: handshake.HELLO_BYTES]
    hello = handshake.decode_hello(hello_bytes)
    index = hello.channel_index
    if hello.migration_id != secret.migration_id:
        raise RecordingError(index, "it belongs to another migration")
    transcript = handshake.decode_challenge(
        secret, hello_bytes, recording.to_source[: handshake.CHALLENGE_BYTES]
    )
    proof_end = handshake.HELLO_BYTES + handshake.PROOF_MESSAGE_BYTES
    accept_end = handshake.CHALLENGE_BYTES + handshake.ACCEPT_BYTES
    handshake.check_proof(secret, transcript, recording.to_destination[handshake.HELLO_BYTES : proof_end])
    handshake.check_accept(secret, transcript, recording.to_source[handshake.CHALLENGE_BYTES : accept_end])
    keys = handshake.session_keys(secret, transcript)
    forth = Opener(index, keys.to_destination)
    back = Opener(index, keys.to_source)
    both = (
        list(_frames(forth, recording.to_destination[proof_end:], page_count, disks)),
        list(_frames(back, recording.to_source[accept_end:], page_count, disks)),
    )
    return index, hello.channels, both


def _frames(opener: Opener, data: bytes, page_count: int, disks: DiskCapacities) -> Iterator[RecordedFrame]:
    view, at = memoryview(data), 0
    scratch = memoryview(bytearray(_MAX_BODY_BYTES))

    def record(length: int) -> bytes:
        nonlocal at
        end = at + length + opener.overhead_bytes
        if end > len(view):
            raise RecordingError(opener.channel_index, "it ends within a frame")
        opener.open_into(view[at:end], scratch[:length])
        at = end
        return bytes(scratch[:length])

    while at < len(view):
        header = frames.decode_header(record(HEADER_BYTES), page_count, disks)
        yield RecordedFrame(header, record(header.body_bytes) if header.body_bytes else b"")


def _check_page_channel(index: int, found: list[RecordedFrame], page_count: int) -> dict[int, _Pages]:
    iterations: dict[int, _Pages] = {}
    last, current = -1, _Pages()
    begun: int | None = None
    for frame in found:
        header = frame.header
        if header.type not in frames.PAGE_CHANNEL_TYPES:
            raise RecordingError(index, f"a {header.type.name} frame is on a page channel")
        if header.iteration <= last or begun not in (None, header.iteration):
            raise RecordingError(index, f"iteration {header.iteration} is out of order")
        begun = header.iteration
        if header.type is not FrameType.SYNC:
            runs = frames.decode_runs(header, frame.body[: header.table_bytes], page_count)
            (current.data if header.type is FrameType.PAGES else current.zero).append(runs)
            continue
        if (header.first, header.total) != (_pages_in(current.data), _pages_in(current.zero)):
            raise RecordingError(index, f"SYNC of iteration {begun} counts other pages than were sent")
        iterations[begun] = current
        last, current, begun = begun, _Pages(), None
    if begun is not None:
        raise RecordingError(index, f"iteration {begun} does not end")
    return iterations


def _pages_in(tables: list[PageRuns]) -> int:
    return sum(int(runs[:, 1].sum()) for runs in tables)


def _check_iterations(channels: list[dict[int, _Pages]]) -> tuple[list[IterationRecord], NDArray[np.int64]]:
    if any(list(channel) != list(channels[0]) for channel in channels):
        raise RecordingError(None, "the channels did not go through the same iterations")
    records = []
    ever: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for iteration in channels[0] if channels else ():
        parts = [channel[iteration] for channel in channels]
        tables = [runs for part in parts for runs in part.data + part.zero]
        pages = np.concatenate([page_indexes(runs) for runs in tables] or [ever[:0]])
        distinct = np.unique(pages)
        if len(distinct) != len(pages):
            raise RecordingError(None, f"a page was sent twice in iteration {iteration}")
        ever = np.union1d(ever, distinct)
        data = sum(_pages_in(part.data) for part in parts)
        records.append(IterationRecord(iteration, data, len(pages) - data))
    return records, ever


def _check_control(
    found: tuple[list[RecordedFrame], list[RecordedFrame]], page_count: int, records: list[IterationRecord]
) -> tuple[bytes, tuple[ControlMessage, ...], tuple[ControlMessage, ...]]:
    forth, back = found
    for side, allowed in ((forth, frames.TO_DESTINATION_TYPES), (back, frames.TO_SOURCE_TYPES)):
        for frame in side:
            if frame.header.type not in allowed:
                raise RecordingError(CONTROL_CHANNEL, f"a {frame.header.type.name} frame goes the wrong way")
    acks = [
        IterationRecord(frame.header.iteration, frame.header.first, frame.header.total)
        for frame in back
        if frame.header.type is FrameType.SYNC_ACK
    ]
    if acks != records:
        raise RecordingError(CONTROL_CHANNEL, "the acks don't match the iterations")
    to_destination, to_source = _messages(forth), _messages(back)
    if (
        not forth
        or forth[0].header.type is not FrameType.CONTROL
        or to_destination[0].code is not ControlCode.LAYOUT
    ):
        raise RecordingError(CONTROL_CHANNEL, "it does not begin with LAYOUT")
    if to_destination[0].value != page_count * PAGE_BYTES:
        raise RecordingError(CONTROL_CHANNEL, "LAYOUT names another size")
    _check_hand_over([m.code for m in to_destination], [m.code for m in to_source])
    for side in (forth, back):
        _check_digests(side, page_count)
    return _device_state(forth), to_destination, to_source


def _messages(side: list[RecordedFrame]) -> tuple[ControlMessage, ...]:
    return tuple(frames.decode_control(f.header, f.body) for f in side if f.header.type is FrameType.CONTROL)


def _check_hand_over(forth: list[ControlCode], back: list[ControlCode]) -> None:
    if forth.count(ControlCode.LAYOUT) != 1:
        raise RecordingError(CONTROL_CHANNEL, "LAYOUT is not said exactly once")
    if ControlCode.COMMIT in forth and ControlCode.READY not in back:
        raise RecordingError(CONTROL_CHANNEL, "COMMIT was said without READY")
    for code in (ControlCode.RESUMED, ControlCode.GIVE_BACK):
        if code in back and ControlCode.COMMIT not in forth:
            raise RecordingError(CONTROL_CHANNEL, f"{code.name} was said without COMMIT")
    if ControlCode.RESUMED in back and back.index(ControlCode.RESUMED) < back.index(ControlCode.READY):
        raise RecordingError(CONTROL_CHANNEL, "RESUMED was said before READY")


def _device_state(forth: list[RecordedFrame]) -> bytes:
    state, ended = bytearray(), False
    for frame in forth:
        if frame.header.type is not FrameType.DEVICE_STATE:
            continue
        if ended or frame.header.first != len(state):
            raise RecordingError(CONTROL_CHANNEL, "the device state has a gap, or goes on after its end")
        state += frame.body
        ended = frame.header.count == 1
    if state and not ended:
        raise RecordingError(CONTROL_CHANNEL, "the device state does not end")
    return bytes(state)


def _check_digests(side: list[RecordedFrame], page_count: int) -> None:
    at = 0
    for frame in side:
        if frame.header.type is FrameType.DIGESTS:
            if frame.header.first != at:
                raise RecordingError(CONTROL_CHANNEL, "the digests have a gap")
            at = (at + frame.header.total) % page_count
    if at:
        raise RecordingError(CONTROL_CHANNEL, "the digests are not complete")
