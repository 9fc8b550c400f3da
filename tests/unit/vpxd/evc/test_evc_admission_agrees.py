"""What EVC admits agrees with what migrations do: random clusters, from the features that QEMU told to the checks.

Here both sides are the product: hostd says what it offers and fixes the guests' CPUs, vpxd admits and checks.
"""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hostd.host.cpu_features import CpuFeatures, baseline_in_force, fix_guest_cpu, require_features
from proto.vim.v1 import vm_config_pb2
from runtime import cpu_baselines
from runtime.cpu_baselines import BASELINE_OF, BASELINES, Baseline
from runtime.faults import EvcAdmissionFailed, FeatureRequirementsNotMet
from vpxd.compatibility import cpu as cpu_check
from vpxd.compatibility.finding import HostFacts, Move, VmFacts
from vpxd.evc import rules
from vpxd.inventory.records import Cluster, Vm
from vpxd.inventory.values import (
    ExecutionState,
    HostCapability,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
)
from vpxd.wire import vm_config_from_wire

# QEMU's models have more than the baselines count; nobody may rely on it.
EXTRA = ("hle", "rtm", "pcid", "invpcid", "x2apic", "tsc-deadline", "la57", "svm")
MODELS = {one.cpu_model: one.feature_set | {"hle", "pcid", "x2apic"} for one in BASELINES} | {
    "qemu64": BASELINE_OF["intel-penryn"].feature_set - {"ssse3", "sse4.1"} | {"svm"}
}
CLUSTER = Cluster("domain-c1", "cluster", "datacenter-1")

every_feature = sorted({feature for one in BASELINES for feature in one.features} | set(EXTRA))


@st.composite
def hosts(draw: st.DrawFn) -> CpuFeatures:
    """A host of some generation, with a few features more and, rarely, a few less."""
    newest = draw(st.sampled_from(BASELINES))
    more = draw(st.sets(st.sampled_from(every_feature), max_size=6))
    less = draw(st.sets(st.sampled_from(every_feature), max_size=2)) if draw(st.booleans()) else set()
    vendor = draw(st.sampled_from(("", "GenuineIntel", "AuthenticAMD")))
    return CpuFeatures(newest.feature_set - less | more, vendor, MODELS)


def facts_of(number: int, host: CpuFeatures, mode: str) -> HostFacts:
    """The host as vpxd has it."""
    capability = HostCapability(
        cpu_models=tuple(MODELS),
        accelerator="tcg",
        cpu_features=tuple(sorted(host.features)),
        cpu_vendor=host.vendor,
        evc_modes=tuple(one.key for one in host.offered()),
    )
    info = HostInfo(f"uuid-{number}", f"esx0{number}", vcpu_capacity=16, capability=capability)
    return HostFacts(
        f"host-{number}", f"esx0{number}", HostConnection.CONNECTED, info, HostUsage(), CLUSTER.id, mode
    )


def running(cpu: vm_config_pb2.GuestCpu | None, model: str) -> VmFacts:
    """A VM that runs with this CPU."""
    config = vm_config_pb2.VmConfig(uuid="u", name="web01", vcpus=1, ram_bytes=1 << 28, cpu_model=model)
    if cpu is not None:
        config.guest_cpu.CopyFrom(cpu)
    return VmFacts(
        "vm-1",
        vm_config_from_wire(config),
        "[shared] web01/web01.vmx",
        "shared",
        "ds",
        PowerState.POWERED_ON,
        ExecutionState.RUNNING,
    )


