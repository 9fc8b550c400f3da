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
from vmx.stream.recorded import ConnectionRecording, IterationRecord, RecordingError, check_recording
from vmx.stream.records import Sealer
from vmx.stream.spec import Encryption, StreamSecret

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
    index: int, forth: Sequence[Frame], back: Sequence[Frame] = (), count: int = 2
) -> ConnectionRecording:
    hello = handshake.encode_hello(
        Hello(index, count, SECRET.migration_id, Encryption.AES_256_GCM, secrets.token_bytes(32))
    )
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 1, secrets.token_bytes(32))
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
