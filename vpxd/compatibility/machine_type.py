"""The virtual machine's type and the QEMU behind it. Pure: no I/O, no clock, no logging."""

from runtime.faults import VirtualHardwareVersionNotSupported
from vpxd.compatibility.finding import Finding, Move, error, warning


def check(move: Move) -> tuple[Finding, ...]:
    """The destination can run the VM's machine type."""
    machine_type, name = move.vm.config.machine_type, move.destination.name
    if not machine_type or machine_type in move.destination.info.capability.machine_types:
        return ()
    version = move.destination.info.capability.qemu_version or "unknown"
    fault = VirtualHardwareVersionNotSupported(
        f"{name} (QEMU {version}) can't run the machine type {machine_type}",
        machine_type=machine_type,
        host=name,
    )
    remedy = f"power {move.vm.config.name} off and give it a machine type that every host can run"
    return (error(fault, remedy) if move.vm.live else warning(fault, remedy),)
