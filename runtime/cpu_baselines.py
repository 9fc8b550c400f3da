"""Pure: no I/O, no clock, no logging. EVC baselines: what a guest's CPU may have, by the generation of processors.

    hostd   offers the baselines whose features its accelerator has, and makes the guest's CPU from the one in force
    vpxd    keeps clusters' modes, and says which hosts and VMs stand against one

A baseline is a QEMU CPU model (for family, model number, caches) and a list of features by QEMU's names. Its list is
the whole truth: a guest under the baseline gets exactly COMMON_FEATURES and the listed ones of its tier and of all
tiers before it; everything else that the QEMU model has is switched off. So a host that offers a baseline can run
every guest under it, and guests under it have the same CPU on all such hosts.

What isn't counted, though the processors have it, and is therefore off under a baseline: features that only an
operating system uses to save time and that QEMU's emulator lacks (x2apic, tsc-deadline, pcid, invpcid), those that
microcode has taken away (hle, rtm) or brings (spec-ctrl, ssbd), nested virtualization (svm, npt), five-level paging
(la57), and those that AMD has taken back (3dnow, fma4, xop, tbm, misalignsse). Without these each tier holds the one
before it.

Keys and their order are vSphere's (KB 1003212 names the processors). It has two more that QEMU has no model of:
amd-greyhound (with 3DNow!) and amd-steamroller.
"""

from dataclasses import dataclass
from typing import Final

INTEL: Final = "intel"
AMD: Final = "amd"
# CPUID leaf 0's words, as hosts tell them, and the vendors of baselines.
VENDOR_OF_CPUID: Final = {"GenuineIntel": INTEL, "AuthenticAMD": AMD, "HygonGenuine": AMD}
CPUID_OF_VENDOR: Final = {INTEL: "GenuineIntel", AMD: "AuthenticAMD"}

# What every 64-bit x86 processor has.
_COMMON = (
    "apic clflush cmov cx8 de fpu fxsr hypervisor lm mca mce mmx msr mtrr nx pae pat pge pse pse36 sep sse sse2 "
    "syscall tsc"
)
COMMON_FEATURES: Final = frozenset(_COMMON.split())
# What an accelerator makes by itself, whatever the processor.
ACCELERATOR_FEATURES: Final = {"kvm": frozenset({"x2apic", "tsc-deadline", "arat"})}


@dataclass(frozen=True)
class Baseline:
    """One baseline. `tier` counts from 1 within its vendor; `features` is all that a guest under it gets, sorted."""

    key: str
    vendor: str
    tier: int
    label: str
    cpu_model: str
    added_features: tuple[str, ...]
    features: tuple[str, ...]

    def covers(self, other: "Baseline") -> bool:
        """Whether a guest under `other` can run wherever one under this can."""
        return self.vendor == other.vendor and self.tier >= other.tier

    @property
    def feature_set(self) -> frozenset[str]:
        """The features as a set."""
        return frozenset(self.features)


