"""Which datastore a request means, and through which host it is worked on.

Hosts often have a datastore of their own under one name ("local"). A name alone is taken where it is one datastore;
else the host must be named with it, or the datastore's id: nothing is ever guessed.
"""

from dataclasses import dataclass

from runtime.faults import (
    HostNotConnected,
    InaccessibleDatastore,
    InvalidArgument,
    ManagedObjectNotFound,
)
from runtime.ondisk.datastore_path import DatastorePath
from vpxd.agents.storage_client import StorageClient
from vpxd.inventory.names import MAX_NAME_CHARS
from vpxd.inventory.records import Datastore, Host, Vm
from vpxd.inventory.values import HostDatastore
from vpxd.operations import lookup
from vpxd.operations.parts import Parts


@dataclass(frozen=True)
class Place:
    """A datastore, or a path on it, and the connected host that works there. `path` names it as that host does."""

    datastore: Datastore
    host: Host
    path: DatastorePath

    @property
    def lock_key(self) -> str:
        """The key of the lock on what is at this path."""
        return f"{self.datastore.uuid} {self.path.relative}"


def datastore(parts: Parts, key: str, host_key: str = "") -> Datastore:
    """The datastore with this id or name; `host_key` decides between several of one name.

    :raises ManagedObjectNotFound: there is none, or the host doesn't exist.
    :raises InvalidArgument: no key, or several have the name; the text names them.
    :raises InaccessibleDatastore: the named host doesn't have it.
    """
    inventory = parts.store.inventory
    if not key:
        raise InvalidArgument("no datastore is named", argument="datastore")
    host = lookup.host(inventory, host_key) if host_key else None
    record = inventory.datastores.get(key)
    if record is not None:
        if host is not None and parts.live.host_info(host).datastore_with_uuid(record.uuid) is None:
            raise _not_seen(host, key)
        return record
    if host is not None:
        store = parts.live.host_info(host).datastore_named(key)
        found = _with_uuid(parts, store.uuid) if store is not None else None
        if found is None:
            raise _not_seen(host, key)
        return found
    return _only_one(parts, key)


def place(parts: Parts, text: str, host_key: str = "") -> Place:
    """Where a path such as "[local] iso/alpine.qcow2" is. "[datastore-3] iso" names the datastore by its id.

    :raises InvalidDatastorePath: it can't be a path.
    :raises HostNotConnected: the named host, or every host that sees it, doesn't answer.
    :raises InaccessibleDatastore: no connected host can access it.  Else as `datastore`.
    """
    path = DatastorePath.parse(text)
    record = datastore(parts, path.datastore, host_key)
    host, store = _host_for(parts, record, host_key)
    return Place(record, host, DatastorePath(store.name, path.relative))


def storage_of(parts: Parts, where: Place) -> StorageClient:
    """The client of the place's host. :raises HostNotConnected: it stopped answering."""
    return parts.agents.connected_storage(where.host)


def seeing(parts: Parts, record: Datastore) -> list[tuple[Host, HostDatastore]]:
    """The hosts that have the datastore, by name, with how they see it."""
    hosts = sorted(parts.store.inventory.hosts.values(), key=lambda host: host.name)
    seen = [(host, parts.live.host_info(host).datastore_with_uuid(record.uuid)) for host in hosts]
    return [(host, store) for host, store in seen if store is not None]


def uuid_of(parts: Parts, vm: Vm, name: str) -> str:
    """The uuid of the datastore that the VM's host calls `name`; empty where that isn't known."""
    host = parts.store.inventory.hosts.get(vm.host)
    store = parts.live.host_info(host).datastore_named(name) if host is not None else None
    if store is not None:
        return store.uuid
    named = [entry for entry in parts.store.inventory.datastores.values() if entry.name == name]
    return named[0].uuid if len(named) == 1 else ""


def _only_one(parts: Parts, name: str) -> Datastore:
    shown = name[:MAX_NAME_CHARS]
    candidates = {
        entry.id: entry for entry in parts.store.inventory.datastores.values() if entry.name == name
    }
    for host in parts.store.inventory.hosts.values():
        store = parts.live.host_info(host).datastore_named(name)
        record = _with_uuid(parts, store.uuid) if store is not None else None
        if record is not None:
            candidates[record.id] = record
    if not candidates:
        raise ManagedObjectNotFound(f"there is no datastore {shown!r}", kind="datastore", key=shown)
    if len(candidates) > 1:
        listed = ", ".join(f"{entry.id} on {_hosts_text(parts, entry)}" for entry in candidates.values())
        raise InvalidArgument(
            f"{len(candidates)} datastores are called {shown!r}: name one by its id, or its host ({listed})",
            argument="datastore",
        )
    return next(iter(candidates.values()))


def _with_uuid(parts: Parts, uuid: str) -> Datastore | None:
    return next((entry for entry in parts.store.inventory.datastores.values() if entry.uuid == uuid), None)


def _hosts_text(parts: Parts, record: Datastore) -> str:
    names = [host.name for host, _store in seeing(parts, record)]
    return " and ".join(names[:3]) + (" and others" if len(names) > 3 else "") or "no host"


def _host_for(parts: Parts, record: Datastore, host_key: str) -> tuple[Host, HostDatastore]:
    wanted = lookup.host(parts.store.inventory, host_key).id if host_key else ""
    seen = [(host, store) for host, store in seeing(parts, record) if wanted in ("", host.id)]
    for host, store in seen:
        if store.accessible and parts.live.host(host.id).connected:
            return host, store
    for host, _store in seen:
        live = parts.live.host(host.id)
        if live.connected:
            text = f"{host.name} can't access the datastore {record.name} now"
            raise InaccessibleDatastore(text, datastore=record.name, host=host.name)
    if not seen:
        raise InaccessibleDatastore(f"no host sees the datastore {record.name}", datastore=record.name)
    names = ", ".join(host.name for host, _store in seen)
    state = parts.live.host(seen[0][0].id).connection.value
    raise HostNotConnected(f"no host that sees {record.name} answers ({names})", host=names, state=state)


def _not_seen(host: Host, key: str) -> InaccessibleDatastore:
    shown = key[:MAX_NAME_CHARS]
    return InaccessibleDatastore(f"{host.name} has no datastore {shown}", datastore=shown, host=host.name)
