"""The control channel: iteration acks, device state, digests and the steps of the hand-over, on the event loop.

Its messages are few and small and their latency is part of the stun, so it lives on the loop, where its users are: a
round trip through a thread of its own was measured at 180 us against 110 us here. Sending is open to every thread
(a page thread acknowledges an iteration) and to the loop: frames are sealed and written under one lock, from the loop
without ever waiting for it.

    starting ──start──> open ──peer closed, silent, forged, broke the rules──> lost (reason kept; told at each call)
                          └──────────close──────────> closed
"""

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.stream import frames
from vmx.stream.errors import PeerClosed, PeerSilent, ProtocolViolation, StreamAborted, StreamError
from vmx.stream.frames import HEADER_BYTES, ControlMessage, FrameHeader, FrameType
from vmx.stream.records import TAG_BYTES, Opener, Sealer
from vmx.stream.rendezvous import OpenedChannel
from vmx.stream.spec import DiskExtent, StreamTimeouts

_MAX_QUEUED: Final = 64
_MAX_BODY_BYTES: Final = frames.MAX_DIGESTS * frames.DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class DeviceStateChunk:
    """A piece of the checkpoint, in order and without gaps; `last` ends it."""

    offset: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class DigestsReceived:
    """The peer's whole digest table, one number per guest page (vmx/stream/verify.py)."""

    digests: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DisksReceived:
    """Which disks the source will send: once, right after LAYOUT, where the stream has disks."""

    disks: tuple[DiskExtent, ...]


Received = ControlMessage | DeviceStateChunk | DigestsReceived | DisksReceived


@dataclass(frozen=True)
class ControlHooks:
    """What a stream does by itself on the control channel, called on the loop; must not wait.

    `check` sees every message before it is sent and after it has come: its ProtocolViolation keeps it back.
    """

    on_ack: Callable[[FrameHeader], None]
    on_remote_failure: Callable[[ControlMessage], None]
    on_lost: Callable[[StreamError], None]
    check: Callable[[ControlMessage], None]


