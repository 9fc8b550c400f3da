"""The recording checker finds each broken rule: recordings are written by hand, one rule broken in each."""

import secrets
from collections.abc import Sequence

import numpy as np
import pytest

from vmx.guest.pages import PAGE_BYTES
from vmx.stream import frames, handshake
from vmx.stream.errors import RecordForged
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType
from vmx.stream.handshake import Hello
from vmx.stream.recorded import ConnectionRecording, IterationRecord, check_recording
from vmx.stream.recorded_disks import DiskWrite, RecordingError
from vmx.stream.records import Sealer
from vmx.stream.spec import DiskExtent, Encryption, StreamSecret

SECRET = StreamSecret(99, secrets.token_bytes(32), secrets.token_bytes(32))
PAGE_COUNT = 64

Frame = tuple[FrameHeader, bytes]


def seal(sealer: Sealer, sent: Sequence[Frame]) -> bytes:
    data = b""
    for header, body in sent:
        for plain in (frames.encode_header(header), body):
            if plain:
                sealed = bytearray(len(plain) + sealer.overhead_bytes)
                sealer.seal_into(plain, sealed)
                data += sealed
    return data


def record(
    index: int, forth: Sequence[Frame], back: Sequence[Frame] = (), count: int = 2, disk_count: int = 0
) -> ConnectionRecording:
    hello = handshake.encode_hello(
        Hello(
            index,
            count,
            SECRET.migration_id,
            Encryption.AES_256_GCM,
            secrets.token_bytes(32),
            disk_channel_count=disk_count,
        )
    )
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 2, secrets.token_bytes(32))
    keys = handshake.session_keys(SECRET, transcript)
    return ConnectionRecording(
        hello + handshake.encode_proof(SECRET, transcript) + seal(Sealer(index, keys.to_destination), forth),
        challenge + handshake.encode_accept(SECRET, transcript) + seal(Sealer(index, keys.to_source), back),
    )


def pages(first: int, count: int = 1, iteration: int = 0) -> Frame:
    runs = np.array([[first, count]], dtype=np.int64)
    return frames.runs_header(FrameType.PAGES, iteration, runs), bytes(count * PAGE_BYTES)


def sync(data: int, iteration: int = 0, zero: int = 0) -> Frame:
    return FrameHeader(FrameType.SYNC, iteration=iteration, first=data, total=zero), b""


def ack(data: int, iteration: int = 0, zero: int = 0) -> Frame:
    return FrameHeader(FrameType.SYNC_ACK, iteration=iteration, first=data, total=zero), b""


def say(code: ControlCode, value: int = 0) -> Frame:
    return frames.control_frame(ControlMessage(code, value))


def state(offset: int, data: bytes, last: bool) -> Frame:
    return FrameHeader(FrameType.DEVICE_STATE, len(data), count=int(last), first=offset), data


LAYOUT = say(ControlCode.LAYOUT, PAGE_COUNT * PAGE_BYTES)
GOOD_CONTROL = ([LAYOUT, state(0, b"ab", False), state(2, b"c", True)], [ack(3, zero=0)])
GOOD_PAGES = ([pages(0, 2), sync(2)], [pages(9), sync(1)])


def stream(
    control: tuple[Sequence[Frame], Sequence[Frame]] = GOOD_CONTROL,
    channels: Sequence[Sequence[Frame]] = GOOD_PAGES,
) -> list[ConnectionRecording]:
    return [record(0, *control)] + [record(index, sent) for index, sent in enumerate(channels, 1)]


def test_check_recording_good_stream_is_told() -> None:
    found = check_recording(SECRET, PAGE_COUNT, stream())
    assert found.iterations == (IterationRecord(0, 3, 0),)
    assert found.sent_pages.tolist() == [0, 1, 9]
    assert found.device_state == b"abc"


