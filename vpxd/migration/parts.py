"""What the migration workflow works with."""

from dataclasses import dataclass

from vpxd.agents.registry import AgentRegistry
from vpxd.compatibility.facts import Facts
from vpxd.inventory.live import LiveState
from vpxd.inventory.store import InventoryStore
from vpxd.inventory.vm_lock import EntityLocks
from vpxd.migration.limits.queue import MigrationLimits
from vpxd.migration.order import MigrationOrder, Plan

__all__ = ["MigrationOrder", "Patience", "Plan", "WorkflowParts"]


@dataclass(frozen=True)
class Patience:
    """How long doubt may last, in seconds.

    `lost_s`: without the source's word before the owner record is asked; `undecided_s`: without an answer to
    that before the task ends in error; `complete_s`, `complete_source_s`: for the hosts' last step before vpxd
    goes on without it; `cancel_s`: for a host to answer a cancel before vpxd goes on without it, and tells it later;
    `stuck_s`: for a hand-over, which takes milliseconds, before the hosts are asked what has become of it; `pause_s`:
    between tries.
    """

    lost_s: float = 60.0
    undecided_s: float = 600.0
    complete_s: float = 60.0
    complete_source_s: float = 10.0
    pause_s: float = 0.5
    cancel_s: float = 3.0
    stuck_s: float = 3.0


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
