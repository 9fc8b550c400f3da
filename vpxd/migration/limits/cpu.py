"""The CPU that high-priority migrations reserve on their hosts. Pure: no I/O, no clock, no logging.

The semantics of VirtualMachineMovePriority: highPriority reserves CPU on both hosts and isn't started where it
can't have it; defaultPriority and lowPriority reserve none and just take longer on a busy host. How much it is,
vpxd/compatibility/priority.py says, which finds the same before anything starts; here those that run are counted too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.faults import InsufficientCpuResources
from vpxd.compatibility.priority import RESERVED_VCPUS


@dataclass(frozen=True)
class CpuRoom:
    """One host as a reservation sees it. `extra`: what the VM itself will take there besides, in vCPUs."""

    host: str
    name: str
    capacity_vcpus: int
    reserved_vcpus: int
    extra_vcpus: int = 0


@dataclass(frozen=True)
class Reservation:
    """So many vCPUs on each of its hosts, for as long as the migration runs."""

    task: str
    rooms: tuple[CpuRoom, ...]
    vcpus: int = RESERVED_VCPUS


def require_room(wanted: Reservation, held: Iterable[Reservation]) -> None:
    """:raises InsufficientCpuResources: a host hasn't so many vCPUs left."""
    present = list(held)
    for room in wanted.rooms:
        others = sum(other.vcpus for other in present for taken in other.rooms if taken.host == room.host)
        unreserved = room.capacity_vcpus - room.reserved_vcpus - others - room.extra_vcpus
        if unreserved < wanted.vcpus:
            raise InsufficientCpuResources(
                f"a migration of high priority needs {wanted.vcpus} vCPUs of {room.name} for itself, which has "
                f"{max(0, unreserved)} unreserved; with the default priority it could run, more slowly",
                requested_vcpus=wanted.vcpus,
                unreserved_vcpus=max(0, unreserved),
            )
