"""Migrate and relocate, and the questions whether and where it would work."""

from dataclasses import dataclass, field, replace

from runtime.faults import InvalidArgument, ManagedObjectNotFound
from vpxd.compatibility.finding import Finding
from vpxd.compatibility.relocate import Question
from vpxd.compatibility.relocate import check as check_relocation
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import find
from vpxd.inventory.records import Host
from vpxd.migration.options import MigrationOptions, Priority
from vpxd.migration.order import MigrationOrder
from vpxd.migration.workflow import OPERATION
from vpxd.operations import lookup, relocate_facts
from vpxd.operations.parts import Parts
from vpxd.placement.destination import Recommendation
from vpxd.placement.destination import candidates as destination_candidates
from vpxd.placement.destination import recommend as recommend_hosts
from vpxd.relocation.resolve import resolve
from vpxd.relocation.spec import NO_POLICY, RelocateSpec
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

RELOCATE_OPERATION = "VirtualMachine.relocate"


@dataclass(frozen=True)
class Wish:
    """A relocation as a client asked for it: a VM's id or name, where to, and how."""

    vm: str
    spec: RelocateSpec = field(default_factory=RelocateSpec)
    options: MigrationOptions = field(default_factory=MigrationOptions)


@dataclass(frozen=True)
class HostFindings:
    """What speaks against one host; nothing: the VM can go there."""

    host: Host
    findings: tuple[Finding, ...]


async def migrate(parts: Parts, key: str, host_key: str, options: MigrationOptions, user: str) -> TaskRecord:
    """Moves a VM to the named host, or where placement puts it. :raises VimFault: as the rpc says."""
    return await _order(parts, Wish(key, RelocateSpec(host=host_key), options), user, OPERATION)


async def relocate(parts: Parts, wish: Wish, user: str) -> TaskRecord:
    """Moves a VM to another host, other datastores or both. :raises VimFault: as the rpc says."""
    return await _order(parts, wish, user, RELOCATE_OPERATION)


def check(parts: Parts, key: str, host_key: str) -> list[HostFindings]:
    """What speaks against the named host, or against each other host of the cluster; changes nothing.

    :raises ManagedObjectNotFound: no such VM or host.
    """
    question = _question(parts, Wish(key, RelocateSpec(host=host_key)))
    return _findings(parts, question, destination_candidates(parts.store.inventory, question))


async def check_relocate(parts: Parts, wish: Wish) -> list[HostFindings]:
    """What speaks against the named host, each host of the named cluster, or every host; changes nothing.

    :raises ManagedObjectNotFound: no such VM, host, cluster, datastore or policy.
    :raises InvalidArgument: the specification contradicts itself.
    """
    question = _question(parts, wish)
    hosts = destination_candidates(parts.store.inventory, question, everywhere=True)
    await relocate_facts.ask(parts, question, hosts)
    return _findings(parts, question, hosts)


async def recommend(parts: Parts, wish: Wish) -> list[Recommendation]:
    """The hosts of `check_relocate`, best first, with their scores and reasons. :raises VimFault: as it."""
    question = _question(parts, wish)
    hosts = destination_candidates(parts.store.inventory, question, everywhere=True)
    await relocate_facts.ask(parts, question, hosts)
    return recommend_hosts(parts.store.inventory, parts.facts, question, everywhere=True)


async def _order(parts: Parts, wish: Wish, user: str, operation: str) -> TaskRecord:
    question = _question(parts, wish)
    inventory, spec = parts.store.inventory, question.spec
    if spec.host:
        _require_change(parts, question, inventory.hosts[spec.host])
    vm, source = lookup.vm_on_connected_host(parts, wish.vm)
    if spec.host:
        lookup.require_connected(parts, inventory.hosts[spec.host])
    await relocate_facts.ask(parts, question, destination_candidates(inventory, question))
    order = MigrationOrder(vm.id, spec, wish.options)

    async def work(task: Task) -> str:
        return await parts.workflow.run(task, order)

    task_spec = TaskSpec(
        operation,
        vm.id,
        vm.name,
        user,
        exclusive=(vm.uuid,),
        shared=(source.id,),
        cancelable=True,
        begins_itself=True,
    )
    return await parts.tasks.submit(task_spec, work)


def _question(parts: Parts, wish: Wish) -> Question:
    """The wish with what it names found; host and cluster are ids in it.

    :raises InvalidArgument: :raises ManagedObjectNotFound: as the rpc says.
    """
    wish.options.require_valid()
    wish.spec.require_valid()
    inventory = parts.store.inventory
    vm = lookup.vm(inventory, wish.vm)
    wish.spec.require_fits(vm.config)
    host = lookup.host(inventory, wish.spec.host).id if wish.spec.host else ""
    cluster = lookup.cluster(inventory, wish.spec.cluster).id if wish.spec.cluster else ""
    _require_known(parts, wish.spec)
    high = wish.options.priority == Priority.HIGH
    return Question(vm, replace(wish.spec, host=host, cluster=cluster), high)


def _require_known(parts: Parts, spec: RelocateSpec) -> None:
    """:raises ManagedObjectNotFound: it names a datastore or a policy that isn't there."""
    inventory = parts.store.inventory
    names = {store.name for store in inventory.datastores.values()}
    for host in inventory.hosts.values():
        names |= {store.name for store in parts.live.host_info(host).datastores}
    for key in (spec.datastore, *(disk.datastore for disk in spec.disks)):
        # Several hosts may each have a datastore of this name: which one is meant is the destination's to say.
        if key and key not in names:
            find(Kind.DATASTORE, key, inventory.datastores, "spec.datastore")
    for policy in (spec.policy, *(disk.policy for disk in spec.disks)):
        if policy not in ("", NO_POLICY) and policy not in inventory.storage_policies:
            shown = policy[:80]
            raise ManagedObjectNotFound(
                f"there is no storage policy {shown!r}", kind="storage policy", key=shown
            )


def _require_change(parts: Parts, question: Question, destination: Host) -> None:
    """:raises InvalidArgument: the VM is there already, and nothing of its storage would change."""
    vm = question.vm
    if destination.id != vm.host:
        return
    here = parts.facts.host(destination)
    found = resolve(parts.facts.vm(vm), question.spec, here, here, parts.facts.datastore_uuids())
    if not found.moves_files:
        what = ", with all that is asked for" if question.spec.changes_storage else ""
        raise InvalidArgument(f"{vm.name} is on {destination.name} already{what}", argument="host")


def _findings(parts: Parts, question: Question, hosts: list[Host]) -> list[HostFindings]:
    inventory = parts.store.inventory
    return [
        HostFindings(host, check_relocation(inventory, parts.facts, question, host).findings)
        for host in hosts
    ]
