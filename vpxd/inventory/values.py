"""What hosts say of themselves and their VMs, as values. Pure: no I/O, no clock, no logging.

The twins of proto/vim/v1/{vm_config,host}.proto; vpxd/wire.py converts. Sizes are bytes, times are seconds.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class PowerState(StrEnum):
    """Whether the VM has a guest."""

    POWERED_OFF = "poweredOff"
    POWERED_ON = "poweredOn"


class ExecutionState(StrEnum):
    """What the VM's process does now; finer than the power state."""

    UNKNOWN = "unknown"
    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    STUNNED = "stunned"
    EMIGRATING = "emigrating"
    IMMIGRATING = "immigrating"
    FAILED = "failed"


class HostConnection(StrEnum):
    """vpxd's connection to a host."""

    CONNECTED = "connected"
    NOT_RESPONDING = "notResponding"
    DISCONNECTED = "disconnected"


class VmConnection(StrEnum):
    """Known to vpxd, and: connected; its host is silent; registered on no host; its files can't be read."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ORPHANED = "orphaned"
    INACCESSIBLE = "inaccessible"


@dataclass(frozen=True)
class Boot:
    """Direct kernel boot: datastore paths and the kernel's command line."""

    kernel: str = ""
    initrd: str = ""
    kernel_command_line: str = ""


class DiskFormat(IntEnum):
    """Numbers of proto.vim.v1.DiskFormat; SAME_AS_SOURCE where a disk is moved."""

    SAME_AS_SOURCE = 0
    THIN = 1
    THICK_LAZY_ZEROED = 2
    THICK_EAGER_ZEROED = 3
    QCOW2 = 4


@dataclass(frozen=True)
class VirtualDisk:
    """One disk of a VM. `path` is the datastore path of its descriptor."""

    key: int
    path: str
    capacity_bytes: int
    format: DiskFormat = DiskFormat.THIN


@dataclass(frozen=True)
class NetworkAdapter:
    """One NIC of a VM. `network` is the name of a port group."""

    key: int
    mac: str
    network: str
    connected: bool = True


@dataclass(frozen=True)
class GuestCpu:
    """The CPU as a running guest sees it, fixed at power-on. `features` by QEMU's names."""

    model: str = ""
    features: tuple[str, ...] = ()
    disabled_features: tuple[str, ...] = ()
    baseline: str = ""


@dataclass(frozen=True)
class VmConfig:
    """A VM's whole configuration. `guest_cpu` is None while it is off."""

    uuid: str
    name: str
    vcpus: int
    ram_bytes: int
    machine_type: str = ""
    cpu_model: str = ""
    boot: Boot = field(default_factory=Boot)
    annotation: str = ""
    change_version: int = 0
    disks: tuple[VirtualDisk, ...] = ()
    nics: tuple[NetworkAdapter, ...] = ()
    evc_mode: str = ""
    guest_cpu: GuestCpu | None = None


@dataclass(frozen=True)
class HostDatastore:
    """A datastore as one host sees it."""

    name: str
    uuid: str
    capacity_bytes: int = 0
    free_bytes: int = 0
    accessible: bool = True
    location: str = ""


@dataclass(frozen=True)
class PortGroup:
    """A network as one host offers it; those with one segment id are one layer-2 network."""

    name: str
    segment_id: int


@dataclass(frozen=True)
class HostCapability:
    """What a host can run and speak."""

    qemu_version: str = ""
    machine_types: tuple[str, ...] = ()
    cpu_models: tuple[str, ...] = ()
    accelerator: str = ""
    stream_version_min: int = 0
    stream_version_max: int = 0
    cpu_features: tuple[str, ...] = ()
    cpu_vendor: str = ""
    evc_modes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostInfo:
    """What a host is and has."""

    uuid: str
    name: str
    management_address: str = ""
    vmotion_address: str = ""
    memory_bytes: int = 0
    cpu_cores: int = 0
    vcpu_capacity: int = 0
    capability: HostCapability = field(default_factory=HostCapability)
    datastores: tuple[HostDatastore, ...] = ()
    version: str = ""
    port_groups: tuple[PortGroup, ...] = ()

    def port_group(self, name: str) -> PortGroup | None:
        """The port group of this name."""
        return next((group for group in self.port_groups if group.name == name), None)

    def datastore_named(self, name: str) -> HostDatastore | None:
        """The datastore that this host calls `name`."""
        return next((store for store in self.datastores if store.name == name), None)

    def datastore_with_uuid(self, uuid: str) -> HostDatastore | None:
        """The datastore with this uuid, whatever this host calls it."""
        return next((store for store in self.datastores if store.uuid == uuid), None)


@dataclass(frozen=True)
class HostUsage:
    """What is reserved and used on a host now. `cpu_percent` is of one core."""

    memory_reserved_bytes: int = 0
    vcpus_reserved: int = 0
    memory_used_bytes: int = 0
    cpu_percent: float = 0.0


@dataclass(frozen=True)
class VmState:
    """One VM as its host sees it."""

    config: VmConfig
    home: str
    power_state: PowerState
    execution_state: ExecutionState = ExecutionState.UNKNOWN
    memory_used_bytes: int = 0
    cpu_percent: float = 0.0
    uptime_s: float = 0.0
    lock_operation: str = ""
    lock_task: str = ""
    failure: str = ""

    @property
    def uuid(self) -> str:
        """The VM's instance uuid."""
        return self.config.uuid


@dataclass(frozen=True)
class HostReport:
    """One message of a host's state: all its VMs, always; `info` only where it is new."""

    info: HostInfo | None
    usage: HostUsage
    vms: tuple[VmState, ...]
    sequence: int = 0
