"""Create, register, unregister, reconfigure and destroy."""

import time
from dataclasses import replace

from runtime.faults import (
    ConcurrentAccess,
    DuplicateName,
    InaccessibleDatastore,
    InvalidArgument,
    NoCompatibleHost,
)
from runtime.ondisk.datastore_path import DatastorePath
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.changes import record_of
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import find
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.values import HostInfo, VmConfig, VmState
from vpxd.operations import lookup, vm_config
from vpxd.operations.parts import Parts
from vpxd.operations.vm_power import take_answer
from vpxd.placement.choose import Candidate, choose
from vpxd.placement.filters import reasons_against
from vpxd.placement.rules import without
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task


async def create(parts: Parts, config: VmConfig, datastore: str, host_key: str, user: str) -> TaskRecord:
    """Makes a VM on the named host, or where placement puts it. :raises VimFault: as the rpc says."""
    inventory = parts.store.inventory
    config = vm_config.require_valid(config)
    if not datastore:
        raise InvalidArgument("no datastore is named", argument="datastore")
    named = lookup.host(inventory, host_key) if host_key else None
    if named is not None:
        lookup.require_connected(parts, named)
    config = vm_config.with_defaults(config, _future_hosts(parts, named))
    _require_free_name(parts, config.name, "")
    if inventory.vm_with_uuid(config.uuid) is not None:
        raise DuplicateName(f"a VM with the uuid {config.uuid} exists already", kind="vm", name=config.uuid)
    store_key = _datastore_uuid(parts, datastore)
    host, reason = (named, "named by the user") if named is not None else _place(parts, config, store_key)
    datastore_name = _name_on(parts.live.host_info(host), host, store_key, datastore)

    async def work(task: Task) -> str:
        task.advance(5, f"creating on {host.name} ({reason})")
        state = await parts.agents.connected_client(host).create_vm(config, datastore_name, task.id)
        return await _take_new(parts, host, state, EventType.VM_CREATED, task)

    cluster = inventory.clusters[host.cluster]
    spec = TaskSpec(
        "VirtualMachine.create",
        cluster.id,
        config.name,
        user,
        exclusive=(config.uuid, _name_key(config.name)),
        shared=(host.id,),
    )
    return await parts.tasks.submit(spec, work)


async def register(parts: Parts, home: str, host_key: str, user: str) -> TaskRecord:
    """Registers a VM from its .vmx file. :raises VimFault: as the rpc says."""
    inventory = parts.store.inventory
    path = DatastorePath.parse(home)
    host = lookup.host(inventory, host_key) if host_key else _seeing(parts, path.datastore)
    lookup.require_connected(parts, host)
    store = parts.live.host_info(host).datastore_named(path.datastore)
    if store is None:
        text = f"{host.name} has no datastore {path.datastore}"
        raise InaccessibleDatastore(text, datastore=path.datastore, host=host.name)
    for vm in inventory.vms.values():
        if vm.host and vm.home == str(path) and parts.facts.vm(vm).home_datastore_uuid == store.uuid:
            raise DuplicateName(f"{path} is registered already, as {vm.id}", kind="vm", name=vm.name)

    async def work(task: Task) -> str:
        state = await parts.agents.connected_client(host).register_vm(str(path), task.id)
        return await _take_new(parts, host, state, EventType.VM_REGISTERED, task)

    cluster = inventory.clusters[host.cluster]
    spec = TaskSpec(
        "VirtualMachine.register",
        cluster.id,
        path.stem,
        user,
        exclusive=(f"{store.uuid} {path.relative}",),
        shared=(host.id,),
    )
    return await parts.tasks.submit(spec, work)


async def unregister(parts: Parts, key: str, user: str) -> TaskRecord:
    """Forgets a powered-off VM; of an orphan only the inventory knows. :raises VimFault: as the rpc says."""
    vm = lookup.vm(parts.store.inventory, key)
    if not vm.host:
        return await _submit_removal(parts, vm, None, user, destroy=False)
    _vm, host = lookup.vm_on_connected_host(parts, key)
    return await _submit_removal(parts, vm, host, user, destroy=False)


async def destroy(parts: Parts, key: str, user: str) -> TaskRecord:
    """Deletes a powered-off VM with its files. :raises VimFault: as the rpc says."""
    vm, host = lookup.vm_on_connected_host(parts, key)
    return await _submit_removal(parts, vm, host, user, destroy=True)


async def reconfigure(parts: Parts, key: str, config: VmConfig, user: str) -> TaskRecord:
    """Changes a powered-off VM to the whole given configuration. :raises VimFault: as the rpc says."""
    vm, host = lookup.vm_on_connected_host(parts, key)
    config = vm_config.require_valid(config)
    if config.uuid and config.uuid != vm.uuid:
        raise InvalidArgument("a VM's uuid can't be changed", argument="config.uuid")
    if config.change_version != vm.config.change_version:
        raise ConcurrentAccess(
            f"{vm.name} was changed meanwhile (version {vm.config.change_version}, not {config.change_version})",
            kind="vm",
            key=vm.id,
        )
    _require_free_name(parts, config.name, vm.id)
    wanted = replace(
        config,
        uuid=vm.uuid,
        machine_type=config.machine_type or vm.config.machine_type,
        cpu_model=config.cpu_model or vm.config.cpu_model,
    )

    async def work(task: Task) -> str:
        client = parts.agents.connected_client(host)
        state = await client.reconfigure_vm(vm.uuid, wanted, task.id)
        text = f"{vm.name} on {host.name} was reconfigured"
        event = EventDraft(EventType.VM_RECONFIGURED, text, vm.id, wanted.name, task.id)
        await take_answer(parts, vm, host, state, event)
        return vm.id

    names = (_name_key(wanted.name),) if wanted.name != vm.name else ()
    spec = TaskSpec(
        "VirtualMachine.reconfigure", vm.id, vm.name, user, exclusive=(vm.uuid, *names), shared=(host.id,)
    )
    return await parts.tasks.submit(spec, work)


