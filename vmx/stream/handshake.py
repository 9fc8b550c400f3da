"""Pure: no I/O, no clock, no logging. The handshake that opens every connection of a stream (PROTOCOL.md, "Handshake").

    source                                        destination
      HELLO      magic, role, channel, versions, id, nonce  ─>
      <─ CHALLENGE   chosen version, nonce, proof "destination"        or REFUSAL
      PROOF      proof "source"                     ─>
      <─ ACCEPT      proof "accept"                                    or REFUSAL

Both sides prove that they know the one-time key and the one-time token, by HMAC over both nonces and everything said so
far; neither ever crosses the wire. Fresh nonces on both sides make a recorded handshake worthless. The channel's two
session keys come from the same secrets and nonces, so each connection, and each direction of it, has its own.
"""

import hmac
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmx.stream.errors import (
    ChannelRefused,
    EncryptionMismatch,
    NotOurProtocol,
    ProofRejected,
    RefusalCode,
    RefusedByPeer,
    VersionMismatch,
    WrongMigration,
)
from vmx.stream.spec import ChannelPlan, ChannelRole, Encryption, StreamSecret

# This version and the one before it are understood. Version 1 has memory only.
STREAM_VERSION: Final = 2
OLDEST_STREAM_VERSION: Final = max(1, STREAM_VERSION - 1)
# What a stream with disks, or without memory, needs at least.
DISKS_VERSION: Final = 2

MAGIC: Final = b"\x89VPXMIG\n"
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32

_HELLO: Final = Struct("<8sBBHBBHHHQ32sI")
_ANSWER_HEAD: Final = Struct("<8sBBHI")
_SHORT: Final = Struct("<8sBBHI32s")
HELLO_BYTES: Final = _HELLO.size
ANSWER_HEAD_BYTES: Final = _ANSWER_HEAD.size
CHALLENGE_BYTES: Final = ANSWER_HEAD_BYTES + NONCE_BYTES + PROOF_BYTES
PROOF_MESSAGE_BYTES: Final = _SHORT.size
ACCEPT_BYTES: Final = _SHORT.size


class MessageType(IntEnum):
    """Handshake messages. The numbers are on the wire and never reused."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    ACCEPT = 4
    REFUSAL = 5


@dataclass(frozen=True)
class Hello:
    """What a connection says it is."""

    channel_index: int
    channel_count: int
    migration_id: int
    encryption: Encryption
    nonce: bytes
    oldest_version: int = OLDEST_STREAM_VERSION
    newest_version: int = STREAM_VERSION
    disk_channel_count: int = 0

    @property
    def channels(self) -> ChannelPlan:
        """The connections that the stream shall have."""
        return ChannelPlan(self.channel_count, self.disk_channel_count)

    @property
    def role(self) -> ChannelRole:
        """What this connection is for: its index says so."""
        return self.channels.role(self.channel_index)


def oldest_version_for(channels: ChannelPlan) -> int:
    """The oldest version that such a stream can be spoken in; 1 would be refused by name, not misunderstood."""
    return DISKS_VERSION if channels.disks or not channels.pages else OLDEST_STREAM_VERSION


@dataclass(frozen=True)
class SessionKeys:
    """One key per direction of one channel; None where the migration goes in the clear."""

    to_destination: bytes | None
    to_source: bytes | None


@dataclass(frozen=True)
class Transcript:
    """Everything that the proofs and keys stand on: HELLO and the head and nonce of CHALLENGE, as sent."""

    hello: bytes
    challenge: bytes
    version: int


def encode_hello(hello: Hello) -> bytes:
    """HELLO's bytes."""
    return _HELLO.pack(
        MAGIC,
        MessageType.HELLO,
        hello.role,
        hello.channel_index,
        hello.channel_count,
        hello.disk_channel_count,
        hello.oldest_version,
        hello.newest_version,
        hello.encryption,
        hello.migration_id,
        hello.nonce,
        0,
    )


def decode_hello(data: bytes) -> Hello:
    """Read HELLO's bytes; says nothing yet about whether it is welcome.

    :raises NotOurProtocol: these bytes are no HELLO.
    """
    if len(data) != HELLO_BYTES:
        raise NotOurProtocol(f"A HELLO has {len(data)} bytes instead of {HELLO_BYTES}.")
    magic, kind, role, index, count, disk_count, oldest, newest, encryption, migration_id, nonce, reserved = (
        _HELLO.unpack(data)
    )
    if magic != MAGIC or kind != MessageType.HELLO or reserved:
        raise NotOurProtocol("The first bytes are no HELLO.")
    if encryption not in Encryption.__members__.values():
        raise NotOurProtocol(f"The encryption {encryption} is unknown.")
    hello = Hello(index, count, migration_id, Encryption(encryption), nonce, oldest, newest, disk_count)
    if role != hello.role:
        raise NotOurProtocol(f"Channel {index} can't have the role {role}.")
    return hello


def check_hello(
    hello: Hello,
    secret: StreamSecret,
    encryption: Encryption,
    channel_count: int,
    disk_channel_count: int = 0,
) -> int:
    """Whether this listener waits for such a connection; the version to speak with it, the newest both know.

    :raises VersionMismatch: no version in common.
    :raises WrongMigration: another migration.
    :raises EncryptionMismatch: the two sides don't agree.
    :raises ChannelRefused: the index or the count is not this stream's.
    """
    version = min(hello.newest_version, STREAM_VERSION)
    channels = ChannelPlan(channel_count, disk_channel_count)
    if version < max(hello.oldest_version, oldest_version_for(channels)):
        raise VersionMismatch(hello.oldest_version, hello.newest_version)
    if hello.migration_id != secret.migration_id:
        raise WrongMigration(hello.migration_id)
    if hello.encryption is not encryption:
        raise EncryptionMismatch
    if hello.channels != channels:
        reason = f"the stream has {channels.pages} page channels and {channels.disks} disk channels"
        raise ChannelRefused(hello.channel_index, reason)
    if hello.channel_index >= channels.total:
        raise ChannelRefused(hello.channel_index, f"the last channel is {channels.total - 1}")
    return version


