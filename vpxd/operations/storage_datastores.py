"""Mounting, unmounting and tagging datastores. On several hosts all of it happens, or nothing."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import structlog

from runtime.faults import DuplicateName, InvalidArgument, ResourceInUse, VimFault
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import require_name
from vpxd.inventory.records import Datastore, Host
from vpxd.inventory.values import HostDatastore
from vpxd.operations import lookup, storage_place
from vpxd.operations.parts import Parts
from vpxd.storage.files_in_use import used_on
from vpxd.storage.policy import require_tags
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

_log = structlog.get_logger(__name__)
MAX_LOCATION_CHARS = 4_096


async def mount(parts: Parts, name: str, location: str, host_keys: tuple[str, ...], user: str) -> TaskRecord:
    """Mounts a directory on all named hosts as one datastore. :raises VimFault: as the rpc says."""
    require_name(name, "name")
    if not location.startswith("/") or len(location) > MAX_LOCATION_CHARS or not location.isprintable():
        raise InvalidArgument(
            "a location is the absolute path of a directory on the hosts", argument="location"
        )
    hosts = _hosts(parts, host_keys)
    if not hosts:
        raise InvalidArgument("no host is named", argument="hosts")
    for host in hosts:
        lookup.require_connected(parts, host)
        if parts.live.host_info(host).datastore_named(name) is not None:
            raise DuplicateName(f"{host.name} has a datastore {name!r}", kind="datastore", name=name)

    async def work(task: Task) -> str:
        stores: list[HostDatastore] = []
        async with AsyncExitStack() as undo:
            for number, host in enumerate(hosts):
                task.refuse_cancel_wish("mount")
                task.advance(5 + 80 * number // len(hosts), f"mounting {name} on {host.name}")
                storage = parts.agents.connected_storage(host)
                store = await storage.mount(name, location)
                undo.push_async_callback(_undone, host, partial(storage.unmount, name))
                stores.append(store)
                _require_one(stores, hosts, name)
            task.refuse_cancel_wish("mount")
            record = await _write_mounted(parts, stores[0], hosts, task)
            undo.pop_all()
        await _ask_again(parts, hosts)
        return record.id

    keys = (f"datastore name {name}", *(f"{host.id} datastores" for host in hosts))
    spec = TaskSpec(
        "HostDatastoreSystem.mount",
        hosts[0].id,
        name,
        user,
        exclusive=keys,
        shared=tuple(host.id for host in hosts),
        cancelable=True,
    )
    return await parts.tasks.submit(spec, work)


async def unmount(parts: Parts, key: str, host_keys: tuple[str, ...], user: str) -> TaskRecord:
    """Unmounts a datastore from the named hosts, or from all. :raises VimFault: as the rpc says."""
    record = storage_place.datastore(parts, key, host_keys[0] if len(host_keys) == 1 else "")
    named = {host.id for host in _hosts(parts, host_keys)}
    seen = [
        (host, store) for host, store in storage_place.seeing(parts, record) if not named or host.id in named
    ]
    missing = named - {host.id for host, _store in seen}
    if missing or not seen:
        absent = parts.store.inventory.hosts[min(missing)].name if missing else "no host"
        raise InvalidArgument(f"{absent} has the datastore {record.name}", argument="hosts")
    for host, _store in seen:
        lookup.require_connected(parts, host)
    _require_unused(parts, record, {host.id for host, _store in seen})

    async def work(task: Task) -> str:
        _require_unused(parts, record, {host.id for host, _store in seen})
        async with AsyncExitStack() as undo:
            for number, (host, store) in enumerate(seen):
                task.refuse_cancel_wish("unmount")
                task.advance(5 + 80 * number // len(seen), f"unmounting {store.name} from {host.name}")
                storage = parts.agents.connected_storage(host)
                await storage.unmount(store.name)
                undo.push_async_callback(_undone, host, partial(storage.mount, store.name, store.location))
            task.refuse_cancel_wish("unmount")
            undo.pop_all()
        await _ask_again(parts, [host for host, _store in seen])
        await _write_unmounted(parts, record, [host for host, _store in seen], task)
        return record.id

    spec = TaskSpec(
        "Datastore.unmount",
        record.id,
        record.name,
        user,
        exclusive=(record.uuid, *(f"{host.id} datastores" for host, _store in seen)),
        shared=tuple(host.id for host, _store in seen),
        cancelable=True,
    )
    return await parts.tasks.submit(spec, work)


async def tag(parts: Parts, key: str, tags: tuple[str, ...]) -> Datastore:
    """Gives a datastore these tags instead of those it had. :raises VimFault: as the rpc says."""
    wanted = require_tags(tags, "tags")
    named = storage_place.datastore(parts, key)
    async with parts.store.transaction() as transaction:
        present = parts.store.inventory.datastores.get(named.id, named)
        record = replace(present, tags=wanted)
        transaction.put(record)
    return record


def _hosts(parts: Parts, keys: tuple[str, ...]) -> list[Host]:
    """Each host once, in the order of their names."""
    found = {host.id: host for host in (lookup.host(parts.store.inventory, key) for key in keys)}
    return sorted(found.values(), key=lambda host: host.name)


def _require_one(stores: list[HostDatastore], hosts: list[Host], name: str) -> None:
    """:raises InvalidArgument: the directory isn't the same on every host."""
    if stores[-1].uuid != stores[0].uuid:
        raise InvalidArgument(
            f"{hosts[0].name} and {hosts[len(stores) - 1].name} have different directories there: mount {name} on"
            " each by a call of its own",
            argument="hosts",
        )