async def _submit_removal(parts: Parts, vm: Vm, host: Host | None, user: str, *, destroy: bool) -> TaskRecord:
    async def work(task: Task) -> str:
        if host is not None:
            client = parts.agents.connected_client(host)
            await (client.destroy_vm if destroy else client.unregister_vm)(vm.uuid, task.id)
        words = "was deleted" if destroy else "was taken out of the inventory"
        event = EventDraft(EventType.VM_REMOVED, f"{vm.name} {words}", vm.id, vm.name, task.id)
        async with parts.store.transaction() as transaction:
            transaction.delete(vm)
            if (policies := parts.store.inventory.vm_policies.get(vm.id)) is not None:
                transaction.delete(policies)
            for rule in without(parts.store.inventory.affinity_rules.values(), {vm.id}):
                transaction.put(rule)
            transaction.emit(event)
        parts.live.forgotten(vm.uuid, time.monotonic())
        return ""

    operation = "VirtualMachine.destroy" if destroy else "VirtualMachine.unregister"
    shared = (host.id,) if host is not None else ()
    spec = TaskSpec(operation, vm.id, vm.name, user, exclusive=(vm.uuid,), shared=shared)
    return await parts.tasks.submit(spec, work)


async def _take_new(parts: Parts, host: Host, state: VmState, kind: EventType, task: Task) -> str:
    """The host has made or registered a VM: it gets an id, unless the host's report was faster or it was an orphan."""
    words = "created" if kind is EventType.VM_CREATED else "registered"
    async with parts.store.transaction() as transaction:
        known = parts.store.inventory.vm_with_uuid(state.uuid)
        vm_id = known.id if known is not None else await transaction.new_id(Kind.VM)
        record = record_of(vm_id, host.id, state)
        transaction.put(record)
        text = f"{record.name} was {words} on {host.name}"
        transaction.emit(EventDraft(kind, text, vm_id, record.name, task.id))
    parts.live.learned(host.id, state, time.monotonic())
    return vm_id


def _name_key(name: str) -> str:
    """The lock of a name that is being given to a VM."""
    return f"vm name {name}"


def _require_free_name(parts: Parts, name: str, own_id: str) -> None:
    """:raises DuplicateName: another VM is called so."""
    for vm in parts.store.inventory.vms.values():
        if vm.name == name and vm.id != own_id:
            raise DuplicateName(f"{vm.id} is called {name!r} already", kind="vm", name=name)


def _future_hosts(parts: Parts, named: Host | None) -> list[HostInfo]:
    """The connected hosts of the cluster: the VM should be able to go to each of them."""
    return [
        parts.live.host_info(host)
        for host in parts.store.inventory.hosts.values()
        if parts.live.host(host.id).connected and (named is None or host.cluster == named.cluster)
    ]


def _datastore_uuid(parts: Parts, key: str) -> str:
    """The uuid behind a datastore's id; a name stays a name, because each host may have one of its own."""
    record = parts.store.inventory.datastores.get(key)
    if record is not None:
        return record.uuid
    if not any(store.name == key for store in parts.store.inventory.datastores.values()):
        find(Kind.DATASTORE, key, parts.store.inventory.datastores, "datastore")
    return key


def _name_on(info: HostInfo, host: Host, store_key: str, shown: str) -> str:
    store = info.datastore_with_uuid(store_key) or info.datastore_named(store_key)
    if store is None or not store.accessible:
        problem = "doesn't see" if store is None else "can't access"
        raise InaccessibleDatastore(
            f"{host.name} {problem} the datastore {shown}", datastore=shown, host=host.name
        )
    return store.name


def _place(parts: Parts, config: VmConfig, store_key: str) -> tuple[Host, str]:
    hosts = parts.store.inventory.hosts
    facts = sorted((parts.facts.host(host) for host in hosts.values()), key=lambda host: host.name)
    choice = choose(config, [Candidate(host, reasons_against(config, store_key, host)) for host in facts])
    if choice.host is None or choice.score is None:
        raise NoCompatibleHost(f"no host can take {config.name}", reasons=" | ".join(choice.reasons))
    return hosts[choice.host.id], choice.score.reason


def _seeing(parts: Parts, datastore: str) -> Host:
    """A connected host that sees the datastore, the first by name."""
    for host in sorted(parts.store.inventory.hosts.values(), key=lambda host: host.name):
        info = parts.live.host_info(host)
        if parts.live.host(host.id).connected and info.datastore_named(datastore) is not None:
            return host
    raise NoCompatibleHost(
        f"no connected host sees the datastore {datastore}", reasons=f"nobody has {datastore}"
    )
