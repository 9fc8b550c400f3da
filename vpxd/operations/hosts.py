"""Adding and removing hosts, and making clusters."""

import asyncio

from runtime.faults import (
    DuplicateName,
    HostNotReachable,
    InvalidArgument,
    InvalidState,
    ResourceInUse,
)
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import require_address, require_host_name, require_name
from vpxd.inventory.records import Cluster, Host
from vpxd.inventory.store import Transaction
from vpxd.inventory.values import HostInfo, PowerState
from vpxd.operations import evc, lookup
from vpxd.operations.parts import Parts
from vpxd.placement.rules import without
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

FIRST_REPORT_TIMEOUT_S = 15.0


async def add(parts: Parts, name: str, address: str, cluster_key: str, user: str) -> TaskRecord:
    """Adds a host that has joined. :raises VimFault: as the rpc says."""
    inventory = parts.store.inventory
    require_host_name(name, "name")
    cluster = lookup.cluster(inventory, cluster_key)
    _require_not_added(parts, name)
    enrollment = inventory.enrollments.get(name)
    if enrollment is None:
        raise InvalidArgument(
            f"{name} hasn't joined the cluster: make a join token and let it join first", argument="name"
        )
    target = require_address(address or enrollment.address, "address")

    async def work(task: Task) -> str:
        task.advance(10, f"asking {name} at {target}")
        info, _usage = await parts.agents.ask(name, target)
        _require_right_host(parts, name, info)
        task.advance(40, f"taking in the state of {name}")
        host = await _write(parts, Host("", name, cluster.id, target, info), task)
        await _listen(parts, host)
        return host.id

    spec = TaskSpec(
        "ClusterComputeResource.addHost", cluster.id, name, user, exclusive=(f"host name {name}",)
    )
    return await parts.tasks.submit(spec, work)


async def remove(parts: Parts, key: str, force: bool, user: str) -> TaskRecord:
    """Forgets a host and its VMs; nothing is stopped on it. :raises VimFault: as the rpc says."""
    host = lookup.host(parts.store.inventory, key)
    _require_idle(parts, host, force)

    async def work(task: Task) -> str:
        _require_idle(parts, host, force)
        await parts.agents.remove(host.id)
        async with parts.store.transaction() as transaction:
            _forget(parts, host, task, transaction)
        return ""

    spec = TaskSpec(
        "HostSystem.remove", host.id, host.name, user, exclusive=(host.id, f"host name {host.name}")
    )
    return await parts.tasks.submit(spec, work)


async def create_cluster(parts: Parts, name: str, datacenter_key: str) -> Cluster:
    """A new, empty cluster. :raises VimFault: as the rpc says."""
    require_name(name, "name")
    datacenter = lookup.datacenter(parts.store.inventory, datacenter_key)
    async with parts.store.transaction() as transaction:
        if any(cluster.name == name for cluster in parts.store.inventory.clusters.values()):
            raise DuplicateName(f"a cluster is called {name!r} already", kind="cluster", name=name)
        cluster = Cluster(await transaction.new_id(Kind.CLUSTER), name, datacenter.id)
        transaction.put(cluster)
        text = f"the cluster {name} was made"
        transaction.emit(EventDraft(EventType.CLUSTER_CREATED, text, cluster.id, name))
    return cluster


def _require_not_added(parts: Parts, name: str) -> None:
    """:raises DuplicateName: a host of this name is in the inventory."""
    if any(host.name == name for host in parts.store.inventory.hosts.values()):
        raise DuplicateName(f"a host called {name!r} is in the inventory already", kind="host", name=name)


def _require_right_host(parts: Parts, name: str, info: HostInfo) -> None:
    if info.name != name:
        raise InvalidArgument(f"the host calls itself {info.name[:80]!r}, not {name!r}", argument="name")
    if not info.uuid:
        raise InvalidState(f"{name} doesn't say its uuid", state="", required="uuid")
    for host in parts.store.inventory.hosts.values():
        if host.info.uuid == info.uuid:
            raise DuplicateName(
                f"{host.name} has the same uuid: it is the same host, or was cloned",
                kind="host",
                name=info.uuid,
            )


async def _write(parts: Parts, host: Host, task: Task) -> Host:
    async with parts.store.transaction() as transaction:
        _require_not_added(parts, host.name)
        evc.require_host_fits(parts, host.cluster, host.name, host.info)
        added = Host(await transaction.new_id(Kind.HOST), host.name, host.cluster, host.address, host.info)
        transaction.put(added)
        text = f"{host.name} was added to {parts.store.inventory.clusters[host.cluster].name}"
        transaction.emit(EventDraft(EventType.HOST_ADDED, text, added.id, host.name, task.id))
    return added


async def _listen(parts: Parts, host: Host) -> None:
    """Begins to listen and waits for the first report; when none comes the host is not added after all."""
    agent = parts.agents.add(host)
    try:
        async with asyncio.timeout(FIRST_REPORT_TIMEOUT_S):
            await agent.wait_connected()
    except TimeoutError as error:
        await parts.agents.remove(host.id)
        async with parts.store.transaction() as transaction:
            transaction.delete(host)
            text = f"{host.name} was taken out again: it didn't tell its state"
            transaction.emit(EventDraft(EventType.HOST_REMOVED, text, host.id, host.name))
        raise HostNotReachable(
            f"{host.name} answered once but didn't tell its state", host=host.name, address=host.address
        ) from error


def _require_idle(parts: Parts, host: Host, force: bool) -> None:
    """:raises ResourceInUse: VMs are powered on there."""
    running = [
        vm.name for vm in parts.store.inventory.vms_on(host.id) if vm.power_state is PowerState.POWERED_ON
    ]
    if running and not force:
        shown = ", ".join(sorted(running)[:5])
        raise ResourceInUse(
            f"{len(running)} VMs are powered on on {host.name} ({shown}): move them away or say force",
            kind="host",
            name=host.name,
        )


def _forget(parts: Parts, host: Host, task: Task, transaction: Transaction) -> None:
    inventory = parts.store.inventory
    for vm in list(inventory.vms_on(host.id)):
        transaction.delete(vm)
        if (policies := inventory.vm_policies.get(vm.id)) is not None:
            transaction.delete(policies)
        text = f"{vm.name} was taken out of the inventory with its host {host.name}"
        transaction.emit(EventDraft(EventType.VM_REMOVED, text, vm.id, vm.name, task.id))
    seen_by_others = {
        store.uuid
        for other in inventory.hosts.values()
        if other.id != host.id
        for store in parts.live.host_info(other).datastores
    }
    for datastore in list(inventory.datastores.values()):
        if datastore.uuid not in seen_by_others:
            transaction.delete(datastore)
    offered = {
        group.name
        for other in inventory.hosts.values()
        if other.id != host.id
        for group in parts.live.host_info(other).port_groups
    }
    for network in list(inventory.networks.values()):
        if network.segment_id and network.name not in offered:
            transaction.delete(network)
    gone = {host.id, *(vm.id for vm in inventory.vms_on(host.id))}
    for rule in without(inventory.affinity_rules.values(), gone):
        transaction.put(rule)
    transaction.delete(host)
    text = f"{host.name} was removed from the inventory"
    transaction.emit(EventDraft(EventType.HOST_REMOVED, text, host.id, host.name, task.id))
