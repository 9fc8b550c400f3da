"""The rules of EVC. Pure: no I/O, no clock, no logging.

    set, raise, lower   every host of the cluster offers the mode, and no VM that is powered on has more than it allows
    disable             always: VMs keep the CPU that they have until their next power-on
    add a host          it offers the cluster's mode
    a VM's own mode     within its cluster's mode, else offered by a host of the cluster; the VM is off

A host that offers a mode has every feature that a guest under it gets, so between hosts of one EVC cluster no guest is
ever refused because of its CPU.
"""

from collections.abc import Iterable, Sequence

from runtime import cpu_baselines
from runtime.cpu_baselines import BASELINE_OF, BASELINES, Baseline
from runtime.faults import EvcAdmissionFailed, InvalidArgument
from vpxd.compatibility.finding import Finding, error
from vpxd.inventory.records import Cluster, Vm
from vpxd.inventory.values import GuestCpu, HostCapability, HostInfo


def require_mode(mode: str) -> Baseline | None:
    """The baseline of a mode; None for the empty one. :raises InvalidArgument: there is no such mode."""
    if not mode:
        return None
    baseline = BASELINE_OF.get(mode)
    if baseline is None:
        raise InvalidArgument(f"there is no EVC mode {mode[:60]!r}", argument="mode")
    return baseline


def newest_in_common(capabilities: Sequence[HostCapability], vendor: str = "") -> Baseline | None:
    """The newest baseline that all of these hosts offer; of `vendor` where it is named and there is one."""
    if not capabilities:
        return None
    keys = set.intersection(*(set(capability.evc_modes) for capability in capabilities))
    common = [baseline for baseline in BASELINES if baseline.key in keys]
    preferred = [baseline for baseline in common if baseline.vendor == vendor] or common
    first = preferred[0].vendor if preferred else ""
    return next((one for one in reversed(preferred) if one.vendor == first), None)


def host_finding(
    cluster: Cluster, baseline: Baseline, name: str, capability: HostCapability
) -> Finding | None:
    """Why a host can't be in a cluster with this mode; None: it can."""
    if baseline.key in capability.evc_modes:
        return None
    features = frozenset(capability.cpu_features)
    lacking = cpu_baselines.first_missing(baseline, features)
    vendor = cpu_baselines.VENDOR_OF_CPUID.get(capability.cpu_vendor, baseline.vendor)
    if not features:
        reason = "it doesn't say what its CPU has"
    elif vendor != baseline.vendor:
        reason, lacking = f"its CPU is a {capability.cpu_vendor}", ""
    elif lacking:
        reason = f"it lacks {lacking}"
    else:
        reason = f"its QEMU doesn't know the CPU model {baseline.cpu_model}"
    fault = EvcAdmissionFailed(
        f"{name} can't offer {baseline.key}: {reason}",
        cluster=cluster.name,
        mode=baseline.key,
        host=name,
        feature=f"cpuid.{lacking}" if lacking else "",
    )
    newest = newest_in_common([capability], baseline.vendor)
    offers = f"; the newest that {name} offers is {newest.key}" if newest is not None else ""
    return error(fault, f"choose another mode, or another cluster for {name}{offers}")


def vm_finding(cluster: Cluster, baseline: Baseline, vm: Vm, accelerator: str) -> Finding | None:
    """Why a VM that is powered on can't stay in a cluster with this mode; None: it can."""
    cpu = vm.config.guest_cpu
    if cpu is None:
        reason, beyond = "nobody knows what its CPU has, it was started by an older version", []
    else:
        beyond = features_beyond(baseline, cpu, accelerator)
        reason = f"it runs with {', '.join(beyond)}"
        other = BASELINE_OF.get(cpu.baseline)
        if not beyond and (other is None or other.vendor == baseline.vendor):
            return None
        if not beyond:
            reason = f"it runs under {cpu.baseline}, which is another vendor's"
    fault = EvcAdmissionFailed(
        f"{vm.name} is powered on and above {baseline.key}: {reason}",
        cluster=cluster.name,
        mode=baseline.key,
        feature=f"cpuid.{beyond[0]}" if beyond else "",
    )
    return error(fault, f"power {vm.name} off, or move it to another cluster")


def features_beyond(baseline: Baseline, cpu: GuestCpu, accelerator: str) -> list[str]:
    """What a guest has that guests under the baseline don't get, sorted."""
    return sorted(set(cpu.features) - cpu_baselines.guest_features(baseline, accelerator))


def against_mode(
    cluster: Cluster, baseline: Baseline, hosts: Iterable[tuple[str, HostInfo, Iterable[Vm]]]
) -> tuple[Finding, ...]:
    """Everything that stands against a cluster's mode. `hosts`: name, facts and VMs that are powered on, of each."""
    findings: list[Finding | None] = []
    for name, info, running in hosts:
        findings.append(host_finding(cluster, baseline, name, info.capability))
        findings += [vm_finding(cluster, baseline, vm, info.capability.accelerator) for vm in running]
    return tuple(finding for finding in findings if finding is not None)


def require_vm_mode(cluster: Cluster, own: Baseline, capabilities: Iterable[HostCapability]) -> None:
    """:raises EvcAdmissionFailed: a VM of this cluster can't have this mode of its own: it couldn't be powered on."""
    limit = BASELINE_OF.get(cluster.evc_mode)
    if limit is not None and not limit.covers(own):
        message = f"{own.key} isn't within {cluster.name}'s own EVC mode, {limit.key}"
        raise EvcAdmissionFailed(message, cluster=cluster.name, mode=own.key)
    if not any(own.key in capability.evc_modes for capability in capabilities):
        message = f"no host of {cluster.name} can offer {own.key}"
        raise EvcAdmissionFailed(message, cluster=cluster.name, mode=own.key)


def refusal(cluster: Cluster, mode: str, findings: Sequence[Finding]) -> EvcAdmissionFailed:
    """One fault for all findings: its causes are their faults, one behind the other."""
    first = findings[0].fault
    feature = first.feature if isinstance(first, EvcAdmissionFailed) else ""
    host = first.host if isinstance(first, EvcAdmissionFailed) else ""
    number = len(findings)
    what = "1 host or VM stands" if number == 1 else f"{number} hosts or VMs stand"
    fault = EvcAdmissionFailed(
        f"{cluster.name} can't have the EVC mode {mode}: {what} against it",
        cluster=cluster.name,
        mode=mode,
        host=host,
        feature=feature,
    )
    outer: BaseException = fault
    for finding in findings:
        outer.__cause__ = finding.fault
        outer = finding.fault
    return fault
