"""What CPUs a host can give, and the CPU that a guest gets: complete, and only what is there."""

import json

import pytest

from hostd.host import cpu_features
from hostd.host.cpu_features import (
    CpuFeatures,
    baseline_in_force,
    fix_guest_cpu,
    limited_to,
    parse_cpu_model,
    parse_expansions,
    require_features,
)
from proto.vim.v1 import vm_config_pb2
from runtime.cpu_baselines import BASELINE_OF
from runtime.faults import EvcAdmissionFailed, FeatureRequirementsNotMet, InvalidVmConfig
from tests.framework import fake_cpu_models

MODELS = fake_cpu_models.FEATURES
HOST = CpuFeatures(MODELS["max"], "", MODELS)
HASWELL, SANDYBRIDGE = BASELINE_OF["intel-haswell"], BASELINE_OF["intel-sandybridge"]


def fixed(cpu: CpuFeatures, model: str, baseline: str = "") -> vm_config_pb2.GuestCpu:
    made = fix_guest_cpu(cpu, model, BASELINE_OF.get(baseline), "tcg", "esx01")
    assert made is not None
    return made


def test_offered_baselines_are_those_whose_features_and_model_are_there() -> None:
    keys = [one.key for one in HOST.offered()]
    assert keys == [
        "intel-merom",
        "intel-penryn",
        "intel-nehalem",
        "intel-westmere",
        "intel-sandybridge",
        "intel-ivybridge",
        "intel-haswell",
        "amd-greyhound-no3dnow",
    ]
    without_models = CpuFeatures(MODELS["max"], "", {"qemu64": MODELS["qemu64"]})
    assert without_models.offered() == ()
    assert CpuFeatures().offered() == ()


def test_offered_baselines_of_a_real_processor_are_its_vendors_only() -> None:
    amd = CpuFeatures(MODELS["max"], "AuthenticAMD", MODELS)
    assert [one.key for one in amd.offered()] == ["amd-greyhound-no3dnow"]


def test_limited_host_is_as_an_older_machine() -> None:
    old = limited_to(HOST, "intel-sandybridge")
    assert old.offered()[-1] is SANDYBRIDGE
    assert old.vendor == "GenuineIntel"
    assert {"avx", "aes"} <= old.features
    assert not old.features & {"avx2", "fsgsbase", "sse4a", "smap"}
    assert MODELS["qemu64"] <= old.features, "the plain model runs on every machine"


@pytest.mark.parametrize("generation", ["intel-pentium", "", "amd-zen", "intel-skylake"])
def test_limited_host_that_it_cannot_be_says_why(generation: str) -> None:
    with pytest.raises(ValueError, match=r"baseline|lacks"):
        limited_to(HOST, generation)


def test_guest_cpu_under_a_baseline_has_exactly_its_features() -> None:
    cpu = fixed(HOST, "max", "intel-sandybridge")
    assert cpu.model == "SandyBridge"
    assert frozenset(cpu.features) == SANDYBRIDGE.feature_set
    assert set(cpu.disabled_features) == {"tsc-deadline", "x2apic"}
    assert cpu.baseline == "intel-sandybridge"
    old = limited_to(HOST, "intel-sandybridge")
    assert fixed(old, "max", "intel-sandybridge") == cpu, (
        "the same CPU on every host that offers the baseline"
    )


def test_guest_cpu_on_kvm_has_what_kvm_itself_makes() -> None:
    host = CpuFeatures(MODELS["max"] | {"x2apic", "tsc-deadline"}, "GenuineIntel", MODELS)
    cpu = fix_guest_cpu(host, "qemu64", SANDYBRIDGE, "kvm", "esx01")
    assert cpu is not None
    assert frozenset(cpu.features) == SANDYBRIDGE.feature_set | {"x2apic", "tsc-deadline"}


def test_guest_cpu_without_a_baseline_is_its_model_where_the_host_has_it() -> None:
    cpu = fixed(HOST, "Haswell")
    assert "avx2" in cpu.features
    assert set(cpu.disabled_features) == {"hle", "invpcid", "pcid", "rtm", "tsc-deadline", "x2apic"}
    assert cpu.baseline == ""
    old = limited_to(HOST, "intel-sandybridge")
    assert "avx2" in fixed(old, "Haswell").disabled_features
    assert set(fixed(old, "max").features) == old.features - {"svm"}
    assert "npt" not in fixed(HOST, "max").features, "QEMU takes svm's parts away with it"
    assert "npt" in fixed(HOST, "max,+svm").features


def test_guest_cpu_of_the_plain_model_is_the_same_on_every_generation() -> None:
    new, old = fixed(HOST, "qemu64"), fixed(limited_to(HOST, "intel-merom"), "qemu64")
    assert new == old
    assert list(new.disabled_features) == ["svm"], "nested virtualization only by name"
    assert "svm" in fixed(HOST, "qemu64,+svm").features


