"""The inventory's records: what survives a restart. Pure: no I/O, no clock, no logging.

    Datacenter 1-n Cluster 1-n Host 1-n Vm          Datastore, Network: seen by hosts (HostInfo says by which)

A record is never changed, only replaced, in a transaction of vpxd/inventory/store.py.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from vpxd.inventory.values import DiskFormat, HostInfo, PowerState, VmConfig


@dataclass(frozen=True)
class Datacenter:
    """The top of the inventory."""

    id: str
    name: str


@dataclass(frozen=True)
class Cluster:
    """Hosts among which VMs move. `evc_mode` is a baseline's key; empty: EVC is disabled."""

    id: str
    name: str
    datacenter: str
    evc_mode: str = ""


@dataclass(frozen=True)
class Host:
    """A host that was added. `address` is "address:port" of its vpxa."""

    id: str
    name: str
    cluster: str
    address: str
    info: HostInfo


@dataclass(frozen=True)
class Datastore:
    """A datastore that at least one added host mounts; two hosts that read one uuid share it."""

    id: str
    name: str
    uuid: str
    capacity_bytes: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network that at least one added host offers as a port group; its name is its identity."""

    id: str
    name: str
    segment_id: int = 0


@dataclass(frozen=True)
class Vm:
    """A VM. `host` is empty where no host has it registered (orphaned)."""

    id: str
    host: str
    home: str
    power_state: PowerState
    config: VmConfig
    failure: str = ""

    @property
    def uuid(self) -> str:
        """The instance uuid: the same on every host."""
        return self.config.uuid

    @property
    def name(self) -> str:
        """The display name."""
        return self.config.name


@dataclass(frozen=True)
class Enrollment:
    """A host that has joined: it has a certificate of this cluster and said where its vpxa listens."""

    host_name: str
    address: str
    joined_at: datetime


@dataclass(frozen=True)
class JoinToken:
    """A one-time token, as its sha256 only."""

    digest: str
    host_name: str
    expires_at: datetime
    used: bool = False


@dataclass(frozen=True)
class StoragePolicy:
    """What a datastore must be; all requirements must hold. The twin of proto.vpxd.v1.StoragePolicy."""

    name: str
    description: str = ""
    required_tags: tuple[str, ...] = ()
    forbidden_tags: tuple[str, ...] = ()
    shared: bool = False
    formats: tuple[DiskFormat, ...] = ()
    min_free_percent: float = 0.0


@dataclass(frozen=True)
class VmPolicies:
    """The storage policies of a VM's home and of its disks, by the disk's key; a disk that isn't named has none."""

    vm: str
    home: str = ""
    disks: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class MigrationTerms:
    """What a migration makes of the VM, and what it takes; so that whoever ends it knows, also after a restart.

    `home`, `config`: as they are afterwards, "" and None where they stay. `copied`, `touched`: uuid and name of the
    datastores that files leave or come to, and of the VM's others. `priority`: a number of proto.vmotion.v1.Priority.
    `unheard`: ids of the hosts that must still be told of its end.
    """

    home: str = ""
    config: VmConfig | None = None
    policies: VmPolicies | None = None
    copied: tuple[tuple[str, str], ...] = ()
    touched: tuple[tuple[str, str], ...] = ()
    priority: int = 0
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True)
class MigrationEntry:
    """The journal of a migration under way; it is deleted in the transaction that ends the migration.

    `live`: the guest runs; `files`: files move. Source and destination are one where only files move.
    `completing`: it has succeeded, and the hosts in `terms.unheard` must still be told; `canceling`: the same where
    it was undone.
    """

    task: str
    migration_id: int
    vm: str
    source: str
    destination: str
    live: bool
    completing: bool = False
    files: bool = False
    terms: MigrationTerms = field(default_factory=MigrationTerms)
    canceling: bool = False


class RuleKind(IntEnum):
    """Numbers of proto.vpxd.v1.RuleKind."""

    VM_AFFINITY = 1
    VM_ANTI_AFFINITY = 2
    VM_HOST_AFFINITY = 3
    VM_HOST_ANTI_AFFINITY = 4


@dataclass(frozen=True)
class AffinityRule:
    """A rule of a cluster. `vms` and `hosts` are ids."""

    cluster: str
    name: str
    kind: RuleKind
    vms: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    mandatory: bool = False
    enabled: bool = True

    @property
    def key(self) -> str:
        """Unique among all rules."""
        return f"{self.cluster}/{self.name}"


Record = (
    Datacenter
    | Cluster
    | Host
    | Datastore
    | Network
    | Vm
    | Enrollment
    | JoinToken
    | MigrationEntry
    | StoragePolicy
    | VmPolicies
    | AffinityRule
)
