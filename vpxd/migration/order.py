"""What was ordered of a migration, and the plan that was made of it. Pure: no I/O, no clock, no logging."""

from dataclasses import dataclass, field

from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.records import Host, Vm
from vpxd.migration.options import MigrationOptions
from vpxd.relocation.relocation import Relocation
from vpxd.relocation.spec import RelocateSpec


@dataclass(frozen=True)
class MigrationOrder:
    """What a client asked for. `vm` is its id; what the specification leaves unset stays as it is.

    A host by id or name, or a cluster, in which placement chooses; with neither the VM stays on its host.
    """

    vm: str
    spec: RelocateSpec = field(default_factory=RelocateSpec)
    options: MigrationOptions = field(default_factory=MigrationOptions)


@dataclass(frozen=True)
class PlanFacts:
    """The VM and both hosts as the checks saw them."""

    vm: VmFacts
    source: HostFacts
    destination: HostFacts


@dataclass(frozen=True)
class Plan:
    """A migration that can be done, by what is known now. `reason`: why this destination."""

    vm: Vm
    source: Host
    destination: Host
    options: MigrationOptions
    relocation: Relocation
    facts: PlanFacts
    reason: str

    @property
    def live(self) -> bool:
        """Whether the guest runs."""
        return not self.relocation.powered_off
