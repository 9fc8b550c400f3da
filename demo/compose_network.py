"""Pure: no I/O, no clock, no logging.

Judges from bytes and sockets whether page data kept to the vMotion network.

    bytes      what each interface carried during a migration: the source's vMotion interface has sent what the stream
               had to carry, and no management interface nearly as much
    sockets    which TCP connections there were meanwhile: between hosts only from vMotion address to vMotion address;
               on the management network each host speaks with vpxd only
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Counters = Mapping[str, Mapping[str, int]]  # address -> {"rx", "tx"} in bytes
Connection = Sequence[object]  # local address, local port, remote address, remote port

MANAGEMENT_LIMIT_BYTES = 1 << 20
_WIRE_SLACK = 1.10  # headers of TCP, IP and Ethernet, acknowledgements
_WIRE_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class Networks:
    """The addresses by host's name; `vpxd` has one on the management network only."""

    vpxd: str
    management: Mapping[str, str]
    vmotion: Mapping[str, str]


@dataclass(frozen=True)
class Traffic:
    """What went over the interfaces during one migration, in bytes, both directions together."""

    source: str
    destination: str
    wire_bytes: int
    vmotion_bytes: Mapping[str, int]
    management_bytes: Mapping[str, int]

    def document(self) -> dict[str, object]:
        """One entry of "network" in compose.json."""
        return {
            "source": self.source,
            "destination": self.destination,
            "wire_bytes": self.wire_bytes,
            "vmotion_bytes": dict(self.vmotion_bytes),
            "management_bytes": dict(self.management_bytes),
        }


def networks_of(prefix: str, hosts: Sequence[str]) -> Networks:
    """The addresses of docker-compose.yml: vpxd is .10, hosts are numbered from .11 on, in both networks."""
    numbered = list(enumerate(hosts, 11))
    return Networks(
        f"{prefix}.1.10",
        {name: f"{prefix}.1.{number}" for number, name in numbered},
        {name: f"{prefix}.2.{number}" for number, name in numbered},
    )


def traffic_between(
    before: Mapping[str, Counters], after: Mapping[str, Counters], networks: Networks
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by container on the vMotion and on the management network, between two looks at the counters.

    :raises KeyError: a container has lost an address.
    """
    grown = {
        name: {
            address: sum(after[name][address].values()) - sum(both.values()) for address, both in old.items()
        }
        for name, old in before.items()
    }
    vmotion = {name: grown[name][address] for name, address in networks.vmotion.items()}
    management = {name: grown[name][address] for name, address in networks.management.items()}
    management["vpxd"] = grown["vpxd"][networks.vpxd]
    return vmotion, management


def traffic_problems(traffic: Traffic) -> list[str]:
    """What speaks against it that the pages went over the vMotion network, and only there."""
    found = []
    most = traffic.wire_bytes * _WIRE_SLACK + _WIRE_SLACK_BYTES
    for name, carried in traffic.vmotion_bytes.items():
        if name in (traffic.source, traffic.destination):
            if not traffic.wire_bytes <= carried <= most:
                found.append(
                    f"{name}'s vMotion interface carried {carried} bytes, the stream {traffic.wire_bytes}"
                )
        elif carried > _WIRE_SLACK_BYTES:
            found.append(f"{name} has no part in it, and its vMotion interface carried {carried} bytes")
    found += [
        f"{name}'s management interface carried {carried} bytes"
        for name, carried in traffic.management_bytes.items()
        if carried > MANAGEMENT_LIMIT_BYTES
    ]
    return [f"{traffic.source} → {traffic.destination}: {text}" for text in found]


def attachment_problems(seen: Mapping[str, Counters], networks: Networks) -> list[str]:
    """Which containers are attached to other networks than they should be."""
    found = []
    for name, counters in seen.items():
        wanted = {networks.vpxd} if name == "vpxd" else {networks.management[name], networks.vmotion[name]}
        if set(counters) != wanted:
            found.append(f"{name} has the addresses {sorted(counters)} instead of {sorted(wanted)}")
    return found


def connection_problems(
    seen: Mapping[str, Iterable[Connection]], source: str, destination: str, networks: Networks
) -> list[str]:
    """What is wrong with the connections that each container had during a migration from source to destination."""
    found = []
    pair = {networks.vmotion[source], networks.vmotion[destination]}
    vmotion = set(networks.vmotion.values())
    streams = 0
    for name, connections in seen.items():
        for local, local_port, remote, remote_port in connections:
            if str(local).startswith("127."):
                continue
            if {local, remote} == pair:
                streams += 1
            elif local in vmotion or remote in vmotion or networks.vpxd not in (local, remote):
                found.append(f"{name} had a connection {local}:{local_port} to {remote}:{remote_port}")
    if not streams:
        found.append(f"no connection between {' and '.join(sorted(pair))} was seen")
    return [f"{source} → {destination}: {text}" for text in found]
