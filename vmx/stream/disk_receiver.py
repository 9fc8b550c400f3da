"""The destination's side of the disk channels: bulk data into sinks, a barrier acknowledged when all is durable.

    disk thread 1: receive, open, sink.write_bulk ... SYNC ┐ the last one flushes every sink
    disk thread 2: receive, open, sink.write_bulk ... SYNC ┴──> DISK_SYNC_ACK on control
    mirror thread (mirror_receiver.py): receive, open, sink.write_mirrored, reply

What a sink refuses (a full disk) ends the stream: the source hears which disk and why.
"""

import threading
from collections.abc import Mapping
from typing import Final, Protocol

from vmx.disk.contract import DiskSink
from vmx.disk.errors import DiskError, DiskFull
from vmx.stream import frames
from vmx.stream.connection import FrameReceiver, Welcome
from vmx.stream.errors import (
    DiskFaultCode,
    DiskPlacementFailed,
    PeerClosed,
    ProtocolViolation,
    SpecInvalid,
)
from vmx.stream.frames import DiskCapacities, FrameHeader, FrameType
from vmx.stream.mirror_receiver import MirrorReceiver
from vmx.stream.rendezvous import OpenedChannel
from vmx.stream.spec import ChannelRole, ReceiverSpec

_NO_BARRIER: Final = -1


class Owner(Protocol):
    """The stream that these channels belong to, as their threads see it."""

    def acknowledge(self, ack: FrameHeader) -> None:
        """Send an ack on the control channel.

        :raises StreamError: it can't be sent.
        """

    def fail_from_thread(self, error: Exception) -> None:
        """A thread ended with `error`."""


def refused(key: int, error: DiskError) -> DiskPlacementFailed:
    """What a sink's error is to the stream."""
    code = DiskFaultCode.NO_SPACE if isinstance(error, DiskFull) else DiskFaultCode.IO_ERROR
    failed = DiskPlacementFailed(key, code, str(error))
    failed.__cause__ = error
    return failed


class _DiskBarrier:
    """Counts the channels that have come to a barrier, and adds up what they carried. Under the lock of its owner."""

    def __init__(self, channel_count: int) -> None:
        self._channel_count = channel_count
        self._arrived: set[int] = set()
        self._number = _NO_BARRIER
        self._final = 0
        self._bytes = 0
        self._frames = 0

    def check_may_send(self, channel_index: int, header: FrameHeader) -> None:
        if channel_index in self._arrived:
            raise ProtocolViolation(f"Channel {channel_index} goes on before its barrier was acknowledged.")
        # While others have arrived, `_number` is the barrier under way; else the last one.
        wanted = self._number if self._arrived else self._number + 1
        if header.iteration != wanted:
            raise ProtocolViolation(f"A frame of barrier {header.iteration} comes in barrier {wanted}.")

    def arrive(self, channel_index: int, sync: FrameHeader) -> bool:
        """Note a channel's DISK_SYNC; whether it was the last one."""
        if not self._arrived:
            self._number, self._final, self._bytes, self._frames = sync.iteration, sync.count, 0, 0
        elif sync.count != self._final:
            raise ProtocolViolation(f"Barrier {self._number} is final for some channels only.")
        self._bytes += sync.first
        self._frames += sync.total
        self._arrived.add(channel_index)
        return len(self._arrived) == self._channel_count

    def open(self) -> FrameHeader:
        """All have come and all is done: the ack; the channels may go on."""
        self._arrived.clear()
        return FrameHeader(FrameType.DISK_SYNC_ACK, 0, self._number, self._final, self._bytes, self._frames)


class _DiskThread:
    """One disk channel, its thread and its counters."""

    def __init__(self, channel: FrameReceiver, disks: "DestinationDisks") -> None:
        self.channel = channel
        self.bulk_bytes = 0
        self._disks = disks
        self._bytes = 0  # since the last barrier
        self._frames = 0
        self._body = memoryview(bytearray(frames.MAX_DISK_BODY_BYTES))
        self.thread = threading.Thread(target=self._run, name=f"stream-disk-{channel.index}", daemon=True)

    def _run(self) -> None:
        try:
            while (header := self._receive_header()) is not None:
                self._disks.check_may_send(self.channel.index, header)
                if header.type is FrameType.DISK_SYNC:
                    self._sync(header)
                else:
                    self._write(header)
        except Exception as error:  # noqa: BLE001  the thread's outer edge: told to the owner and to the source
            self._disks.owner.fail_from_thread(error)

    def _receive_header(self) -> FrameHeader | None:
        try:
            header = self.channel.receive_header()
        except PeerClosed:
            header = None
            if self._frames:
                raise
        if header is None and self._frames:
            raise PeerClosed(self.channel.index, "before the barrier of its data")
        return header

    def _write(self, header: FrameHeader) -> None:
        body = self._body[: header.body_bytes]
        self.channel.receive_body_into(header, body)
        try:
            self._disks.sinks[header.count].write_bulk(header.first, body)
        except DiskError as error:
            raise refused(header.count, error) from error
        self._bytes += header.total
        self._frames += 1
        self.bulk_bytes += header.total

    def _sync(self, header: FrameHeader) -> None:
        if (header.first, header.total) != (self._bytes, self._frames):
            raise ProtocolViolation(
                f"DISK_SYNC counts {header.first} bytes in {header.total} frames, "
                f"{self._bytes} in {self._frames} came."
            )
        self._bytes = self._frames = 0
        self._disks.arrived(self.channel.index, header)


