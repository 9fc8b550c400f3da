"""What the operations work with."""

from dataclasses import dataclass

from vpxd.agents.registry import AgentRegistry
from vpxd.compatibility.facts import Facts
from vpxd.events.log import EventLog
from vpxd.inventory.live import LiveState
from vpxd.inventory.store import InventoryStore
from vpxd.inventory.vm_lock import EntityLocks
from vpxd.migration.workflow import MigrationWorkflow
from vpxd.tasks.manager import TaskManager


@dataclass(frozen=True)
class Parts:
    """The daemon's parts, as the operations see them."""

    store: InventoryStore
    live: LiveState
    locks: EntityLocks
    facts: Facts
    agents: AgentRegistry
    tasks: TaskManager
    events: EventLog
    workflow: MigrationWorkflow
