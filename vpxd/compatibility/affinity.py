"""Affinity rules of the destination's cluster. Pure: no I/O, no clock, no logging.

Rules are about VMs that run, so of the others only those that are powered on count.
"""

from collections.abc import Sequence

from runtime.faults import RuleViolation
from vpxd.compatibility.finding import Finding, FindingGroup, Move, error, warning
from vpxd.inventory.records import AffinityRule, RuleKind


def check(move: Move) -> tuple[Finding, ...]:
    """No enabled rule is violated with the VM on the destination: an error where the rule is mandatory."""
    found = []
    for rule in move.surroundings.rules:
        problem = _problem(move, rule) if move.changes_host and move.vm.id in rule.vms else ""
        if not problem:
            continue
        fault = RuleViolation(
            f"{move.vm.config.name} on {move.destination.name} violates the rule {rule.name}: {problem}",
            rule=rule.name,
            vm=move.vm.config.name,
            host=move.destination.name,
        )
        remedy = f"choose another host, or change or disable the rule {rule.name}"
        make = error if rule.mandatory else warning
        found.append(make(fault, remedy, FindingGroup.RESOURCE_POOL))
    return tuple(found)


def _problem(move: Move, rule: AffinityRule) -> str:
    around, there = move.surroundings, move.destination.id
    others = [vm for vm in rule.vms if vm != move.vm.id and vm in around.running]
    if rule.kind is RuleKind.VM_AFFINITY:
        apart = [vm for vm in others if around.running[vm] != there]
        return f"{_names(move, apart)} would be on another host" if apart else ""
    if rule.kind is RuleKind.VM_ANTI_AFFINITY:
        together = [vm for vm in others if around.running[vm] == there]
        return f"{_names(move, together)} would be on the same host" if together else ""
    if rule.kind is RuleKind.VM_HOST_AFFINITY:
        return "" if there in rule.hosts else f"it must run on {_names(move, rule.hosts) or 'no host'}"
    return f"it must not run on {move.destination.name}" if there in rule.hosts else ""


def _names(move: Move, ids: Sequence[str]) -> str:
    return ", ".join(sorted(move.surroundings.names.get(key, key) for key in ids))
