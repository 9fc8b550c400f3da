"""Pure: no I/O, no clock, no logging. What CPUs this host can give to guests, and the CPU that a guest gets.

QEMU's own words are the table (query-cpu-model-expansion): the features of each of its models, and those of `max` (of
`host` under KVM), which are all that the accelerator can give. A guest's CPU is fixed at power-on as a list of what is
on and what is off, complete enough that every host makes the same CPUID of it:

    under a baseline    the baseline's model and features (runtime/cpu_baselines.py); all else of the model is off
    without one         the configuration's model with what of it this host has; the rest is off. Nested
                        virtualization (svm, vmx) is in it only where the configuration says so ("qemu64,+svm")
"""

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proto.vim.v1 import vm_config_pb2
from runtime import cpu_baselines
from runtime.cpu_baselines import BASELINE_OF, BASELINES, Baseline
from runtime.faults import EvcAdmissionFailed, FeatureRequirementsNotMet, InvalidVmConfig

FEATURE_PREFIX = "cpuid."
# The model that VMs get where nothing is said: it runs on every generation, real or pretended.
PLAIN_MODEL = "qemu64"
# Properties of a CPU that are on or off and no feature of it.
_SWITCHES = (
    "check enforce migratable pmu host-phys-bits host-cache-info l3-cache legacy-cache cpuid-0xb "
    "full-cpuid-auto-level fill-mtrr-mask kvm tcg-cpuid vmware-cpuid-freq lmce"
)
_SWITCHES_OF_QEMU = frozenset(_SWITCHES.split())
# Nested virtualization: only for a VM whose model asks for it by name.
_ONLY_BY_NAME = frozenset({"svm", "vmx"})
# What QEMU takes away together with another feature (feature_dependencies in its target/i386/cpu.c).
_SVM_PARTS = (
    "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists pause-filter pfthreshold avic "
    "v-vmsave-vmload vgif svme-addr-chk vnmi"
)
_DEPENDENTS = {
    "svm": frozenset(_SVM_PARTS.split()),
    "xsave": frozenset({"xsaveopt", "xsavec", "xgetbv1", "xsaves"}),
}
_NOT_CPUID = (
    "vmx-",
    "kvm",
    "hv-",
)  # nested virtualization's MSRs and paravirtual leaves: left to QEMU's models
# Names that QEMU takes and tells under another one.
_ALIASES = {
    "sse3": "pni",
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "xd": "nx",
    "i64": "lm",
    "ffxsr": "fxsr-opt",
    "pclmuldq": "pclmulqdq",
}


@dataclass(frozen=True)
class CpuFeatures:
    """What guests can be given here. `vendor` as CPUID says it; empty: the accelerator runs guests of any vendor.

    `models`: what QEMU's models have, also what isn't in `features`. All empty where QEMU couldn't tell: then nothing
    is known, no baseline is offered, and guests get their model as it is.
    """

    features: frozenset[str] = frozenset()
    vendor: str = ""
    models: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether QEMU could tell."""
        return bool(self.features)

    def offered(self) -> tuple[Baseline, ...]:
        """The baselines that this host can offer, oldest first: it has their model and all their features."""
        return tuple(
            one
            for one in BASELINES
            if one.cpu_model in self.models
            and one.feature_set <= self.features
            and cpu_baselines.VENDOR_OF_CPUID.get(self.vendor, one.vendor) == one.vendor
        )

    def missing(self, features: Iterable[str]) -> list[str]:
        """Those of `features` that a guest can't be given here, sorted."""
        return sorted(set(features) - self.features) if self.known else []


def limited_to(cpu: CpuFeatures, generation: str) -> CpuFeatures:
    """The features of an older machine: what a baseline's processor has, and what any has (for labs and tests).

    :raises ValueError: there is no such baseline, or this host is older itself.
    """
    baseline = BASELINE_OF.get(generation)
    if baseline is None:
        raise ValueError(f"{generation!r} isn't a baseline; there are {', '.join(BASELINE_OF)}")
    if baseline not in cpu.offered():
        reason = cpu_baselines.first_missing(baseline, cpu.features) or f"the model {baseline.cpu_model}"
        raise ValueError(f"this machine can't pretend to be {generation}: it lacks {reason}")
    kept = cpu.models[baseline.cpu_model] | cpu.models.get(PLAIN_MODEL, frozenset()) | baseline.feature_set
    vendor = cpu_baselines.CPUID_OF_VENDOR[baseline.vendor]
    return replace(cpu, features=cpu.features & kept, vendor=vendor)


def baseline_in_force(own_mode: str, cluster_mode: str) -> Baseline | None:
    """The baseline under which a VM starts: its own, which may not be above its cluster's, else its cluster's.

    :raises InvalidVmConfig: a mode isn't one. :raises EvcAdmissionFailed: its own is above, or another vendor's.
    """
    for mode in (own_mode, cluster_mode):
        if mode and mode not in BASELINE_OF:
            raise InvalidVmConfig(f"There is no EVC mode {mode!r}.", "evc_mode")
    if own_mode and cluster_mode and not BASELINE_OF[cluster_mode].covers(BASELINE_OF[own_mode]):
        message = f"The VM's own EVC mode {own_mode} isn't within its cluster's, {cluster_mode}."
        raise EvcAdmissionFailed(message, mode=own_mode)
    return BASELINE_OF.get(own_mode or cluster_mode)