def _proof(secret: StreamSecret, label: bytes, transcript: Transcript) -> bytes:
    key = _derive(secret, b"", b"vpx stream proof", 32)
    return hmac.digest(key, label + b"\0" + transcript.hello + transcript.challenge, "sha256")


def _derive(secret: StreamSecret, salt: bytes, info: bytes, length: int) -> bytes:
    # RFC 5869. The key has a fixed length, so key + token can be split in one way only.
    return HKDF(SHA256(), length, salt, info).derive(secret.key + secret.token)


def _expect(proof: bytes, wanted: bytes) -> None:
    if not hmac.compare_digest(proof, wanted):
        raise ProofRejected


def encode_challenge(
    secret: StreamSecret, hello: bytes, version: int, nonce: bytes
) -> tuple[bytes, Transcript]:
    """CHALLENGE's bytes, with the destination's proof, and the transcript for the rest of the handshake."""
    head = _ANSWER_HEAD.pack(MAGIC, MessageType.CHALLENGE, 0, version, 0) + nonce
    transcript = Transcript(hello, head, version)
    return head + _proof(secret, b"destination", transcript), transcript


def refusal_or_none(head: bytes) -> None:
    """Look at the 16 bytes that begin every answer of a listener.

    :raises RefusedByPeer: it is a REFUSAL.
    """
    magic, kind, _, code, _ = _ANSWER_HEAD.unpack(head)
    if magic == MAGIC and kind == MessageType.REFUSAL:
        raise RefusedByPeer(code)


def decode_challenge(secret: StreamSecret, hello: bytes, data: bytes) -> Transcript:
    """Check CHALLENGE and the destination's proof in it.

    :raises NotOurProtocol: these bytes are no CHALLENGE.
    :raises VersionMismatch: the version chosen is none that `hello` offers.
    :raises ProofRejected: the listener does not know the secrets.
    """
    if len(data) != CHALLENGE_BYTES:
        raise NotOurProtocol(f"A CHALLENGE has {len(data)} bytes instead of {CHALLENGE_BYTES}.")
    magic, kind, zero, version, reserved = _ANSWER_HEAD.unpack(data[:ANSWER_HEAD_BYTES])
    if magic != MAGIC or kind != MessageType.CHALLENGE or zero or reserved:
        raise NotOurProtocol("The answer is no CHALLENGE.")
    offered = decode_hello(hello)
    if not offered.oldest_version <= version <= offered.newest_version:
        raise VersionMismatch(version, version)
    transcript = Transcript(hello, data[:-PROOF_BYTES], version)
    _expect(data[-PROOF_BYTES:], _proof(secret, b"destination", transcript))
    return transcript


def encode_proof(secret: StreamSecret, transcript: Transcript) -> bytes:
    """PROOF's bytes: the source's half of the proof."""
    return _SHORT.pack(MAGIC, MessageType.PROOF, 0, 0, 0, _proof(secret, b"source", transcript))


def check_proof(secret: StreamSecret, transcript: Transcript, data: bytes) -> None:
    """Check PROOF.

    :raises NotOurProtocol: these bytes are no PROOF.
    :raises ProofRejected: the peer does not know the secrets, or repeats an old handshake.
    """
    _check_short(secret, transcript, data, MessageType.PROOF)


def encode_accept(secret: StreamSecret, transcript: Transcript) -> bytes:
    """ACCEPT's bytes; authenticated, so that nobody on the path can fake it."""
    return _SHORT.pack(MAGIC, MessageType.ACCEPT, 0, 0, 0, _proof(secret, b"accept", transcript))


def check_accept(secret: StreamSecret, transcript: Transcript, data: bytes) -> None:
    """Check ACCEPT.

    :raises NotOurProtocol: these bytes are no ACCEPT.
    :raises ProofRejected: it is not from the destination.
    """
    _check_short(secret, transcript, data, MessageType.ACCEPT)


def _check_short(secret: StreamSecret, transcript: Transcript, data: bytes, kind: MessageType) -> None:
    if len(data) != _SHORT.size:
        raise NotOurProtocol(f"A {kind.name} has {len(data)} bytes instead of {_SHORT.size}.")
    *fixed, proof = _SHORT.unpack(data)
    if fixed != [MAGIC, kind, 0, 0, 0]:
        raise NotOurProtocol(f"These bytes are no {kind.name}.")
    label = b"source" if kind is MessageType.PROOF else b"accept"
    _expect(proof, _proof(secret, label, transcript))


def encode_refusal(code: RefusalCode) -> bytes:
    """REFUSAL's bytes. Sent to a peer that is not (yet) authenticated: it explains, it proves nothing."""
    return _ANSWER_HEAD.pack(MAGIC, MessageType.REFUSAL, 0, code, 0)


def session_keys(secret: StreamSecret, transcript: Transcript) -> SessionKeys:
    """The two keys of this connection (RFC 5869, salt = both nonces)."""
    hello = decode_hello(transcript.hello)
    if hello.encryption is Encryption.DISABLED:
        return SessionKeys(None, None)
    salt = hello.nonce + transcript.challenge[ANSWER_HEAD_BYTES:]

    def key(direction: bytes) -> bytes:
        place = Struct("<HQH").pack(transcript.version, secret.migration_id, hello.channel_index)
        return _derive(secret, salt, b"vpx stream key " + direction + place, 32)

    return SessionKeys(key(b"to destination"), key(b"to source"))
