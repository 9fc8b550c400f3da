"""Every way in which a migration stream can fail, each with the fields that explain it.

    StreamError
    ├── SpecInvalid                 the stream specification makes no sense; nothing was opened
    ├── ListenFailed                no vMotion port could be bound
    ├── ConnectFailed               the destination's vMotion port could not be reached
    ├── HandshakeError              one connection was not let in (or did not let us in)
    │   ├── NotOurProtocol          garbage instead of a handshake message
    │   ├── VersionMismatch         no version in common
    │   ├── WrongMigration          another migration's id
    │   ├── ProofRejected           wrong token, wrong key, or a replayed message
    │   ├── ChannelRefused          channel index out of range, used twice, or another count
    │   ├── EncryptionMismatch      the two sides disagree about encryption
    │   ├── StrangerAddress         not the source's vMotion address
    │   ├── HandshakeTimeout        not finished within the deadline
    │   └── RefusedByPeer           the listener named a reason for refusing us
    ├── ChannelsMissing             the source did not open all channels in time
    ├── ProtocolViolation           an authenticated peer broke the rules of the stream
    │   ├── LimitExceeded           a length, count or page number beyond its limit
    │   ├── LayoutMismatch          the two guests' memories differ in size
    │   └── DisksMismatch           the two sides speak of different disks
    ├── RecordForged                a record's tag does not fit: altered, reordered or replayed bytes
    ├── ConnectionLost
    │   ├── PeerClosed              the connection ended where it may not
    │   └── PeerSilent              nothing came (or could be sent) within the time limit
    ├── PlacementFailed             the destination's guest RAM can't take a page (out of memory)
    ├── DiskPlacementFailed         a disk at the destination can't take its data (no space, I/O error)
    ├── RemoteFailure               the peer said that its side failed
    │   └── RemoteDiskFailed        the destination's DiskPlacementFailed, as the source hears it
    └── StreamAborted               our own side gave the stream up

An error found in a page channel's thread surfaces, as one of these, at the owner's next call.
"""

from collections.abc import Mapping
from enum import IntEnum


class RefusalCode(IntEnum):
    """Why a listener refused a connection: the numbers are on the wire and never reused."""

    VERSION = 1
    MIGRATION_ID = 2
    PROOF = 3
    CHANNEL = 4
    ENCRYPTION = 5


class DiskFaultCode(IntEnum):
    """What befell a disk at the destination: the numbers are on the wire and never reused."""

    NO_SPACE = 1
    IO_ERROR = 2


class StreamError(Exception):
    """Anything that ends a stream."""


class SpecInvalid(StreamError):
    """The field `field` of a stream specification can't be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"The stream specification's {field} {reason}.")
        self.field = field


class ListenFailed(StreamError):
    """No port of the range could be bound on the vMotion address."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"Can't listen on the vMotion address {address}: {reason}.")
        self.address = address


class ConnectFailed(StreamError):
    """The destination's vMotion port could not be reached."""

    def __init__(self, address: str, port: int, reason: str) -> None:
        super().__init__(f"Can't connect to {address} port {port}: {reason}.")
        self.address = address
        self.port = port


class HandshakeError(StreamError):
    """One connection's handshake failed. `refusal` is what the peer is told, or None for no answer."""

    refusal: RefusalCode | None = None


class NotOurProtocol(HandshakeError):
    """The peer's bytes are not a message of this protocol."""


class VersionMismatch(HandshakeError):
    """No protocol version in common."""

    refusal = RefusalCode.VERSION

    def __init__(self, oldest: int, newest: int) -> None:
        super().__init__(f"The peer speaks the stream versions {oldest} to {newest}, none of ours.")
        self.oldest = oldest
        self.newest = newest


class WrongMigration(HandshakeError):
    """The peer came for another migration."""

    refusal = RefusalCode.MIGRATION_ID

    def __init__(self, migration_id: int) -> None:
        super().__init__(f"The peer named the migration id {migration_id}.")
        self.migration_id = migration_id


class ProofRejected(HandshakeError):
    """The peer does not prove that it knows this migration's token and key."""

    refusal = RefusalCode.PROOF

    def __init__(self) -> None:
        super().__init__("The peer did not prove the migration's token and key.")


class ChannelRefused(HandshakeError):
    """The channel can't be added to this stream."""

    refusal = RefusalCode.CHANNEL

    def __init__(self, channel_index: int, reason: str) -> None:
        super().__init__(f"Channel {channel_index} was refused: {reason}.")
        self.channel_index = channel_index
        self.reason = reason


