"""Pure: no I/O, no clock, no logging.

What there is to choose from at a destination: one host, or the hosts of a cluster, where placement will choose one. A
cluster offers what any of its hosts has, by name, and says on how many of them it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proto.vim.v1 import host_pb2
from proto.vpxd.v1 import inventory_pb2


@dataclass(frozen=True)
class DatastoreOffer:
    """Datastores of one name. `free_bytes`, `capacity_bytes`: of the one with the least free space."""

    name: str
    uuids: tuple[str, ...]
    free_bytes: int
    capacity_bytes: int
    hosts: int

    def misfit(self, ids: Mapping[str, str], misfits: Iterable[Mapping[str, str]]) -> str:
        """What speaks against it under any of the policies; empty: nothing. `ids`: datastore ids by uuid."""
        found = [by_id.get(ids.get(uuid, ""), "") for uuid in self.uuids for by_id in misfits]
        return "; ".join(dict.fromkeys(reason for reason in found if reason))


@dataclass(frozen=True)
class NetworkOffer:
    """Port groups of one name."""

    name: str
    segments: tuple[int, ...]
    hosts: int


def destinations(
    hosts: Sequence[inventory_pb2.Host], clusters: Sequence[inventory_pb2.Cluster], host: str, cluster: str
) -> list[inventory_pb2.Host]:
    """The host of this name, or the hosts of this cluster."""
    if host:
        return [one for one in hosts if one.name == host]
    ids = {one.id for one in clusters if one.name == cluster}
    return [one for one in hosts if one.cluster in ids]


def datastores(hosts: Sequence[inventory_pb2.Host]) -> list[DatastoreOffer]:
    """Those that the hosts can reach, by name."""
    found: dict[str, list[host_pb2.Datastore]] = {}
    for host in hosts:
        for store in host.info.datastores:
            if store.accessible:
                found.setdefault(store.name, []).append(store)
    offers = []
    for name, stores in sorted(found.items()):
        least = min(stores, key=lambda store: store.free_bytes)
        uuids = tuple(dict.fromkeys(store.uuid for store in stores))
        offers.append(DatastoreOffer(name, uuids, least.free_bytes, least.capacity_bytes, len(stores)))
    return offers


def networks(hosts: Sequence[inventory_pb2.Host]) -> list[NetworkOffer]:
    """The port groups of the hosts, by name."""
    found: dict[str, list[int]] = {}
    for host in hosts:
        for group in host.info.port_groups:
            found.setdefault(group.name, []).append(group.segment_id)
    return [
        NetworkOffer(name, tuple(dict.fromkeys(segments)), len(segments))
        for name, segments in sorted(found.items())
    ]
