"""Storage policies: kept, given to VMs, and compared with the datastores there are. Nothing is moved by any of it."""

from collections import Counter
from dataclasses import dataclass

from runtime.faults import (
    InaccessibleDatastore,
    InvalidArgument,
    ManagedObjectNotFound,
    ResourceInUse,
)
from vpxd.compatibility.finding import Finding, FindingGroup
from vpxd.inventory.live import datastore_of
from vpxd.inventory.names import MAX_NAME_CHARS
from vpxd.inventory.records import Datastore, StoragePolicy, Vm, VmPolicies
from vpxd.inventory.values import VirtualDisk
from vpxd.operations import lookup, storage_place
from vpxd.operations.parts import Parts
from vpxd.storage.policy import DatastoreFacts, DiskFacts, findings, require_valid


@dataclass(frozen=True)
class Fit:
    """A datastore, and what speaks against it."""

    datastore: Datastore
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class VmCompliance:
    """A VM's policies, and where it isn't what they ask for."""

    vm: Vm
    policies: VmPolicies
    findings: tuple[Finding, ...]


async def set_policy(parts: Parts, policy: StoragePolicy) -> StoragePolicy:
    """Makes or replaces a policy. :raises InvalidArgument: it can't be one."""
    valid = require_valid(policy)
    async with parts.store.transaction() as transaction:
        transaction.put(valid)
    return valid


async def delete_policy(parts: Parts, name: str) -> None:
    """Forgets a policy. :raises ManagedObjectNotFound: :raises ResourceInUse: a VM has it."""
    async with parts.store.transaction() as transaction:
        policy = named(parts, name)
        holders = sorted(
            vm.name
            for key, entry in parts.store.inventory.vm_policies.items()
            if policy.name in _names_of(entry) and (vm := parts.store.inventory.vms.get(key)) is not None
        )
        if holders:
            raise ResourceInUse(
                f"{len(holders)} VMs have the policy {policy.name} ({', '.join(holders[:5])})",
                kind="policy",
                name=policy.name,
            )
        transaction.delete(policy)


def named(parts: Parts, name: str) -> StoragePolicy:
    """The policy of this name. :raises ManagedObjectNotFound: there is none."""
    policy = parts.store.inventory.storage_policies.get(name)
    if policy is None:
        shown = name[:MAX_NAME_CHARS]
        raise ManagedObjectNotFound(f"there is no storage policy {shown!r}", kind="policy", key=shown)
    return policy


def check(parts: Parts, name: str) -> list[Fit]:
    """Every datastore under this policy, those that satisfy it first. :raises ManagedObjectNotFound: no such policy."""
    policy = named(parts, name)
    fits = [
        Fit(record, findings(policy, facts(parts, record)))
        for record in parts.store.inventory.datastores.values()
    ]
    return sorted(fits, key=lambda fit: (bool(fit.findings), fit.datastore.name, fit.datastore.id))


def of_vm(parts: Parts, key: str) -> VmCompliance:
    """A VM's policies and its compliance. :raises ManagedObjectNotFound: no such VM."""
    vm = lookup.vm(parts.store.inventory, key)
    policies = parts.store.inventory.vm_policies.get(vm.id, VmPolicies(vm.id))
    found = list(_compliance(parts, vm, policies.home, vm.home, None))
    by_key = {disk.key: disk for disk in vm.config.disks}
    for disk_key, name in policies.disks:
        disk = by_key.get(disk_key)
        if disk is not None:  # one that was taken out has nothing to comply with
            found.extend(_compliance(parts, vm, name, disk.path, disk))
    return VmCompliance(vm, policies, tuple(found))


async def set_of_vm(parts: Parts, wanted: VmPolicies) -> VmCompliance:
    """Gives a VM these policies instead of those it had; `wanted.vm` is its id or name.

    :raises ManagedObjectNotFound: no such VM or policy. :raises InvalidArgument: it has no such disk.
    """
    async with parts.store.transaction() as transaction:
        vm = lookup.vm(parts.store.inventory, wanted.vm)
        keys = {disk.key for disk in vm.config.disks}
        for disk_key, _name in wanted.disks:
            if disk_key not in keys:
                raise InvalidArgument(f"{vm.name} has no disk {disk_key}", argument="disk_policies")
        for name in _names_of(wanted):
            named(parts, name)
        disks = tuple(sorted((disk_key, name) for disk_key, name in wanted.disks if name))
        record = VmPolicies(vm.id, wanted.home, disks)
        if record.home or record.disks:
            transaction.put(record)
        else:
            transaction.delete(record)
    return of_vm(parts, vm.id)


def facts(parts: Parts, record: Datastore, cluster: str = "") -> DatastoreFacts:
    """A datastore as a policy sees it; `cluster` is the id of the one whose hosts count."""
    seen = storage_place.seeing(parts, record)
    clusters = Counter(host.cluster for host, _store in seen)
    connected = [store for host, store in seen if parts.live.host(host.id).connected]
    newest = connected or [store for _host, store in seen]
    return DatastoreFacts(
        id=record.id,
        name=record.name,
        tags=record.tags,
        capacity_bytes=(newest[0].capacity_bytes if newest else 0) or record.capacity_bytes,
        free_bytes=newest[0].free_bytes if newest else 0,
        hosts=clusters[cluster] if cluster else max(clusters.values(), default=0),
    )


def _compliance(
    parts: Parts, vm: Vm, policy_name: str, path: str, disk: VirtualDisk | None
) -> tuple[Finding, ...]:
    if not policy_name:
        return ()
    policy = named(parts, policy_name)
    datastore_name = datastore_of(path)
    uuid = storage_place.uuid_of(parts, vm, datastore_name)
    records = parts.store.inventory.datastores.values()
    record = next((entry for entry in records if uuid and entry.uuid == uuid), None)
    if record is None:
        text = f"which datastore {path} is on isn't known"
        fault = InaccessibleDatastore(text, datastore=datastore_name)
        remedy = "connect the VM's host"
        return (Finding(error=True, fault=fault, remedy=remedy, group=FindingGroup.DATASTORE),)
    host = parts.store.inventory.hosts.get(vm.host)
    present = (DiskFacts(0) if disk is None else DiskFacts(disk.key, disk.format),)
    return findings(policy, facts(parts, record, host.cluster if host is not None else ""), present)


def _names_of(policies: VmPolicies) -> set[str]:
    return {name for name in (policies.home, *(name for _key, name in policies.disks)) if name}