class EncryptionMismatch(HandshakeError):
    """One side wants encryption, the other doesn't."""

    refusal = RefusalCode.ENCRYPTION

    def __init__(self) -> None:
        super().__init__("The two sides don't agree about encryption.")


class StrangerAddress(HandshakeError):
    """The connection does not come from the source's vMotion address."""

    def __init__(self, address: str) -> None:
        super().__init__(f"A connection came from {address}, which is not the source's vMotion address.")
        self.address = address


class HandshakeTimeout(HandshakeError):
    """The handshake was not finished in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The handshake was not finished within {limit_s:g} s.")
        self.limit_s = limit_s


class RefusedByPeer(HandshakeError):
    """The listener refused this side's connection. Its word is not authenticated: a hint for the log."""

    def __init__(self, code: int) -> None:
        name = RefusalCode(code).name if code in RefusalCode.__members__.values() else str(code)
        super().__init__(f"The destination refused the connection: {name}.")
        self.code = code


class ChannelsMissing(StreamError):
    """The source did not open all its channels within the deadline."""

    def __init__(self, present: int, required: int, limit_s: float) -> None:
        super().__init__(f"{present} of {required} channels were opened within {limit_s:g} s.")
        self.present = present
        self.required = required
        self.limit_s = limit_s


class ProtocolViolation(StreamError):
    """An authenticated peer sent what the protocol does not allow here."""


class LimitExceeded(ProtocolViolation):
    """The field `field` has a value beyond its limit."""

    def __init__(self, field: str, value: int, limit: int) -> None:
        super().__init__(f"{field} is {value}, the limit is {limit}.")
        self.field = field
        self.value = value
        self.limit = limit


class LayoutMismatch(ProtocolViolation):
    """The two sides hold guest memories of different sizes."""

    def __init__(self, peer_ram_bytes: int, own_ram_bytes: int) -> None:
        super().__init__(f"The peer's guest has {peer_ram_bytes} bytes of RAM, ours {own_ram_bytes}.")
        self.peer_ram_bytes = peer_ram_bytes
        self.own_ram_bytes = own_ram_bytes


class DisksMismatch(ProtocolViolation):
    """The two sides don't move the same disks; each is told as `key: capacity in bytes`."""

    def __init__(self, peer_disks: Mapping[int, int], own_disks: Mapping[int, int]) -> None:
        super().__init__(f"The peer's disks are {dict(peer_disks)}, ours {dict(own_disks)} (key: bytes).")
        self.peer_disks = peer_disks
        self.own_disks = own_disks


class RecordForged(StreamError):
    """A record failed its authentication: its bytes are not what the peer sent, in the order it sent them."""

    def __init__(self, channel_index: int, record_number: int) -> None:
        super().__init__(f"Record {record_number} of channel {channel_index} fails its authentication.")
        self.channel_index = channel_index
        self.record_number = record_number


class ConnectionLost(StreamError):
    """A channel's connection is gone."""


class PeerClosed(ConnectionLost):
    """The connection ended, by the peer or by the network."""

    def __init__(self, channel_index: int, reason: str) -> None:
        super().__init__(f"Channel {channel_index} was closed: {reason}.")
        self.channel_index = channel_index
        self.reason = reason


class PeerSilent(ConnectionLost):
    """The peer neither sent nor took anything within the time limit."""

    def __init__(self, channel_index: int, waiting_for: str, limit_s: float) -> None:
        super().__init__(f"Channel {channel_index} waited {limit_s:g} s for {waiting_for}.")
        self.channel_index = channel_index
        self.waiting_for = waiting_for
        self.limit_s = limit_s


class PlacementFailed(StreamError):
    """The kernel refused to put pages into the guest's RAM."""

    def __init__(self, first_page: int, reason: str) -> None:
        super().__init__(f"Page {first_page} and those after it can't be placed: {reason}.")
        self.first_page = first_page
        self.reason = reason


class DiskPlacementFailed(StreamError):
    """The destination's disk `key` refused data. The sink's own DiskError is the cause."""

    def __init__(self, key: int, code: DiskFaultCode, reason: str) -> None:
        super().__init__(f"Disk {key} can't take its data: {reason}.")
        self.key = key
        self.code = code
        self.reason = reason


class RemoteFailure(StreamError):
    """The peer's side failed, in its own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The peer failed: {reason}")
        self.reason = reason


class RemoteDiskFailed(RemoteFailure):
    """The destination's disk `key` refused data."""

    def __init__(self, key: int, code: DiskFaultCode, reason: str) -> None:
        super().__init__(reason)
        self.key = key
        self.code = code


class StreamAborted(StreamError):
    """This side gave the stream up."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The stream was aborted: {reason}.")
        self.reason = reason
