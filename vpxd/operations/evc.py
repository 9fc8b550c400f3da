"""EVC of clusters and VMs: look and set. What is allowed is decided by vpxd/evc/rules.py."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from runtime.cpu_baselines import BASELINES, Baseline
from runtime.faults import InvalidPowerState
from vpxd.compatibility.finding import Finding
from vpxd.evc import rules
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.records import Cluster, Host
from vpxd.inventory.values import HostInfo, PowerState
from vpxd.inventory.vm_lock import Holder
from vpxd.operations import lookup, vm_lifecycle
from vpxd.operations.parts import Parts
from vpxd.tasks.state import TaskRecord


@dataclass(frozen=True)
class ClusterEvc:
    """A cluster, and for every mode what stands against it now; nothing: it could be set."""

    cluster: Cluster
    modes: tuple[tuple[str, tuple[Finding, ...]], ...]


def get(parts: Parts, key: str) -> ClusterEvc:
    """A cluster's mode and what speaks against the others. :raises ManagedObjectNotFound: :raises InvalidArgument:"""
    cluster = lookup.cluster(parts.store.inventory, key)
    return ClusterEvc(cluster, tuple((one.key, _against(parts, cluster, one)) for one in BASELINES))


async def set_mode(parts: Parts, key: str, mode: str, user: str) -> ClusterEvc:
    """Sets, raises, lowers or (empty) disables a cluster's mode; on any fault it is as before.

    Raising reaches a VM at its next power-on. While it is decided nothing else happens on the cluster's hosts.

    :raises ManagedObjectNotFound: :raises InvalidArgument: the mode isn't one.
    :raises EvcAdmissionFailed: its causes name each host and each VM that stands against it.
    :raises TaskInProgress: a task works on a host of the cluster.
    """
    baseline = rules.require_mode(mode)
    cluster = lookup.cluster(parts.store.inventory, key)
    with _hosts_held(parts, cluster):
        async with parts.store.transaction() as transaction:
            present = parts.store.inventory.clusters[cluster.id]
            findings = _against(parts, present, baseline) if baseline is not None else ()
            if findings:
                raise rules.refusal(present, mode, findings)
            if present.evc_mode != mode:
                transaction.put(replace(present, evc_mode=mode))
                words = (
                    f"the EVC mode of {present.name} is {mode}" if mode else f"{present.name} has no EVC mode"
                )
                text = f"{words} (was {present.evc_mode or 'none'}; set by {user})"
                transaction.emit(EventDraft(EventType.CLUSTER_RECONFIGURED, text, present.id, present.name))
    return get(parts, cluster.id)


async def set_vm_mode(parts: Parts, key: str, mode: str, user: str) -> TaskRecord:
    """Sets the own mode of a VM that is powered off; empty: none.

    :raises VimFault: as the rpc says.
    """
    own = rules.require_mode(mode)
    vm, host = lookup.vm_on_connected_host(parts, key)
    if vm.power_state is not PowerState.POWERED_OFF:
        message = f"{vm.name} is powered on: its CPU is fixed until it is powered off"
        raise InvalidPowerState(message, state=vm.power_state.value, required=PowerState.POWERED_OFF.value)
    cluster = parts.store.inventory.clusters[host.cluster]
    if own is not None:
        capabilities = [parts.live.host_info(one).capability for one in _hosts_of(parts, cluster)]
        rules.require_vm_mode(cluster, own, capabilities)
    return await vm_lifecycle.reconfigure(parts, vm.id, replace(vm.config, evc_mode=mode), user)


def require_host_fits(parts: Parts, cluster_id: str, name: str, info: HostInfo) -> None:
    """What a host must be that is added to a cluster. :raises EvcAdmissionFailed: it can't offer the cluster's mode."""
    cluster = parts.store.inventory.clusters[cluster_id]
    baseline = rules.require_mode(cluster.evc_mode)
    finding = rules.host_finding(cluster, baseline, name, info.capability) if baseline is not None else None
    if finding is not None:
        raise finding.fault


def _against(parts: Parts, cluster: Cluster, baseline: Baseline) -> tuple[Finding, ...]:
    inventory = parts.store.inventory
    return rules.against_mode(
        cluster,
        baseline,
        [
            (
                host.name,
                parts.live.host_info(host),
                [vm for vm in inventory.vms_on(host.id) if vm.power_state is PowerState.POWERED_ON],
            )
            for host in _hosts_of(parts, cluster)
        ],
    )


def _hosts_of(parts: Parts, cluster: Cluster) -> list[Host]:
    return [host for host in parts.store.inventory.hosts.values() if host.cluster == cluster.id]


@contextmanager
def _hosts_held(parts: Parts, cluster: Cluster) -> Iterator[None]:
    """No VM is powered on, or comes to the cluster, while its mode is decided."""
    holder = Holder(f"setEvc-{uuid.uuid4()}", "ClusterComputeResource.setEvc")
    hosts = tuple(host.id for host in _hosts_of(parts, cluster))
    parts.locks.acquire(holder, hosts, (), cluster.name)
    try:
        yield
    finally:
        parts.locks.release(holder.task)