@given(hosts(), hosts(), st.sampled_from(BASELINES), st.sampled_from(("", *BASELINE_OF)))
def test_guests_of_an_evc_cluster_can_go_to_every_host_that_was_admitted(
    here: CpuFeatures, there: CpuFeatures, mode: Baseline, own: str
) -> None:
    source, destination = facts_of(1, here, mode.key), facts_of(2, there, mode.key)
    against = rules.against_mode(
        CLUSTER, mode, [(host.name, host.info, []) for host in (source, destination)]
    )
    admitted = all(mode in host.offered() for host in (here, there))
    assert (not against) == admitted
    assume(admitted)
    try:
        baseline = baseline_in_force(own, mode.key)
    except EvcAdmissionFailed:
        assert not mode.covers(BASELINE_OF[own])
        return
    guest_cpu = fix_guest_cpu(here, "qemu64", baseline, "tcg", "esx01")
    assert guest_cpu is not None
    assert cpu_check.check(Move(running(guest_cpu, "qemu64"), source, destination)) == ()
    require_features(there, guest_cpu, "esx02")
    assert fix_guest_cpu(there, "qemu64", baseline, "tcg", "esx02") == guest_cpu, "one CPU on both hosts"


@given(hosts(), hosts(), st.sampled_from(sorted(MODELS)), st.sampled_from(("", *BASELINE_OF)))
def test_check_finds_exactly_what_the_destination_would_refuse(
    here: CpuFeatures, there: CpuFeatures, model: str, mode: str
) -> None:
    baseline = BASELINE_OF.get(mode)
    assume(baseline is None or baseline in here.offered())
    guest_cpu = fix_guest_cpu(here, model, baseline, "tcg", "esx01")
    assert guest_cpu is not None
    source, destination = facts_of(1, here, ""), facts_of(2, there, "")
    found = cpu_check.check(Move(running(guest_cpu, model), source, destination))
    missing = {f"cpuid.{feature}" for feature in set(guest_cpu.features) - there.features}
    told = [finding.fault for finding in found if finding.error]
    assert {fault.feature for fault in told if isinstance(fault, FeatureRequirementsNotMet)} == missing
    assert len(told) == len(missing), "one finding for each"
    if missing:
        with pytest.raises(FeatureRequirementsNotMet) as refused:
            require_features(there, guest_cpu, "esx02")
        assert refused.value.feature in missing
    else:
        require_features(there, guest_cpu, "esx02")


@given(hosts(), hosts(), st.sampled_from(sorted(MODELS)))
def test_remedys_baseline_would_really_have_allowed_it(
    here: CpuFeatures, there: CpuFeatures, model: str
) -> None:
    guest_cpu = fix_guest_cpu(here, model, None, "tcg", "esx01")
    assert guest_cpu is not None
    source, destination = facts_of(1, here, ""), facts_of(2, there, "")
    found = cpu_check.check(Move(running(guest_cpu, model), source, destination))
    named = {word for finding in found for word in finding.remedy.split() if word in BASELINE_OF}
    assert len(named) <= 1
    common = [one for one in BASELINES if one in here.offered() and one in there.offered()]
    assert bool(named) == bool(found and common)
    for key in named:
        baseline = BASELINE_OF[key]
        assert not any(one.covers(baseline) and one is not baseline for one in common), "the newest"
        again = fix_guest_cpu(here, model, baseline, "tcg", "esx01")
        assert cpu_check.check(Move(running(again, model), source, destination)) == ()


@given(hosts(), st.sampled_from(BASELINES), st.sampled_from(BASELINES))
def test_vm_of_a_mode_stands_against_exactly_the_lower_ones(
    host: CpuFeatures, of_vm: Baseline, wanted: Baseline
) -> None:
    assume(of_vm in host.offered() and wanted in host.offered())
    guest_cpu = fix_guest_cpu(host, "qemu64", of_vm, "tcg", "esx01")
    facts = running(guest_cpu, "qemu64")
    vm = _record(facts)
    finding = rules.vm_finding(replace(CLUSTER, evc_mode=of_vm.key), wanted, vm, "tcg")
    assert (finding is None) == wanted.covers(of_vm)


@given(hosts())
def test_offered_modes_are_monotonic(host: CpuFeatures) -> None:
    offered = host.offered()
    for one in offered:
        assert all(older in offered for older in BASELINES if one.covers(older))
        assert cpu_baselines.first_missing(one, host.features) == ""


def _record(facts: VmFacts) -> Vm:
    return Vm(facts.id, "host-1", facts.home, facts.power_state, facts.config)