BROKEN = {
    "page_sent_twice": stream(channels=([pages(0, 2), sync(2)], [pages(1), sync(1)])),
    "sync_counts_wrong": stream(channels=([pages(0, 2), sync(3)], GOOD_PAGES[1])),
    "no_sync": stream(channels=([pages(0, 2)], GOOD_PAGES[1])),
    "iteration_goes_back": stream(channels=([*GOOD_PAGES[0], sync(0)], GOOD_PAGES[1])),
    "channels_differ": stream(channels=([*GOOD_PAGES[0], sync(0, 1)], GOOD_PAGES[1])),
    "control_on_pages": stream(channels=([LAYOUT, *GOOD_PAGES[0]], GOOD_PAGES[1])),
    "pages_on_control": stream(control=([LAYOUT, pages(3)], [ack(3)])),
    "ack_missing": stream(control=([LAYOUT], [])),
    "ack_counts_wrong": stream(control=([LAYOUT], [ack(4)])),
    "no_layout": stream(control=([say(ControlCode.CANCEL)], [ack(3)])),
    "other_layout": stream(control=([say(ControlCode.LAYOUT, 5)], [ack(3)])),
    "layout_twice": stream(control=([LAYOUT, LAYOUT], [ack(3)])),
    "commit_without_ready": stream(control=([LAYOUT, say(ControlCode.COMMIT)], [ack(3)])),
    "resumed_without_commit": stream(control=([LAYOUT], [ack(3), say(ControlCode.RESUMED)])),
    "device_state_gap": stream(control=([LAYOUT, state(5, b"x", True)], [ack(3)])),
    "device_state_open": stream(control=([LAYOUT, state(0, b"x", False)], [ack(3)])),
    "digests_incomplete": stream(
        control=([LAYOUT, (FrameHeader(FrameType.DIGESTS, 8, total=1), bytes(8))], [ack(3)])
    ),
    "channel_missing": stream()[:2],
    "channel_twice": [*stream(), record(1, GOOD_PAGES[0])],
    "pages_channel_answers": [*stream()[:2], record(2, GOOD_PAGES[1], [ack(1)])],
}


@pytest.mark.parametrize("recordings", BROKEN.values(), ids=BROKEN.keys())
def test_check_recording_broken_rule_raises(recordings: list[ConnectionRecording]) -> None:
    with pytest.raises(RecordingError):
        check_recording(SECRET, PAGE_COUNT, recordings)


DISKS = (DiskExtent(0, 1 << 20), DiskExtent(7, 4096))
NO_MEMORY = say(ControlCode.LAYOUT, 0)
ANNOUNCED = [NO_MEMORY, frames.disks_frame(DISKS)]


def data(offset: int, length: int = 512, barrier: int = 0, key: int = 0) -> Frame:
    return FrameHeader(FrameType.DISK_DATA, length, barrier, key, offset, length), bytes(length)


def disk_sync(byte_count: int, frame_count: int, barrier: int = 0, final: int = 0) -> Frame:
    return FrameHeader(FrameType.DISK_SYNC, 0, barrier, final, byte_count, frame_count), b""


def disk_ack(byte_count: int, frame_count: int, barrier: int = 0, final: int = 0) -> Frame:
    return FrameHeader(FrameType.DISK_SYNC_ACK, 0, barrier, final, byte_count, frame_count), b""


def write(number: int, offset: int = 0, key: int = 7) -> Frame:
    return FrameHeader(FrameType.MIRROR_WRITE, 512, number, key, offset, 512), bytes(512)


def zero(number: int) -> Frame:
    return FrameHeader(FrameType.MIRROR_ZERO, 0, number, 7, 0, 4096), b""


def reply(number: int, code: int = 0) -> Frame:
    return FrameHeader(FrameType.MIRROR_REPLY, 0, number, code), b""


READY = say(ControlCode.READY)
DISK_CONTROL = [disk_ack(1536, 2), disk_ack(0, 0, 1, 1), READY]
DISK_FIRST = [data(0), disk_sync(512, 1), disk_sync(0, 0, 1, 1)]
DISK_SECOND = [data(1024, 1024), disk_sync(1024, 1), disk_sync(0, 0, 1, 1)]
MIRROR = ([write(0, 512), zero(1)], [reply(1), reply(0)])


def disk_stream(
    back: Sequence[Frame] = DISK_CONTROL,
    first: Sequence[Frame] = DISK_FIRST,
    second: Sequence[Frame] = DISK_SECOND,
    mirror: tuple[Sequence[Frame], Sequence[Frame]] = MIRROR,
    forth: Sequence[Frame] = ANNOUNCED,
) -> list[ConnectionRecording]:
    return [
        record(0, forth, back, 0, 2),
        record(1, first, count=0, disk_count=2),
        record(2, second, count=0, disk_count=2),
        record(3, *mirror, count=0, disk_count=2),
    ]


