"""What the fake QEMU says of its CPU models: a few of QEMU 7.2's own, with what they have under its emulator.

Standard library only: the fake QEMU is a program of its own.
"""

from __future__ import annotations

_COMMON = (
    "apic clflush cmov cx8 de fpu fxsr hypervisor lm mca mce mmx msr mtrr nx pae pat pge pni pse pse36 sep sse sse2 "
    "syscall tsc"
)
# Model, the one that it adds to, what it adds; QEMU 7.2's own words.
_MODELS = (
    ("plain", "", _COMMON),
    ("qemu64", "plain", "cx16 lahf-lm svm"),
    ("Conroe", "plain", "lahf-lm ssse3"),
    ("Penryn", "Conroe", "cx16 sse4.1"),
    ("Nehalem", "Penryn", "popcnt sse4.2"),
    ("Westmere", "Nehalem", "aes arat pclmulqdq"),
    ("SandyBridge", "Westmere", "avx rdtscp tsc-deadline x2apic xsave xsaveopt"),
    ("IvyBridge", "SandyBridge", "erms f16c fsgsbase rdrand smep"),
    ("Haswell", "IvyBridge", "abm avx2 bmi1 bmi2 fma hle invpcid movbe pcid rtm"),
    ("Skylake-Client", "Haswell", "3dnowprefetch adx clflushopt mpx rdseed smap xgetbv1 xsavec"),
    ("Opteron_G3", "qemu64", "abm misalignsse monitor popcnt rdtscp sse4a"),
    ("max", "Haswell", "3dnow adx clflushopt la57 monitor mpx npt pku smap sse4a svm umip vaes xgetbv1"),
)
# What QEMU 7.2's emulator doesn't make.
_NOT_EMULATED = frozenset(
    "3dnowprefetch hle invpcid misalignsse pcid rdseed rtm tsc-deadline x2apic xsavec".split()  # noqa: SIM905
)


def _tables() -> dict[str, frozenset[str]]:
    tables: dict[str, frozenset[str]] = {"": frozenset()}
    for model, older, added in _MODELS:
        tables[model] = tables[older].union(added.split())
    tables["max"] -= _NOT_EMULATED
    return {model: features for model, features in tables.items() if model not in ("", "plain")}


FEATURES = _tables()


def expansion(model: str) -> dict[str, object] | None:
    """The answer to query-cpu-model-expansion; None: there is no such model."""
    if model not in FEATURES:
        return None
    every = frozenset().union(*FEATURES.values())
    properties: dict[str, object] = {name: name in FEATURES[model] for name in every}
    properties |= {"vendor": "AuthenticAMD" if model in ("qemu64", "max", "Opteron_G3") else "GenuineIntel"}
    return {"model": {"name": "base", "props": properties | {"family": 6, "model-id": model}}}


def unavailable(cpu_option: str) -> list[str]:
    """What of a `-cpu` the emulator leaves out."""
    model, *words = cpu_option.split(",")
    wanted = set(FEATURES.get(model, frozenset()))
    for word in words:
        name, _, value = word.partition("=")
        (wanted.add if value == "on" else wanted.discard)(name.lstrip("+-"))
    known = frozenset().union(*FEATURES.values())
    return sorted(wanted & known - FEATURES["max"])
