"""What a compatibility check looks at and what it finds. Pure: no I/O, no clock, no logging."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from runtime.faults import VimFault
from vpxd.inventory.live import datastore_of
from vpxd.inventory.records import AffinityRule, Datastore, StoragePolicy, VmPolicies
from vpxd.inventory.values import (
    ExecutionState,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
    VmConfig,
)
from vpxd.inventory.vm_lock import Holder
from vpxd.relocation.relocation import HOME, FilePlace, Relocation


class FindingGroup(IntEnum):
    """What a finding is about. Numbers of proto.vim.v1.FindingGroup."""

    SOURCE = 1
    HOST = 2
    RESOURCE_POOL = 3
    DATASTORE = 4
    NETWORK = 5


@dataclass(frozen=True)
class HostFacts:
    """A host as a check sees it. `cluster` is its cluster's id, `evc_mode` that cluster's baseline, if it has one."""

    id: str
    name: str
    connection: HostConnection
    info: HostInfo
    usage: HostUsage
    cluster: str = ""
    evc_mode: str = ""


@dataclass(frozen=True)
class VmFacts:
    """A VM as a check sees it. `home_datastore_uuid` is empty where its host doesn't say which datastore that is.

    `disk_usage`: what disks take on their datastores, by key, where that was asked; `holder`: the task that has it.
    """

    id: str
    config: VmConfig
    home: str
    home_datastore: str
    home_datastore_uuid: str
    power_state: PowerState
    execution_state: ExecutionState
    policies: VmPolicies | None = None
    disk_usage: tuple[tuple[int, int], ...] = ()
    holder: Holder | None = None

    @property
    def live(self) -> bool:
        """Whether a move of it is a live migration."""
        return self.power_state is PowerState.POWERED_ON


@dataclass(frozen=True)
class Surroundings:
    """What else of the inventory a check looks at.

    `rules`: the enabled ones of the destination's cluster that name this VM; `running`: the hosts of the other VMs
    that are powered on, by the VM's id; `names`: of VMs and hosts, by id; `policies` by name; `datastores`: records by
    uuid; `seen_by`: how many hosts of the destination's cluster see a datastore, by uuid; `taken`: files of other VMs,
    (datastore's uuid, path on it) -> the VM's name; an empty name: a file that hosts have found there.
    """

    rules: tuple[AffinityRule, ...] = ()
    running: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, StoragePolicy] = field(default_factory=dict)
    datastores: Mapping[str, Datastore] = field(default_factory=dict)
    seen_by: Mapping[str, int] = field(default_factory=dict)
    taken: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """The question: can this VM go from there to there? `source` is None where its host isn't known.

    `resolved` is where everything of the VM will be; None: only its host changes.
    """

    vm: VmFacts
    source: HostFacts | None
    destination: HostFacts
    resolved: Relocation | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    high_priority: bool = False

    @property
    def relocation(self) -> Relocation:
        """Where everything will be."""
        return self.resolved or _only_the_host(self)

    @property
    def changes_host(self) -> bool:
        """Whether another host takes the VM."""
        return self.source is None or self.source.id != self.destination.id

    @property
    def needs_vmotion(self) -> bool:
        """Whether anything goes over the vMotion network: a guest's memory, or files."""
        return self.changes_host and (self.vm.live or self.relocation.moves_files)


def _only_the_host(move: Move) -> Relocation:
    vm = move.vm
    uuids = {store.name: store.uuid for store in move.source.info.datastores} if move.source else {}
    places = [_stays(HOME, vm.home_datastore, vm.home_datastore_uuid)]
    for disk in vm.config.disks:
        name = datastore_of(disk.path)
        places.append(_stays(disk.key, name, uuids.get(name, "")))
    return Relocation(
        destination_vm=vm.config,
        destination_home=vm.home,
        source_home_datastore_uuid=vm.home_datastore_uuid,
        destination_home_datastore_uuid=vm.home_datastore_uuid,
        changes_host=move.changes_host,
        powered_off=not vm.live,
        policies=vm.policies or VmPolicies(vm.id),
        places=tuple(places),
    )


def _stays(key: int, name: str, uuid: str) -> FilePlace:
    return FilePlace(key, name, uuid, name, uuid, moved=False)


@dataclass(frozen=True)
class Finding:
    """One result. An error: the operation would fail. A warning: it may disturb. `remedy`: what to do about it."""

    error: bool
    fault: VimFault
    remedy: str
    group: FindingGroup = FindingGroup.HOST


Check = Callable[[Move], tuple[Finding, ...]]


def error(fault: VimFault, remedy: str, group: FindingGroup = FindingGroup.HOST) -> Finding:
    """A finding with which the operation would fail."""
    return Finding(True, fault, remedy, group)


def warning(fault: VimFault, remedy: str, group: FindingGroup = FindingGroup.HOST) -> Finding:
    """A finding that doesn't stop the operation."""
    return Finding(False, fault, remedy, group)
