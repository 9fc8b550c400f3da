"""Arbitrary bytes against the codec: only typed errors, and nothing allocated beyond the limits."""

import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmx.guest.pages import page_total, validate
from vmx.stream import frames, handshake
from vmx.stream.errors import ProtocolViolation, StreamError
from vmx.stream.frames import FrameHeader, FrameType
from vmx.stream.recorded import ConnectionRecording, check_recording
from vmx.stream.spec import Encryption, StreamSecret

MAX_BODY_BYTES = max(frames.MAX_PAGES_BODY_BYTES, frames.MAX_DIGESTS * frames.DIGEST_BYTES)
DISKS = {0: 512, 3: 1 << 20, 2**32 - 1: 62 << 40}
SECRET = StreamSecret(1, bytes(32), bytes(32))


def check_decoded(header: FrameHeader, page_count: int) -> None:
    assert header.body_bytes <= MAX_BODY_BYTES
    if header.type in (FrameType.PAGES, FrameType.ZERO):
        assert header.count <= frames.MAX_ZERO_RUNS
        assert 0 <= header.first < header.first + header.total <= page_count
    if header.type in (FrameType.DISK_DATA, FrameType.MIRROR_WRITE, FrameType.MIRROR_ZERO):
        assert 0 <= header.first < header.first + header.total <= DISKS[header.count]
        assert header.first % 512 == header.total % 512 == 0
        assert header.body_bytes == (0 if header.type is FrameType.MIRROR_ZERO else header.total)


@given(st.binary(max_size=64), st.integers(1, 2**40))
def test_decode_header_arbitrary_bytes_raise_only_violations(data: bytes, page_count: int) -> None:
    with contextlib.suppress(ProtocolViolation):
        check_decoded(frames.decode_header(data, page_count, DISKS), page_count)


NUMBERS = st.one_of(
    st.integers(0, 600), st.integers(0, 3000).map(lambda n: n * 512), st.sampled_from([2**31, 2**32 - 1])
)
LONG_NUMBERS = st.one_of(NUMBERS, st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]))


@given(st.sampled_from(FrameType), NUMBERS, NUMBERS, NUMBERS, LONG_NUMBERS, LONG_NUMBERS)
def test_decode_header_likely_looking_headers_raise_only_violations(
    frame_type: FrameType, body_bytes: int, iteration: int, count: int, first: int, total: int
) -> None:
    data = frames.encode_header(FrameHeader(frame_type, body_bytes, iteration, count, first, total))
    with contextlib.suppress(ProtocolViolation):
        check_decoded(frames.decode_header(data, 512, DISKS), 512)


DISK_TYPES = [FrameType.DISK_DATA, FrameType.MIRROR_WRITE, FrameType.MIRROR_ZERO]


@given(st.sampled_from(DISK_TYPES), st.sampled_from([*DISKS, 7]), LONG_NUMBERS, LONG_NUMBERS)
def test_decode_header_disk_ranges_stay_inside_the_disk(
    frame_type: FrameType, key: int, first: int, total: int
) -> None:
    body_bytes = 0 if frame_type is FrameType.MIRROR_ZERO else min(total, 2**32 - 1)
    data = frames.encode_header(FrameHeader(frame_type, body_bytes, 0, key, first, total))
    with contextlib.suppress(ProtocolViolation):
        check_decoded(frames.decode_header(data, 512, DISKS), 512)


@given(st.binary(max_size=200))
def test_decode_disks_arbitrary_rows_raise_only_violations(rows: bytes) -> None:
    header = FrameHeader(FrameType.DISKS, len(rows), count=len(rows) // 16)
    try:
        checked = frames.decode_header(frames.encode_header(header), 0)
        disks = frames.decode_disks(checked, rows)
    except ProtocolViolation:
        return
    keys = [disk.key for disk in disks]
    assert keys == sorted(set(keys))


@given(st.integers(2, 200), st.data())
def test_decode_runs_arbitrary_table_raises_only_violations(count: int, data: st.DataObject) -> None:
    words = st.one_of(st.integers(0, 512), st.integers(-(2**63), 2**63 - 1))
    table = np.array(data.draw(st.lists(words, min_size=2 * count, max_size=2 * count)), dtype=np.int64)
    header = FrameHeader(
        FrameType.ZERO, len(table) * 8, 0, count, max(0, int(table[0])), data.draw(st.integers(count, 512))
    )
    try:
        runs = frames.decode_runs(header, table.tobytes(), 512)
    except ProtocolViolation:
        return
    validate(runs, 512)
    assert page_total(runs) == header.total


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_check_recording_arbitrary_bytes_raise_only_stream_errors(forth: bytes, back: bytes) -> None:
    hello = handshake.encode_hello(handshake.Hello(0, 1, 1, Encryption.AES_256_GCM, bytes(32)))
    for start in (b"", hello):
        try:
            check_recording(SECRET, 16, [ConnectionRecording(start + forth, back)])
        except StreamError:
            continue
        raise AssertionError("arbitrary bytes are no stream")
