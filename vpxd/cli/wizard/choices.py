"""Pure: no I/O, no clock, no logging.

What is chosen in the wizard, which of its steps apply, and the request that the choices make.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from proto.vim.v1 import fault_pb2, host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2

NO_POLICY = "-"  # as a policy: none afterwards


class Step(IntEnum):
    """The wizard's steps, in their order."""

    VM = 1
    TYPE = 2
    COMPUTE = 3
    STORAGE = 4
    NETWORKS = 5
    PRIORITY = 6
    REVIEW = 7


TITLES: Mapping[Step, str] = {
    Step.VM: "Select a virtual machine",
    Step.TYPE: "Select a migration type",
    Step.COMPUTE: "Select a compute resource",
    Step.STORAGE: "Select storage",
    Step.NETWORKS: "Select networks",
    Step.PRIORITY: "Select vMotion priority",
    Step.REVIEW: "Ready to complete",
}


class MigrationType(Enum):
    """What is changed; the value is for people."""

    COMPUTE = "Change compute resource only"
    STORAGE = "Change storage only"
    BOTH = "Change both compute resource and storage"


@dataclass(frozen=True)
class FilesChoice:
    """Where a disk, or the home with all disks, goes. An empty datastore: it stays where it is.

    `format` 0: same as source. `policy` empty: kept; NO_POLICY: none afterwards.
    """

    datastore: str = ""
    format: int = 0
    policy: str = ""


@dataclass(frozen=True)
class Choices:
    """All that is chosen so far. Hosts, clusters, datastores and port groups are named as people know them."""

    vm: inventory_pb2.Vm = field(default_factory=inventory_pb2.Vm)
    type: MigrationType = MigrationType.COMPUTE
    host: str = ""
    cluster: str = ""
    files: FilesChoice = FilesChoice()  # of the home, and of every disk where they aren't placed one by one
    per_disk: bool = False
    disks: Mapping[int, FilesChoice] = field(default_factory=dict)  # by the disk's key
    per_nic: bool = False
    networks: Mapping[str, str] = field(default_factory=dict)  # by the port group that a NIC is on now
    nics: Mapping[int, str] = field(default_factory=dict)  # by the NIC's key
    options: spec_pb2.MigrationOptions = field(default_factory=spec_pb2.MigrationOptions)

    @property
    def live(self) -> bool:
        """Whether the VM runs."""
        return self.vm.power_state == host_pb2.POWER_STATE_POWERED_ON

    @property
    def moves_compute(self) -> bool:
        """Whether the wizard asks for a host or cluster."""
        return self.type is not MigrationType.STORAGE

    @property
    def moves_storage(self) -> bool:
        """Whether the wizard asks where the files go."""
        return self.type is not MigrationType.COMPUTE

    @property
    def destination_host(self) -> str:
        """The one host that it goes to; empty where placement chooses."""
        return self.host if self.moves_compute else self.vm.host_name

    def of_vm(self, vm: inventory_pb2.Vm) -> "Choices":
        """These for another VM: what belongs to the disks and NICs of the one before is forgotten."""
        if vm.id == self.vm.id:
            return replace(self, vm=vm)
        return replace(self, vm=vm, per_disk=False, disks={}, per_nic=False, networks={}, nics={})

    def applies(self, step: Step) -> bool:
        """Whether there is anything to ask at this step."""
        if step is Step.COMPUTE:
            return self.moves_compute
        if step is Step.STORAGE:
            return self.moves_storage
        if step is Step.NETWORKS:
            leaves = self.moves_compute and self.host != self.vm.host_name
            return leaves and bool(self.vm.config.nics)
        if step is Step.PRIORITY:
            return self.live
        return True

    def request(self, upto: Step = Step.REVIEW) -> service_pb2.RelocateVmRequest:
        """What is asked of vpxd, with what the steps up to this one have chosen."""
        spec = service_pb2.RelocateSpec(host=self.destination_host)
        if self.moves_compute:
            spec.cluster = self.cluster
        if self.moves_storage and upto >= Step.STORAGE:
            self._add_storage(spec)
        if self.applies(Step.NETWORKS) and upto >= Step.NETWORKS:
            spec.networks.extend(self._mappings())
        options = spec_pb2.MigrationOptions()
        options.CopyFrom(self.options)
        if self.applies(Step.PRIORITY) and upto < Step.PRIORITY:
            options.priority = spec_pb2.PRIORITY_DEFAULT
        return service_pb2.RelocateVmRequest(vm=self.vm.id, spec=spec, options=options)

    def _add_storage(self, spec: service_pb2.RelocateSpec) -> None:
        spec.datastore, spec.policy = self.files.datastore, self.files.policy
        if not self.per_disk:
            spec.format = self.files.format  # type: ignore[assignment]
            return
        for disk in self.vm.config.disks:
            chosen = self.disks.get(disk.key, FilesChoice())
            spec.disks.add(
                key=disk.key,
                datastore=chosen.datastore,
                format=chosen.format,
                policy=chosen.policy,
            )

    def _mappings(self) -> list[service_pb2.NicMapping]:
        """Those that change something."""
        if self.per_nic:
            return [
                service_pb2.NicMapping(nic=nic.key, network=self.nics[nic.key])
                for nic in self.vm.config.nics
                if self.nics.get(nic.key, nic.network) != nic.network
            ]
        return [
            service_pb2.NicMapping(from_network=before, network=self.networks[before])
            for before in port_groups_of(self.vm)
            if self.networks.get(before, before) != before
        ]

    def settled_later(self, step: Step, finding: task_pb2.Finding) -> bool:
        """Whether a step after this one can still mend it: then it isn't shown at this one."""
        storage = step < Step.STORAGE and self.applies(Step.STORAGE)
        if finding.group == task_pb2.FINDING_GROUP_DATASTORE:
            return storage
        if finding.group == task_pb2.FINDING_GROUP_NETWORK:
            return step < Step.NETWORKS and self.applies(Step.NETWORKS)
        # On its own host there is nothing to do as long as no other storage is chosen.
        nothing_to_do = finding.fault.type == fault_pb2.FAULT_TYPE_INVALID_ARGUMENT
        return storage and nothing_to_do and self.host == self.vm.host_name


def port_groups_of(vm: inventory_pb2.Vm) -> list[str]:
    """The port groups that its NICs are on, each once, in the NICs' order."""
    return list(dict.fromkeys(nic.network for nic in vm.config.nics if nic.network))
