"""What a migration costs, and how much of each resource there is. Pure: no I/O, no clock, no logging.

In the units of vSphere 6.x (its documentation, "Limits on Simultaneous Migrations"):

    resource           there are  vMotion  files move, on      cold relocation  registration only
    host                      16        2                   8                 2                  2
    datastore                128        1                  16                16                  1
    vMotion network      4 or 8         1  1 between two hosts  1 between two hosts               0

A migration of both kinds costs the higher of both. It is charged on both of its hosts, on the vMotion network of
each of them, on each datastore that files leave or come to, and on the VM's other datastores; where source and
destination are one, once.
vSphere knows no datastore cost of a cold relocation; here a copied file costs its datastores the same whether a
guest runs or not, so 8 at once on one datastore, as many as a host can do.
"""

from dataclasses import dataclass, field
from enum import Enum

from vpxd.migration.options import Priority

HOST_UNITS = 16
DATASTORE_UNITS = 128
NETWORK_UNITS = 8
NETWORK_UNITS_SLOW = 4
FAST_LINK_GBPS = 10.0

_HOST_VMOTION, _HOST_STORAGE_VMOTION, _HOST_COLD = 2, 8, 2
_DATASTORE_TOUCHED, _DATASTORE_COPIED = 1, 16
_NETWORK = 1


class ResourceKind(Enum):
    """What migrations share. The value is for people."""

    HOST = "host"
    DATASTORE = "datastore"
    NETWORK = "vMotion network"


@dataclass(frozen=True)
class Resource:
    """One host, one datastore, or the vMotion network of one host. `id` is the inventory's, of a datastore its uuid."""

    kind: ResourceKind
    id: str
    name: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """For people."""
        if self.kind is ResourceKind.NETWORK:
            return f"the vMotion network of {self.name or self.id}"
        return f"the {self.kind.value} {self.name or self.id}"


@dataclass(frozen=True)
class Charge:
    """So many units of one resource."""

    resource: Resource
    units: int


@dataclass(frozen=True)
class Maxima:
    """How many units of each kind of resource there are."""

    host: int = HOST_UNITS
    datastore: int = DATASTORE_UNITS
    network: int = NETWORK_UNITS

    def of(self, resource: Resource) -> int:
        """Those of one resource."""
        if resource.kind is ResourceKind.HOST:
            return self.host
        return self.datastore if resource.kind is ResourceKind.DATASTORE else self.network


def maxima(link_gbps: float) -> Maxima:
    """The maxima where the vMotion network's links carry so many Gb/s."""
    return Maxima(network=NETWORK_UNITS if link_gbps >= FAST_LINK_GBPS else NETWORK_UNITS_SLOW)


@dataclass(frozen=True)
class Work:
    """A migration as the account sees it. `hosts`: id and name of the one or two that take part.

    `copied`: uuid and name of the datastores that files leave or come to; `touched`: of the VM's other ones.
    """

    live: bool
    hosts: tuple[tuple[str, str], ...]
    copied: tuple[tuple[str, str], ...] = ()
    touched: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Claim:
    """A migration's wish for its places."""

    task: str
    charges: tuple[Charge, ...]
    priority: Priority = Priority.DEFAULT

    @property
    def resources(self) -> frozenset[Resource]:
        """All that it is charged on."""
        return frozenset(charge.resource for charge in self.charges)


def charges(work: Work) -> tuple[Charge, ...]:
    """What it costs, each resource once."""
    hosts = dict(work.hosts)
    copied = dict(work.copied)
    touched = {uuid: name for uuid, name in work.touched if uuid not in copied}
    host_units = _HOST_VMOTION if work.live else _HOST_COLD
    if work.live and copied:
        host_units = _HOST_STORAGE_VMOTION
    found = [Charge(Resource(ResourceKind.HOST, key, name), host_units) for key, name in hosts.items()]
    if len(hosts) > 1 and (work.live or copied):
        found += [Charge(Resource(ResourceKind.NETWORK, key, name), _NETWORK) for key, name in hosts.items()]
    for stores, units in ((copied, _DATASTORE_COPIED), (touched, _DATASTORE_TOUCHED)):
        found += [Charge(Resource(ResourceKind.DATASTORE, key, name), units) for key, name in stores.items()]
    return tuple(found)
