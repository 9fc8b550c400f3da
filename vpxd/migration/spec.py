"""The migration specification: built once, handed to both hosts before anything starts.

Pure but for the key and the id, which come from the system's random numbers.
"""

import secrets
from dataclasses import dataclass, field

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import VmConfig
from vpxd.migration.options import MigrationOptions
from vpxd.migration.order import Plan

KEY_BYTES = 32


@dataclass(frozen=True)
class Endpoint:
    """One end of a migration."""

    host_id: str
    host_uuid: str
    name: str
    management_address: str
    vmotion_address: str


@dataclass(frozen=True)
class MigrationSpec:
    """All that both hosts need to know. `key` is used for this migration only and is kept nowhere.

    `destination_vm`: the configuration afterwards, None where it stays; `destination_home` and its datastore are ""
    where the home stays. `moved_disks`: keys of the disks whose files move.
    """

    migration_id: int
    task: str
    operation_id: str
    vm: VmConfig
    vm_id: str
    vm_home: str
    home_datastore_uuid: str
    source: Endpoint
    destination: Endpoint
    options: MigrationOptions
    key: bytes = field(repr=False)
    destination_vm: VmConfig | None = None
    destination_home: str = ""
    destination_home_datastore_uuid: str = ""
    moved_disks: tuple[int, ...] = ()
    powered_off: bool = False


@dataclass(frozen=True)
class Names:
    """What a migration is called: its id, vpxd's task, the operation in the logs."""

    migration_id: int
    task: str
    operation_id: str


def new_migration_id() -> int:
    """A random number of 63 bits, never 0."""
    return secrets.randbits(63) or 1


def build(names: Names, plan: Plan) -> MigrationSpec:
    """The specification, with a new one-time key. Where only the host changes, it says nothing of the VM afterwards."""
    facts, relocation = plan.facts, plan.relocation
    changed = relocation.destination_vm != facts.vm.config
    return MigrationSpec(
        migration_id=names.migration_id,
        task=names.task,
        operation_id=names.operation_id,
        vm=facts.vm.config,
        vm_id=facts.vm.id,
        vm_home=facts.vm.home,
        home_datastore_uuid=facts.vm.home_datastore_uuid,
        source=_endpoint(facts.source),
        destination=_endpoint(facts.destination),
        options=plan.options,
        key=secrets.token_bytes(KEY_BYTES),
        destination_vm=relocation.destination_vm if changed else None,
        destination_home=relocation.destination_home if relocation.moves_home else "",
        destination_home_datastore_uuid=(
            relocation.destination_home_datastore_uuid if relocation.moves_home else ""
        ),
        moved_disks=relocation.moved_disks,
        powered_off=relocation.powered_off,
    )


def _endpoint(host: HostFacts) -> Endpoint:
    return Endpoint(
        host.id, host.info.uuid, host.name, host.info.management_address, host.info.vmotion_address
    )
