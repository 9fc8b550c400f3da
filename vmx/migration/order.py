"""Pure: no I/O, no clock, no logging. A migration as vmx is told to do it: the checked form of the specification."""

from dataclasses import dataclass, field
from enum import Enum

from vmx.precopy.policy import Limits
from vmx.stream.spec import DiskExtent, StreamTimeouts
from vmx.trace.contract import TracerKind


class Verification(Enum):
    """How the equality of both memories is proved."""

    OFF = "off"
    AFTER_RESUME = "after resume"
    BEFORE_RESUME = "before resume"


@dataclass(frozen=True)
class Endpoint:
    """One end: the host as the owner record names it, and its address on the vMotion network."""

    host_uuid: str
    name: str
    vmotion_address: str


@dataclass(frozen=True)
class Options:
    """What the user may choose; every default is resolved here."""

    verification: Verification = Verification.OFF
    encrypted: bool = True
    limits: Limits = field(default_factory=Limits)
    streams: int = 2
    bandwidth_bytes_per_s: int = 0
    tracer: TracerKind | None = None
    timeouts: StreamTimeouts = field(default_factory=StreamTimeouts)
    max_switchover_s: float = 100.0


@dataclass(frozen=True)
class MigrationOrder:
    """One migration of one VM between two hosts, or within one. `key` is the one-time key, 32 bytes.

    `moves_home`: the VM's home is another one afterwards, with an owner record and a run lock of its own. `disks` are
    those that move. `powered_off`: there is no guest, only files.
    """

    migration_id: int
    task_id: str
    vm_uuid: str
    vm_name: str
    ram_bytes: int
    source: Endpoint
    destination: Endpoint
    key: bytes = field(repr=False)
    options: Options = field(default_factory=Options)
    moves_home: bool = False
    disks: tuple[DiskExtent, ...] = ()
    powered_off: bool = False


@dataclass(frozen=True)
class Ticket:
    """Where the destination listens, and what proves the right to connect. `token` is one-time."""

    migration_id: int
    address: str
    port: int
    token: bytes = field(repr=False)
    ram_bytes: int = 0
