"""The handshake's messages and proofs, without sockets."""

import dataclasses
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.stream import handshake
from vmx.stream.errors import (
    ChannelRefused,
    EncryptionMismatch,
    HandshakeError,
    NotOurProtocol,
    ProofRejected,
    RefusalCode,
    RefusedByPeer,
    VersionMismatch,
    WrongMigration,
)
from vmx.stream.handshake import Hello
from vmx.stream.spec import Encryption, StreamSecret

SECRET = StreamSecret(0x1234567890ABCDEF, b"k" * 32, b"t" * 32)
HELLO = Hello(1, 2, SECRET.migration_id, Encryption.AES_256_GCM, b"n" * 32)


def test_handshake_both_sides_agree_on_keys() -> None:
    hello = handshake.encode_hello(HELLO)
    challenge, at_destination = handshake.encode_challenge(SECRET, hello, 1, secrets.token_bytes(32))
    at_source = handshake.decode_challenge(SECRET, hello, challenge)
    handshake.check_proof(SECRET, at_destination, handshake.encode_proof(SECRET, at_source))
    handshake.check_accept(SECRET, at_source, handshake.encode_accept(SECRET, at_destination))
    keys = handshake.session_keys(SECRET, at_source)
    assert keys == handshake.session_keys(SECRET, at_destination)
    assert keys.to_destination != keys.to_source


def test_session_keys_differ_by_channel_and_by_nonce() -> None:
    seen = set()
    for index in range(3):
        for nonce in (b"a" * 32, b"b" * 32):
            hello = handshake.encode_hello(dataclasses.replace(HELLO, channel_index=index))
            _, transcript = handshake.encode_challenge(SECRET, hello, 1, nonce)
            keys = handshake.session_keys(SECRET, transcript)
            seen |= {keys.to_destination, keys.to_source}
    assert len(seen) == 12


@pytest.mark.parametrize(
    "other", [dataclasses.replace(SECRET, key=b"x" * 32), dataclasses.replace(SECRET, token=b"x" * 32)]
)
def test_proofs_other_secret_are_rejected(other: StreamSecret) -> None:
    hello = handshake.encode_hello(HELLO)
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 1, b"d" * 32)
    with pytest.raises(ProofRejected):
        handshake.decode_challenge(other, hello, challenge)
    with pytest.raises(ProofRejected):
        handshake.check_proof(SECRET, transcript, handshake.encode_proof(other, transcript))


def test_proof_of_one_side_is_no_proof_of_the_other() -> None:
    hello = handshake.encode_hello(HELLO)
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 1, b"d" * 32)
    reflected = bytearray(handshake.encode_proof(SECRET, transcript))
    reflected[16:] = challenge[-32:]
    with pytest.raises(ProofRejected):
        handshake.check_proof(SECRET, transcript, bytes(reflected))


def test_proof_replayed_against_a_new_challenge_is_rejected() -> None:
    hello = handshake.encode_hello(HELLO)
    _, first = handshake.encode_challenge(SECRET, hello, 1, b"1" * 32)
    _, second = handshake.encode_challenge(SECRET, hello, 1, b"2" * 32)
    with pytest.raises(ProofRejected):
        handshake.check_proof(SECRET, second, handshake.encode_proof(SECRET, first))


def test_secrets_never_cross_the_wire() -> None:
    hello = handshake.encode_hello(HELLO)
    challenge, transcript = handshake.encode_challenge(SECRET, hello, 1, b"d" * 32)
    said = (
        hello
        + challenge
        + handshake.encode_proof(SECRET, transcript)
        + handshake.encode_accept(SECRET, transcript)
    )
    assert SECRET.key[:8] not in said
    assert SECRET.token[:8] not in said


REFUSED = {
    "newer_only": (dataclasses.replace(HELLO, oldest_version=9, newest_version=10), VersionMismatch),
    "versions_upside_down": (dataclasses.replace(HELLO, oldest_version=1, newest_version=0), VersionMismatch),
    "other_migration": (dataclasses.replace(HELLO, migration_id=5), WrongMigration),
    "in_the_clear": (dataclasses.replace(HELLO, encryption=Encryption.DISABLED), EncryptionMismatch),
    "other_count": (dataclasses.replace(HELLO, channel_count=3), ChannelRefused),
    "index_too_high": (dataclasses.replace(HELLO, channel_index=3), ChannelRefused),
}


@pytest.mark.parametrize(("hello", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_check_hello_unwelcome_raises(hello: Hello, error: type[HandshakeError]) -> None:
    decoded = handshake.decode_hello(handshake.encode_hello(hello))
    with pytest.raises(error):
        handshake.check_hello(decoded, SECRET, Encryption.AES_256_GCM, 2)


def test_check_hello_newer_peer_meets_at_our_version() -> None:
    newer = dataclasses.replace(HELLO, newest_version=99)
    assert handshake.check_hello(newer, SECRET, Encryption.AES_256_GCM, 2) == handshake.STREAM_VERSION


def test_check_hello_host_of_before_is_met_at_version_1() -> None:
    before = dataclasses.replace(HELLO, newest_version=1)
    assert handshake.check_hello(before, SECRET, Encryption.AES_256_GCM, 2) == 1


@pytest.mark.parametrize(("channel_count", "disk_count"), [(2, 2), (0, 2), (0, 0)])
def test_check_hello_host_of_before_is_refused_for_disks_or_no_memory(
    channel_count: int, disk_count: int
) -> None:
    before = dataclasses.replace(HELLO, newest_version=1)
    with pytest.raises(VersionMismatch):
        handshake.check_hello(before, SECRET, Encryption.AES_256_GCM, channel_count, disk_count)


def test_decode_challenge_version_that_was_not_offered_raises() -> None:
    hello = handshake.encode_hello(dataclasses.replace(HELLO, oldest_version=2, disk_channel_count=2))
    challenge, _ = handshake.encode_challenge(SECRET, hello, 1, b"d" * 32)
    with pytest.raises(VersionMismatch):
        handshake.decode_challenge(SECRET, hello, challenge)


def test_refusal_is_heard_as_such() -> None:
    with pytest.raises(RefusedByPeer) as caught:
        handshake.refusal_or_none(handshake.encode_refusal(RefusalCode.PROOF))
    assert caught.value.code == RefusalCode.PROOF


@given(st.binary(max_size=200))
def test_decode_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    hello = handshake.encode_hello(HELLO)
    _, transcript = handshake.encode_challenge(SECRET, hello, 1, b"d" * 32)
    with pytest.raises(NotOurProtocol):
        handshake.decode_hello(data)
    with pytest.raises(HandshakeError):
        handshake.decode_challenge(SECRET, hello, data)
    with pytest.raises(HandshakeError):
        handshake.check_proof(SECRET, transcript, data)


@given(st.integers(0, handshake.HELLO_BYTES - 1), st.integers(1, 255))
def test_decode_hello_changed_byte_is_refused_or_not_ours(at: int, change: int) -> None:
    """A changed HELLO is refused at once, or by the proof, which covers every byte of it."""
    data = bytearray(handshake.encode_hello(HELLO))
    _, source = handshake.encode_challenge(SECRET, bytes(data), 1, b"d" * 32)
    data[at] ^= change

    def listen() -> None:
        handshake.check_hello(handshake.decode_hello(bytes(data)), SECRET, Encryption.AES_256_GCM, 2)
        _, destination = handshake.encode_challenge(SECRET, bytes(data), 1, b"d" * 32)
        handshake.check_proof(SECRET, destination, handshake.encode_proof(SECRET, source))

    with pytest.raises(HandshakeError):
        listen()
