"""The CPU: its model, its features, and how guests are run. Pure: no I/O, no clock, no logging."""

from runtime import cpu_baselines
from runtime.cpu_baselines import BASELINE_OF
from runtime.faults import EvcAdmissionFailed, FeatureRequirementsNotMet, InsufficientCpuResources
from vpxd.compatibility.finding import Finding, FindingGroup, HostFacts, Move, error, warning
from vpxd.evc import rules
from vpxd.inventory.values import GuestCpu


def check(move: Move) -> tuple[Finding, ...]:
    """The destination can make the VM's CPU, runs guests in the same way, and has vCPUs left to reserve.

    A VM that is powered on needs every feature that it runs with: there is a finding for each that is missing, from the
    host itself or because the destination's cluster doesn't allow it. One that is off needs its model and EVC mode.
    """
    return (*_model(move), *_features(move), *_power_on(move), *_accelerator(move), *_room(move))


def _model(move: Move) -> tuple[Finding, ...]:
    cpu, name = move.vm.config.guest_cpu, move.destination.name
    running = move.vm.live and cpu is not None and cpu.model
    model = cpu.model if running and cpu is not None else move.vm.config.cpu_model.partition(",")[0]
    if not model or model in move.destination.info.capability.cpu_models:
        return ()
    fault = FeatureRequirementsNotMet(
        f"{name} doesn't know the CPU model {model}", feature=f"cpu model {model}", host=name
    )
    remedy = f"power {move.vm.config.name} off and give it a CPU model that {name} knows"
    return (error(fault, remedy) if move.vm.live else warning(fault, remedy),)


def _features(move: Move) -> tuple[Finding, ...]:
    cpu, host = move.vm.config.guest_cpu, move.destination
    if not move.vm.live or cpu is None or not cpu.features:
        return ()
    vm, remedy = move.vm.config.name, _remedy(move, cpu)
    lacking = _lacking(cpu, host)
    limit = BASELINE_OF.get(host.evc_mode)
    beyond: list[str] = []
    if limit is not None:
        beyond = rules.features_beyond(limit, cpu, host.info.capability.accelerator)
    texts = {
        feature: f"{host.evc_mode}, the EVC mode of {host.name}'s cluster, hides {feature}"
        for feature in beyond
    }
    texts |= {feature: f"{host.name} lacks {feature}" for feature in lacking}
    return tuple(
        error(
            FeatureRequirementsNotMet(
                f"{text}, which {vm} runs with", feature=f"cpuid.{feature}", host=host.name
            ),
            remedy,
        )
        for feature, text in sorted(texts.items())
    )


def _lacking(cpu: GuestCpu, host: HostFacts) -> list[str]:
    """What the host can't give; nothing where it doesn't say what it has: then it will refuse by itself."""
    features = host.info.capability.cpu_features
    return sorted(set(cpu.features).difference(features)) if features else []


def _remedy(move: Move, cpu: GuestCpu) -> str:
    """The newest baseline that would have allowed it: offered by both hosts, and within the destination's mode."""
    vm, host = move.vm.config.name, move.destination
    limit = BASELINE_OF.get(host.evc_mode)
    baseline = BASELINE_OF.get(cpu.baseline)
    vendor = baseline.vendor if baseline is not None else cpu_baselines.vendor_of_model(cpu.model)
    hosts = [host] if move.source is None else [move.source, host]
    newest = rules.newest_in_common([one.info.capability for one in hosts], limit.vendor if limit else vendor)
    if limit is not None and newest is not None and newest.covers(limit):
        newest = limit
    if newest is None:
        return f"power {vm} off and move it then, or choose a host that has what it runs with"
    names = " and ".join(one.name for one in hosts)
    return (
        f"power {vm} off, give it or its cluster the EVC mode {newest.key} (the newest that {names} can both offer), "
        "and power it on: then it can move while it runs"
    )


def _power_on(move: Move) -> tuple[Finding, ...]:
    """Whether a VM that is off could be powered on there."""
    own, host = BASELINE_OF.get(move.vm.config.evc_mode), move.destination
    if move.vm.live or own is None:
        return ()
    name, limit = move.vm.config.name, BASELINE_OF.get(host.evc_mode)
    if limit is not None and not limit.covers(own):
        text = f"{name}'s own EVC mode {own.key} isn't within {limit.key}, the mode of {host.name}'s cluster"
    elif own.key not in host.info.capability.evc_modes:
        text = f"{host.name} can't offer {name}'s own EVC mode {own.key}"
    else:
        return ()
    fault = EvcAdmissionFailed(text, mode=own.key, host=host.name)
    return (warning(fault, f"it can't be powered on there: give {name} an older EVC mode, or none"),)


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
    remedy = f"power off or move away other VMs of {host.name}, or choose another host"
    return (error(fault, remedy, FindingGroup.RESOURCE_POOL),)
