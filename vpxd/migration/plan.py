"""Plans a migration: chooses the destination where none is named, and checks that the VM can go there."""

from runtime.faults import ManagedObjectNotFound
from vpxd.compatibility.check import first_error
from vpxd.compatibility.facts import Facts
from vpxd.compatibility.relocate import Question, check
from vpxd.inventory.store import Inventory
from vpxd.migration.options import Priority
from vpxd.migration.order import MigrationOrder, Plan, PlanFacts
from vpxd.placement.destination import choose_destination


def plan(inventory: Inventory, facts: Facts, order: MigrationOrder, task: str) -> Plan:
    """The migration that was ordered, for the task that holds the VM.

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
    question = Question(vm, order.spec, order.options.priority == Priority.HIGH, task)
    destination, reason = choose_destination(inventory, facts, question)
    answer = check(inventory, facts, question, destination)
    fault = first_error(answer.findings)
    if fault is not None:
        raise fault
    return Plan(
        vm=vm,
        source=source,
        destination=destination,
        options=order.options,
        relocation=answer.relocation,
        facts=PlanFacts(answer.vm, facts.host(source), answer.destination),
        reason=reason,
    )