def test_guest_cpu_with_a_feature_by_name_that_lacks_is_refused() -> None:
    assert "avx2" in fixed(HOST, "qemu64,+avx2,-sse2").features
    assert "sse2" in fixed(HOST, "qemu64,+avx2,-sse2").disabled_features
    with pytest.raises(FeatureRequirementsNotMet) as caught:
        fixed(limited_to(HOST, "intel-sandybridge"), "qemu64,+avx2")
    assert (caught.value.feature, caught.value.host) == ("cpuid.avx2", "esx01")


def test_guest_cpu_under_a_baseline_that_the_host_lacks_is_refused() -> None:
    with pytest.raises(FeatureRequirementsNotMet) as caught:
        fixed(limited_to(HOST, "intel-sandybridge"), "qemu64", "intel-haswell")
    assert caught.value.feature == "cpuid.erms"


def test_guest_cpu_of_a_model_that_qemu_cannot_tell_is_left_alone() -> None:
    assert fix_guest_cpu(HOST, "custom", None, "tcg", "esx01") is None
    assert fix_guest_cpu(CpuFeatures(), "qemu64", None, "tcg", "esx01") is None


@pytest.mark.parametrize(
    ("text", "on", "off"),
    [
        ("qemu64", set(), set()),
        ("qemu64,+avx2,-svm", {"avx2"}, {"svm"}),
        ("qemu64,avx2=on,sse4_1=off,xd=on", {"avx2", "nx"}, {"sse4.1"}),
        ("qemu64,+avx2,avx2=off", set(), {"avx2"}),
        ("host,migratable=on,host-phys-bits=on,level=13", set(), set()),
        ("qemu64,enforce", set(), set()),
    ],
)
def test_parse_cpu_model_reads_what_is_switched(text: str, on: set[str], off: set[str]) -> None:
    assert parse_cpu_model(text) == (text.partition(",")[0], frozenset(on), frozenset(off))


def test_require_features_of_a_running_guest_names_what_lacks() -> None:
    old = limited_to(HOST, "intel-sandybridge")
    require_features(old, fixed(HOST, "qemu64"), "esx02")
    require_features(old, vm_config_pb2.GuestCpu(), "esx02")
    with pytest.raises(FeatureRequirementsNotMet, match="avx2, bmi1, bmi2") as caught:
        require_features(old, fixed(HOST, "Haswell"), "esx02")
    assert caught.value.feature == "cpuid.abm"
    require_features(CpuFeatures(), fixed(HOST, "Haswell"), "esx02")  # who knows nothing refuses nothing
    no_models = CpuFeatures(HOST.features, "", {})
    with pytest.raises(FeatureRequirementsNotMet):
        require_features(no_models, fixed(HOST, "qemu64"), "esx02")


def test_baseline_in_force_is_the_vms_own_within_its_clusters() -> None:
    assert baseline_in_force("", "") is None
    assert baseline_in_force("", "intel-haswell") is HASWELL
    assert baseline_in_force("intel-sandybridge", "intel-haswell") is SANDYBRIDGE
    assert baseline_in_force("intel-haswell", "") is HASWELL
    for own, cluster in (("intel-haswell", "intel-sandybridge"), ("amd-rev-e", "intel-haswell")):
        with pytest.raises(EvcAdmissionFailed):
            baseline_in_force(own, cluster)
    with pytest.raises(InvalidVmConfig):
        baseline_in_force("", "intel-unknown")


def test_parse_expansions_keeps_what_is_true_and_a_feature() -> None:
    answers = [
        {"QMP": {}},
        {"return": {}},
        {
            "return": {
                "model": {
                    "props": {"avx": True, "avx2": False, "kvmclock": True, "vmx-ept": True, "family": 6}
                }
            }
        },
        {"error": {"class": "GenericError"}},
        {"return": {"model": {"props": {"avx": True, "avx2": True, "vendor": "GenuineIntel"}}}},
    ]
    output = "\n".join(json.dumps(answer) for answer in answers)
    cpu = parse_expansions(["A", "B", "host"], output, "host")
    assert cpu == CpuFeatures(
        frozenset({"avx", "avx2"}),
        "GenuineIntel",
        {"A": frozenset({"avx"}), "host": frozenset({"avx", "avx2"})},
    )
    assert parse_expansions(["A", "B", "host"], output, "max") == CpuFeatures()
    with pytest.raises(ValueError, match=r".+"):
        parse_expansions(["A"], "nonsense", "max")


def test_cache_form_gives_back_what_was_kept() -> None:
    assert cpu_features.from_json(json.loads(json.dumps(cpu_features.to_json(HOST)))) == HOST
