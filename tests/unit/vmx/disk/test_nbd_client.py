"""The NBD client against a server that lies."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmx.disk.errors import (
    DiskRangeError,
    DiskReadFailed,
    DiskSpecError,
    NbdClosed,
    NbdError,
    NbdProtocolError,
    NbdRefused,
    NbdTimeout,
)
from vmx.disk.nbd_client import NbdClient, NbdSource

CAPACITY = 1 << 20
DONE = 1
DATA, HOLE, STATUS, ERROR = 1, 2, 5, 32769
Handler = Callable[["FakeServer", int, int, int], bytes]


def chunk(kind: int, payload: bytes, cookie: int, flags: int = DONE) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


class FakeServer:
    """Negotiates as it should, unless told other bytes; then answers each request with what `handler` returns."""

    def __init__(self, path: Path) -> None:
        self.handler: Handler = lambda *_: b""
        self.answers: dict[int, bytes] = {}
        self.greeting = b"NBDMAGICIHAVEOPT\x00\x03"
        self.capacity_bytes = CAPACITY
        self.cookie = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.close()
        self._thread.join(5)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            try:
                self._serve(connection)
            except (OSError, EOFError):
                continue
            finally:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        connection.sendall(self.greeting)
        stream.read(4)
        while True:
            head = stream.read(16)
            if len(head) < 16:
                return
            _, option, length = struct.unpack(">QII", head)
            stream.read(length)
            connection.sendall(self.answers.get(option, self._answer(option)))
            if option == 7:
                break
        while len(head := stream.read(28)) == 28:
            _, _, command, self.cookie, offset, length = struct.unpack(">IHHQQI", head)
            if command == 2:
                return
            connection.sendall(self.handler(self, command, offset, length))

    def _answer(self, option: int) -> bytes:
        def reply(kind: int, data: bytes = b"") -> bytes:
            return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data

        if option == 10:
            return reply(4, struct.pack(">I", 1) + b"base:allocation") + reply(1)
        if option == 7:
            return reply(3, struct.pack(">HQH", 0, self.capacity_bytes, 1)) + reply(1)
        return reply(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def server(path: Path) -> Iterator[FakeServer]:
    fake = FakeServer(path)
    yield fake
    fake.close()


def test_nbd_client_data_and_holes_make_one_read(server: FakeServer, path: Path) -> None:
    def answer(fake: FakeServer, _command: int, offset: int, length: int) -> bytes:
        half = length // 2
        hole = chunk(HOLE, struct.pack(">QI", offset + half, half), fake.cookie, 0)
        return hole + chunk(DATA, struct.pack(">Q", offset) + b"d" * half, fake.cookie)

    server.handler = answer
    client = NbdClient.connect(path, "disk")
    buffer = bytearray(b"?" * 2048)
    client.read_into(512, memoryview(buffer))
    client.close()
    client.close()
    assert buffer == b"d" * 1024 + bytes(1024)


def test_nbd_client_block_status_is_cut_to_what_was_asked(server: FakeServer, path: Path) -> None:
    server.handler = lambda fake, *_: chunk(
        STATUS, struct.pack(">IIIII", 1, 4096, 3, 1 << 30, 0), fake.cookie
    )
    client = NbdClient.connect(path, "disk")
    assert client.block_status(0, 8192) == [(4096, True), (4096, False)]
    client.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda fake: b"\0" * 20,
        lambda fake: chunk(DATA, b"x" * 8, fake.cookie),
        lambda fake: chunk(DATA, struct.pack(">Q", 0) + b"x" * 4096, fake.cookie),
        lambda fake: chunk(DATA, struct.pack(">Q", 512) + b"x" * 1025, fake.cookie),
        lambda fake: chunk(DATA, struct.pack(">Q", 512) + b"x" * 512, fake.cookie),
        lambda fake: chunk(HOLE, struct.pack(">QI", 512, 1 << 31), fake.cookie),
        lambda fake: chunk(HOLE, b"", fake.cookie),
        lambda fake: chunk(STATUS, bytes(12), fake.cookie),
        lambda fake: chunk(0, b"", fake.cookie),
        lambda fake: chunk(0, b"", fake.cookie + 1),
        lambda fake: struct.pack(">IHHQI", 0x668E33EF, DONE, 77, fake.cookie, 0xFFFFFFFF),
    ],
)
def test_nbd_client_read_answered_with_lies_is_a_protocol_error(
    server: FakeServer, path: Path, answer: Callable[[FakeServer], bytes]
) -> None:
    server.handler = lambda fake, *_: answer(fake)
    client = NbdClient.connect(path, "disk", deadline_s=2)
    with pytest.raises(NbdProtocolError):
        client.read_into(512, memoryview(bytearray(1024)))
    client.close()


@pytest.mark.parametrize("payload", [b"", bytes(4), bytes(7), struct.pack(">III", 1, 0, 0), bytes(13)])
def test_nbd_client_block_status_lies_are_a_protocol_error(
    server: FakeServer, path: Path, payload: bytes
) -> None:
    server.handler = lambda fake, *_: chunk(STATUS, payload, fake.cookie)
    client = NbdClient.connect(path, "disk", deadline_s=2)
    with pytest.raises(NbdProtocolError):
        client.block_status(0, 4096)
    client.close()


def test_nbd_client_error_answers_leave_the_connection_usable(server: FakeServer, path: Path) -> None:
    answers = [ERROR, DATA]

    def answer(fake: FakeServer, _command: int, offset: int, length: int) -> bytes:
        kind = answers.pop(0)
        text = struct.pack(">IH", 5, 0) if kind == ERROR else struct.pack(">Q", offset) + b"x" * length
        return chunk(kind, text, fake.cookie)

    server.handler = answer
    client = NbdClient.connect(path, "disk")
    buffer = memoryview(bytearray(512))
    with pytest.raises(NbdRefused) as refused:
        client.read_into(0, buffer)
    assert refused.value.code == 5
    client.read_into(0, buffer)
    assert buffer.tobytes() == b"x" * 512
    client.close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda fake: setattr(fake, "greeting", b"HTTP/1.1 400 Bad Re"), NbdProtocolError),
        (lambda fake: setattr(fake, "greeting", b"NBDMAGICIHAVEOPT\0\0"), NbdProtocolError),
        (lambda fake: setattr(fake, "greeting", b""), NbdTimeout),
        (lambda fake: setattr(fake, "capacity_bytes", 0), NbdProtocolError),
        (lambda fake: setattr(fake, "capacity_bytes", 1000), NbdProtocolError),
        (
            lambda fake: fake.answers.update({8: struct.pack(">QIII", 0x3E889045565A9, 8, 0x80000001, 0)}),
            NbdRefused,
        ),
        (lambda fake: fake.answers.update({10: struct.pack(">QIII", 0x3E889045565A9, 10, 1, 0)}), NbdRefused),
        (
            lambda fake: fake.answers.update({7: struct.pack(">QIII", 0x3E889045565A9, 7, 0x80000006, 0)}),
            NbdRefused,
        ),
        (
            lambda fake: fake.answers.update({7: struct.pack(">QIII", 0x3E889045565A9, 7, 1, 1 << 31)}),
            NbdProtocolError,
        ),
        (
            lambda fake: fake.answers.update({8: struct.pack(">QIII", 0x3E889045565A9, 9, 1, 0)}),
            NbdProtocolError,
        ),
        (
            lambda fake: fake.answers.update({8: struct.pack(">QIII", 0x3E889045565A9, 8, 3, 0) * 99}),
            NbdProtocolError,
        ),
    ],
)
def test_nbd_client_negotiation_that_fails_is_typed(
    server: FakeServer, path: Path, spoil: Callable[[FakeServer], None], error: type[NbdError]
) -> None:
    spoil(server)
    with pytest.raises(error):
        NbdClient.connect(path, "disk", deadline_s=0.3)


def test_nbd_client_range_outside_is_refused_unsent(server: FakeServer, path: Path) -> None:
    client = NbdClient.connect(path, "disk")
    with pytest.raises(DiskRangeError):
        client.read_into(CAPACITY, memoryview(bytearray(512)))
    with pytest.raises(DiskRangeError):
        client.block_status(512, CAPACITY)
    client.close()


def test_nbd_client_nobody_there(path: Path) -> None:
    with pytest.raises(NbdClosed):
        NbdClient.connect(path, "disk")


def test_nbd_source_another_size_is_refused(server: FakeServer, path: Path) -> None:
    with pytest.raises(DiskSpecError):
        NbdSource(path, "disk", CAPACITY + 512)


@pytest.mark.parametrize("sizes", [(100, 412), (1, 1)])
def test_nbd_source_extents_that_are_no_sectors_are_a_read_error(
    server: FakeServer, path: Path, sizes: tuple[int, int]
) -> None:
    server.handler = lambda fake, *_: chunk(
        STATUS, struct.pack(">IIIII", 1, sizes[0], 0, sizes[1], 0), fake.cookie
    )
    with NbdSource(path, "disk", CAPACITY) as source, pytest.raises(DiskReadFailed):
        list(source.data_ranges())
