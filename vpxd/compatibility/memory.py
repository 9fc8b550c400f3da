"""Memory left to reserve. Pure: no I/O, no clock, no logging."""

from runtime.faults import InsufficientMemoryResources
from vpxd.compatibility.finding import Finding, FindingGroup, Move, error, warning

_MIB = 1024 * 1024


def check(move: Move) -> tuple[Finding, ...]:
    """The destination can reserve the VM's memory; for one that is off it only has to be big enough at all."""
    host, wanted = move.destination, move.vm.config.ram_bytes
    reserved = host.usage.memory_reserved_bytes if move.vm.live else 0
    unreserved = max(0, host.info.memory_bytes - reserved)
    if wanted <= unreserved:
        return ()
    fault = InsufficientMemoryResources(
        f"{host.name} has {unreserved // _MIB} MiB of memory left, {move.vm.config.name} needs {wanted // _MIB} MiB",
        requested_bytes=wanted,
        unreserved_bytes=unreserved,
    )
    remedy = f"power off or move away other VMs of {host.name}, or choose another host"
    if move.vm.live:
        return (error(fault, remedy, FindingGroup.RESOURCE_POOL),)
    return (warning(fault, f"it can't be powered on there: {remedy}", FindingGroup.RESOURCE_POOL),)
