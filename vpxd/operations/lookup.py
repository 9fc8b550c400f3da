"""Which object a request means, by id or name."""

from runtime.faults import HostNotConnected, InvalidState
from vpxd.inventory.ids import Kind
from vpxd.inventory.names import find
from vpxd.inventory.records import Cluster, Datacenter, Host, Vm
from vpxd.inventory.store import Inventory
from vpxd.operations.parts import Parts


def vm(inventory: Inventory, key: str) -> Vm:
    """:raises ManagedObjectNotFound: :raises InvalidArgument: as `names.find`."""
    return find(Kind.VM, key, inventory.vms, "vm")


def host(inventory: Inventory, key: str) -> Host:
    """:raises ManagedObjectNotFound: :raises InvalidArgument: as `names.find`."""
    return find(Kind.HOST, key, inventory.hosts, "host")


def cluster(inventory: Inventory, key: str) -> Cluster:
    """The first one where none is named. :raises ManagedObjectNotFound: :raises InvalidArgument: as `names.find`."""
    return (
        find(Kind.CLUSTER, key, inventory.clusters, "cluster")
        if key
        else next(iter(inventory.clusters.values()))
    )


def datacenter(inventory: Inventory, key: str) -> Datacenter:
    """The first one where none is named. :raises ManagedObjectNotFound: :raises InvalidArgument: as `names.find`."""
    if key:
        return find(Kind.DATACENTER, key, inventory.datacenters, "datacenter")
    return next(iter(inventory.datacenters.values()))


def vm_on_connected_host(parts: Parts, key: str) -> tuple[Vm, Host]:
    """A VM that can be worked with, and its host.

    :raises InvalidState: it is registered on no host.
    :raises HostNotConnected: its host doesn't answer.
    """
    inventory = parts.store.inventory
    found = vm(inventory, key)
    its_host = inventory.hosts.get(found.host)
    if its_host is None:
        raise InvalidState(f"{found.name} is registered on no host", state="orphaned", required="connected")
    require_connected(parts, its_host)
    return found, its_host


def require_connected(parts: Parts, wanted: Host) -> None:
    """:raises HostNotConnected: the host doesn't answer."""
    live = parts.live.host(wanted.id)
    if not live.connected:
        raise HostNotConnected(
            f"{wanted.name} is {live.connection.value}", host=wanted.name, state=live.connection.value
        )


def entity_id(inventory: Inventory, key: str) -> str:
    """The id of a VM, host or cluster that is named by id or name; what isn't known any more is taken as an id.

    :raises InvalidArgument: several objects have this name.
    """
    for kind, objects in (
        (Kind.VM, inventory.vms),
        (Kind.HOST, inventory.hosts),
        (Kind.CLUSTER, inventory.clusters),
    ):
        if key in objects or any(entry.name == key for entry in objects.values()):
            return find(kind, key, objects, "entity").id
    return key
