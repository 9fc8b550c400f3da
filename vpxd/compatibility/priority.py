"""What a migration of high priority reserves. Pure: no I/O, no clock, no logging.

vSphere reserves CPU on both hosts for one with high priority, and doesn't start it where that can't be had.
"""

from runtime.faults import InsufficientCpuResources
from vpxd.compatibility.finding import Finding, FindingGroup, HostFacts, Move, error

RESERVED_VCPUS = 1  # a whole one on each side, as the real system does on a fast network


def check(move: Move) -> tuple[Finding, ...]:
    """Both hosts have vCPUs left for a migration of high priority, the destination beside the VM's own."""
    if not (move.high_priority and move.vm.live and move.changes_host):
        return ()
    found = _reservable(move, move.destination, move.vm.config.vcpus, FindingGroup.RESOURCE_POOL)
    if move.source is None:
        return found
    return (*_reservable(move, move.source, 0, FindingGroup.SOURCE), *found)


def _reservable(move: Move, host: HostFacts, own_vcpus: int, group: FindingGroup) -> tuple[Finding, ...]:
    unreserved = host.info.vcpu_capacity - host.usage.vcpus_reserved
    if (
        unreserved >= own_vcpus + RESERVED_VCPUS or unreserved < own_vcpus
    ):  # the latter is said for any priority
        return ()
    fault = InsufficientCpuResources(
        f"{host.name} has no vCPU left to reserve for a migration of {move.vm.config.name} with high priority",
        requested_vcpus=own_vcpus + RESERVED_VCPUS,
        unreserved_vcpus=max(0, unreserved),
    )
    return (error(fault, f"choose another priority, or power off other VMs of {host.name}", group),)
