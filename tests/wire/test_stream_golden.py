"""Golden bytes, one per message of the stream protocol: a change here needs a new version of it."""

import numpy as np
import pytest

from vmx.disk.contract import SECTOR_BYTES
from vmx.guest.pages import PAGE_BYTES
from vmx.stream import frames, handshake
from vmx.stream.errors import DiskFaultCode, RefusalCode
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType
from vmx.stream.handshake import Hello
from vmx.stream.records import Opener, Sealer
from vmx.stream.spec import ChannelRole, DiskExtent, Encryption, StreamSecret

SECRET = StreamSecret(0x0102030405060708, bytes(range(32)), bytes(range(32, 64)))
HELLO_V1 = Hello(1, 2, SECRET.migration_id, Encryption.AES_256_GCM, b"\xaa" * 32, 1, 1)
HELLO = Hello(1, 2, SECRET.migration_id, Encryption.AES_256_GCM, b"\xaa" * 32)
DISKS_HELLO = Hello(
    5, 2, SECRET.migration_id, Encryption.AES_256_GCM, b"\xaa" * 32, oldest_version=2, disk_channel_count=2
)
DISKS = (DiskExtent(2000, 4096), DiskExtent(2001, 1 << 30))
CAPACITIES = {disk.key: disk.capacity_bytes for disk in DISKS}

ONE_RUN = np.array([[5, 2]], dtype=np.int64)
TWO_RUNS = np.array([[5, 2], [9, 1]], dtype=np.int64)

FRAMES = {
    "pages_one_run": (
        frames.runs_header(FrameType.PAGES, 3, ONE_RUN),
        "10000000 00200000 03000000 01000000 0500000000000000 0200000000000000",
    ),
    "pages_two_runs": (
        frames.runs_header(FrameType.PAGES, 3, TWO_RUNS),
        "10000000 20300000 03000000 02000000 0500000000000000 0300000000000000",
    ),
    "zero": (
        frames.runs_header(FrameType.ZERO, 3, ONE_RUN),
        "11000000 00000000 03000000 01000000 0500000000000000 0200000000000000",
    ),
    "sync": (
        FrameHeader(FrameType.SYNC, iteration=3, first=4, total=1),
        "12000000 00000000 03000000 00000000 0400000000000000 0100000000000000",
    ),
    "sync_ack": (
        FrameHeader(FrameType.SYNC_ACK, iteration=3, first=4, total=1),
        "13000000 00000000 03000000 00000000 0400000000000000 0100000000000000",
    ),
    "device_state": (
        FrameHeader(FrameType.DEVICE_STATE, 10, count=1, first=262144),
        "20000000 0a000000 00000000 01000000 0000040000000000 0000000000000000",
    ),
    "digests": (
        FrameHeader(FrameType.DIGESTS, 16, first=6, total=2),
        "21000000 10000000 00000000 00000000 0600000000000000 0200000000000000",
    ),
    "control": (
        frames.control_frame(ControlMessage(ControlCode.COMMIT, 6, "ok"))[0],
        "30000000 02000000 00000000 03000000 0600000000000000 0000000000000000",
    ),
    "keepalive": (
        FrameHeader(FrameType.KEEPALIVE),
        "31000000 00000000 00000000 00000000 0000000000000000 0000000000000000",
    ),
    "disks": (
        frames.disks_frame(DISKS)[0],
        "22000000 20000000 00000000 02000000 0000000000000000 0000000000000000",
    ),
    "disk_data": (
        FrameHeader(FrameType.DISK_DATA, 1024, 1, 2001, 4096, 1024),
        "40000000 00040000 01000000 d1070000 0010000000000000 0004000000000000",
    ),
    "disk_sync": (
        FrameHeader(FrameType.DISK_SYNC, 0, 1, 1, 1536, 2),
        "41000000 00000000 01000000 01000000 0006000000000000 0200000000000000",
    ),
    "disk_sync_ack": (
        FrameHeader(FrameType.DISK_SYNC_ACK, 0, 1, 1, 1536, 2),
        "42000000 00000000 01000000 01000000 0006000000000000 0200000000000000",
    ),
    "mirror_write": (
        FrameHeader(FrameType.MIRROR_WRITE, 512, 7, 2000, 512, 512),
        "48000000 00020000 07000000 d0070000 0002000000000000 0002000000000000",
    ),
    "mirror_zero": (
        FrameHeader(FrameType.MIRROR_ZERO, 0, 8, 2000, 0, 4096),
        "49000000 00000000 08000000 d0070000 0000000000000000 0010000000000000",
    ),
    "mirror_flush": (
        FrameHeader(FrameType.MIRROR_FLUSH, 0, 9, 2000),
        "4a000000 00000000 09000000 d0070000 0000000000000000 0000000000000000",
    ),
    "mirror_reply": (
        FrameHeader(FrameType.MIRROR_REPLY, 4, 9, DiskFaultCode.NO_SPACE),
        "4b000000 04000000 09000000 01000000 0000000000000000 0000000000000000",
    ),
}


@pytest.mark.parametrize(("header", "golden"), FRAMES.values(), ids=FRAMES.keys())
def test_frame_header_golden_bytes(header: FrameHeader, golden: str) -> None:
    assert frames.encode_header(header) == bytes.fromhex(golden)
    assert frames.decode_header(bytes.fromhex(golden), 16, CAPACITIES) == header


def test_every_frame_type_has_golden_bytes() -> None:
    assert {header.type for header, _ in FRAMES.values()} == set(FrameType)


def test_run_table_golden_bytes() -> None:
    golden = "0500000000000000 0200000000000000 0900000000000000 0100000000000000"
    assert frames.encode_runs(TWO_RUNS) == bytes.fromhex(golden)


