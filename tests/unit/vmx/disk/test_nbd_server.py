"""The NBD server byte by byte: what QEMU may send, and what nobody may."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmx.disk.errors import DiskError, DiskFull, DiskWriteFailed, NbdClosed, NbdProtocolError, NbdTimeout
from vmx.disk.nbd_server import NbdExport, NbdServer

CAPACITY = 1 << 20
HELLO = b"NBDMAGICIHAVEOPT\x00\x03"
FIXED, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 6, 7, 8
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES = range(7)
ACK, REP_INFO, ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN = 1, 3, 0x80000001, 0x80000003, 0x80000006
FLAGS = 0b1101101


class FakeDisk:
    """A sink in memory that notes its calls."""

    def __init__(self) -> None:
        self.content = bytearray(CAPACITY)
        self.calls: list[tuple[str, int, int]] = []
        self.error: DiskError | None = None

    def write_bulk(self, offset: int, data: memoryview) -> None:
        raise AssertionError("not the mirror's")

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        self.calls.append(("write", offset, len(data)))
        if self.error is not None:
            raise self.error
        self.content[offset : offset + len(data)] = data

    def zero_mirrored(self, offset: int, length: int) -> None:
        self.calls.append(("zero", offset, length))
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.calls.append(("flush", 0, 0))


class Client:
    """The bytes of a client."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def greet(self, flags: int = FIXED | NO_ZEROES) -> None:
        assert self.receive(18) == HELLO
        self.socket.sendall(struct.pack(">I", flags))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or replies[-1][0] == REP_INFO:
            magic, to, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, to) == (0x3E889045565A9, option)
            replies.append((kind, self.receive(length)))
        return replies

    def go(self, name: bytes = b"disk") -> list[tuple[int, bytes]]:
        return self.option(GO, struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3))

    def request(self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> int:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, 77, offset, length) + data)
        return self.reply()

    def reply(self) -> int:
        magic, code, cookie = struct.unpack(">IIQ", self.receive(16))
        assert (magic, cookie) == (0x67446698, 77)
        return int(code)


class Scene:
    """A server over a fake disk, and the way to it."""

    def __init__(self, path: Path, deadline_s: float = 10) -> None:
        self.path = path
        self.disk = FakeDisk()
        self.ends: queue.Queue[DiskError | None] = queue.Queue()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        self.server = NbdServer(listener, NbdExport("disk", CAPACITY), self.disk, self.ends.put)
        self.server.start(deadline_s)

    def client(self) -> Client:
        return Client(self.path)

    def ready(self) -> Client:
        client = self.client()
        client.greet()
        assert client.go()[-1] == (ACK, b"")
        return client


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Scene]:
    path = folder / "s"
    path.unlink(missing_ok=True)
    scene = Scene(path)
    try:
        yield scene
    finally:
        scene.server.close()
        assert scene.server.join()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving(tmp_path) as served:
        yield served


def test_nbd_server_go_tells_size_flags_and_block_sizes(scene: Scene) -> None:
    client = scene.client()
    client.greet()
    assert client.option(STRUCTURED_REPLY) == [(ERR_UNSUP, b"")]
    assert client.option(LIST) == [(ERR_UNSUP, b"")]
    assert client.go() == [
        (REP_INFO, struct.pack(">HQH", 0, CAPACITY, FLAGS)),
        (REP_INFO, struct.pack(">HIII", 3, 512, 65536, 4 << 20)),
        (ACK, b""),
    ]
    assert client.request(WRITE, 512, 512, b"x" * 512) == 0


def test_nbd_server_info_does_not_end_negotiation(scene: Scene) -> None:
    client = scene.client()
    client.greet()
    assert client.option(INFO, struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0))[-1] == (ACK, b"")
    assert client.go(b"other") == [(ERR_UNKNOWN, b"")]
    assert client.option(GO, b"\xff\xff\xff\xff\0\0") == [(ERR_INVALID, b"")]
    assert client.option(GO, b"") == [(ERR_INVALID, b"")]
    assert client.go()[-1] == (ACK, b"")


@pytest.mark.parametrize(("flags", "zeroes"), [(FIXED | NO_ZEROES, 0), (FIXED, 124)])
def test_nbd_server_old_option_export_name(scene: Scene, flags: int, zeroes: int) -> None:
    client = scene.client()
    client.greet(flags)
    client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 4) + b"disk")
    assert client.receive(10 + zeroes) == struct.pack(">QH", CAPACITY, FLAGS) + bytes(zeroes)
    assert client.request(FLUSH, 0, 0) == 0


def test_nbd_server_commands_reach_the_sink_in_order(scene: Scene) -> None:
    client = scene.ready()
    assert client.request(WRITE, 1024, 1024, b"a" * 1024) == 0
    assert client.request(WRITE, CAPACITY - 512, 512, b"b" * 512, flags=1) == 0
    assert client.request(TRIM, 1024, 512) == 0
    assert client.request(WRITE_ZEROES, 0, CAPACITY - 512, flags=2) == 0
    assert client.request(FLUSH, 0, 0) == 0
    assert scene.disk.calls == [
        ("write", 1024, 1024),
        ("write", CAPACITY - 512, 512),
        ("flush", 0, 0),
        ("zero", 1024, 512),
        ("zero", 0, CAPACITY - 512),
        ("flush", 0, 0),
    ]
    assert scene.disk.content == bytes(CAPACITY - 512) + b"b" * 512
    assert scene.server.mirrored_bytes == 1024 + 512 + 512 + CAPACITY - 512


