"""Which host a relocation goes to where none is named, and why. Changes nothing, asks nobody.

a host named       that one
a cluster named    its hosts; the VM's own one only where its storage changes: then it stays there if it can
neither            storage changes: its own host, which is what unset means; nothing else changes: the others of its
                   cluster
"""

from dataclasses import dataclass

from runtime.faults import NoCompatibleHost, RuleViolation
from vpxd.compatibility.facts import Facts
from vpxd.compatibility.relocate import Answer, Question, check
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import find
from vpxd.inventory.records import Host
from vpxd.inventory.store import Inventory
from vpxd.placement.choose import Candidate, ranked
from vpxd.placement.score import Score, Traits, score


@dataclass(frozen=True)
class Recommendation:
    """One host. `score` is None where the VM can't go there; `answer` says why."""

    host: Host
    answer: Answer
    score: Score | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What makes its score, or what forbids it."""
        if self.score is not None:
            return self.score.reasons
        return tuple(finding.fault.message for finding in self.answer.errors)


def candidates(inventory: Inventory, question: Question, *, everywhere: bool = False) -> list[Host]:
    """The hosts that come into question, by name. `everywhere`: where nothing is named, those of all clusters.

    :raises ManagedObjectNotFound: :raises InvalidArgument: the host or the cluster, as `names.find`.
    """
    spec, own = question.spec, question.vm.host
    if spec.host:
        return [find(Kind.HOST, spec.host, inventory.hosts, "host")]
    present = inventory.hosts.get(own)
    if not spec.cluster and not everywhere and present is not None and spec.changes_storage:
        return [present]
    if spec.cluster:
        cluster = find(Kind.CLUSTER, spec.cluster, inventory.clusters, "cluster").id
    else:
        cluster = "" if everywhere or present is None else present.cluster
    hosts = (
        host
        for host in inventory.hosts.values()
        if (not cluster or host.cluster == cluster) and (host.id != own or spec.changes_storage)
    )
    return sorted(hosts, key=lambda host: host.name)


def recommend(
    inventory: Inventory, facts: Facts, question: Question, *, everywhere: bool = False
) -> list[Recommendation]:
    """The hosts that come into question, best first; those where the VM can't go come last."""
    answers = {
        host.id: check(inventory, facts, question, host)
        for host in candidates(inventory, question, everywhere=everywhere)
    }
    entries = [
        Candidate(
            answer.destination, tuple(finding.fault.message for finding in answer.errors), _traits(answer)
        )
        for answer in answers.values()
    ]
    config = question.vm.config
    return [
        Recommendation(
            inventory.hosts[entry.host.id],
            answers[entry.host.id],
            None if entry.reasons else score(config, entry.host, entry.traits),
        )
        for entry in ranked(config, entries)
    ]


def choose_destination(inventory: Inventory, facts: Facts, question: Question) -> tuple[Host, str]:
    """The host that it should go to, and why.

    :raises NoCompatibleHost: none can take it; says why, host by host.
    """
    spec = question.spec
    if spec.host:
        return candidates(inventory, question)[0], "named by the user"
    if spec.changes_storage and not spec.cluster and question.vm.host in inventory.hosts:
        return candidates(inventory, question)[0], "it stays on its host"
    found = recommend(inventory, facts, question)
    if not found or found[0].score is None:
        reasons = [f"{entry.host.name}: {'; '.join(entry.reasons)}" for entry in found]
        name = question.vm.name
        raise NoCompatibleHost(
            f"no host can take {name}", reasons=" | ".join(reasons) or "there is no other host"
        )
    return found[0].host, found[0].score.reason


def _traits(answer: Answer) -> Traits:
    warnings = [finding.fault for finding in answer.findings if not finding.error]
    broken = tuple(fault.rule for fault in warnings if isinstance(fault, RuleViolation))
    disks = {disk.key: disk.capacity_bytes for disk in answer.vm.config.disks}
    moved = sum(disks.get(key, 0) for key in answer.relocation.moved_disks)
    total = sum(disks.values())
    return Traits(
        here=not answer.relocation.changes_host,
        broken_rules=broken,
        warnings=len(warnings) - len(broken),
        moved_share=moved / total if total else float(answer.relocation.moves_home),
        evc_mode=answer.destination.evc_mode,
    )