def _require_unused(parts: Parts, record: Datastore, hosts: set[str]) -> None:
    """:raises ResourceInUse: a VM of one of these hosts has files there."""
    vms = [vm for vm in parts.store.inventory.vms.values() if vm.host in hosts]
    used = used_on(vms, record.uuid, lambda vm, name: storage_place.uuid_of(parts, vm, name))
    if used:
        names = sorted({entry.vm.name for entry in used})
        raise ResourceInUse(
            f"{len(names)} VMs have files on {record.name} ({', '.join(names[:5])}): move them away first",
            kind="datastore",
            name=record.name,
        )


async def _undone(host: Host, undo: Callable[[], Awaitable[object]]) -> None:
    """Best effort: what has failed is what the caller must learn."""
    try:
        await undo()
    except VimFault as fault:
        _log.error("datastore_undo_failed", host=host.name, reason=fault.message)


async def _ask_again(parts: Parts, hosts: list[Host]) -> None:
    """What hosts have now, so that whoever looks after the task's end sees it; their reports tell it anyway."""
    for host in hosts:
        try:
            info, _usage = await parts.agents.connected_client(host).get_host()
        except VimFault as fault:
            _log.warning("host_not_asked_again", host=host.name, reason=fault.message)
        else:
            parts.live.told(host.id, info)


async def _write_mounted(parts: Parts, store: HostDatastore, hosts: list[Host], task: Task) -> Datastore:
    """The datastore's record; its first host's report may have been faster."""
    async with parts.store.transaction() as transaction:
        known = [entry for entry in parts.store.inventory.datastores.values() if entry.uuid == store.uuid]
        if known:
            record = known[0]
        else:
            new_id = await transaction.new_id(Kind.DATASTORE)
            record = Datastore(new_id, store.name, store.uuid, store.capacity_bytes)
            transaction.put(record)
        names = ", ".join(host.name for host in hosts)
        text = f"{store.name} was mounted on {names}"
        transaction.emit(EventDraft(EventType.DATASTORE_MOUNTED, text, record.id, record.name, task.id))
    return record


async def _write_unmounted(parts: Parts, record: Datastore, hosts: list[Host], task: Task) -> None:
    async with parts.store.transaction() as transaction:
        present = parts.store.inventory.datastores.get(record.id)
        if present is not None and not storage_place.seeing(parts, present):
            transaction.delete(present)
        names = ", ".join(host.name for host in hosts)
        text = f"{record.name} was unmounted from {names}"
        transaction.emit(EventDraft(EventType.DATASTORE_UNMOUNTED, text, record.id, record.name, task.id))