def test_check_recording_good_disks_are_told() -> None:
    found = check_recording(SECRET, 0, disk_stream(), DISKS).disks
    assert found.bulk == (DiskWrite(0, 0, 512), DiskWrite(0, 1024, 1024))
    assert found.mirrored == (DiskWrite(7, 512, 512), DiskWrite(7, 0, 4096))
    assert found.barriers == 2


BROKEN_DISKS = {
    "not_announced": disk_stream(forth=[NO_MEMORY]),
    "announced_twice": disk_stream(forth=[*ANNOUNCED, ANNOUNCED[1]]),
    "other_disks_announced": disk_stream(forth=[NO_MEMORY, frames.disks_frame(DISKS[:1])]),
    "range_sent_twice": disk_stream(second=[data(0, 1024), *DISK_SECOND[1:]]),
    "disk_sync_counts_wrong": disk_stream(first=[data(0), disk_sync(512, 2), *DISK_FIRST[2:]]),
    "barrier_left_out": disk_stream(first=[data(0, barrier=1), disk_sync(512, 1, 1)]),
    "barrier_does_not_end": disk_stream(first=[*DISK_FIRST[:2], data(0, barrier=1)]),
    "data_after_the_final_barrier": disk_stream(first=[*DISK_FIRST, disk_sync(0, 0, 2)]),
    "final_for_one_channel": disk_stream(first=[*DISK_FIRST[:2], disk_sync(0, 0, 1, 0)]),
    "barriers_differ": disk_stream(first=DISK_FIRST[:2]),
    "disk_ack_missing": disk_stream(back=DISK_CONTROL[:1]),
    "disk_ack_counts_wrong": disk_stream(back=[disk_ack(512, 2), *DISK_CONTROL[1:]]),
    "ready_before_the_final_ack": disk_stream(back=[DISK_CONTROL[0], READY, DISK_CONTROL[1]]),
    "mirror_frame_on_a_disk_channel": disk_stream(first=[write(0), *DISK_FIRST]),
    "disk_channel_answers": [*disk_stream()[:2], record(2, DISK_SECOND, [reply(0)], 0, 2), disk_stream()[3]],
    "data_on_the_mirror": disk_stream(mirror=([data(0)], [])),
    "request_left_out": disk_stream(mirror=([write(1)], [reply(1)])),
    "request_unanswered_at_the_end": disk_stream(mirror=([write(0)], [])),
    "request_failed_at_the_end": disk_stream(mirror=([write(0)], [reply(0, 1)])),
    "answered_twice": disk_stream(mirror=([write(0), write(1)], [reply(0), reply(0)])),
    "answer_to_nothing": disk_stream(mirror=([], [reply(0)])),
    "mirror_missing": disk_stream()[:3],
}


@pytest.mark.parametrize("recordings", BROKEN_DISKS.values(), ids=BROKEN_DISKS.keys())
def test_check_recording_broken_rule_of_disks_raises(recordings: list[ConnectionRecording]) -> None:
    with pytest.raises(RecordingError):
        check_recording(SECRET, 0, recordings, DISKS)


def test_check_recording_disks_nobody_knows_of_raise() -> None:
    with pytest.raises(RecordingError):
        check_recording(SECRET, PAGE_COUNT, stream(control=([LAYOUT, ANNOUNCED[1]], [ack(3)])))


def test_check_recording_cut_within_a_frame_raises() -> None:
    good = stream()
    good[1] = ConnectionRecording(good[1].to_destination[:-1], good[1].to_source)
    with pytest.raises(RecordingError):
        check_recording(SECRET, PAGE_COUNT, good)


def test_check_recording_records_swapped_raises() -> None:
    good = stream(channels=([sync(0, 0), sync(0, 1)], [sync(0, 0), sync(0, 1)]))
    data = good[1].to_destination
    good[1] = ConnectionRecording(data[:-96] + data[-48:] + data[-96:-48], good[1].to_source)
    with pytest.raises(RecordForged):
        check_recording(SECRET, PAGE_COUNT, good)
