"""Page, disk and mirror channels: sealed TCP connections, blocking I/O in threads.

Data goes this way because every step that costs time (the cipher, the copy in and out of the kernel, numpy's
gather and scatter) releases the interpreter's lock, so the channels of one process run side by side; an event loop
would run them one after the other. The kernel's own timeouts (SO_RCVTIMEO, SO_SNDTIMEO, socket(7)) are used instead of
Python's, which would ask poll(2) before every call.
"""

import socket
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from vmx.stream import frames
from vmx.stream.errors import PeerClosed, PeerSilent, ProtocolViolation
from vmx.stream.frames import HEADER_BYTES, NO_DISKS, DiskCapacities, FrameHeader, FrameType
from vmx.stream.records import TAG_BYTES, Opener, Sealer
from vmx.stream.rendezvous import OpenedChannel

_TIMEVAL: Final = Struct("@ll")


class _ChannelSocket:
    """A blocking socket with the kernel's timeout in one direction, that any thread may shut down."""

    def __init__(self, opened: OpenedChannel, option: int, limit_s: float) -> None:
        self.index = opened.index
        self._sock = opened.sock
        self._limit_s = limit_s
        whole_s = int(limit_s)
        self._sock.setblocking(True)
        self._sock.setsockopt(
            socket.SOL_SOCKET, option, _TIMEVAL.pack(whole_s, int((limit_s - whole_s) * 1e6))
        )

    def shut_down(self) -> None:
        """End the connection under a thread that waits in it: its call returns at once. Idempotent."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more, or closed: what was asked for

    def close(self) -> None:
        """Give the descriptor back. Only when no thread uses the channel any more."""
        self._sock.close()


class FrameSender(_ChannelSocket):
    """The sending half of a channel. Used by one thread at a time."""

    def __init__(
        self, opened: OpenedChannel, key: bytes | None, max_body_bytes: int, send_limit_s: float
    ) -> None:
        """Seal with `key`; the peer has to take something within `send_limit_s`."""
        super().__init__(opened, socket.SO_SNDTIMEO, send_limit_s)
        self._sealer = Sealer(opened.index, key)
        room = HEADER_BYTES + max_body_bytes + 2 * TAG_BYTES
        self._sealed = memoryview(bytearray(room if self._sealer.encrypts else HEADER_BYTES))

    def wire_bytes(self, header: FrameHeader) -> int:
        """What a frame costs on the wire, below TCP."""
        records = 2 if header.body_bytes else 1
        return HEADER_BYTES + header.body_bytes + records * self._sealer.overhead_bytes

    def send_frame(self, header: FrameHeader, body: memoryview | None = None) -> None:
        """Seal and send one frame. `body` may be live guest RAM (records.Sealer.seal_into says why).

        :raises PeerClosed: the connection is gone.
        :raises PeerSilent: the peer took nothing within the time limit.
        """
        if not self._sealer.encrypts:
            head = memoryview(frames.encode_header(header))
            self._send_parts([head] if body is None else [head, body])
            return
        header_end = HEADER_BYTES + TAG_BYTES
        self._sealer.seal_into(frames.encode_header(header), self._sealed[:header_end])
        end = header_end
        if body is not None:
            end += header.body_bytes + TAG_BYTES
            self._sealer.seal_into(body, self._sealed[header_end:end])
        self._send_parts([self._sealed[:end]])

    def _send_parts(self, parts: list[memoryview]) -> None:
        while parts:
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                raise PeerSilent(self.index, "the peer to take data", self._limit_s) from None
            except OSError as error:
                raise PeerClosed(self.index, str(error)) from None
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]


class PageSender(FrameSender):
    """The source's end of a page channel. Used by one thread."""

    def __init__(self, opened: OpenedChannel, silent_peer_s: float) -> None:
        super().__init__(opened, opened.keys.to_destination, frames.MAX_PAGES_BODY_BYTES, silent_peer_s)


@dataclass(frozen=True)
class Welcome:
    """What may come on a channel, and what it is checked against."""

    types: frozenset[FrameType]
    max_body_bytes: int
    page_count: int = 0
    disks: DiskCapacities = field(default_factory=lambda: NO_DISKS)


class FrameReceiver(_ChannelSocket):
    """The receiving half of a channel. Used by one thread."""

    def __init__(
        self, opened: OpenedChannel, key: bytes | None, welcome: Welcome, silent_peer_s: float
    ) -> None:
        """Open with `key`; the peer may be silent for `silent_peer_s` within a frame."""
        super().__init__(opened, socket.SO_RCVTIMEO, silent_peer_s)
        self._welcome = welcome
        self._opener = Opener(opened.index, key)
        self._overhead_bytes = self._opener.overhead_bytes
        self._header = memoryview(bytearray(HEADER_BYTES))
        room = HEADER_BYTES + TAG_BYTES
        if self._opener.encrypts:
            room = max(room, welcome.max_body_bytes + TAG_BYTES)
        self._sealed = memoryview(bytearray(room))
        self.wire_bytes = 0

    def receive_header(self) -> FrameHeader | None:
        """Wait for the next frame, as long as it takes: the control channel knows whether the peer is alive.

        :returns: the checked header, or None where the peer ended the connection between two frames.
        :raises PeerClosed: the connection broke.
        :raises PeerSilent: the peer fell silent within the header.
        :raises RecordForged: the header is not what the peer sent.
        :raises ProtocolViolation: it is, and breaks the rules.
        """
        sealed = self._sealed[: HEADER_BYTES + self._overhead_bytes]
        if not self._fill(sealed, may_end=True):
            return None
        self._opener.open_into(sealed, self._header)
        header = frames.decode_header(self._header, self._welcome.page_count, self._welcome.disks)
        if header.type not in self._welcome.types:
            raise ProtocolViolation(f"A {header.type.name} frame came on channel {self.index}.")
        return header

    def receive_body_into(self, header: FrameHeader, target: memoryview) -> None:
        """Receive the body of the header just received, straight into `target` of exactly its length.

        :raises PeerClosed: the connection broke.
        :raises PeerSilent: the peer fell silent.
        :raises RecordForged: the body is not what the peer sent; what `target` holds then means nothing.
        """
        if not self._opener.encrypts:
            self._fill(target)
            return
        sealed = self._sealed[: header.body_bytes + self._overhead_bytes]
        self._fill(sealed)
        self._opener.open_into(sealed, target)

    def _fill(self, target: memoryview, may_end: bool = False) -> bool:
        at, wanted = 0, len(target)
        while at < wanted:
            try:
                # MSG_WAITALL: one system call, and one hand-over of the interpreter's lock, for a whole frame.
                got = self._sock.recv_into(target[at:], wanted - at, socket.MSG_WAITALL)
            except BlockingIOError:
                if may_end and at == 0:
                    continue
                raise PeerSilent(self.index, "the rest of a frame", self._limit_s) from None
            except OSError as error:
                raise PeerClosed(self.index, str(error)) from None
            if not got:
                if may_end and at == 0:
                    return False
                raise PeerClosed(self.index, "within a frame")
            at += got
            self.wire_bytes += got
        return True


class PageReceiver(FrameReceiver):
    """The destination's end of a page channel. Used by one thread."""

    def __init__(self, opened: OpenedChannel, page_count: int, silent_peer_s: float) -> None:
        welcome = Welcome(frames.PAGE_CHANNEL_TYPES, frames.MAX_PAGES_BODY_BYTES, page_count)
        super().__init__(opened, opened.keys.to_destination, welcome, silent_peer_s)
