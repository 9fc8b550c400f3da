"""The migration specification: built once, handed to both hosts before anything starts.

Pure but for the key and the id, which come from the system's random numbers.
"""

import secrets
from dataclasses import dataclass, field

from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.values import VmConfig
from vpxd.migration.options import MigrationOptions

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
    """All that both hosts need to know. `key` is used for this migration only and is kept nowhere."""

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


@dataclass(frozen=True)
class Parties:
    """Who takes part in a migration."""

    vm: VmFacts
    source: HostFacts
    destination: HostFacts


def new_migration_id() -> int:
    """A random number of 63 bits, never 0."""
    return secrets.randbits(63) or 1


def build(
    migration_id: int, task: str, operation_id: str, parties: Parties, options: MigrationOptions
) -> MigrationSpec:
    """The specification, with a new one-time key."""
    return MigrationSpec(
        migration_id=migration_id,
        task=task,
        operation_id=operation_id,
        vm=parties.vm.config,
        vm_id=parties.vm.id,
        vm_home=parties.vm.home,
        home_datastore_uuid=parties.vm.home_datastore_uuid,
        source=_endpoint(parties.source),
        destination=_endpoint(parties.destination),
        options=options,
        key=secrets.token_bytes(KEY_BYTES),
    )


def _endpoint(host: HostFacts) -> Endpoint:
    return Endpoint(
        host.id, host.info.uuid, host.name, host.info.management_address, host.info.vmotion_address
    )
