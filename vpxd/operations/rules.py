"""Affinity rules of clusters: set, delete, list. They take and answer the messages of the Clusters service.

A rule names VMs and hosts by id in the inventory; clients may name them by name. What is deleted from the inventory
drops out of its rules; a rule that has become too small to mean anything stays, and holds.
"""

from proto.vpxd.v1 import clusters_pb2 as api
from runtime.faults import InvalidArgument, ManagedObjectNotFound, RuleViolation
from vpxd.inventory.names import require_name
from vpxd.inventory.records import AffinityRule, Cluster, RuleKind
from vpxd.inventory.store import Inventory
from vpxd.inventory.values import PowerState
from vpxd.operations import lookup
from vpxd.operations.parts import Parts
from vpxd.placement.rules import VM_KINDS, contradicting, violated

MAX_MEMBERS = 1_000


async def set_rule(parts: Parts, message: api.Rule) -> api.Rule:
    """Makes the rule, or replaces the one of its name; answers it with ids.

    :raises ManagedObjectNotFound: the cluster, a VM or a host.
    :raises InvalidArgument: the name, the kind, or members that the kind can't have.
    :raises RuleViolation: it can't hold together with another rule of the cluster; nothing is changed.
    """
    async with parts.store.transaction() as transaction:
        inventory = parts.store.inventory
        cluster = lookup.cluster(inventory, message.cluster)
        rule = _rule(inventory, cluster, message)
        hosts = frozenset(host.id for host in inventory.hosts.values() if host.cluster == cluster.id)
        other = contradicting(rule, _of(inventory, cluster), hosts)
        if other:
            what = "contradicts itself" if other == rule.name else f"contradicts the rule {other}"
            raise RuleViolation(f"the rule {rule.name} {what}", rule=other)
        transaction.put(rule)
    return _message(parts.store.inventory, rule)


async def delete_rule(parts: Parts, cluster_key: str, name: str) -> None:
    """Forgets a rule. :raises ManagedObjectNotFound: the cluster or the rule."""
    async with parts.store.transaction() as transaction:
        inventory = parts.store.inventory
        cluster = lookup.cluster(inventory, cluster_key)
        rule = next((rule for rule in _of(inventory, cluster) if rule.name == name), None)
        if rule is None:
            shown = name[:80]
            raise ManagedObjectNotFound(f"{cluster.name} has no rule {shown!r}", kind="rule", key=shown)
        transaction.delete(rule)


def list_rules(parts: Parts, cluster_key: str) -> list[api.Rule]:
    """The rules of a cluster by name, each with whether it holds now. :raises ManagedObjectNotFound: the cluster."""
    inventory = parts.store.inventory
    found = _of(inventory, lookup.cluster(inventory, cluster_key))
    return [_message(inventory, rule) for rule in sorted(found, key=lambda rule: rule.name)]


def _of(inventory: Inventory, cluster: Cluster) -> list[AffinityRule]:
    return [rule for rule in inventory.affinity_rules.values() if rule.cluster == cluster.id]


def _rule(inventory: Inventory, cluster: Cluster, message: api.Rule) -> AffinityRule:
    require_name(message.name, "name")
    if message.kind not in [kind.value for kind in RuleKind]:
        raise InvalidArgument(f"there is no kind of rule {message.kind}", argument="kind")
    kind = RuleKind(message.kind)
    if len(message.vms) > MAX_MEMBERS or len(message.hosts) > MAX_MEMBERS:
        raise InvalidArgument(f"a rule names at most {MAX_MEMBERS} VMs and hosts", argument="vms")
    vms = {vm.id: vm for vm in (lookup.vm(inventory, key) for key in message.vms)}
    hosts = {host.id: host for host in (lookup.host(inventory, key) for key in message.hosts)}
    least = 2 if kind in VM_KINDS else 1
    if len(vms) < least:
        raise InvalidArgument(
            f"such a rule names at least {least} VM{'s' if least > 1 else ''}", argument="vms"
        )
    if (kind in VM_KINDS) == bool(hosts):
        text = "such a rule names no hosts" if kind in VM_KINDS else "such a rule names at least one host"
        raise InvalidArgument(text, argument="hosts")
    for host in hosts.values():
        if host.cluster != cluster.id:
            raise InvalidArgument(f"{host.name} isn't in {cluster.name}", argument="hosts")
    for vm in vms.values():
        its_host = inventory.hosts.get(vm.host)
        if its_host is not None and its_host.cluster != cluster.id:
            raise InvalidArgument(f"{vm.name} isn't in {cluster.name}", argument="vms")
    return AffinityRule(
        cluster.id, message.name, kind, tuple(vms), tuple(hosts), message.mandatory, not message.disabled
    )


def _message(inventory: Inventory, rule: AffinityRule) -> api.Rule:
    running = {
        vm.id: vm.host for vm in inventory.vms.values() if vm.host and vm.power_state is PowerState.POWERED_ON
    }
    return api.Rule(
        cluster=rule.cluster,
        name=rule.name,
        kind=api.RuleKind.ValueType(rule.kind),
        vms=rule.vms,
        hosts=rule.hosts,
        mandatory=rule.mandatory,
        disabled=not rule.enabled,
        violated=violated(rule, running),
    )
