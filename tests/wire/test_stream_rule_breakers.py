"""A proven peer that breaks the rules: frames made by hand on a page channel, typed errors on both sides."""

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest

from tests.wire.stream_rig import PAGE_COUNT, TIMEOUT_S, Rig, Wiring, rig, until
from vmx.guest.pages import PAGE_BYTES
from vmx.stream import ControlCode, ControlMessage, DiskExtent, SourceStreams
from vmx.stream.connection import FrameSender, PageSender
from vmx.stream.errors import LimitExceeded, PeerClosed, ProtocolViolation, StreamError
from vmx.stream.frames import FrameHeader, FrameType, disks_frame, encode_header
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


CAPACITY_BYTES = 1 << 20
DISKS = Wiring(disks=(DiskExtent(5, CAPACITY_BYTES),), has_memory=False, disk_channel_count=1)


def data(offset: int, length: int = 512, barrier: int = 0, key: int = 5) -> FrameHeader:
    return FrameHeader(FrameType.DISK_DATA, length, barrier, key, offset, length)


def disk_sync(byte_count: int = 0, frame_count: int = 0, barrier: int = 0, final: int = 0) -> FrameHeader:
    return FrameHeader(FrameType.DISK_SYNC, 0, barrier, final, byte_count, frame_count)


def request(
    frame_type: FrameType, number: int, offset: int = 0, length: int = 0, key: int = 5
) -> FrameHeader:
    body_bytes = length if frame_type is FrameType.MIRROR_WRITE else 0
    return FrameHeader(frame_type, body_bytes, number, key, offset, length)


DISK_RULE_BREAKERS: dict[str, tuple[list[FrameHeader], type[StreamError]]] = {
    "unknown_disk": ([data(0, key=6)], ProtocolViolation),
    "beyond_the_disk": ([data(CAPACITY_BYTES)], LimitExceeded),
    "over_the_end": ([data(CAPACITY_BYTES - 512, 1024)], LimitExceeded),
    "offset_wraps": ([data(2**63 - 512, 1024)], LimitExceeded),
    "half_a_sector": ([data(256)], ProtocolViolation),
    "length_no_sectors": ([data(0, 100)], ProtocolViolation),
    "no_data": ([data(0, 0)], ProtocolViolation),
    "too_long": ([data(0, (1 << 20) + 512)], LimitExceeded),
    "body_of_another_length": ([dataclasses.replace(data(0), body_bytes=1024)], ProtocolViolation),
    "next_barrier_at_once": ([data(0, barrier=1)], ProtocolViolation),
    "disk_sync_counts_wrong": ([data(0), disk_sync(1024, 1)], ProtocolViolation),
    "barrier_twice": ([disk_sync(), disk_sync()], ProtocolViolation),
    "goes_on_after_the_final_barrier": ([disk_sync(final=1), data(0, barrier=1)], ProtocolViolation),
    "pages_on_a_disk_channel": ([page(0)], LimitExceeded),
    "mirror_on_a_disk_channel": ([request(FrameType.MIRROR_FLUSH, 0)], ProtocolViolation),
}
MIRROR_RULE_BREAKERS: dict[str, tuple[list[FrameHeader], type[StreamError]]] = {
    "unknown_disk": ([request(FrameType.MIRROR_WRITE, 0, 0, 512, key=6)], ProtocolViolation),
    "flush_of_an_unknown_disk": ([request(FrameType.MIRROR_FLUSH, 0, key=6)], ProtocolViolation),
    "write_beyond_the_disk": ([request(FrameType.MIRROR_WRITE, 0, CAPACITY_BYTES, 512)], LimitExceeded),
    "zeros_over_the_end": ([request(FrameType.MIRROR_ZERO, 0, 512, CAPACITY_BYTES)], LimitExceeded),
    "zeros_of_half_a_sector": ([request(FrameType.MIRROR_ZERO, 0, 0, 256)], ProtocolViolation),
    "too_many_zeros": ([request(FrameType.MIRROR_ZERO, 0, 0, (1 << 30) + 512)], LimitExceeded),
    "flush_with_a_range": ([request(FrameType.MIRROR_FLUSH, 0, 0, 512)], ProtocolViolation),
    "request_left_out": ([request(FrameType.MIRROR_FLUSH, 1)], ProtocolViolation),
    "request_twice": ([request(FrameType.MIRROR_FLUSH, 0)] * 2, ProtocolViolation),
    "bulk_on_the_mirror": ([data(0)], ProtocolViolation),
    "reply_from_the_source": ([FrameHeader(FrameType.MIRROR_REPLY)], ProtocolViolation),
}


