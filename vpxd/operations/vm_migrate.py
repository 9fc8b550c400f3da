"""Migrate, and the question whether it would work."""

from dataclasses import dataclass

from runtime.faults import InvalidArgument
from vpxd.compatibility.finding import Finding
from vpxd.inventory.records import Host
from vpxd.migration.options import MigrationOptions
from vpxd.migration.parts import MigrationOrder
from vpxd.migration.plan import check_move, other_hosts
from vpxd.migration.workflow import OPERATION
from vpxd.operations import lookup
from vpxd.operations.parts import Parts
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task


@dataclass(frozen=True)
class HostFindings:
    """What speaks against one host; nothing: the VM can go there."""

    host: Host
    findings: tuple[Finding, ...]


async def migrate(parts: Parts, key: str, host_key: str, options: MigrationOptions, user: str) -> TaskRecord:
    """Moves a VM to the named host, or where placement puts it. :raises VimFault: as the rpc says."""
    options.require_valid()
    inventory = parts.store.inventory
    found = lookup.vm(inventory, key)
    destination = lookup.host(inventory, host_key) if host_key else None
    if destination is not None and destination.id == found.host:
        raise InvalidArgument(f"{found.name} is on {destination.name} already", argument="host")
    vm, source = lookup.vm_on_connected_host(parts, key)
    if destination is not None:
        lookup.require_connected(parts, destination)
    order = MigrationOrder(vm.id, destination.id if destination is not None else "", options)

    async def work(task: Task) -> str:
        return await parts.workflow.run(task, order)

    spec = TaskSpec(
        OPERATION,
        vm.id,
        vm.name,
        user,
        exclusive=(vm.uuid,),
        shared=(source.id,),
        cancelable=True,
        begins_itself=True,
    )
    return await parts.tasks.submit(spec, work)


def check(parts: Parts, key: str, host_key: str) -> list[HostFindings]:
    """What speaks against the named host, or against each other host of the cluster; changes nothing.

    :raises ManagedObjectNotFound: no such VM or host.
    """
    inventory = parts.store.inventory
    vm = lookup.vm(inventory, key)
    hosts = [lookup.host(inventory, host_key)] if host_key else other_hosts(inventory, vm)
    return [HostFindings(host, check_move(inventory, parts.facts, vm, host)) for host in hosts]
