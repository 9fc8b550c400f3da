"""CPU compatibility: one finding for each feature that lacks, and the baseline that would have allowed it."""

from dataclasses import replace

from runtime.cpu_baselines import BASELINE_OF, BASELINES
from runtime.faults import EvcAdmissionFailed, FeatureRequirementsNotMet
from vpxd.compatibility import cpu
from vpxd.compatibility.finding import Finding, HostFacts, Move, VmFacts
from vpxd.inventory.values import (
    ExecutionState,
    GuestCpu,
    HostCapability,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
    VmConfig,
)


def host(number: int, generation: str, evc_mode: str = "") -> HostFacts:
    newest = BASELINE_OF[generation]
    capability = HostCapability(
        cpu_models=("qemu64", *(one.cpu_model for one in BASELINES)),
        accelerator="tcg",
        cpu_features=newest.features,
        evc_modes=tuple(one.key for one in BASELINES if newest.covers(one)),
    )
    info = HostInfo(f"u{number}", f"esx0{number}", vcpu_capacity=8, capability=capability)
    return HostFacts(
        f"host-{number}", f"esx0{number}", HostConnection.CONNECTED, info, HostUsage(), "c", evc_mode
    )


def vm(features: tuple[str, ...], evc_mode: str = "", *, on: bool = True) -> VmFacts:
    guest = GuestCpu("Haswell", features) if on else None
    config = VmConfig("u", "web01", 1, 1 << 28, cpu_model="qemu64", evc_mode=evc_mode, guest_cpu=guest)
    power = PowerState.POWERED_ON if on else PowerState.POWERED_OFF
    state = ExecutionState.RUNNING if on else ExecutionState.OFF
    return VmFacts("vm-1", config, "[shared] web01/web01.vmx", "shared", "ds", power, state)


NEW, OLD = host(1, "intel-haswell"), host(2, "intel-sandybridge")


def features_of(found: tuple[Finding, ...]) -> list[str]:
    return [one.fault.feature for one in found if isinstance(one.fault, FeatureRequirementsNotMet)]


def test_running_vm_with_features_that_the_destination_lacks_finds_each_of_them() -> None:
    features = ("avx2", "bmi2", *BASELINE_OF["intel-sandybridge"].features)
    found = cpu.check(Move(vm(features), NEW, OLD))
    assert features_of(found) == ["cpuid.avx2", "cpuid.bmi2"]
    assert all(one.error for one in found)
    assert all("intel-sandybridge" in one.remedy for one in found)
    assert cpu.check(Move(vm(features), OLD, NEW)) == ()


def test_destination_clusters_mode_hides_what_its_host_has() -> None:
    inside = host(3, "intel-haswell", "intel-nehalem")
    found = cpu.check(Move(vm(BASELINE_OF["intel-westmere"].features), NEW, inside))
    assert features_of(found) == ["cpuid.aes", "cpuid.arat", "cpuid.pclmulqdq"]
    assert "intel-nehalem" in found[0].remedy
    assert "hides" in str(found[0].fault)


def test_hosts_with_no_baseline_in_common_have_another_remedy() -> None:
    amd = host(3, "amd-zen")
    found = cpu.check(Move(vm(("avx512f",)), NEW, amd))
    assert features_of(found) == ["cpuid.avx512f"]
    assert "power web01 off and move it then" in found[0].remedy


def test_powered_off_vm_is_warned_of_a_mode_that_it_could_not_start_under() -> None:
    above = vm((), "intel-haswell", on=False)
    (finding,) = cpu.check(Move(above, NEW, OLD))
    assert not finding.error
    assert isinstance(finding.fault, EvcAdmissionFailed)
    (finding,) = cpu.check(Move(above, NEW, host(3, "intel-haswell", "intel-nehalem")))
    assert not finding.error
    assert cpu.check(Move(vm((), "intel-nehalem", on=False), NEW, OLD)) == ()


def test_vm_or_host_that_does_not_tell_its_features_is_not_guessed_about() -> None:
    silent = replace(OLD, info=replace(OLD.info, capability=replace(OLD.info.capability, cpu_features=())))
    assert cpu.check(Move(vm(("avx2",)), NEW, silent)) == ()
    unknown = vm(())
    unknown = replace(unknown, config=replace(unknown.config, guest_cpu=None))
    assert cpu.check(Move(unknown, NEW, OLD)) == ()


def test_configured_model_with_features_is_known_by_its_model() -> None:
    off = vm((), on=False)
    plus = replace(off, config=replace(off.config, cpu_model="qemu64,+avx2"))
    assert cpu.check(Move(plus, NEW, OLD)) == ()
    other = replace(off, config=replace(off.config, cpu_model="Unknown"))
    (finding,) = cpu.check(Move(other, NEW, OLD))
    assert not finding.error
