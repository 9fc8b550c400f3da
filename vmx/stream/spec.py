"""What both ends of a stream are told by the migration specification, checked before a socket is opened."""

import ipaddress
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Final

from vmx.disk.contract import CAPACITY_MAX_BYTES, SECTOR_BYTES
from vmx.guest.pages import PAGE_BYTES
from vmx.stream.errors import SpecInvalid

KEY_BYTES: Final = 32
MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 256
MAX_PAGE_CHANNELS: Final = 16
MAX_DISK_CHANNELS: Final = 8
MAX_DISKS: Final = 256
CONTROL_CHANNEL: Final = 0
FIRST_PORT: Final = 8000
PORT_COUNT: Final = 256


class ChannelRole(IntEnum):
    """What a connection is for. The numbers are on the wire and never reused."""

    CONTROL = 1
    PAGES = 2
    DISKS = 3
    MIRROR = 4


@dataclass(frozen=True)
class DiskExtent:
    """One disk that moves: its device key and how much the guest sees of it."""

    key: int
    capacity_bytes: int


@dataclass(frozen=True)
class ChannelPlan:
    """Which connections a stream has: control, then pages, then disks, and after them one mirror where there are disks.

    index   0        1 .. pages   pages+1 .. pages+disks   pages+disks+1
    role    CONTROL  PAGES        DISKS                    MIRROR
    """

    pages: int
    disks: int

    @property
    def total(self) -> int:
        """How many connections there are, control among them."""
        return 1 + self.pages + self.disks + (1 if self.disks else 0)

    def role(self, index: int) -> ChannelRole:
        """What the connection `index` is for; one beyond the last has the last one's role."""
        if index == CONTROL_CHANNEL:
            return ChannelRole.CONTROL
        if index <= self.pages or not self.disks:
            return ChannelRole.PAGES
        return ChannelRole.DISKS if index <= self.pages + self.disks else ChannelRole.MIRROR


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
    disk_write_s: float = (
        60.0  # the destination's disks may stall for so long while its control channel lives
    )
    disk_flush_s: float = 300.0  # all that is dirty at the destination may have to go to its medium first


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


def _check_timeouts(timeouts: StreamTimeouts) -> None:
    if min(vars(timeouts).values()) <= 0:
        raise SpecInvalid("timeouts", "are not all positive")


def _check_channels(channel_count: int, disk_channel_count: int) -> None:
    if not 0 <= channel_count <= MAX_PAGE_CHANNELS:
        raise SpecInvalid("channel_count", f"is {channel_count}, not 0 to {MAX_PAGE_CHANNELS}")
    if not 1 <= disk_channel_count <= MAX_DISK_CHANNELS:
        raise SpecInvalid("disk_channel_count", f"is {disk_channel_count}, not 1 to {MAX_DISK_CHANNELS}")


def _check_disks(disks: tuple[DiskExtent, ...]) -> None:
    if len(disks) > MAX_DISKS:
        raise SpecInvalid("disks", f"are {len(disks)}, more than {MAX_DISKS}")
    for disk in disks:
        if not 0 <= disk.key < 2**32:
            raise SpecInvalid("disks", f"have the key {disk.key}")
        if not 0 < disk.capacity_bytes <= CAPACITY_MAX_BYTES or disk.capacity_bytes % SECTOR_BYTES:
            raise SpecInvalid("disks", f"have one of {disk.capacity_bytes} bytes, no count of sectors")
    if any(one.key >= other.key for one, other in pairwise(disks)):
        raise SpecInvalid("disks", "are not in the order of their keys, each once")


@dataclass(frozen=True)
class StreamSpec:
    """The source's end. `channel_count` counts page channels; control, disks and mirror come on top.

    A powered-off VM has no memory and no page channels: `ram_bytes` and `channel_count` are 0.
    """

    secret: StreamSecret
    source_address: str
    destination_address: str
    port: int
    ram_bytes: int
    channel_count: int = 2
    encryption: Encryption = Encryption.AES_256_GCM
    detect_zero_pages: bool = True
    bandwidth_bytes_per_s: int = 0  # over all page, disk and mirror channels; 0 = no cap
    timeouts: StreamTimeouts = StreamTimeouts()
    disks: tuple[DiskExtent, ...] = ()  # in the order of their keys
    disk_channel_count: int = 2  # only where there are disks; the mirror channel comes on top

    @property
    def channels(self) -> ChannelPlan:
        """The connections of this stream."""
        return ChannelPlan(self.channel_count, self.disk_channel_count if self.disks else 0)

    def check(self) -> None:
        """:raises SpecInvalid: a field makes no sense."""
        self.secret.check()
        _check_address("source_address", self.source_address)
        _check_address("destination_address", self.destination_address)
        _check_channels(self.channel_count, self.disk_channel_count)
        _check_timeouts(self.timeouts)
        _check_disks(self.disks)
        if not 0 < self.port < 65536:
            raise SpecInvalid("port", f"is {self.port}")
        if self.ram_bytes < 0 or self.ram_bytes % PAGE_BYTES:
            raise SpecInvalid("ram_bytes", f"{self.ram_bytes} is not a number of whole pages")
        if (self.ram_bytes > 0) != (self.channel_count > 0):
            raise SpecInvalid("channel_count", f"is {self.channel_count} for {self.ram_bytes} bytes of RAM")
        if self.bandwidth_bytes_per_s < 0:
            raise SpecInvalid("bandwidth_bytes_per_s", "is negative")


@dataclass(frozen=True)
class ReceiverSpec:
    """The destination's end. Connections from addresses other than `source_addresses` are dropped unread.

    `channel_count` is 0 where there is no memory to receive.
    """

    secret: StreamSecret
    listen_address: str
    source_addresses: tuple[str, ...]
    channel_count: int = 2
    encryption: Encryption = Encryption.AES_256_GCM
    keep_digests: bool = (
        False  # verification: digest each page as it lies in guest RAM after its last arrival
    )
    timeouts: StreamTimeouts = StreamTimeouts()
    disks: tuple[DiskExtent, ...] = ()  # in the order of their keys
    disk_channel_count: int = 2  # only where there are disks

    @property
    def channels(self) -> ChannelPlan:
        """The connections of this stream."""
        return ChannelPlan(self.channel_count, self.disk_channel_count if self.disks else 0)

    def check(self) -> None:
        """:raises SpecInvalid: a field makes no sense."""
        self.secret.check()
        _check_address("listen_address", self.listen_address)
        for address in self.source_addresses:
            _check_address("source_addresses", address)
        if not self.source_addresses:
            raise SpecInvalid("source_addresses", "is empty")
        _check_channels(self.channel_count, self.disk_channel_count)
        _check_timeouts(self.timeouts)
        _check_disks(self.disks)
