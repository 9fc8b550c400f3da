"""The source's side of the mirror channel: what the guest writes, sent on at once, each request answered.

A guest's write waits for its reply, so this way is short: the caller's own thread seals and sends; one thread reads
replies and wakes the caller whose number they carry. Any number of callers may wait at a time, up to the limit of the
protocol; replies come in any order.

    NBD threads ── request 7, 8, 9 ──> mirror channel ──TCP──> sink
         ^                                                       │
         └── waiter 8 <── reading thread <──────── reply 8 ──────┘

The channel may be silent for ever while the guest writes nothing: the control channel knows whether the peer lives.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmx.stream import frames
from vmx.stream.bandwidth import BandwidthCap
from vmx.stream.connection import FrameReceiver, FrameSender, Welcome
from vmx.stream.errors import (
    DiskFaultCode,
    PeerClosed,
    PeerSilent,
    ProtocolViolation,
    RemoteDiskFailed,
    StreamError,
)
from vmx.stream.frames import FrameHeader, FrameType
from vmx.stream.rendezvous import OpenedChannel, send_limit_s
from vmx.stream.spec import ChannelRole, DiskExtent, StreamTimeouts

_REPLIES: Final = Welcome(frames.MIRROR_REPLY_TYPES, frames.MAX_TEXT_BYTES)


@dataclass(frozen=True)
class MirrorSetup:
    """What a mirror channel needs to know of its stream."""

    timeouts: StreamTimeouts
    disks: tuple[DiskExtent, ...]
    cap: BandwidthCap


@dataclass(frozen=True)
class _Pending:
    """A request on its way. Its caller waits at `answer` for None (done) or for what went wrong."""

    key: int
    byte_count: int
    answer: "queue.SimpleQueue[Exception | None]"


class MirrorSender:
    """See the module. `request` and `end` block; `fail` is for any thread and for the loop."""

    def __init__(
        self, opened: OpenedChannel, setup: MirrorSetup, found: Callable[[Exception], Exception]
    ) -> None:
        """Take over the channel and begin to read. `found` is told what ends it, and says what the first cause was."""
        self._timeouts = setup.timeouts
        self._cap = setup.cap
        self._found = found
        limit_s = send_limit_s(ChannelRole.MIRROR, setup.timeouts)
        self._sender = FrameSender(opened, opened.keys.to_destination, frames.MAX_DISK_BODY_BYTES, limit_s)
        self._receiver = FrameReceiver(opened, opened.keys.to_source, _REPLIES, setup.timeouts.silent_peer_s)
        self._send_lock = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._permits: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for _ in range(frames.MAX_MIRROR_REQUESTS):
            self._permits.put(True)
        self._over: dict[str, Exception] = {}
        self.wire_bytes = 0
        self.mirrored_bytes = 0
        self._thread = threading.Thread(
            target=self._read_replies, name=f"stream-mirror-{opened.index}", daemon=True
        )
        self._thread.start()

    def request(self, header: FrameHeader, body: memoryview | None) -> None:
        """Send a request (its number is given here) and wait until the destination has done it.

        :raises RemoteDiskFailed: the destination's disk refused it.
        :raises StreamError: the stream is over, or the mirror was ended.
        """
        self._cap.take_first(self._sender.wire_bytes(header))
        limit_s = self._timeouts.disk_write_s
        if header.type is FrameType.MIRROR_FLUSH:
            limit_s = self._timeouts.disk_flush_s
        self._permit(limit_s)
        waiting = _Pending(header.count, header.total, queue.SimpleQueue())
        try:
            self._send(header, body, waiting)
            outcome = waiting.answer.get(timeout=limit_s)
        except queue.Empty:
            silent = PeerSilent(self._sender.index, f"the reply to a {header.type.name}", limit_s)
            raise self._found(silent) from None
        finally:
            self._permits.put(True)
        if outcome is not None:
            raise outcome

    def _permit(self, limit_s: float) -> None:
        try:
            granted = self._permits.get(timeout=limit_s)
        except queue.Empty:
            silent = PeerSilent(self._sender.index, "one of its requests to be answered", limit_s)
            raise self._found(silent) from None
        if not granted:
            self._permits.put(False)  # for the next one who waits
            raise self._over["first"]

    def _send(self, header: FrameHeader, body: memoryview | None, waiting: _Pending) -> None:
        with self._send_lock:
            number = next(self._numbers) % frames.REQUEST_NUMBERS
            self._pending[number] = waiting
            # Looked at after the request can be found: who ends the mirror now, or has ended it, is heard either way.
            if "first" in self._over:
                raise self._over["first"]
            numbered = FrameHeader(
                header.type, header.body_bytes, number, header.count, header.first, header.total
            )
            try:
                self._sender.send_frame(numbered, body)
            except StreamError as error:
                raise self._found(error) from None
            self.wire_bytes += self._sender.wire_bytes(header)

    def end(self, limit_s: float) -> None:
        """Wait until every request is answered, and let no more begin.

        :raises PeerSilent: not within `limit_s`.
        :raises StreamError: the stream is over.
        """
        deadline = time.monotonic() + limit_s
        for _ in range(frames.MAX_MIRROR_REQUESTS):
            self._permit(max(0.0, deadline - time.monotonic()))
        self._over.setdefault(
            "first", ProtocolViolation("The disks were handed over: no more mirrored writes.")
        )
        self._permits.put(False)

    def fail(self, error: Exception) -> None:
        """End the channel; every caller that waits is told `error`."""
        self._over.setdefault("first", error)
        self._permits.put(False)
        for waiting in list(self._pending.values()):
            waiting.answer.put(error)
        self._sender.shut_down()

    def join(self) -> None:
        """Wait for the reading thread and give the descriptor back. Blocking. Only after `fail`."""
        self._thread.join()
        with self._send_lock:
            self._sender.close()

    def _read_replies(self) -> None:
        try:
            while (header := self._receive_header()) is not None:
                self._answer(header)
        except Exception as error:  # noqa: BLE001  the thread's outer edge: told to the stream and to all who wait
            self._found(error)

    def _receive_header(self) -> FrameHeader | None:
        try:
            header = self._receiver.receive_header()
        except PeerClosed:
            header = None
            if self._pending:
                raise
        if header is None:
            # The end between two requests is how a finished migration looks; whoever asks later is told so.
            closed = PeerClosed(self._sender.index, "the destination has ended it")
            self._over.setdefault("first", closed)
            self._permits.put(False)
            if self._pending:
                raise closed
        return header

    def _answer(self, header: FrameHeader) -> None:
        waiting = self._pending.pop(header.iteration, None)
        if waiting is None:
            raise ProtocolViolation(f"A reply came to request {header.iteration}, which nobody made.")
        if not header.count:
            self.mirrored_bytes += waiting.byte_count
            waiting.answer.put(None)
            return
        text = memoryview(bytearray(header.body_bytes))
        if header.body_bytes:
            self._receiver.receive_body_into(header, text)
        reason = bytes(text).decode("utf-8", "replace")
        failed = RemoteDiskFailed(waiting.key, DiskFaultCode(header.count), reason)
        waiting.answer.put(failed)
        # A mirror that misses one write is worth nothing: the destination ends the stream too.
        self._found(failed)
