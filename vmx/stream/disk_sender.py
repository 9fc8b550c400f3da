"""The source's side of the disk channels: bulk data from any thread, and barriers that say when it is all durable.

There are no threads here: whoever writes takes a channel that is free, seals straight from its own buffer into the
channel's, and sends. A full pipe makes it wait, so the bulk copy reads no faster than the destination writes. A barrier
takes every channel, so it begins when the last write has left:

    copier threads ── write_bulk ──> channel 1: DATA DATA      DATA SYNC ┐
                                     channel 2: DATA      DATA      SYNC ┴─TCP─> all written, all flushed
    finish_disks <────────────────────────────── DISK_SYNC_ACK <──control channel───┘

What the guest writes meanwhile goes on the mirror channel (mirror_sender.py), whose writers wait for each reply.
"""

import errno
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from vmx.disk.contract import check_range
from vmx.disk.errors import DiskError, DiskFull, DiskWriteFailed
from vmx.stream import frames
from vmx.stream.bandwidth import BandwidthCap
from vmx.stream.connection import FrameSender
from vmx.stream.errors import (
    ConnectionLost,
    DiskFaultCode,
    PeerSilent,
    ProtocolViolation,
    RemoteDiskFailed,
    StreamAborted,
    StreamError,
)
from vmx.stream.frames import FrameHeader, FrameType
from vmx.stream.mirror_sender import MirrorSender, MirrorSetup
from vmx.stream.rendezvous import OpenedChannel, send_limit_s
from vmx.stream.spec import ChannelRole, DiskExtent, StreamSpec

# A destination that fails drops its channels and says why on the control channel: how long that word may take.
_EXPLANATION_S: Final = 0.5

T = TypeVar("T")


@dataclass
class _BulkChannel:
    """One disk channel; whoever took it from the free ones has it for himself."""

    sender: FrameSender
    bytes_sent: int = 0  # since the last barrier
    frames_sent: int = 0
    total_bytes: int = 0  # since the stream began
    wire_bytes: int = 0


class RemoteDisk:
    """A disk at the destination, as the copier and the mirror of the source write to it (DiskSink).

    For any number of threads. Every failure is a DiskError: DiskFull or DiskWriteFailed for what befell the disk at the
    destination; DiskWriteFailed with errno 0 and the StreamError as its cause where the stream is over.

    In one thing it is weaker than a sink on this host: what `write_bulk` took is at the destination only when
    SourceStreams.finish_disks has returned. `flush` is for mirrored writes.
    """

    def __init__(self, extent: DiskExtent, disks: "SourceDisks") -> None:
        """Made by SourceStreams, one for each disk of its specification."""
        self._extent = extent
        self._disks = disks
        self._path = f"disk {extent.key} of the destination"

    @property
    def key(self) -> int:
        """The disk's device key."""
        return self._extent.key

    @property
    def capacity_bytes(self) -> int:
        """How much the guest sees of it."""
        return self._extent.capacity_bytes

    def write_bulk(self, offset: int, data: memoryview) -> None:
        """Send data of the bulk copy; on return `data` may be used again.

        :raises DiskRangeError: not whole sectors inside the disk; nothing was sent.
        :raises DiskError: the stream is over, see the class.
        """
        check_range(offset, len(data), self._extent.capacity_bytes)
        for at in range(0, len(data), frames.MAX_DISK_BODY_BYTES):
            piece = data[at : at + frames.MAX_DISK_BODY_BYTES]
            self._call(offset + at, len(piece), self._bulk(offset + at, piece))

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        """Send what the guest has written; returns when the destination has written it.

        :raises DiskRangeError: not whole sectors inside the disk; nothing was sent.
        :raises DiskError: the destination could not, or the stream is over; see the class.
        """
        check_range(offset, len(data), self._extent.capacity_bytes)
        for at in range(0, len(data), frames.MAX_DISK_BODY_BYTES):
            piece = data[at : at + frames.MAX_DISK_BODY_BYTES]
            self._request(FrameType.MIRROR_WRITE, offset + at, len(piece), piece)

    def zero_mirrored(self, offset: int, length: int) -> None:
        """Have a range of `length` bytes read as zeros; returns when it does.

        :raises DiskRangeError: not whole sectors inside the disk; nothing was sent.
        :raises DiskError: the destination could not, or the stream is over; see the class.
        """
        check_range(offset, length, self._extent.capacity_bytes)
        for at in range(0, length, frames.MAX_MIRROR_ZERO_BYTES):
            piece = min(frames.MAX_MIRROR_ZERO_BYTES, length - at)
            self._request(FrameType.MIRROR_ZERO, offset + at, piece, None)

    def flush(self) -> None:
        """Returns when every mirrored write that has returned is durable at the destination.

        :raises DiskError: it could not be made so, or the stream is over; see the class.
        """
        self._request(FrameType.MIRROR_FLUSH, 0, 0, None)

    def _bulk(self, offset: int, data: memoryview) -> Callable[[], None]:
        header = FrameHeader(FrameType.DISK_DATA, len(data), count=self.key, first=offset, total=len(data))
        return lambda: self._disks.send_bulk(header, data)

    def _request(self, kind: FrameType, offset: int, length: int, body: memoryview | None) -> None:
        body_bytes = 0 if body is None else len(body)
        header = FrameHeader(kind, body_bytes, count=self.key, first=offset, total=length)
        self._call(offset, length, lambda: self._disks.mirror.request(header, body))

    def _call(self, offset: int, length: int, send: Callable[[], None]) -> None:
        try:
            send()
        except DiskError:
            raise
        except Exception as error:
            raise self._disk_error(offset, length, error) from error

    def _disk_error(self, offset: int, length: int, error: Exception) -> DiskError:
        if isinstance(error, RemoteDiskFailed) and error.key == self.key:
            if error.code is DiskFaultCode.NO_SPACE:
                return DiskFull(self._path, offset, errno.ENOSPC, length)
            return DiskWriteFailed(self._path, offset, errno.EIO, error.reason)
        return DiskWriteFailed(self._path, offset, 0, str(error))


