"""Affinity rules among themselves: what contradicts, what doesn't hold now. Pure: no I/O, no clock, no logging.

All enabled rules of a cluster must be able to hold together, mandatory or not. VMs that rules keep on one host form a
group; a group contradicts where two of its VMs must be apart, or where no host is left that all of it may be on.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from vpxd.inventory.records import AffinityRule, RuleKind

VM_KINDS = frozenset({RuleKind.VM_AFFINITY, RuleKind.VM_ANTI_AFFINITY})


def contradicting(rule: AffinityRule, others: Sequence[AffinityRule], hosts: frozenset[str]) -> str:
    """The name of a rule with which `rule` can't hold; empty: it can hold with all. `hosts`: those of the cluster.

    Where only several rules together contradict it, one of them is named.
    """
    if not rule.enabled:
        return ""
    enabled = [other for other in others if other.enabled and other.name != rule.name]
    if _possible([rule, *enabled], hosts):
        return ""
    if not _possible([rule], hosts):
        return rule.name
    for other in enabled:
        if not _possible([rule, other], hosts):
            return other.name
    while len(enabled) > 1:
        # Left out one by one: what the contradiction needs stays.
        needless = next(
            (
                other
                for other in enabled
                if not _possible([rule, *(kept for kept in enabled if kept is not other)], hosts)
            ),
            None,
        )
        if needless is None:
            break
        enabled.remove(needless)
    return enabled[0].name


def violated(rule: AffinityRule, running: Mapping[str, str]) -> bool:
    """Whether it doesn't hold now. `running`: the host of each VM that is powered on."""
    places = [running[vm] for vm in rule.vms if vm in running]
    if not rule.enabled:
        return False
    if rule.kind is RuleKind.VM_AFFINITY:
        return len(set(places)) > 1
    if rule.kind is RuleKind.VM_ANTI_AFFINITY:
        return len(set(places)) < len(places)
    inside = [place in rule.hosts for place in places]
    return not all(inside) if rule.kind is RuleKind.VM_HOST_AFFINITY else any(inside)


def without(rules: Iterable[AffinityRule], gone: Collection[str]) -> list[AffinityRule]:
    """The rules that name VMs or hosts which are gone (ids), as they are without them."""
    return [
        replace(
            rule,
            vms=tuple(vm for vm in rule.vms if vm not in gone),
            hosts=tuple(host for host in rule.hosts if host not in gone),
        )
        for rule in rules
        if any(member in gone for member in (*rule.vms, *rule.hosts))
    ]


def _possible(rules: Sequence[AffinityRule], hosts: frozenset[str]) -> bool:
    group_of = _groups(rules)
    for rule in rules:
        if rule.kind is RuleKind.VM_ANTI_AFFINITY:
            groups = [group_of.get(vm, vm) for vm in rule.vms]
            if len(set(groups)) < len(groups):
                return False
    allowed: dict[str, frozenset[str]] = {}
    for rule in rules:
        if rule.kind in VM_KINDS:
            continue
        named = frozenset(rule.hosts)
        mine = named if rule.kind is RuleKind.VM_HOST_AFFINITY else hosts - named
        for vm in rule.vms:
            group = group_of.get(vm, vm)
            allowed[group] = allowed.get(group, hosts) & mine
    return all(allowed.values())


def _groups(rules: Sequence[AffinityRule]) -> dict[str, str]:
    """For each VM that is kept with others: the least VM of all that are kept together, over any number of rules."""
    group_of: dict[str, str] = {}
    for rule in rules:
        if rule.kind is not RuleKind.VM_AFFINITY or not rule.vms:
            continue
        joined = {group_of.get(vm, vm) for vm in rule.vms}
        least = min(joined)
        members = [vm for vm, group in group_of.items() if group in joined]
        group_of |= dict.fromkeys([*members, *rule.vms], least)
    return group_of
