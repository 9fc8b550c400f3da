"""Golden bytes, one per message of the stream protocol: a change here needs a new version of it."""

import numpy as np
import pytest

from vmx.guest.pages import PAGE_BYTES
from vmx.stream import frames, handshake
from vmx.stream.errors import RefusalCode
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType
from vmx.stream.handshake import Hello
from vmx.stream.records import Opener, Sealer
from vmx.stream.spec import Encryption, StreamSecret

SECRET = StreamSecret(0x0102030405060708, bytes(range(32)), bytes(range(32, 64)))
HELLO = Hello(1, 2, SECRET.migration_id, Encryption.AES_256_GCM, b"\xaa" * 32)

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
}


@pytest.mark.parametrize(("header", "golden"), FRAMES.values(), ids=FRAMES.keys())
def test_frame_header_golden_bytes(header: FrameHeader, golden: str) -> None:
    assert frames.encode_header(header) == bytes.fromhex(golden)
    assert frames.decode_header(bytes.fromhex(golden), 16) == header


def test_every_frame_type_has_golden_bytes() -> None:
    assert {header.type for header, _ in FRAMES.values()} == set(FrameType)


def test_run_table_golden_bytes() -> None:
    golden = "0500000000000000 0200000000000000 0900000000000000 0100000000000000"
    assert frames.encode_runs(TWO_RUNS) == bytes.fromhex(golden)


def test_digests_golden_bytes() -> None:
    assert frames.encode_digests(np.array([1, 2**63], dtype=np.uint64)).hex() == "01" + "00" * 14 + "80"


def test_numbers_on_the_wire_are_these() -> None:
    assert {t.name: t.value for t in FrameType} == {
        "PAGES": 16,
        "ZERO": 17,
        "SYNC": 18,
        "SYNC_ACK": 19,
        "DEVICE_STATE": 32,
        "DIGESTS": 33,
        "CONTROL": 48,
        "KEEPALIVE": 49,
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
    assert PAGE_BYTES == 4096


def test_handshake_golden_bytes() -> None:
    hello = handshake.encode_hello(HELLO)
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
