"""What both ends of a stream are told by the migration specification, checked before a socket is opened."""

import ipaddress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from vmx.guest.pages import PAGE_BYTES
from vmx.stream.errors import SpecInvalid

KEY_BYTES: Final = 32
MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 256
MAX_PAGE_CHANNELS: Final = 16
CONTROL_CHANNEL: Final = 0
FIRST_PORT: Final = 8000
PORT_COUNT: Final = 256


class Encryption(IntEnum):
    """How records are sealed. The numbers are on the wire (HELLO)."""

    DISABLED = 1  # in the clear, only by explicit choice in the migration's options
    AES_256_GCM = 2


@dataclass(frozen=True)
class StreamTimeouts:
    """Deadlines in seconds."""

    connect_s: float = 10.0
    handshake_s: float = 10.0  # one connection's whole handshake, not each read
    silent_peer_s: float = 20.0  # NetTimeout of the real system


@dataclass(frozen=True)
class StreamSecret:
    """What the two ends prove to each other: the spec's one-time key and the ticket's one-time token."""

    migration_id: int
    key: bytes = field(repr=False)
    token: bytes = field(repr=False)

    def check(self) -> None:
        """:raises SpecInvalid: the id has more than 63 bits, or key or token have no proper length."""
        if not 0 < self.migration_id < 2**63:
            raise SpecInvalid("migration_id", "is not a positive 63-bit number")
        if len(self.key) != KEY_BYTES:
            raise SpecInvalid("key", f"has {len(self.key)} bytes instead of {KEY_BYTES}")
        if not MIN_TOKEN_BYTES <= len(self.token) <= MAX_TOKEN_BYTES:
            raise SpecInvalid("token", f"does not have {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes")


def _check_address(name: str, address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise SpecInvalid(name, f"{address!r} is not an IP address") from None


def _check_common(channel_count: int, timeouts: StreamTimeouts) -> None:
    if not 1 <= channel_count <= MAX_PAGE_CHANNELS:
        raise SpecInvalid("channel_count", f"is {channel_count}, not 1 to {MAX_PAGE_CHANNELS}")
    if min(timeouts.connect_s, timeouts.handshake_s, timeouts.silent_peer_s) <= 0:
        raise SpecInvalid("timeouts", "are not all positive")


@dataclass(frozen=True)
class StreamSpec:
    """The source's end. `channel_count` counts page channels; the control channel comes on top."""

    secret: StreamSecret
    source_address: str
    destination_address: str
    port: int
    ram_bytes: int
    channel_count: int = 2
    encryption: Encryption = Encryption.AES_256_GCM
    detect_zero_pages: bool = True
    bandwidth_bytes_per_s: int = 0  # over all page channels; 0 = no cap
    timeouts: StreamTimeouts = StreamTimeouts()

    def check(self) -> None:
        """:raises SpecInvalid: a field makes no sense."""
        self.secret.check()
        _check_address("source_address", self.source_address)
        _check_address("destination_address", self.destination_address)
        _check_common(self.channel_count, self.timeouts)
        if not 0 < self.port < 65536:
            raise SpecInvalid("port", f"is {self.port}")
        if self.ram_bytes <= 0 or self.ram_bytes % PAGE_BYTES:
            raise SpecInvalid("ram_bytes", f"{self.ram_bytes} is not a positive number of whole pages")
        if self.bandwidth_bytes_per_s < 0:
            raise SpecInvalid("bandwidth_bytes_per_s", "is negative")


@dataclass(frozen=True)
class ReceiverSpec:
    """The destination's end. Connections from addresses other than `source_addresses` are dropped unread."""

    secret: StreamSecret
    listen_address: str
    source_addresses: tuple[str, ...]
    channel_count: int = 2
    encryption: Encryption = Encryption.AES_256_GCM
    keep_digests: bool = (
        False  # verification: digest each page as it lies in guest RAM after its last arrival
    )
    timeouts: StreamTimeouts = StreamTimeouts()

    def check(self) -> None:
        """:raises SpecInvalid: a field makes no sense."""
        self.secret.check()
        _check_address("listen_address", self.listen_address)
        for address in self.source_addresses:
            _check_address("source_addresses", address)
        if not self.source_addresses:
            raise SpecInvalid("source_addresses", "is empty")
        _check_common(self.channel_count, self.timeouts)
