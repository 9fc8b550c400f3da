"""A small NBD server for one client: the target node of QEMU's mirror job.

    listening socket --accept, once--> negotiation --GO--> transmission --DISC or close--> ended
                                                             | WRITE          sink.write_mirrored
                                                             | WRITE_ZEROES   sink.zero_mirrored
                                                             | TRIM           sink.zero_mirrored
                                                             | FLUSH, FUA     sink.flush
                                                             | READ           EIO

A mirror's target is written and never read: QEMU's raw driver, when named, does not look into it, all requests are
whole sectors because the block size is told, and the guest comes to the target only when that node has the real
file below it. So READ is refused, and a reader could only be a mistake that would otherwise go unnoticed.

One request at a time, in one thread: requests reach the sink in the order in which QEMU sent them, which a stream to
another host keeps. QEMU may send several without waiting; they lie in the socket.

An error of the sink is answered (QEMU's mirror job ends then, the guest goes on) and told to the owner at once. Bytes
that break the protocol end the connection. Source of the protocol: see nbd_wire.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmx.disk import nbd_wire as wire
from vmx.disk.contract import SECTOR_BYTES, DiskSink, check_range
from vmx.disk.errors import (
    DiskError,
    DiskFull,
    DiskRangeError,
    NbdClosed,
    NbdError,
    NbdProtocolError,
    NbdTimeout,
)
from vmx.disk.nbd_socket import NbdSocket

__all__ = ["NbdExport", "NbdServer"]

REQUEST_BYTES_MAX: Final = 4 << 20
_PREFERRED_BYTES: Final = 64 << 10
_DEADLINE_S: Final = 30.0
_OPTIONS_MAX: Final = 64
_KNOWN_COMMAND_FLAGS: Final = wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE
_TRANSMISSION_FLAGS: Final = (
    wire.FLAG_HAS_FLAGS
    | wire.FLAG_SEND_FLUSH
    | wire.FLAG_SEND_FUA
    | wire.FLAG_SEND_TRIM
    | wire.FLAG_SEND_WRITE_ZEROES
)


@dataclass(frozen=True)
class NbdExport:
    """What is served: a disk of that size, under that name."""

    name: str
    capacity_bytes: int


@dataclass(frozen=True)
class _Request:
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class NbdServer:
    """Serves `sink` to the first client of a listening socket. Owns the socket.

    `on_end` is called once, in the server's thread: with None after a client that said goodbye, with the first error
    of the sink as soon as it happens, or with what broke the connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        export: NbdExport,
        sink: DiskSink,
        on_end: Callable[[DiskError | None], None],
    ) -> None:
        self._listener = listener
        self._export = export
        self._sink = sink
        self._on_end = on_end
        self._told = False
        self._lock = threading.Lock()
        self._closing = False
        self._connect_deadline_s = _DEADLINE_S
        self._connection: NbdSocket | None = None
        self._thread = threading.Thread(target=self._run, name=f"nbd-{export.name}", daemon=True)
        self._buffer = bytearray(0)
        self._mirrored_bytes = 0

    @property
    def mirrored_bytes(self) -> int:
        """Bytes that the sink has taken, zeroed ones included."""
        return self._mirrored_bytes

    def start(self, deadline_s: float = _DEADLINE_S) -> None:
        """Begins to serve; the client must come within the deadline."""
        self._connect_deadline_s = deadline_s
        self._thread.start()

    def close(self) -> None:
        """Ends the service now: a client that is still there gets an error for what was not answered. Idempotent.

        Does not wait for the thread, which may be in the sink: see `join`.
        """
        with self._lock:
            self._closing = True
            connection = self._connection
        if connection is not None:
            connection.shut_down()
        try:
            # Wakes a thread that waits for a client, which close(2) does not.
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def join(self, deadline_s: float = _DEADLINE_S) -> bool:
        """Waits for the end of the thread; whether it has ended. Blocking."""
        if self._thread.ident is None:
            self._listener.close()
            return True
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # Stands where anything else than a DiskError ends this thread: the owner must not take that for a goodbye.
        error: DiskError | None = NbdClosed("serving", "the server's thread broke down")
        try:
            self._serve()
            error = None
        except DiskError as broken:
            error = broken
        finally:
            self._listener.close()
            self._tell(None if self._closing else error)

    def _tell(self, error: DiskError | None) -> None:
        if not self._told:
            self._told = True
            self._on_end(error)

    def _serve(self) -> None:
        connection = NbdSocket(self._accept(), _DEADLINE_S)
        with self._lock:
            self._connection = connection
            closing = self._closing
        try:
            if not closing and self._negotiate(connection):
                self._transmit(connection)
        finally:
            connection.close()

    def _accept(self) -> socket.socket:
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        ready = waiting.poll(self._connect_deadline_s * 1000)
        if not ready:
            raise NbdTimeout("connect", self._connect_deadline_s)
        # Not a timeout of the socket's own: a shut down one would let accept(2) try again and again until then.
        if ready[0][1] & select.POLLHUP:
            raise NbdClosed("accept", "the server was closed")
        try:
            return self._listener.accept()[0]
        except OSError as error:
            raise NbdClosed("accept", str(error)) from error

    def _negotiate(self, connection: NbdSocket) -> bool:
        """Whether the client wants to go on to transmission."""
        hello = (wire.INIT_MAGIC, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
        connection.send(wire.SERVER_HELLO.pack(*hello), "greeting")
        (flags,) = wire.CLIENT_FLAGS.unpack(connection.receive(wire.CLIENT_FLAGS.size, "client flags"))
        if flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES) or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise NbdProtocolError(f"client flags {flags:#x}")
        for _ in range(_OPTIONS_MAX):
            magic, option, length = wire.OPTION.unpack(connection.receive(wire.OPTION.size, "option"))
            if magic != wire.OPTION_MAGIC:
                raise NbdProtocolError(f"option magic {magic:#x}")
            if length > wire.OPTION_BYTES_MAX:
                raise NbdProtocolError(f"an option of {length} bytes")
            data = connection.receive(length, "option data")
            if option == wire.Option.EXPORT_NAME:
                self._answer_export_name(connection, data, has_zeroes=not flags & wire.FLAG_NO_ZEROES)
                return True
            if option == wire.Option.ABORT:
                _reply(connection, option, wire.REP_ACK)
                return False
            if self._answer(connection, option, data):
                return True
        raise NbdProtocolError(f"more than {_OPTIONS_MAX} options")

    def _answer_export_name(self, connection: NbdSocket, name: bytes, *, has_zeroes: bool) -> None:
        if name != self._export.name.encode():
            # This option has no answer for a refusal but the end of the connection.
            raise NbdProtocolError(f"no export {name!r:.100}")
        answer = wire.EXPORT.pack(self._export.capacity_bytes, _TRANSMISSION_FLAGS)
        connection.send(answer + bytes(124 if has_zeroes else 0), "export")

    def _answer(self, connection: NbdSocket, option: int, data: bytes) -> bool:
        """Answers an option; whether transmission follows."""
        if option not in (wire.Option.INFO, wire.Option.GO):
            _reply(connection, option, wire.REP_ERR_UNSUP)
            return False
        name = _name_of(data)
        if name is None:
            _reply(connection, option, wire.REP_ERR_INVALID)
            return False
        if name != self._export.name.encode():
            _reply(connection, option, wire.REP_ERR_UNKNOWN)
            return False
        export = (wire.INFO_EXPORT, self._export.capacity_bytes, _TRANSMISSION_FLAGS)
        _reply(connection, option, wire.REP_INFO, wire.INFO_EXPORT_DATA.pack(*export))
        sizes = (wire.INFO_BLOCK_SIZE, SECTOR_BYTES, _PREFERRED_BYTES, REQUEST_BYTES_MAX)
        _reply(connection, option, wire.REP_INFO, wire.INFO_BLOCK_SIZE_DATA.pack(*sizes))
        _reply(connection, option, wire.REP_ACK)
        return option == wire.Option.GO

    def _transmit(self, connection: NbdSocket) -> None:
        while head := connection.receive_message(wire.REQUEST.size, "request"):
            magic, *fields = wire.REQUEST.unpack(head)
            if magic != wire.REQUEST_MAGIC:
                raise NbdProtocolError(f"request magic {magic:#x}")
            request = _Request(*fields)
            if request.command == wire.Command.DISC:
                return
            payload = self._payload(connection, request)
            code = self._carry_out(request, payload)
            reply = wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, code, request.cookie)
            connection.send(reply, "reply")
        raise NbdClosed("request")

    def _payload(self, connection: NbdSocket, request: _Request) -> memoryview:
        if request.command != wire.Command.WRITE:
            return memoryview(b"")
        if request.length > REQUEST_BYTES_MAX:
            raise NbdProtocolError(f"a write of {request.length} bytes")
        if len(self._buffer) < request.length:
            self._buffer = bytearray(request.length)
        payload = memoryview(self._buffer)[: request.length]
        connection.receive_into(payload, "payload")
        return payload

    def _carry_out(self, request: _Request, payload: memoryview) -> wire.ReplyError:
        """Does what a request asks for; the code for its reply."""
        if request.flags & ~_KNOWN_COMMAND_FLAGS:
            return wire.ReplyError.EINVAL
        try:
            return self._call_sink(request, payload)
        except DiskRangeError:
            return wire.ReplyError.EINVAL
        except DiskFull as error:
            self._tell(error)
            return wire.ReplyError.ENOSPC
        except DiskError as error:
            self._tell(error)
            # Its connection, not this one: this one still has to carry the answer.
            return wire.ReplyError.ESHUTDOWN if isinstance(error, NbdError) else wire.ReplyError.EIO

    def _call_sink(self, request: _Request, payload: memoryview) -> wire.ReplyError:
        match request.command:
            case wire.Command.WRITE:
                check_range(request.offset, request.length, self._export.capacity_bytes)
                self._sink.write_mirrored(request.offset, payload)
            case wire.Command.WRITE_ZEROES | wire.Command.TRIM:
                check_range(request.offset, request.length, self._export.capacity_bytes)
                self._sink.zero_mirrored(request.offset, request.length)
            case wire.Command.FLUSH:
                self._sink.flush()
                return wire.ReplyError.NONE
            case wire.Command.READ:
                return wire.ReplyError.EIO
            case _:
                return wire.ReplyError.EINVAL
        self._mirrored_bytes += request.length
        if request.flags & wire.CMD_FLAG_FUA:
            self._sink.flush()
        return wire.ReplyError.NONE


def _reply(connection: NbdSocket, option: int, kind: int, data: bytes = b"") -> None:
    head = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data))
    connection.send(head + data, "option reply")


def _name_of(data: bytes) -> bytes | None:
    """The export's name in the data of INFO and GO (what the client wants to know is told anyway); None: malformed."""
    if len(data) < wire.U32.size + wire.U16.size:
        return None
    (name_length,) = wire.U32.unpack_from(data)
    counts_at = wire.U32.size + name_length
    if counts_at + wire.U16.size > len(data):
        return None
    (count,) = wire.U16.unpack_from(data, counts_at)
    if len(data) != counts_at + wire.U16.size * (1 + count):
        return None
    return data[wire.U32.size : counts_at]
