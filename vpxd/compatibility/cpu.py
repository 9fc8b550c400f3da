"""The CPU: its model and how guests are run. Pure: no I/O, no clock, no logging."""

from runtime.faults import FeatureRequirementsNotMet, InsufficientCpuResources
from vpxd.compatibility.finding import Finding, Move, error, warning


def check(move: Move) -> tuple[Finding, ...]:
    """The destination knows the VM's CPU model, runs guests in the same way, and has vCPUs left to reserve."""
    return (*_model(move), *_accelerator(move), *_room(move))


def _model(move: Move) -> tuple[Finding, ...]:
    model, name = move.vm.config.cpu_model, move.destination.name
    known = move.destination.info.capability.cpu_models
    if not model or model in known:
        return ()
    fault = FeatureRequirementsNotMet(
        f"{name} doesn't know the CPU model {model}", feature=f"cpu model {model}", host=name
    )
    remedy = f"power {move.vm.config.name} off and give it a CPU model that {name} knows"
    return (error(fault, remedy) if move.vm.live else warning(fault, remedy),)


def _accelerator(move: Move) -> tuple[Finding, ...]:
    if move.source is None or not move.vm.live:
        return ()
    here = move.source.info.capability.accelerator
    there = move.destination.info.capability.accelerator
    if not here or not there or here == there:
        return ()
    name = move.destination.name
    fault = FeatureRequirementsNotMet(
        f"{name} runs guests with {there}, {move.source.name} with {here}",
        feature=f"accelerator {here}",
        host=name,
    )
    return (error(fault, "choose a host with the same accelerator, or move the VM while it is powered off"),)


def _room(move: Move) -> tuple[Finding, ...]:
    host, wanted = move.destination, move.vm.config.vcpus
    unreserved = max(0, host.info.vcpu_capacity - host.usage.vcpus_reserved)
    if not move.vm.live or wanted <= unreserved:
        return ()
    fault = InsufficientCpuResources(
        f"{host.name} has {unreserved} vCPUs left, {move.vm.config.name} needs {wanted}",
        requested_vcpus=wanted,
        unreserved_vcpus=unreserved,
    )
    return (error(fault, f"power off or move away other VMs of {host.name}, or choose another host"),)