# Key, label, QEMU's model, features that it adds.
_INTEL = (
    ("intel-merom", 'Intel "Merom" Generation', "Conroe", "lahf-lm pni ssse3"),
    ("intel-penryn", 'Intel "Penryn" Generation', "Penryn", "cx16 sse4.1"),
    ("intel-nehalem", 'Intel "Nehalem" Generation', "Nehalem", "popcnt sse4.2"),
    ("intel-westmere", 'Intel "Westmere" Generation', "Westmere", "aes arat pclmulqdq"),
    ("intel-sandybridge", 'Intel "Sandy Bridge" Generation', "SandyBridge", "avx rdtscp xsave xsaveopt"),
    ("intel-ivybridge", 'Intel "Ivy Bridge" Generation', "IvyBridge", "erms f16c fsgsbase rdrand smep"),
    ("intel-haswell", 'Intel "Haswell" Generation', "Haswell", "abm avx2 bmi1 bmi2 fma movbe"),
    ("intel-broadwell", 'Intel "Broadwell" Generation', "Broadwell", "3dnowprefetch adx rdseed smap"),
    (
        "intel-skylake",
        'Intel "Skylake" Generation',
        "Skylake-Server",
        "avx512bw avx512cd avx512dq avx512f avx512vl clflushopt clwb pdpe1gb pku xgetbv1 xsavec",
    ),
    ("intel-cascadelake", 'Intel "Cascade Lake" Generation', "Cascadelake-Server", "avx512vnni"),
    (
        "intel-icelake",
        'Intel "Ice Lake" Generation',
        "Icelake-Server",
        "avx512-vpopcntdq avx512bitalg avx512vbmi avx512vbmi2 gfni rdpid sha-ni umip vaes vpclmulqdq wbnoinvd",
    ),
    (
        "intel-sapphirerapids",
        'Intel "Sapphire Rapids" Generation',
        "SapphireRapids",
        "amx-bf16 amx-int8 amx-tile avx512-bf16 avx512-fp16",
    ),
)
_AMD = (
    ("amd-rev-e", "AMD Opteron Generation 1", "Opteron_G1", "pni"),
    ("amd-rev-f", "AMD Opteron Generation 2", "Opteron_G2", "cx16 lahf-lm"),
    (
        "amd-greyhound-no3dnow",
        "AMD Opteron Generation 3 (no 3DNow!)",
        "Opteron_G3",
        "abm popcnt rdtscp sse4a",
    ),
    (
        "amd-bulldozer",
        'AMD Opteron Generation 4 ("Bulldozer")',
        "Opteron_G4",
        "aes avx pclmulqdq pdpe1gb sse4.1 sse4.2 ssse3 xsave",
    ),
    ("amd-piledriver", 'AMD Opteron "Piledriver" Generation', "Opteron_G5", "f16c fma"),
    (
        "amd-zen",
        'AMD "Zen" Generation',
        "EPYC",
        "adx arat avx2 bmi1 bmi2 clflushopt fsgsbase movbe rdrand rdseed sha-ni smap smep xgetbv1 xsavec xsaveopt",
    ),
    ("amd-zen2", 'AMD "Zen 2" Generation', "EPYC-Rome", "clwb rdpid umip wbnoinvd"),
    ("amd-zen3", 'AMD "Zen 3" Generation', "EPYC-Milan", "erms fsrm pku"),
    (
        "amd-zen4",
        'AMD "Zen 4" Generation',
        "EPYC-Genoa",
        "avx512-bf16 avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi "
        "avx512vbmi2 avx512vl avx512vnni gfni vaes vpclmulqdq",
    ),
)


def _tiers(vendor: str, rows: tuple[tuple[str, str, str, str], ...]) -> tuple[Baseline, ...]:
    baselines: list[Baseline] = []
    features = COMMON_FEATURES
    for tier, (key, label, cpu_model, added) in enumerate(rows, start=1):
        words = tuple(added.split())
        features = features.union(words)
        baselines.append(Baseline(key, vendor, tier, label, cpu_model, words, tuple(sorted(features))))
    return tuple(baselines)


BASELINES: Final = (*_tiers(INTEL, _INTEL), *_tiers(AMD, _AMD))
BASELINE_OF: Final = {baseline.key: baseline for baseline in BASELINES}


def vendor_of_model(cpu_model: str) -> str:
    """The vendor of the baseline that has this QEMU model; empty where none has it."""
    return next((one.vendor for one in BASELINES if one.cpu_model == cpu_model), "")


def first_missing(baseline: Baseline, features: frozenset[str]) -> str:
    """The first feature of a baseline that isn't among `features`, the oldest tier's first; empty: all are."""
    for one in BASELINES:
        if baseline.covers(one):
            for feature in one.added_features:
                if feature not in features:
                    return feature
    return next(iter(sorted(COMMON_FEATURES - features)), "")


def guest_features(baseline: Baseline, accelerator: str) -> frozenset[str]:
    """All that a guest under a baseline gets from this accelerator."""
    return baseline.feature_set | ACCELERATOR_FEATURES.get(accelerator, frozenset())
