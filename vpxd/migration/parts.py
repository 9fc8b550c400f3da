"""What the migration workflow works with, and what one migration consists of."""

from dataclasses import dataclass

from vpxd.agents.registry import AgentRegistry
from vpxd.compatibility.facts import Facts
from vpxd.inventory.live import LiveState
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import InventoryStore
from vpxd.inventory.vm_lock import EntityLocks
from vpxd.migration.limits import MigrationLimits
from vpxd.migration.options import MigrationOptions


@dataclass(frozen=True)
class Patience:
    """How long doubt may last, in seconds.

    `lost_s`: without the source's word before the owner record is asked; `undecided_s`: without an answer to
    that before the task ends in error; `complete_s`, `complete_source_s`: for the hosts' last step before vpxd
    goes on without it; `pause_s`: between tries.
    """

    lost_s: float = 60.0
    undecided_s: float = 600.0
    complete_s: float = 60.0
    complete_source_s: float = 10.0
    pause_s: float = 0.5


@dataclass(frozen=True)
class WorkflowParts:
    """What all migrations share."""

    store: InventoryStore
    live: LiveState
    facts: Facts
    agents: AgentRegistry
    locks: EntityLocks
    limits: MigrationLimits
    patience: Patience = Patience()


@dataclass(frozen=True)
class MigrationOrder:
    """What a client asked for. `destination` is a host's id; empty: placement chooses."""

    vm: str
    destination: str
    options: MigrationOptions


@dataclass(frozen=True)
class Plan:
    """A migration that can be done, by what is known now."""

    vm: Vm
    source: Host
    destination: Host
    options: MigrationOptions
    live: bool
    reason: str
