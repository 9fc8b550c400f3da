"""The destination's side of the mirror channel: each request of the source done and answered.

One thread receives, writes and replies. Flushes are done by another: while one waits for everything that the bulk copy
has left in the cache, the guest's next writes go on. Flushes of one disk that have gathered meanwhile are one flush.

    source ── WRITE 7, FLUSH 8, WRITE 9 ──> mirror thread ── 7, 9 ──> reply 7, reply 9
                                                └── 8 ──> flush thread ──> reply 8
"""

import queue
import threading
from typing import Final, Protocol

from vmx.stream import frames
from vmx.stream.connection import FrameReceiver, FrameSender, Welcome
from vmx.stream.errors import DiskPlacementFailed, LimitExceeded, PeerClosed, ProtocolViolation
from vmx.stream.frames import DiskCapacities, FrameHeader, FrameType
from vmx.stream.rendezvous import OpenedChannel, send_limit_s
from vmx.stream.spec import ChannelRole, StreamTimeouts

_NO_BODY: Final = memoryview(b"")


class Disks(Protocol):
    """The disks of the stream, as the mirror sees them."""

    @property
    def owner(self) -> "Listener":
        """Who is told when the mirror fails."""

    def check_open(self) -> None:
        """:raises ProtocolViolation: the disks were handed over."""

    def write_mirrored(self, header: FrameHeader, body: memoryview) -> None:
        """:raises DiskPlacementFailed: the disk refused it."""

    def flush_mirrored(self, key: int) -> None:
        """:raises DiskPlacementFailed: the disk can't be made durable."""


class Listener(Protocol):
    """Who is told when the mirror fails."""

    def fail_from_thread(self, error: Exception) -> None:
        """A thread ended with `error`."""


class MirrorReceiver:
    """See the module. Made and started on the loop; ended by `shut_down` and `join`."""

    def __init__(
        self, opened: OpenedChannel, capacities: DiskCapacities, timeouts: StreamTimeouts, disks: Disks
    ) -> None:
        """Take over the channel."""
        welcome = Welcome(frames.MIRROR_REQUEST_TYPES, frames.MAX_DISK_BODY_BYTES, disks=capacities)
        self._receiver = FrameReceiver(opened, opened.keys.to_destination, welcome, timeouts.silent_peer_s)
        limit_s = send_limit_s(ChannelRole.MIRROR, timeouts)
        self._sender = FrameSender(opened, opened.keys.to_source, frames.MAX_TEXT_BYTES, limit_s)
        self._disks = disks
        self._reply_lock = threading.Lock()
        self._body = memoryview(bytearray(frames.MAX_DISK_BODY_BYTES))
        self._next = 0
        self._flushes: queue.SimpleQueue[FrameHeader | None] = queue.SimpleQueue()
        self.mirrored_bytes = 0
        self._threads = [
            threading.Thread(target=run, name=f"stream-{name}-{opened.index}", daemon=True)
            for name, run in (("mirror", self._receive_all), ("mirror-flush", self._flush_all))
        ]

    @property
    def wire_bytes(self) -> int:
        """What the channel took from TCP since the stream began."""
        return self._receiver.wire_bytes

    def start(self) -> None:
        """Begin to receive."""
        for thread in self._threads:
            thread.start()

    def shut_down(self) -> None:
        """End the connection under the threads. Idempotent, from any thread."""
        self._receiver.shut_down()
        self._flushes.put(None)

    def join(self) -> None:
        """Wait for both threads and give the descriptor back. Blocking. Only after `shut_down`."""
        for thread in self._threads:
            thread.join()
        self._receiver.close()

    def _receive_all(self) -> None:
        try:
            while (header := self._receive_header()) is not None:
                self._disks.check_open()
                self._check_number(header)
                self._do(header)
        except Exception as error:  # noqa: BLE001  the thread's outer edge: told to the owner and to the source
            self._disks.owner.fail_from_thread(error)
        finally:
            self._flushes.put(None)

    def _receive_header(self) -> FrameHeader | None:
        try:
            return self._receiver.receive_header()
        except PeerClosed:
            # Between two requests nothing is lost: what was not answered was not done. Control says what it means.
            return None

    def _check_number(self, header: FrameHeader) -> None:
        if header.iteration != self._next:
            raise ProtocolViolation(f"Request {header.iteration} comes where {self._next} is due.")
        self._next = (self._next + 1) % frames.REQUEST_NUMBERS

    def _do(self, header: FrameHeader) -> None:
        if header.type is FrameType.MIRROR_FLUSH:
            if self._flushes.qsize() >= frames.MAX_MIRROR_REQUESTS:
                raise LimitExceeded("unanswered requests", self._flushes.qsize(), frames.MAX_MIRROR_REQUESTS)
            self._flushes.put(header)
            return
        body = _NO_BODY
        if header.body_bytes:
            body = self._body[: header.body_bytes]
            self._receiver.receive_body_into(header, body)
        try:
            self._disks.write_mirrored(header, body)
        except DiskPlacementFailed as error:
            self._reply([header], error)
            raise
        self.mirrored_bytes += header.total
        self._reply([header])

    def _flush_all(self) -> None:
        try:
            while (waiting := self._gather()) is not None:
                self._flush(waiting)
        except Exception as error:  # noqa: BLE001  as above
            self._disks.owner.fail_from_thread(error)

    def _gather(self) -> list[FrameHeader] | None:
        """All flushes that wait now, at least one; None at the end."""
        waiting = [self._flushes.get()]
        while not self._flushes.empty():
            waiting.append(self._flushes.get())
        return None if None in waiting else [header for header in waiting if header is not None]

    def _flush(self, waiting: list[FrameHeader]) -> None:
        for key in {header.count for header in waiting}:
            of_key = [header for header in waiting if header.count == key]
            try:
                self._disks.flush_mirrored(key)
            except DiskPlacementFailed as error:
                self._reply(of_key, error)
                raise
            self._reply(of_key)

    def _reply(self, requests: list[FrameHeader], error: DiskPlacementFailed | None = None) -> None:
        text = b"" if error is None else error.reason.encode("utf-8", "replace")[: frames.MAX_TEXT_BYTES]
        code = 0 if error is None else int(error.code)
        with self._reply_lock:
            for request in requests:
                header = FrameHeader(FrameType.MIRROR_REPLY, len(text), request.iteration, code)
                self._sender.send_frame(header, memoryview(text) if text else None)
