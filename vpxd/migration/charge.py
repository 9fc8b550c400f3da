"""What a migration is charged, from its plan or from its journal. Pure: no I/O, no clock, no logging."""

from vpxd.inventory.records import Host, MigrationEntry, MigrationTerms
from vpxd.migration.limits.costs import Claim, Work, charges
from vpxd.migration.limits.cpu import CpuRoom
from vpxd.migration.options import Priority
from vpxd.migration.order import Plan
from vpxd.relocation.relocation import Relocation


def claim_of(task: str, plan: Plan) -> Claim:
    """Its wish for places, before it has a journal entry."""
    copied, touched = datastores(plan.relocation)
    work = Work(plan.live, _hosts(plan.source, plan.destination), copied, touched)
    return Claim(task, charges(work), priority_of(plan.options.priority))


def claim_of_entry(task: str, entry: MigrationEntry, source: Host, destination: Host) -> Claim:
    """The same, of one that runs already."""
    terms = entry.terms
    work = Work(entry.live, _hosts(source, destination), terms.copied, terms.touched)
    return Claim(task, charges(work), priority_of(terms.priority))


def terms_of(plan: Plan) -> MigrationTerms:
    """What its end needs to know."""
    relocation = plan.relocation
    copied, touched = datastores(relocation)
    changed = relocation.destination_vm != plan.vm.config
    return MigrationTerms(
        home=relocation.destination_home if relocation.moves_home else "",
        config=relocation.destination_vm if changed else None,
        policies=relocation.policies if relocation.policies.vm else None,
        copied=copied,
        touched=touched,
        priority=plan.options.priority,
    )


def cpu_rooms(plan: Plan) -> tuple[CpuRoom, ...]:
    """What a high-priority migration needs reserved; nothing for any other, and where no guest changes its host."""
    if priority_of(plan.options.priority) is not Priority.HIGH:
        return ()
    if not plan.live or not plan.relocation.changes_host:
        return ()
    source, destination = plan.facts.source, plan.facts.destination
    return (
        CpuRoom(source.id, source.name, source.info.vcpu_capacity, source.usage.vcpus_reserved),
        CpuRoom(
            destination.id,
            destination.name,
            destination.info.vcpu_capacity,
            destination.usage.vcpus_reserved,
            plan.vm.config.vcpus,
        ),
    )


def cpu_rooms_of_entry(entry: MigrationEntry, source: Host, destination: Host) -> tuple[CpuRoom, ...]:
    """The same, of one that runs already."""
    if priority_of(entry.terms.priority) is not Priority.HIGH or not entry.live:
        return ()
    if source.id == destination.id:
        return ()
    return tuple(CpuRoom(host.id, host.name, 0, 0) for host in (source, destination))


def datastores(relocation: Relocation) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Uuid and name of those that files leave or come to, and of the VM's others."""
    copied: dict[str, str] = {}
    touched: dict[str, str] = {}
    for place in relocation.places:
        into = copied if place.moved else touched
        into[place.source_uuid or place.source_name] = place.source_name
        into[place.uuid or place.name] = place.name
    others = {uuid: name for uuid, name in touched.items() if uuid not in copied}
    return tuple(copied.items()), tuple(others.items())


def priority_of(number: int) -> Priority:
    """The priority; what isn't said is DEFAULT."""
    return Priority(number) if number in (Priority.HIGH, Priority.LOW) else Priority.DEFAULT


def _hosts(source: Host, destination: Host) -> tuple[tuple[str, str], ...]:
    both = {source.id: source.name, destination.id: destination.name}
    return tuple(both.items())