class ControlChannel:
    """One end of channel 0. Made on the loop; `send_from_thread` is for all other threads."""

    def __init__(
        self,
        opened: OpenedChannel,
        page_count: int,
        at_source: bool,
        timeouts: StreamTimeouts,
        hooks: ControlHooks,
        *,
        expects_disks: bool = False,
    ) -> None:
        """Take over channel 0. `expects_disks`: one DISKS frame is welcome."""
        self._expects_disks = expects_disks
        self._sock = opened.sock
        self._page_count = page_count
        self._silent_peer_s = timeouts.silent_peer_s
        self._hooks = hooks
        keys = opened.keys
        outgoing, incoming = keys.to_source, keys.to_destination
        if at_source:
            outgoing, incoming = incoming, outgoing
        self._allowed = frames.TO_SOURCE_TYPES if at_source else frames.TO_DESTINATION_TYPES
        self._sealer = Sealer(opened.index, outgoing)
        self._opener = Opener(opened.index, incoming)
        self._write_lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._lost: StreamError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._device_state_bytes = 0
        self._digests: NDArray[np.uint64] | None = None
        self._digests_at = 0

    def start(self) -> None:
        """Begin to read, and to tell the peer that this side is alive."""
        self._tasks = [
            asyncio.create_task(self._read_loop(), name="stream-control-read"),
            asyncio.create_task(self._keepalive_loop(), name="stream-control-keepalive"),
        ]

    @property
    def lost(self) -> StreamError | None:
        """Why the channel can't be used any more, or None while it can."""
        return self._lost

    async def close(self) -> None:
        """Stop reading and close the connection. Idempotent."""
        self.fail(StreamAborted("the stream was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A write left to a thread ends at once (the socket is shut down); only then may the descriptor go.
        await asyncio.to_thread(self._close_socket)

    def _close_socket(self) -> None:
        with self._write_lock:
            self._sock.close()

    def fail(self, error: StreamError) -> None:
        """Give the channel up because of `error`; the first one stays. On the loop only."""
        if self._lost is not None:
            return
        self._lost = error
        self._arrived.set()
        with contextlib.suppress(OSError):  # the peer was faster
            self._sock.shutdown(socket.SHUT_RDWR)
        self._hooks.on_lost(error)

    # ---- receiving

    async def receive(self, timeout_s: float) -> Received:
        """The next message. What arrived before the channel was lost is still delivered.

        :raises PeerSilent: none came within `timeout_s`.
        :raises StreamError: the channel is lost; says why.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._inbox and self.lost is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise PeerSilent(0, "a control message", timeout_s) from None
        if self._inbox:
            self._room.set()
            return self._inbox.popleft()
        raise self.lost or PeerSilent(0, "a control message", timeout_s)

    async def _deliver(self, message: Received) -> None:
        while len(self._inbox) >= _MAX_QUEUED:
            self._room.clear()
            await self._room.wait()
        self._inbox.append(message)
        self._arrived.set()

    async def _read_loop(self) -> None:
        sealed = memoryview(bytearray(_MAX_BODY_BYTES + TAG_BYTES))
        plain = memoryview(bytearray(_MAX_BODY_BYTES))
        try:
            while True:
                header = await self._read_header(sealed, plain)
                body = plain[: header.body_bytes]
                if header.body_bytes:
                    await self._read_record(sealed, body)
                await self._handle(header, body)
        except StreamError as error:
            self.fail(error)

    async def _read_header(self, sealed: memoryview, plain: memoryview) -> FrameHeader:
        await self._read_record(sealed, plain[:HEADER_BYTES])
        header = frames.decode_header(plain[:HEADER_BYTES], self._page_count)
        if header.type not in self._allowed:
            raise ProtocolViolation(f"A {header.type.name} frame came on the control channel.")
        return header

    async def _read_record(self, sealed: memoryview, plain: memoryview) -> None:
        loop = asyncio.get_running_loop()
        wanted = len(plain) + self._opener.overhead_bytes
        at = 0
        while at < wanted:
            try:
                async with asyncio.timeout(self._silent_peer_s):
                    got = await loop.sock_recv_into(self._sock, sealed[at:wanted])
            except TimeoutError:
                raise PeerSilent(0, "a sign of life", self._silent_peer_s) from None
            except OSError as error:
                raise PeerClosed(0, str(error)) from None
            if not got:
                raise PeerClosed(0, "the peer ended the connection")
            at += got
        self._opener.open_into(sealed[:wanted], plain)

    async def _handle(self, header: FrameHeader, body: memoryview) -> None:
        if header.type in {FrameType.SYNC_ACK, FrameType.DISK_SYNC_ACK}:
            self._hooks.on_ack(header)
        elif header.type is FrameType.DISKS:
            if not self._expects_disks:
                raise ProtocolViolation("Disks were announced that nobody expects.")
            self._expects_disks = False
            await self._deliver(DisksReceived(frames.decode_disks(header, body)))
        elif header.type is FrameType.DEVICE_STATE:
            await self._deliver(self._take_device_state(header, body))
        elif header.type is FrameType.DIGESTS:
            await self._take_digests(header, body)
        elif header.type is FrameType.CONTROL:
            message = frames.decode_control(header, body)
            self._hooks.check(message)
            if message.code is frames.ControlCode.FAILED:
                self._hooks.on_remote_failure(message)
            await self._deliver(message)

    def _take_device_state(self, header: FrameHeader, body: memoryview) -> DeviceStateChunk:
        if header.first != self._device_state_bytes:
            raise ProtocolViolation(
                f"Device state goes on at {header.first} instead of {self._device_state_bytes}."
            )
        last = header.count == 1
        self._device_state_bytes = 0 if last else header.first + header.body_bytes
        return DeviceStateChunk(header.first, bytes(body), last)

    async def _take_digests(self, header: FrameHeader, body: memoryview) -> None:
        if header.first != self._digests_at:
            raise ProtocolViolation(f"Digests go on at page {header.first} instead of {self._digests_at}.")
        if self._digests is None:
            self._digests = np.zeros(self._page_count, dtype=np.uint64)
        self._digests_at = header.first + header.total
        self._digests[header.first : self._digests_at] = frames.decode_digests(header, body)
        if self._digests_at == self._page_count:
            complete, self._digests, self._digests_at = self._digests, None, 0
            await self._deliver(DigestsReceived(complete))

    # ---- sending

    async def send(self, message: ControlMessage) -> None:
        """Send one control message; on return it is with the kernel.

        :raises ProtocolViolation: it may not be said yet; nothing was sent.
        :raises StreamError: the channel is lost.
        """
        self._hooks.check(message)
        await self._send(*frames.control_frame(message))

    async def send_disks(self, disks: tuple[DiskExtent, ...]) -> None:
        """Say which disks will be sent (at least one, keys rising).

        :raises StreamError: the channel is lost.
        """
        await self._send(*frames.disks_frame(disks))

    async def send_device_state(self, data: bytes | memoryview, offset: int, last: bool) -> int:
        """Send the next piece of the device state, any length; returns the offset of the piece after it.

        :raises StreamError: the channel is lost.
        """
        view, step = memoryview(data), frames.MAX_DEVICE_STATE_CHUNK_BYTES
        at = 0
        while True:
            chunk = view[at : at + step]
            at += len(chunk)
            ends = last and at == len(view)
            if len(chunk) or ends:
                header = FrameHeader(FrameType.DEVICE_STATE, len(chunk), count=int(ends), first=offset)
                await self._send(header, chunk)
            offset += len(chunk)
            if at == len(view):
                return offset

    async def send_digests(self, digests: NDArray[np.uint64]) -> None:
        """Send a digest table of the whole guest.

        :raises StreamError: the channel is lost.
        """
        for first in range(0, len(digests), frames.MAX_DIGESTS):
            part = digests[first : first + frames.MAX_DIGESTS]
            body = frames.encode_digests(part)
            await self._send(FrameHeader(FrameType.DIGESTS, len(body), first=first, total=len(part)), body)

    async def _send(self, header: FrameHeader, body: bytes | memoryview) -> None:
        if self._lost is not None:
            raise self._lost
        if not self._write_lock.acquire(blocking=False):
            # A page thread writes an ack, or an earlier frame fills the pipe: wait in a thread, never here.
            await asyncio.to_thread(self.send_from_thread, header, body)
            return
        try:
            rest = self._seal(header, body)
            rest = rest[self._write_now(rest) :]
        except BaseException:
            self._write_lock.release()
            raise
        if not len(rest):
            self._write_lock.release()
            return
        # Shielded: a caller that is cancelled meanwhile must not let another frame into the middle of this one.
        error = await asyncio.shield(asyncio.to_thread(self._write_rest_and_release, rest))
        if error is not None:
            raise error

    def send_from_thread(self, header: FrameHeader, body: bytes | memoryview = b"") -> None:
        """Seal and write one frame; for threads other than the loop's.

        :raises PeerClosed: the connection is gone.
        :raises PeerSilent: the peer took nothing within the time limit.
        """
        with self._write_lock:
            self._write_all(self._seal(header, body))

    def _seal(self, header: FrameHeader, body: bytes | memoryview) -> memoryview:
        overhead = self._sealer.overhead_bytes
        header_end = HEADER_BYTES + overhead
        sealed = memoryview(bytearray(header_end + (len(body) + overhead if len(body) else 0)))
        self._sealer.seal_into(frames.encode_header(header), sealed[:header_end])
        if len(body):
            self._sealer.seal_into(body, sealed[header_end:])
        return sealed

    def _write_now(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerClosed(0, str(error)) from None

    def _write_all(self, data: memoryview) -> None:
        deadline = time.monotonic() + self._silent_peer_s
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        while True:
            data = data[self._write_now(data) :]
            if not len(data):
                return
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0 or not poller.poll(left_ms):
                raise PeerSilent(0, "the peer to take a control frame", self._silent_peer_s)

    def _write_rest_and_release(self, rest: memoryview) -> StreamError | None:
        try:
            self._write_all(rest)
        except StreamError as error:
            # Half a frame is on the wire: nothing can follow it.
            self._loop.call_soon_threadsafe(self.fail, error)
            return error
        finally:
            self._write_lock.release()
        return None

    async def _keepalive_loop(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._silent_peer_s / 4)
                await self._send(FrameHeader(FrameType.KEEPALIVE), b"")
        except StreamError as error:
            self.fail(error)