def fix_guest_cpu(
    cpu: CpuFeatures, cpu_model: str, baseline: Baseline | None, accelerator: str, host_name: str
) -> vm_config_pb2.GuestCpu | None:
    """The CPU that a guest gets here; None where QEMU can't tell what its model has.

    :raises FeatureRequirementsNotMet: this host lacks a feature of the baseline, or one that the configuration asks for
        by name. :raises InvalidVmConfig: the configuration's features can't be read.
    """
    if baseline is not None:
        wanted = cpu_baselines.guest_features(baseline, accelerator)
        lacking = cpu_baselines.first_missing(baseline, cpu.features) or min(
            wanted - cpu.features, default=""
        )
        if lacking or baseline.cpu_model not in cpu.models:
            raise _not_met(lacking or f"model {baseline.cpu_model}", host_name, f"EVC mode {baseline.key}")
        return _guest_cpu(baseline.cpu_model, wanted, cpu.models[baseline.cpu_model], baseline.key)
    model, switched_on, switched_off = parse_cpu_model(cpu_model)
    has = cpu.models.get(model)
    if has is None or not cpu.known:
        return None
    lacking = min(switched_on - cpu.features, default="")
    if lacking:
        raise _not_met(lacking, host_name, f"CPU model {cpu_model}")
    wanted = ((has | switched_on) - switched_off - (_ONLY_BY_NAME - switched_on)) & cpu.features
    for base, dependents in _DEPENDENTS.items():
        wanted -= dependents if base not in wanted else frozenset()
    return _guest_cpu(model, wanted, has | switched_off, "")


def parse_cpu_model(text: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """A model with features ("qemu64,+avx2,sse4.2=off") as model, features switched on, and features switched off.

    Properties that aren't switches are left out: they aren't features.
    """
    model, *words = text.split(",")
    on: set[str] = set()
    off: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        if name[:1] in ("+", "-"):
            value, name, equals = ("on" if name[0] == "+" else "off"), name[1:], "="
        canonical = name.replace("_", "-")
        canonical = _ALIASES.get(canonical, canonical)
        if equals and value in ("on", "off") and canonical not in _SWITCHES_OF_QEMU:
            (on if value == "on" else off).add(canonical)
            (off if value == "on" else on).discard(canonical)
    return model, frozenset(on), frozenset(off)


def require_features(cpu: CpuFeatures, guest_cpu: vm_config_pb2.GuestCpu, host_name: str) -> None:
    """:raises FeatureRequirementsNotMet: a guest with this CPU can't run here; the text names all that lacks."""
    lacking = cpu.missing(guest_cpu.features)
    if lacking:
        shown = ", ".join(lacking)
        message = f"{host_name} can't give the running guest these CPU features: {shown}."
        raise FeatureRequirementsNotMet(message, feature=f"{FEATURE_PREFIX}{lacking[0]}", host=host_name)
    if cpu.known and guest_cpu.model and guest_cpu.model not in cpu.models:
        message = f"{host_name} doesn't know the CPU model {guest_cpu.model}."
        raise FeatureRequirementsNotMet(message, feature=guest_cpu.model, host=host_name)


def questions(models: Collection[str]) -> list[dict[str, object]]:
    """What QEMU is asked of its models, by QMP."""
    return [
        {
            "execute": "query-cpu-model-expansion",
            "arguments": {"type": "static", "model": {"name": model}},
        }
        for model in models
    ]


def parse_expansions(models: Sequence[str], output: str, richest: str) -> CpuFeatures:
    """The answers to `questions`, in a QMP session that begins with qmp_capabilities. `richest`: "max" or "host".

    A model that QEMU doesn't expand is left out; without the richest one nothing is known.
    """
    known: dict[str, frozenset[str]] = {}
    vendor = ""
    answers = iter(_answers(output))
    next(answers, None)  # qmp_capabilities
    for model, answer in zip(models, answers, strict=False):
        expanded = answer.get("model") if isinstance(answer, dict) else None
        properties = expanded.get("props") if isinstance(expanded, dict) else None
        if not isinstance(properties, dict):
            continue
        known[model] = frozenset(
            sys.intern(str(name))
            for name, value in properties.items()
            if value is True and not str(name).startswith(_NOT_CPUID)
        )
        if model == richest:
            vendor = str(properties.get("vendor", ""))
    if richest not in known:
        return CpuFeatures()
    return CpuFeatures(known[richest], vendor if richest == "host" else "", known)


def to_json(cpu: CpuFeatures) -> dict[str, Any]:
    """As the capability's cache keeps it."""
    return {
        "features": sorted(cpu.features),
        "vendor": cpu.vendor,
        "models": {model: " ".join(sorted(features)) for model, features in sorted(cpu.models.items())},
    }


def from_json(stored: Mapping[str, Any]) -> CpuFeatures:
    """The inverse of `to_json`. :raises KeyError: :raises TypeError: :raises AttributeError: it isn't that."""
    return CpuFeatures(
        frozenset(sys.intern(str(name)) for name in stored["features"]),
        str(stored["vendor"]),
        {
            str(model): frozenset(sys.intern(name) for name in str(features).split())
            for model, features in stored["models"].items()
        },
    )


def _answers(output: str) -> Iterable[object]:
    for line in output.splitlines():
        message = json.loads(line)
        if isinstance(message, dict) and ("return" in message or "error" in message):
            yield message.get("return")


def _guest_cpu(
    model: str, features: frozenset[str], model_has: frozenset[str], baseline: str
) -> vm_config_pb2.GuestCpu:
    return vm_config_pb2.GuestCpu(
        model=model,
        features=sorted(features),
        disabled_features=sorted(model_has - features),
        baseline=baseline,
    )


def _not_met(lacking: str, host_name: str, by_whom: str) -> FeatureRequirementsNotMet:
    return FeatureRequirementsNotMet(
        f"{host_name} lacks {lacking}, which the VM's {by_whom} has.",
        feature=f"{FEATURE_PREFIX}{lacking}",
        host=host_name,
    )