class SourceDisks:
    """All disk channels and the mirror of one stream's source. Everything blocks and is for threads, except `fail`,
    `acknowledge` and the counters."""

    def __init__(
        self,
        spec: StreamSpec,
        channels: list[OpenedChannel],
        cap: BandwidthCap,
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Take over the channels of the roles DISKS and MIRROR. `on_failure` is told, in any thread, of their end."""
        self._timeouts = spec.timeouts
        self._cap = cap
        self._on_failure = on_failure
        self._failure: dict[str, Exception] = {}
        self._failed = threading.Event()
        self._free: queue.SimpleQueue[_BulkChannel | None] = queue.SimpleQueue()
        self._acks: queue.SimpleQueue[FrameHeader | Exception] = queue.SimpleQueue()
        self._barrier_lock = threading.Lock()
        self._barrier = -1
        self.final = False
        limit_s = send_limit_s(ChannelRole.DISKS, spec.timeouts)
        self._channels = [
            _BulkChannel(FrameSender(opened, opened.keys.to_destination, frames.MAX_DISK_BODY_BYTES, limit_s))
            for opened in channels
            if spec.channels.role(opened.index) is ChannelRole.DISKS
        ]
        self._left = list(self._channels)  # those whose descriptors were not given back yet
        for channel in self._channels:
            self._free.put(channel)
        setup = MirrorSetup(spec.timeouts, spec.disks, cap)
        self.mirror = MirrorSender(channels[-1], setup, self._found)
        self.remote = {extent.key: RemoteDisk(extent, self) for extent in spec.disks}

    @property
    def bulk_bytes(self) -> int:
        """The data that went as bulk since the stream began."""
        return sum(channel.total_bytes for channel in self._channels)

    @property
    def wire_bytes(self) -> int:
        """What all these channels gave to TCP since the stream began."""
        return sum(channel.wire_bytes for channel in self._channels) + self.mirror.wire_bytes

    def send_bulk(self, header: FrameHeader, data: memoryview) -> None:
        """Send one DISK_DATA frame, but for its barrier's number.

        :raises StreamError: the stream is over; the first cause.
        """
        channel = self._take()
        try:
            if self.final:
                raise ProtocolViolation("The disks were handed over: no more bulk data.")
            wire_bytes = channel.sender.wire_bytes(header)
            self._cap.take(wire_bytes)
            numbered = FrameHeader(
                header.type, header.body_bytes, self._barrier + 1, header.count, header.first, header.total
            )
            self._send(channel, numbered, data)
            channel.bytes_sent += header.total
            channel.frames_sent += 1
            channel.total_bytes += header.total
        finally:
            self._free.put(channel)

    def finish(self, final: bool) -> None:
        """Wait until all that was sent so far is durable at the destination; with `final`, nothing may follow.

        :raises ProtocolViolation: it was final already.
        :raises StreamError: the stream is over; the first cause.
        """
        with self._barrier_lock:
            if self.final:
                raise ProtocolViolation("The disks were handed over already.")
            if final:
                self.mirror.end(self._timeouts.disk_write_s)
            taken: list[_BulkChannel] = []
            try:
                while len(taken) < len(self._channels):
                    taken.append(self._take())
                self._finish(final, taken)
            finally:
                for channel in taken:
                    self._free.put(channel)

    def _finish(self, final: bool, taken: list[_BulkChannel]) -> None:
        number = self._barrier + 1
        sums = (sum(one.bytes_sent for one in taken), sum(one.frames_sent for one in taken))
        for channel in taken:
            sync = FrameHeader(
                FrameType.DISK_SYNC, 0, number, int(final), channel.bytes_sent, channel.frames_sent
            )
            self._send(channel, sync)
            channel.bytes_sent = channel.frames_sent = 0
        try:
            ack = self._acks.get(timeout=self._timeouts.disk_flush_s)
        except queue.Empty:
            waited = PeerSilent(0, f"the ack of barrier {number}", self._timeouts.disk_flush_s)
            raise self._found(waited) from None
        if isinstance(ack, Exception):
            raise ack
        if (ack.iteration, ack.count, ack.first, ack.total) != (number, int(final), *sums):
            wrong = (
                f"The destination acknowledged barrier {ack.iteration} with {ack.first} bytes, not {sums[0]}."
            )
            raise self._found(ProtocolViolation(wrong))
        self._barrier = number
        self.final = final

    def _take(self) -> _BulkChannel:
        channel = self._free.get()
        if channel is None:
            self._free.put(None)  # for the next one who waits
            raise self._failure["first"]
        return channel

    def _send(self, channel: _BulkChannel, header: FrameHeader, body: memoryview | None = None) -> None:
        try:
            channel.sender.send_frame(header, body)
        except StreamError as error:
            raise self._found(error) from None
        channel.wire_bytes += channel.sender.wire_bytes(header)

    # ---- the end

    def acknowledge(self, ack: FrameHeader) -> None:
        """A DISK_SYNC_ACK came."""
        self._acks.put(ack)

    def _found(self, error: Exception) -> Exception:
        """One of these channels failed: the first cause of the stream's end, which may be an earlier or another one."""
        if isinstance(error, ConnectionLost):
            self._failed.wait(_EXPLANATION_S)
        if "first" not in self._failure:
            self._on_failure(error)
            self.fail(error)
        return self._failure["first"]

    def fail(self, error: Exception) -> None:
        """End all these channels because of `error`, from any thread; whoever waits hears. The first one stays."""
        if self._failure.setdefault("first", error) is not error:
            return
        self._failed.set()
        self._acks.put(error)
        self.mirror.fail(error)
        for channel in self._channels:
            channel.sender.shut_down()
        self._free.put(None)

    def join(self) -> None:
        """Give the descriptors back, when nobody is within a call any more. Blocking. Idempotent."""
        self.fail(StreamAborted("the stream was closed"))
        self.mirror.join()
        deadline = time.monotonic() + self._timeouts.disk_flush_s
        while self._left:
            # Every channel comes back to the free ones: its connection is shut down, so no call stays in it.
            try:
                channel = self._free.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                held = self._left[0].sender.index
                raise PeerSilent(held, "a writer to let go of it", self._timeouts.disk_flush_s) from None
            if channel is not None:
                channel.sender.close()
                self._left.remove(channel)
        self._free.put(None)