def test_digests_golden_bytes() -> None:
    assert frames.encode_digests(np.array([1, 2**63], dtype=np.uint64)).hex() == "01" + "00" * 14 + "80"


def test_disks_golden_bytes() -> None:
    header, body = frames.disks_frame(DISKS)
    golden = "d007000000000000 0010000000000000 d107000000000000 0000004000000000"
    assert body == bytes.fromhex(golden)
    assert frames.decode_disks(header, body) == DISKS


def test_failed_value_golden() -> None:
    assert frames.failed_value(2000, DiskFaultCode.NO_SPACE) == 0x7D001
    assert frames.decode_failed_value(0x7D001) == (2000, DiskFaultCode.NO_SPACE)
    assert [frames.decode_failed_value(value) for value in (0, 0x7D0FF, 1 << 40 | 1)] == [None] * 3


def test_numbers_on_the_wire_are_these() -> None:
    assert {t.name: t.value for t in FrameType} == {
        "PAGES": 16,
        "ZERO": 17,
        "SYNC": 18,
        "SYNC_ACK": 19,
        "DEVICE_STATE": 32,
        "DIGESTS": 33,
        "DISKS": 34,
        "CONTROL": 48,
        "KEEPALIVE": 49,
        "DISK_DATA": 64,
        "DISK_SYNC": 65,
        "DISK_SYNC_ACK": 66,
        "MIRROR_WRITE": 72,
        "MIRROR_ZERO": 73,
        "MIRROR_FLUSH": 74,
        "MIRROR_REPLY": 75,
    }
    assert [c.name for c in sorted(ControlCode)] == [
        "LAYOUT",
        "READY",
        "COMMIT",
        "RESUMED",
        "FAILED",
        "GIVE_BACK",
        "CANCEL",
        "DIGESTS_WANTED",
        "VERIFIED",
        "WRONG_MEMORY",
        "SETTLED",
    ]
    assert [c.name for c in sorted(RefusalCode)] == [
        "VERSION",
        "MIGRATION_ID",
        "PROOF",
        "CHANNEL",
        "ENCRYPTION",
    ]
    assert [c.name for c in sorted(DiskFaultCode)] == ["NO_SPACE", "IO_ERROR"]
    assert [r.name for r in sorted(ChannelRole)] == ["CONTROL", "PAGES", "DISKS", "MIRROR"]
    assert PAGE_BYTES == 4096
    assert SECTOR_BYTES == 512


def test_hello_golden_bytes() -> None:
    assert handshake.encode_hello(HELLO).hex(" ", 8) == HELLO_GOLDEN.replace(" 0100020008", " 0200020008")
    assert handshake.encode_hello(DISKS_HELLO).hex(" ", 8) == DISKS_HELLO_GOLDEN
    assert handshake.decode_hello(bytes.fromhex(DISKS_HELLO_GOLDEN)) == DISKS_HELLO


def test_handshake_golden_bytes() -> None:
    """Byte for byte those of version 1, which a host of before speaks: they must never change."""
    hello = handshake.encode_hello(HELLO_V1)
    assert hello.hex(" ", 8) == HELLO_GOLDEN
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 1, b"\xbb" * 32)
    assert challenge.hex(" ", 8) == CHALLENGE_GOLDEN
    assert handshake.encode_proof(SECRET, transcript).hex(" ", 8) == PROOF_GOLDEN
    assert handshake.encode_accept(SECRET, transcript).hex(" ", 8) == ACCEPT_GOLDEN
    assert handshake.encode_refusal(RefusalCode.PROOF).hex(" ", 8) == "895650584d49470a 0500030000000000"
    keys = handshake.session_keys(SECRET, transcript)
    assert keys.to_destination is not None
    assert keys.to_source is not None
    assert keys.to_destination.hex() == TO_DESTINATION_GOLDEN
    assert keys.to_source.hex() == TO_SOURCE_GOLDEN


def test_record_golden_bytes() -> None:
    sealed = bytearray(20)
    sealer = Sealer(1, bytes(32))
    sealer.seal_into(b"page", sealed)
    first = bytes(sealed)
    sealer.seal_into(b"page", sealed)
    assert [first.hex(), sealed.hex()] == RECORDS_GOLDEN
    opener, plain = Opener(1, bytes(32)), bytearray(4)
    opener.open_into(first, plain)
    assert plain == b"page"


HELLO_GOLDEN = (
    "895650584d49470a 0102010002000100 0100020008070605 04030201aaaaaaaa "
    "aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaa00000000"
)
DISKS_HELLO_GOLDEN = (
    "895650584d49470a 0104050002020200 0200020008070605 04030201aaaaaaaa "
    "aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaa00000000"
)
CHALLENGE_GOLDEN = (
    "895650584d49470a 0200010000000000 bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb "
    "bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb 7ce6051084766353 dc7f8639894d3019 "
    "278e6ce3a9b83af4 91a430f61ae978a1"
)
PROOF_GOLDEN = (
    "895650584d49470a 0300000000000000 b8180665af8ac80d d6584d1e8a005ce2 1a5dffea329b2950 611b5666d9afc6fa"
)
ACCEPT_GOLDEN = (
    "895650584d49470a 0400000000000000 ef45f60c578c45a9 8fe24c4af81f6d78 c88c28161d8ea379 2fa66aa5143a17f0"
)
TO_DESTINATION_GOLDEN = "7fa0b9402b7835ce577bb61beffc83aacaa3a75e3ea90d8129d76dfa45733b76"
TO_SOURCE_GOLDEN = "44bc251ff92f93e35eb9c906ce1b062165e11b40a7c96d6a11b9f0c838a51409"
RECORDS_GOLDEN = ["bec62758ffd88372342acd180f53787665b649dd", "96b5986e0c07475ebefab326132f9a865dbfb760"]
