"""The rules of EVC: what stands against a mode is named, each host and each VM of it."""

from dataclasses import replace

import pytest

from runtime.cpu_baselines import BASELINE_OF, BASELINES, Baseline
from runtime.faults import EvcAdmissionFailed, InvalidArgument
from vpxd.evc import rules
from vpxd.inventory.records import Cluster, Vm
from vpxd.inventory.values import GuestCpu, HostCapability, HostInfo, PowerState, VmConfig

CLUSTER = Cluster("domain-c1", "cluster", "datacenter-1")
HASWELL, SANDYBRIDGE = BASELINE_OF["intel-haswell"], BASELINE_OF["intel-sandybridge"]


def host_of(newest: Baseline, vendor: str = "") -> HostInfo:
    """A host of a generation."""
    modes = tuple(one.key for one in BASELINES if newest.covers(one))
    models = tuple(one.cpu_model for one in BASELINES)
    capability = HostCapability(
        cpu_models=models,
        accelerator="tcg",
        cpu_features=newest.features,
        cpu_vendor=vendor,
        evc_modes=modes,
    )
    return HostInfo("uuid", newest.key, capability=capability)


def vm_with(features: tuple[str, ...], baseline: str = "", name: str = "web01") -> Vm:
    """A VM that is powered on with these features."""
    cpu = GuestCpu("Haswell", features, (), baseline)
    config = VmConfig("u", name, 1, 1 << 28, guest_cpu=cpu)
    return Vm("vm-1", "host-1", f"[shared] {name}/{name}.vmx", PowerState.POWERED_ON, config)


NEW, OLD = host_of(HASWELL), host_of(SANDYBRIDGE)


def test_mode_that_all_hosts_offer_and_no_vm_is_above_has_nothing_against_it() -> None:
    hosts = [("esx01", NEW, [vm_with(SANDYBRIDGE.features)]), ("esx02", OLD, [])]
    assert rules.against_mode(CLUSTER, SANDYBRIDGE, hosts) == ()


def test_mode_above_a_host_names_the_host_and_its_first_missing_feature() -> None:
    (finding,) = rules.against_mode(CLUSTER, HASWELL, [("esx01", NEW, []), ("esx02", OLD, [])])
    fault = finding.fault
    assert isinstance(fault, EvcAdmissionFailed)
    assert finding.error
    assert (fault.cluster, fault.mode, fault.host, fault.feature) == (
        "cluster",
        "intel-haswell",
        "esx02",
        "cpuid.erms",
    )
    assert "intel-sandybridge" in finding.remedy, "the newest that it offers"


def test_mode_below_a_running_vm_names_the_vm_and_what_is_above() -> None:
    vm = vm_with(HASWELL.features)
    (finding,) = rules.against_mode(CLUSTER, SANDYBRIDGE, [("esx01", NEW, [vm])])
    assert "web01" in str(finding.fault)
    assert "avx2" in str(finding.fault)
    assert isinstance(finding.fault, EvcAdmissionFailed)
    assert finding.fault.feature == "cpuid.abm"


def test_mode_above_a_running_vm_does_not_mind_it() -> None:
    vm = vm_with(SANDYBRIDGE.features, "intel-sandybridge")
    assert rules.against_mode(CLUSTER, HASWELL, [("esx01", NEW, [vm])]) == ()


def test_everything_against_a_mode_is_told_at_once() -> None:
    hosts = [
        ("esx01", NEW, [vm_with(HASWELL.features)]),
        ("esx02", host_of(BASELINE_OF["intel-nehalem"]), []),
    ]
    found = rules.against_mode(CLUSTER, SANDYBRIDGE, hosts)
    assert len(found) == 2
    fault = rules.refusal(CLUSTER, SANDYBRIDGE.key, found)
    causes = []
    cause = fault.__cause__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    assert causes == [finding.fault for finding in found]


def test_host_of_another_vendor_can_never_offer_the_mode() -> None:
    amd = BASELINE_OF["amd-zen"]
    finding = rules.host_finding(CLUSTER, HASWELL, "esx03", host_of(amd, "AuthenticAMD").capability)
    assert finding is not None
    assert "AuthenticAMD" in str(finding.fault)


def test_host_that_says_nothing_can_offer_nothing() -> None:
    finding = rules.host_finding(CLUSTER, HASWELL, "esx03", HostCapability())
    assert finding is not None
    assert "doesn't say" in str(finding.fault)


def test_host_whose_qemu_lacks_the_model_is_told_so() -> None:
    capability = replace(NEW.capability, evc_modes=())
    finding = rules.host_finding(CLUSTER, HASWELL, "esx03", capability)
    assert finding is not None
    assert "doesn't know the CPU model Haswell" in str(finding.fault)


def test_vm_whose_cpu_is_not_known_stands_against_every_mode() -> None:
    vm = vm_with(())
    unknown = replace(vm, config=replace(vm.config, guest_cpu=None))
    assert rules.vm_finding(CLUSTER, HASWELL, unknown, "tcg") is not None


def test_vm_under_another_vendors_mode_stands_against_it() -> None:
    merom = BASELINE_OF["intel-merom"]
    vm = vm_with(BASELINE_OF["amd-rev-e"].features, "amd-rev-e")
    finding = rules.vm_finding(CLUSTER, merom, vm, "tcg")
    assert finding is not None
    assert "another vendor" in str(finding.fault)


def test_vms_own_mode_must_be_within_its_clusters() -> None:
    capabilities = [NEW.capability]
    within = replace(CLUSTER, evc_mode="intel-haswell")
    rules.require_vm_mode(within, SANDYBRIDGE, capabilities)
    rules.require_vm_mode(CLUSTER, HASWELL, capabilities)
    for cluster, own in (
        (replace(CLUSTER, evc_mode="intel-sandybridge"), HASWELL),
        (within, BASELINE_OF["amd-rev-e"]),
        (CLUSTER, BASELINE_OF["intel-skylake"]),
    ):
        with pytest.raises(EvcAdmissionFailed):
            rules.require_vm_mode(cluster, own, capabilities)


def test_require_mode_of_one_that_is_none_is_refused() -> None:
    assert rules.require_mode("") is None
    assert rules.require_mode("intel-haswell") is HASWELL
    with pytest.raises(InvalidArgument):
        rules.require_mode("haswell")


def test_newest_in_common_is_of_one_vendor_and_both_hosts() -> None:
    both = HostCapability(evc_modes=("intel-merom", "intel-penryn", "amd-rev-e", "amd-rev-f"))
    assert rules.newest_in_common([NEW.capability, OLD.capability]) is SANDYBRIDGE
    assert rules.newest_in_common([both], "amd") is BASELINE_OF["amd-rev-f"]
    assert rules.newest_in_common([both]) is BASELINE_OF["intel-penryn"]
    assert rules.newest_in_common([NEW.capability, HostCapability()]) is None
    assert rules.newest_in_common([]) is None