def send_all(sender: FrameSender, headers: list[FrameHeader]) -> None:
    """Bodies only where a frame is right: what a wrong one announces must not even be waited for."""
    for header in headers:
        right = header.type is FrameType.DISK_DATA and header is not headers[-1]
        sender.send_frame(header, memoryview(bytes(header.body_bytes)) if right else None)


async def both_sides_hear(r: Rig, error: type[StreamError]) -> None:
    with pytest.raises(error):
        await r.destination.receive(TIMEOUT_S)
    message = await r.source.control.receive(TIMEOUT_S)
    assert isinstance(message, ControlMessage)
    assert message.code is ControlCode.FAILED


@pytest.mark.parametrize(("headers", "error"), DISK_RULE_BREAKERS.values(), ids=DISK_RULE_BREAKERS.keys())
async def test_rule_breaking_disk_frames_end_the_stream(
    headers: list[FrameHeader], error: type[StreamError]
) -> None:
    async with rig(DISKS) as r:
        assert r.source._disks is not None
        await asyncio.to_thread(send_all, r.source._disks._channels[0].sender, headers)
        await both_sides_hear(r, error)
        assert r.sinks[5].count("bulk") <= len(headers) - 1


@pytest.mark.parametrize(("headers", "error"), MIRROR_RULE_BREAKERS.values(), ids=MIRROR_RULE_BREAKERS.keys())
async def test_rule_breaking_mirror_frames_end_the_stream(
    headers: list[FrameHeader], error: type[StreamError]
) -> None:
    async with rig(DISKS) as r:
        assert r.source._disks is not None
        await asyncio.to_thread(send_all, r.source._disks.mirror._sender, headers)
        await both_sides_hear(r, error)
        assert r.sinks[5].count("write") == r.sinks[5].count("zero") == 0


async def test_flood_of_flushes_ends_the_stream() -> None:
    """No more requests than the protocol allows may wait: who sends on costs no more memory."""
    async with rig(DISKS) as r:
        assert r.source._disks is not None
        r.sinks[5].flow.clear()
        flushes = [request(FrameType.MIRROR_FLUSH, number) for number in range(300)]
        with contextlib.suppress(PeerClosed):  # the destination may have ended it before the last one is sent
            await asyncio.to_thread(send_all, r.source._disks.mirror._sender, flushes)
        with pytest.raises(LimitExceeded):
            await r.destination.receive(TIMEOUT_S)


async def test_mirrored_write_after_the_final_barrier_ends_the_stream() -> None:
    async with rig(DISKS) as r:
        assert r.source._disks is not None
        await r.source.finish_disks(final=True)
        late = request(FrameType.MIRROR_WRITE, 0, 0, 512)
        await asyncio.to_thread(send_all, r.source._disks.mirror._sender, [late])
        await both_sides_hear(r, ProtocolViolation)
        assert r.sinks[5].count("write") == 0


async def test_disks_announced_twice_end_the_stream() -> None:
    async with rig(DISKS) as r:
        await r.source.control._send(*disks_frame(DISKS.disks))
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)


async def test_disks_announced_where_there_are_none_end_the_stream() -> None:
    async with rig() as r:
        await r.source.control._send(*disks_frame(DISKS.disks))
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)


async def test_reply_to_no_request_ends_the_stream_at_the_source() -> None:
    async with rig(DISKS) as r:
        assert r.destination._disks is not None
        reply = FrameHeader(FrameType.MIRROR_REPLY, iteration=3)
        await asyncio.to_thread(r.destination._disks.mirror._sender.send_frame, reply)
        await until(lambda: r.source.failure is not None)
        with pytest.raises(ProtocolViolation):
            await r.source.finish_disks()


async def test_ack_of_disks_that_the_stream_lacks_ends_it_at_the_source() -> None:
    async with rig() as r:
        ack = FrameHeader(FrameType.DISK_SYNC_ACK)
        await asyncio.to_thread(r.destination.control.send_from_thread, ack)
        with pytest.raises(ProtocolViolation):
            await r.source.control.receive(TIMEOUT_S)
