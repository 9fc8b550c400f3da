"""The frame codec: what it accepts, what it refuses, and with which error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.guest.pages import PAGE_BYTES, PageRuns
from vmx.stream import frames
from vmx.stream.errors import LimitExceeded, ProtocolViolation
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType

PAGES = 4096


def runs_of(*rows: tuple[int, int]) -> PageRuns:
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


@st.composite
def some_runs(draw: st.DrawFn) -> PageRuns:
    """Sorted disjoint runs of at most 256 pages in all."""
    rows, at, left = [], 0, frames.MAX_FRAME_PAGES
    for _ in range(draw(st.integers(1, 20))):
        if left == 0:
            break
        at += draw(st.integers(0, 100))
        count = draw(st.integers(1, min(left, 40)))
        rows.append((at, count))
        at += count
        left -= count
    return runs_of(*rows)


@given(some_runs(), st.sampled_from([FrameType.PAGES, FrameType.ZERO]), st.integers(0, 2**32 - 1))
def test_runs_round_trip(runs: PageRuns, frame_type: FrameType, iteration: int) -> None:
    header = frames.runs_header(frame_type, iteration, runs)
    decoded = frames.decode_header(frames.encode_header(header), PAGES)
    assert decoded == header
    table = frames.encode_runs(runs) if len(runs) > 1 else b""
    assert (frames.decode_runs(decoded, table, PAGES) == runs).all()
    data_bytes = int(runs[:, 1].sum()) * PAGE_BYTES if frame_type is FrameType.PAGES else 0
    assert header.body_bytes == len(table) + data_bytes


@given(st.sampled_from(ControlCode), st.integers(0, frames.MAX_NUMBER), st.text(max_size=300))
def test_control_round_trip(code: ControlCode, value: int, text: str) -> None:
    header, body = frames.control_frame(ControlMessage(code, value, text))
    decoded = frames.decode_header(frames.encode_header(header), PAGES)
    assert frames.decode_control(decoded, body) == ControlMessage(code, value, text)


def test_control_frame_text_too_long_is_cut() -> None:
    header, body = frames.control_frame(ControlMessage(ControlCode.FAILED, text="é" * 5000))
    assert header.body_bytes == len(body) == frames.MAX_TEXT_BYTES
    assert frames.decode_header(frames.encode_header(header), PAGES) == header


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_digests_round_trip(values: list[int]) -> None:
    digests = np.array(values, dtype=np.uint64)
    body = frames.encode_digests(digests)
    header = FrameHeader(FrameType.DIGESTS, len(body), first=7, total=len(values))
    assert frames.decode_header(frames.encode_header(header), PAGES) == header
    assert (frames.decode_digests(header, body) == digests).all()


BEYOND_LIMITS = {
    "page_beyond_guest": FrameHeader(FrameType.PAGES, PAGE_BYTES, 0, 1, PAGES, 1),
    "run_over_the_end": FrameHeader(FrameType.PAGES, 2 * PAGE_BYTES, 0, 1, PAGES - 1, 2),
    "too_many_pages": FrameHeader(FrameType.PAGES, 257 * PAGE_BYTES, 0, 1, 0, 257),
    "oversize_body": FrameHeader(FrameType.DEVICE_STATE, frames.MAX_DEVICE_STATE_CHUNK_BYTES + 1),
    "device_state_too_long": FrameHeader(FrameType.DEVICE_STATE, 1, first=frames.MAX_DEVICE_STATE_BYTES),
    "too_many_zero_runs": FrameHeader(FrameType.ZERO, 4097 * 16, 0, 4097, 0, 4097),
    "zero_page_beyond_guest": FrameHeader(FrameType.ZERO, 0, 0, 1, 1, PAGES),
    "too_many_digests": FrameHeader(FrameType.DIGESTS, 8 * 65537, total=65537),
    "digest_beyond_guest": FrameHeader(FrameType.DIGESTS, 8, first=PAGES, total=1),
    "text_too_long": FrameHeader(FrameType.CONTROL, frames.MAX_TEXT_BYTES + 1, count=1),
    "sync_of_more_than_the_guest": FrameHeader(FrameType.SYNC, first=PAGES, total=1),
    "number_of_64_bits": FrameHeader(FrameType.CONTROL, 0, count=1, first=2**63),
}


@pytest.mark.parametrize("header", BEYOND_LIMITS.values(), ids=BEYOND_LIMITS.keys())
def test_decode_header_beyond_limit_raises(header: FrameHeader) -> None:
    with pytest.raises(LimitExceeded):
        frames.decode_header(frames.encode_header(header), PAGES)


BROKEN = {
    "no_runs": FrameHeader(FrameType.PAGES, 0, 0, 0, 0, 0),
    "more_runs_than_pages": FrameHeader(FrameType.ZERO, 32, 0, 2, 0, 1),
    "body_too_short": FrameHeader(FrameType.PAGES, PAGE_BYTES - 1, 0, 1, 0, 1),
    "body_too_long": FrameHeader(FrameType.ZERO, 1, 0, 1, 0, 1),
    "sync_with_body": FrameHeader(FrameType.SYNC, 1),
    "keepalive_with_number": FrameHeader(FrameType.KEEPALIVE, first=1),
    "unknown_control_code": FrameHeader(FrameType.CONTROL, count=99),
}


@pytest.mark.parametrize("header", BROKEN.values(), ids=BROKEN.keys())
def test_decode_header_broken_raises(header: FrameHeader) -> None:
    with pytest.raises(ProtocolViolation):
        frames.decode_header(frames.encode_header(header), PAGES)


@pytest.mark.parametrize("number", [0, 1, 5, 15, 20, 50, 255])
def test_decode_header_unknown_type_raises(number: int) -> None:
    with pytest.raises(ProtocolViolation):
        frames.decode_header(bytes([number]) + bytes(31), PAGES)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_decode_header_reserved_in_use_raises(at: int) -> None:
    data = bytearray(frames.encode_header(FrameHeader(FrameType.KEEPALIVE)))
    data[at] = 1
    with pytest.raises(ProtocolViolation):
        frames.decode_header(data, PAGES)


BAD_TABLES = {
    "unsorted": [(9, 1), (3, 1)],
    "overlapping": [(3, 4), (6, 2)],
    "empty_run": [(3, 0), (6, 5)],
    "negative_page": [(-1, 2), (6, 3)],
    "beyond_guest": [(3, 1), (PAGES, 4)],
    "sum_wraps": [(3, 2**63 - 1), (9, 2**63 - 1)],
    "other_first_page": [(4, 1), (9, 4)],
    "other_total": [(3, 1), (9, 1)],
}


@pytest.mark.parametrize("rows", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_decode_runs_bad_table_raises(rows: list[tuple[int, int]]) -> None:
    header = FrameHeader(FrameType.PAGES, 32 + 5 * PAGE_BYTES, 0, 2, 3, 5)
    with pytest.raises(ProtocolViolation):
        frames.decode_runs(header, runs_of(*rows).tobytes(), PAGES)


def test_decode_runs_table_of_other_length_raises() -> None:
    header = FrameHeader(FrameType.PAGES, 32 + 5 * PAGE_BYTES, 0, 2, 3, 5)
    with pytest.raises(ProtocolViolation):
        frames.decode_runs(header, bytes(31), PAGES)
