"""Plans a migration: chooses the destination where none is named, and checks that the VM can go there."""

from runtime.faults import ManagedObjectNotFound, NoCompatibleHost
from vpxd.compatibility.check import findings, first_error
from vpxd.compatibility.facts import Facts
from vpxd.compatibility.finding import Finding, Move
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import Inventory
from vpxd.migration.parts import MigrationOrder, Plan
from vpxd.placement.choose import Candidate, choose


def check_move(inventory: Inventory, facts: Facts, vm: Vm, destination: Host) -> tuple[Finding, ...]:
    """Everything that speaks against this VM going there."""
    source = inventory.hosts.get(vm.host)
    source_facts = facts.host(source) if source is not None else None
    return findings(Move(facts.vm(vm), source_facts, facts.host(destination)))


def other_hosts(inventory: Inventory, vm: Vm) -> list[Host]:
    """The other hosts of the VM's cluster, by name."""
    source = inventory.hosts.get(vm.host)
    hosts = (
        host
        for host in inventory.hosts.values()
        if host.id != vm.host and (source is None or host.cluster == source.cluster)
    )
    return sorted(hosts, key=lambda host: host.name)


def plan(inventory: Inventory, facts: Facts, order: MigrationOrder) -> Plan:
    """The migration that was ordered.

    :raises ManagedObjectNotFound: the VM or a host isn't there any more.
    :raises NoCompatibleHost: no host was named and none can take it; says why, host by host.
    :raises VimFault: the first error that the compatibility checks find.
    """
    vm = inventory.vms.get(order.vm)
    if vm is None:
        raise ManagedObjectNotFound(f"the VM {order.vm} isn't there any more", kind="vm", key=order.vm)
    source = inventory.hosts.get(vm.host)
    if source is None:
        raise ManagedObjectNotFound(f"{vm.name} is on no host", kind="host", key=vm.host)
    if order.destination:
        destination, reason = _named(inventory, order.destination), "named by the user"
    else:
        destination, reason = _chosen(inventory, facts, vm)
    fault = first_error(check_move(inventory, facts, vm, destination))
    if fault is not None:
        raise fault
    return Plan(vm, source, destination, order.options, facts.vm(vm).live, reason)


def _named(inventory: Inventory, host_id: str) -> Host:
    host = inventory.hosts.get(host_id)
    if host is None:
        raise ManagedObjectNotFound(f"the host {host_id} isn't there any more", kind="host", key=host_id)
    return host


def _chosen(inventory: Inventory, facts: Facts, vm: Vm) -> tuple[Host, str]:
    candidates = [
        Candidate(facts.host(host), _reasons(check_move(inventory, facts, vm, host)))
        for host in other_hosts(inventory, vm)
    ]
    choice = choose(vm.config, candidates)
    if choice.host is None or choice.score is None:
        raise NoCompatibleHost(f"no host can take {vm.name}", reasons=" | ".join(choice.reasons))
    return inventory.hosts[choice.host.id], choice.score.reason


def _reasons(found: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(finding.fault.message for finding in found if finding.error)
