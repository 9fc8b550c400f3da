"""A proven peer that breaks the rules: frames made by hand on a page channel, typed errors on both sides."""

import dataclasses

import numpy as np
import pytest

from tests.wire.stream_rig import PAGE_COUNT, TIMEOUT_S, rig
from vmx.guest.pages import PAGE_BYTES
from vmx.stream import ControlCode, ControlMessage, SourceStreams
from vmx.stream.connection import PageSender
from vmx.stream.errors import LimitExceeded, ProtocolViolation, StreamError
from vmx.stream.frames import FrameHeader, FrameType, encode_header
from vmx.stream.records import Sealer


def page(number: int, iteration: int = 0) -> FrameHeader:
    return FrameHeader(FrameType.PAGES, PAGE_BYTES, iteration, 1, number, 1)


RULE_BREAKERS: dict[str, tuple[list[FrameHeader], type[StreamError]]] = {
    "page_beyond_guest": ([page(PAGE_COUNT)], LimitExceeded),
    "oversize_frame": ([FrameHeader(FrameType.PAGES, 300 * PAGE_BYTES, 0, 1, 0, 300)], LimitExceeded),
    "huge_body_length": ([FrameHeader(FrameType.PAGES, 2**32 - 1, 0, 1, 0, 1)], ProtocolViolation),
    "control_on_a_page_channel": ([FrameHeader(FrameType.CONTROL, count=3)], ProtocolViolation),
    "sync_counts_wrong": ([page(1), FrameHeader(FrameType.SYNC, first=2)], ProtocolViolation),
    "two_iterations_at_once": ([page(1, 0), page(2, 1)], ProtocolViolation),
    "goes_on_before_the_ack": (
        [page(1), FrameHeader(FrameType.SYNC, first=1), page(2, 1)],
        ProtocolViolation,
    ),
}


@pytest.mark.parametrize(("headers", "error"), RULE_BREAKERS.values(), ids=RULE_BREAKERS.keys())
async def test_rule_breaking_frames_end_the_stream(
    headers: list[FrameHeader], error: type[StreamError]
) -> None:
    async with rig() as r:
        sender = page_sender(r.source)
        for header in headers:
            body = memoryview(bytes(header.body_bytes)) if header.body_bytes == PAGE_BYTES else None
            if body is not None:
                sender.send_frame(header, body)
            else:
                # Only the header: what it announces must not even be waited for.
                sender.send_frame(dataclasses.replace(header))
        with pytest.raises(error):
            await r.destination.receive(TIMEOUT_S)
        message = await r.source.control.receive(TIMEOUT_S)
        assert isinstance(message, ControlMessage)
        assert message.code is ControlCode.FAILED


def page_sender(streams: SourceStreams) -> PageSender:
    return streams._workers[0].channel


async def test_unsorted_run_table_places_nothing() -> None:
    async with rig() as r:
        table = np.array([[5, 1], [4, 1]], dtype=np.int64).tobytes()
        header = FrameHeader(FrameType.PAGES, len(table) + 2 * PAGE_BYTES, 0, 2, 5, 2)
        page_sender(r.source).send_frame(header, memoryview(table + b"\xff" * (2 * PAGE_BYTES)))
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)
        assert len(r.destination_memory.populated_runs()) == 0


async def test_unknown_frame_type_ends_the_stream() -> None:
    async with rig() as r:
        sender = page_sender(r.source)
        plain = bytes([200]) + encode_header(page(1))[1:]
        sealed = bytearray(48)
        sealer: Sealer = sender._sealer
        sealer.seal_into(plain, sealed)
        sender._sock.sendall(sealed)
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)
