"""The whole question of a relocation, for one destination: what the VM would be there, and what speaks against it."""

from dataclasses import dataclass, field

from vpxd.compatibility.check import findings
from vpxd.compatibility.facts import Facts
from vpxd.compatibility.finding import Finding, HostFacts, Move, VmFacts
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import Inventory
from vpxd.relocation.relocation import Relocation
from vpxd.relocation.resolve import resolve
from vpxd.relocation.spec import RelocateSpec


@dataclass(frozen=True)
class Question:
    """A VM and what is wanted of it. `task`: whose question it is, so that its own lock on the VM doesn't count."""

    vm: Vm
    spec: RelocateSpec = field(default_factory=RelocateSpec)
    high_priority: bool = False
    task: str = ""


@dataclass(frozen=True)
class Answer:
    """One destination: where everything of the VM would be, and all findings, errors first."""

    vm: VmFacts
    source: HostFacts | None
    destination: HostFacts
    relocation: Relocation
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those with which the operation would fail."""
        return tuple(finding for finding in self.findings if finding.error)


def check(inventory: Inventory, facts: Facts, question: Question, destination: Host) -> Answer:
    """Resolves the specification for this destination and runs every check; changes nothing, asks nobody.

    The specification has passed `require_valid` and `require_fits`; its host and cluster aren't looked at.
    """
    source = inventory.hosts.get(question.vm.host)
    source_facts = facts.host(source) if source is not None else None
    vm, there = facts.vm(question.vm, question.task), facts.host(destination)
    relocation = resolve(vm, question.spec, source_facts, there, facts.datastore_uuids())
    move = Move(
        vm,
        source_facts,
        there,
        relocation,
        facts.surroundings(question.vm, destination),
        question.high_priority,
    )
    return Answer(vm, source_facts, there, relocation, findings(move))