class DestinationDisks:
    """All disk channels and the mirror of one stream's destination. Made on the loop, with its threads running."""

    def __init__(
        self,
        spec: ReceiverSpec,
        sinks: Mapping[int, DiskSink],
        channels: list[OpenedChannel],
        owner: Owner,
    ) -> None:
        """Take over the channels of the roles DISKS and MIRROR."""
        self.sinks = sinks
        self.owner = owner
        self.final = False
        self._lock = threading.Lock()
        capacities: DiskCapacities = {disk.key: disk.capacity_bytes for disk in spec.disks}
        welcome = Welcome(frames.DISK_CHANNEL_TYPES, frames.MAX_DISK_BODY_BYTES, disks=capacities)
        silent_s = spec.timeouts.silent_peer_s
        self._threads = [
            _DiskThread(FrameReceiver(opened, opened.keys.to_destination, welcome, silent_s), self)
            for opened in channels
            if spec.channels.role(opened.index) is ChannelRole.DISKS
        ]
        self._barrier = _DiskBarrier(len(self._threads))
        self.mirror = MirrorReceiver(channels[-1], capacities, spec.timeouts, self)
        for one in self._threads:
            one.thread.start()
        self.mirror.start()

    @property
    def bulk_bytes(self) -> int:
        """The bulk data that was written since the stream began."""
        return sum(one.bulk_bytes for one in self._threads)

    @property
    def wire_bytes(self) -> int:
        """What all these channels took from TCP since the stream began."""
        return sum(one.channel.wire_bytes for one in self._threads) + self.mirror.wire_bytes

    def check_may_send(self, channel_index: int, header: FrameHeader) -> None:
        """:raises ProtocolViolation: this frame may not come now."""
        with self._lock:
            self.check_open()
            self._barrier.check_may_send(channel_index, header)

    def check_open(self) -> None:
        """:raises ProtocolViolation: the disks were handed over."""
        if self.final:
            raise ProtocolViolation("Disk data came after the disks were handed over.")

    def arrived(self, channel_index: int, sync: FrameHeader) -> None:
        """A disk thread has written everything up to this DISK_SYNC; the last of them flushes and acknowledges.

        :raises DiskPlacementFailed: a disk can't be made durable.
        :raises StreamError: the barrier's rules are broken, or the ack can't be sent.
        """
        with self._lock:
            if not self._barrier.arrive(channel_index, sync):
                return
        for key, sink in self.sinks.items():
            try:
                sink.flush()
            except DiskError as error:
                raise refused(key, error) from error
        with self._lock:
            self.final = bool(sync.count)
            ack = self._barrier.open()
        self.owner.acknowledge(ack)

    def write_mirrored(self, header: FrameHeader, body: memoryview) -> None:
        """Do what a mirror request of a write or of zeros says.

        :raises DiskPlacementFailed: the disk refused it.
        """
        sink = self.sinks[header.count]
        try:
            if header.type is FrameType.MIRROR_WRITE:
                sink.write_mirrored(header.first, body)
            else:
                sink.zero_mirrored(header.first, header.total)
        except DiskError as error:
            raise refused(header.count, error) from error

    def flush_mirrored(self, key: int) -> None:
        """Make a disk durable.

        :raises DiskPlacementFailed: it can't be.
        """
        try:
            self.sinks[key].flush()
        except DiskError as error:
            raise refused(key, error) from error

    def shut_down(self) -> None:
        """End all connections under the threads that wait in them. Idempotent, from any thread."""
        for one in self._threads:
            one.channel.shut_down()
        self.mirror.shut_down()

    def join(self) -> None:
        """Wait for all threads, and give the descriptors back. Blocking. Only after `shut_down`."""
        for one in self._threads:
            one.thread.join()
            one.channel.close()
        self.mirror.join()


def check_sinks(spec: ReceiverSpec, sinks: Mapping[int, DiskSink]) -> None:
    """:raises SpecInvalid: there isn't one sink for each disk of the specification."""
    wanted = {disk.key for disk in spec.disks}
    if set(sinks) != wanted:
        raise SpecInvalid("disks", f"are {sorted(wanted)}, but the sinks {sorted(sinks)}")