def test_nbd_server_requests_in_flight_are_all_answered(scene: Scene) -> None:
    client = scene.ready()
    one = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 77, 0, 512)
    client.socket.sendall(b"".join(one + bytes([fill]) * 512 for fill in range(16)))
    assert [client.reply() for _ in range(16)] == [0] * 16
    assert scene.disk.content[:512] == bytes([15]) * 512


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "code"),
    [
        (READ, 0, 512, 0, 5),
        (CACHE, 0, 512, 0, 22),
        (99, 0, 512, 0, 22),
        (TRIM, CAPACITY, 512, 0, 22),
        (TRIM, (1 << 64) - 512, 1024, 0, 22),
        (WRITE_ZEROES, 0, 0xFFFFFE00, 0, 22),
        (WRITE_ZEROES, 100, 512, 0, 22),
        (TRIM, 0, 512, 1 << 4, 22),
    ],
)
def test_nbd_server_what_can_not_be_is_refused_and_the_connection_goes_on(
    scene: Scene, command: int, offset: int, length: int, flags: int, code: int
) -> None:
    client = scene.ready()
    assert client.request(command, offset, length, flags=flags) == code
    assert scene.disk.calls == []
    assert client.request(WRITE, 0, 512, b"x" * 512) == 0


@pytest.mark.parametrize(("offset", "length"), [(CAPACITY, 512), (1, 512), (0, 100), ((1 << 64) - 512, 512)])
def test_nbd_server_write_outside_is_refused_with_its_data_taken(
    scene: Scene, offset: int, length: int
) -> None:
    client = scene.ready()
    assert client.request(WRITE, offset, length, b"x" * length) == 22
    assert client.request(WRITE, 0, 512, b"y" * 512) == 0
    assert scene.disk.calls == [("write", 0, 512)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DiskFull("target", 0, 28, 512), 28),
        (DiskWriteFailed("target", 0, 5, "broken"), 5),
        (NbdClosed("write"), 108),
    ],
)
def test_nbd_server_error_of_the_sink_is_answered_and_told(scene: Scene, error: DiskError, code: int) -> None:
    client = scene.ready()
    scene.disk.error = error
    assert client.request(WRITE, 0, 512, b"x" * 512) == code
    assert scene.ends.get(timeout=5) is error
    assert client.request(WRITE, 0, 512, b"x" * 512) == code
    client.socket.close()
    scene.server.close()
    assert scene.server.join()
    assert scene.ends.empty()


def test_nbd_server_goodbye_is_no_error(scene: Scene) -> None:
    client = scene.ready()
    client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISC, 1, 0, 0))
    assert scene.ends.get(timeout=5) is None


def test_nbd_server_abort_is_no_error(scene: Scene) -> None:
    client = scene.client()
    client.greet()
    assert client.option(ABORT) == [(ACK, b"")]
    assert scene.ends.get(timeout=5) is None


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 1024) + b"x" * 1023,
        struct.pack(">IHHQ", 0x25609513, 0, WRITE, 1),
    ],
)
def test_nbd_server_client_gone_without_goodbye_is_told(scene: Scene, rest: bytes) -> None:
    client = scene.ready()
    client.socket.sendall(rest)
    client.socket.close()
    assert isinstance(scene.ends.get(timeout=5), NbdClosed)
    assert scene.disk.calls == []


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\3" + b"NOTMAGIC" + bytes(8),
        b"\0\0\0\3IHAVEOPT" + struct.pack(">II", GO, 1 << 31),
        b"\0\0\0\3IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"other",
        b"\0\0\0\3" + (b"IHAVEOPT" + struct.pack(">II", 5, 0)) * 100,
    ],
)
def test_nbd_server_garbage_in_negotiation_ends_it(scene: Scene, sent: bytes) -> None:
    client = scene.client()
    client.socket.sendall(sent)
    assert isinstance(scene.ends.get(timeout=5), NbdProtocolError)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">IHHQQI", 0x25609514, 0, WRITE, 1, 0, 512),
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, (4 << 20) + 1),
    ],
)
def test_nbd_server_garbage_in_transmission_ends_it(scene: Scene, sent: bytes) -> None:
    scene.ready().socket.sendall(sent)
    assert isinstance(scene.ends.get(timeout=5), NbdProtocolError)
    assert scene.disk.calls == []


@settings(deadline=None, max_examples=40)
@given(noise=st.binary(max_size=200), in_transmission=st.booleans())
def test_nbd_server_any_bytes_end_typed_and_within_the_disk(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, in_transmission: bool
) -> None:
    with serving(tmp_path_factory.mktemp("s")) as scene:
        client = scene.ready() if in_transmission else scene.client()
        with contextlib.suppress(OSError):
            client.socket.sendall(noise)
            client.socket.shutdown(socket.SHUT_WR)
        end = scene.ends.get(timeout=5)
        assert end is None or isinstance(end, DiskError)
        assert len(scene.disk.content) == CAPACITY
        client.socket.close()


def test_nbd_server_nobody_comes_is_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "s", deadline_s=0.05)
    assert isinstance(scene.ends.get(timeout=5), NbdTimeout)
    assert scene.server.join()


@pytest.mark.parametrize("state", ["waiting for a client", "negotiating", "idle"])
def test_nbd_server_close_wakes_it_in_every_state(scene: Scene, state: str) -> None:
    client = None
    if state == "negotiating":
        client = scene.client()
        client.receive(18)
    elif state == "idle":
        client = scene.ready()
    scene.server.close()
    assert scene.server.join(5)
    assert scene.ends.get(timeout=5) is None
    assert client is None or client.socket.recv(1) == b""
