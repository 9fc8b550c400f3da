"""Reads a disk that is no raw extent (qcow2): a small NBD client to an export of QEMU or qemu-nbd.

    NbdClient   one connection: reads, and block status (base:allocation); for one thread at a time
    NbdSource   a BulkSource over several of them: each reading thread gets its own connection

The block status of a qcow2 export tells clusters that read as zeros without reading them: what SEEK_HOLE is for a
raw extent. The server's answers are checked like anything else from a socket. Source of the protocol: see nbd_wire.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmx.disk import nbd_wire as wire
from vmx.disk.contract import SECTOR_BYTES, check_range
from vmx.disk.errors import (
    DiskReadFailed,
    DiskSpecError,
    NbdClosed,
    NbdError,
    NbdProtocolError,
    NbdRefused,
    NbdTimeout,
)
from vmx.disk.nbd_socket import NbdSocket

__all__ = ["NbdClient", "NbdSource"]

_DEADLINE_S: Final = 30.0
_READ_BYTES_MAX: Final = 32 << 20
# A block status request covers at most this much; a multiple of every cluster size.
_STATUS_BYTES_MAX: Final = 1 << 30
_REPLY_BYTES_MAX: Final = 16 << 20
_CONTEXT_ID_BYTES: Final = 4


class NbdClient:
    """One connection to one export, negotiated. Blocking; every wait has a deadline."""

    def __init__(self, connection: NbdSocket) -> None:
        """Use `connect`."""
        self._connection = connection
        self._cookie = 0
        self.capacity_bytes = 0

    @classmethod
    def connect(cls, path: Path, export: str, deadline_s: float = _DEADLINE_S) -> NbdClient:
        """Connects to the unix socket `path` and negotiates structured replies and block status for `export`.

        :raises NbdClosed, NbdTimeout: nobody answers there. :raises NbdRefused: no such export, or an old server.
        :raises NbdProtocolError: what answers is no NBD server.
        """
        raw_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            raw_socket.settimeout(deadline_s)
            raw_socket.connect(str(path))
        except TimeoutError:
            raw_socket.close()
            raise NbdTimeout("connect", deadline_s) from None
        except OSError as error:
            raw_socket.close()
            raise NbdClosed("connect", str(error)) from error
        client = cls(NbdSocket(raw_socket, deadline_s))
        try:
            client._negotiate(export)
        except BaseException:
            client._connection.close()
            raise
        return client

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` from `offset` on. After an error other than NbdRefused the connection is of no use.

        :raises DiskRangeError: not inside the disk. :raises NbdError:
        """
        check_range(offset, len(buffer), self.capacity_bytes)
        done = 0
        while done < len(buffer):
            piece = buffer[done : done + _READ_BYTES_MAX]
            self._read_piece(offset + done, piece)
            done += len(piece)

    def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Extents from `offset` on, as (bytes, reads as zeros): at least one, together `length` at most.

        :raises DiskRangeError: not inside the disk. :raises NbdError:
        """
        check_range(offset, length, self.capacity_bytes)
        self._request(wire.Command.BLOCK_STATUS, offset, length)
        extents: list[tuple[int, bool]] = []
        doing = "block status"
        for kind, data in self._chunks(doing):
            if (
                kind != wire.REPLY_BLOCK_STATUS
                or len(data) % wire.STATUS_DESCRIPTOR.size != _CONTEXT_ID_BYTES
            ):
                raise NbdProtocolError(f"a chunk of type {kind} and {len(data)} bytes for block status")
            for extent_bytes, flags in wire.STATUS_DESCRIPTOR.iter_unpack(data[_CONTEXT_ID_BYTES:]):
                # The last one may reach further than was asked for.
                size = min(extent_bytes, length)
                length -= size
                if size:
                    extents.append((size, bool(flags & wire.STATE_ZERO)))
        if not extents:
            raise NbdProtocolError("a block status of nothing")
        return extents

    def close(self) -> None:
        """Says goodbye and closes. Idempotent; never raises."""
        try:
            self._request(wire.Command.DISC, 0, 0)
        except NbdError:
            pass  # a server that is gone needs no goodbye
        finally:
            self._connection.close()

    def _negotiate(self, export: str) -> None:
        greeting = self._connection.receive(wire.SERVER_HELLO.size, "greeting")
        init, option, flags = wire.SERVER_HELLO.unpack(greeting)
        if init != wire.INIT_MAGIC or option != wire.OPTION_MAGIC or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise NbdProtocolError("it doesn't greet as an NBD server of the fixed newstyle")
        client_flags = wire.FLAG_FIXED_NEWSTYLE | (flags & wire.FLAG_NO_ZEROES)
        self._connection.send(wire.CLIENT_FLAGS.pack(client_flags), "client flags")
        name = export.encode()
        sized_name = wire.U32.pack(len(name)) + name
        self._option(wire.Option.STRUCTURED_REPLY, b"")
        wanted = wire.U32.pack(1) + wire.U32.pack(len(wire.BASE_ALLOCATION)) + wire.BASE_ALLOCATION
        contexts = self._option(wire.Option.SET_META_CONTEXT, sized_name + wanted)
        if not any(kind == wire.REP_META_CONTEXT for kind, _ in contexts):
            raise NbdRefused("block status", wire.REP_ERR_UNSUP)
        for _, data in self._option(wire.Option.GO, sized_name + wire.U16.pack(0)):
            if len(data) == wire.INFO_EXPORT_DATA.size and data[:2] == wire.U16.pack(wire.INFO_EXPORT):
                self.capacity_bytes = wire.INFO_EXPORT_DATA.unpack(data)[1]
        if self.capacity_bytes <= 0 or self.capacity_bytes % SECTOR_BYTES:
            raise NbdProtocolError(f"an export of {self.capacity_bytes} bytes")

    def _option(self, option: wire.Option, data: bytes) -> list[tuple[int, bytes]]:
        """Sends an option; its replies before the ACK, as (kind, data)."""
        doing = f"option {option.name}"
        self._connection.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data, doing)
        replies: list[tuple[int, bytes]] = []
        while len(replies) < 16:
            head = self._connection.receive(wire.OPTION_REPLY.size, doing)
            magic, to, kind, length = wire.OPTION_REPLY.unpack(head)
            if magic != wire.OPTION_REPLY_MAGIC or to != option or length > wire.OPTION_BYTES_MAX:
                raise NbdProtocolError(f"a malformed answer to {doing}")
            answer = self._connection.receive(length, doing)
            if kind & wire.REP_FLAG_ERROR:
                raise NbdRefused(doing, kind)
            if kind == wire.REP_ACK:
                return replies
            replies.append((kind, answer))
        raise NbdProtocolError(f"too many answers to {doing}")

    def _read_piece(self, offset: int, buffer: memoryview) -> None:
        self._request(wire.Command.READ, offset, len(buffer))
        filled = 0
        for kind, data in self._chunks("read", into=(offset, buffer)):
            if kind == wire.REPLY_OFFSET_HOLE and len(data) == wire.U64.size + wire.U32.size:
                (at,) = wire.U64.unpack_from(data)
                (hole,) = wire.U32.unpack_from(data, wire.U64.size)
                start = _inside(at - offset, hole, len(buffer))
                buffer[start : start + hole] = bytes(hole)
                filled += hole
            elif kind == wire.REPLY_OFFSET_DATA and len(data) == wire.U32.size:
                filled += wire.U32.unpack(data)[0]
            else:
                raise NbdProtocolError(f"a chunk of type {kind} and {len(data)} bytes for a read")
        if filled != len(buffer):
            raise NbdProtocolError(f"{filled} bytes for a read of {len(buffer)}")

    def _request(self, command: wire.Command, offset: int, length: int) -> None:
        self._cookie += 1
        flags = 0
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._connection.send(head, command.name)

    def _chunks(self, doing: str, into: tuple[int, memoryview] | None = None) -> Iterator[tuple[int, bytes]]:
        """The chunks of one structured reply, as (type, data); of data for `into` only its length is given.

        :raises NbdRefused: with the first error among them, once all have been read.
        """
        refused: NbdRefused | None = None
        done = False
        while not done:
            head = self._connection.receive(wire.STRUCTURED_REPLY.size, doing)
            magic, flags, kind, cookie, length = wire.STRUCTURED_REPLY.unpack(head)
            if magic != wire.STRUCTURED_REPLY_MAGIC or cookie != self._cookie:
                raise NbdProtocolError(f"a malformed reply to {doing}")
            done = bool(flags & wire.REPLY_FLAG_DONE)
            if kind == wire.REPLY_OFFSET_DATA and into is not None:
                yield kind, self._receive_data(length, into)
                continue
            if length > _REPLY_BYTES_MAX:
                raise NbdProtocolError(f"a chunk of {length} bytes")
            data = self._connection.receive(length, doing)
            if kind & wire.REPLY_ERROR_BIT:
                code = wire.U32.unpack_from(data)[0] if len(data) >= wire.U32.size else 0
                refused = refused or NbdRefused(doing, code)
            elif kind != wire.REPLY_NONE:
                yield kind, data
        if refused is not None:
            raise refused

    def _receive_data(self, length: int, into: tuple[int, memoryview]) -> bytes:
        offset, buffer = into
        if length <= wire.U64.size:
            raise NbdProtocolError(f"a chunk of data of {length} bytes")
        (at,) = wire.U64.unpack(self._connection.receive(wire.U64.size, "read"))
        size = length - wire.U64.size
        start = _inside(at - offset, size, len(buffer))
        self._connection.receive_into(buffer[start : start + size], "read")
        return wire.U32.pack(size)


def _inside(start: int, size: int, length: int) -> int:
    if start < 0 or start + size > length:
        raise NbdProtocolError(f"{size} bytes at {start} of a read of {length}")
    return start


class NbdSource:
    """A BulkSource over an NBD export. Each thread that reads gets a connection of its own when it first reads."""

    def __init__(self, path: Path, export: str, capacity_bytes: int) -> None:
        """Makes the first connection.

        :raises NbdError: it can't be made. :raises DiskSpecError: the export is not as big as the disk.
        """
        self._path = path
        self._export = export
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._clients: dict[int, NbdClient] = {}
        self._walker = NbdClient.connect(path, export)
        if self._walker.capacity_bytes != capacity_bytes:
            self.close()
            reason = f"the export has {self._walker.capacity_bytes} bytes, the disk {capacity_bytes}"
            raise DiskSpecError("capacity_bytes", reason)

    @property
    def name(self) -> str:
        """The export and its socket."""
        return f"{self._export} at {self._path}"

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """See BulkSource."""
        offset = 0
        while offset < self._capacity_bytes:
            length = min(_STATUS_BYTES_MAX, self._capacity_bytes - offset)
            try:
                extents = self._walker.block_status(offset, length)
            except NbdError as error:
                raise DiskReadFailed(self.name, offset, str(error)) from error
            for size, is_zero in extents:
                if size % SECTOR_BYTES:
                    raise DiskReadFailed(
                        self.name, offset, f"an extent of {size} bytes is no count of sectors"
                    )
                if not is_zero:
                    yield offset, size
                offset += size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See BulkSource."""
        try:
            self._own_client().read_into(offset, buffer)
        except NbdError as error:
            raise DiskReadFailed(self.name, offset, str(error)) from error

    def close(self) -> None:
        """Ends all connections; nobody may read any more. Idempotent."""
        self._walker.close()
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own_client(self) -> NbdClient:
        thread = threading.get_ident()
        with self._lock:
            client = self._clients.get(thread)
        if client is None:
            client = NbdClient.connect(self._path, self._export)
            with self._lock:
                self._clients[thread] = client
        return client
