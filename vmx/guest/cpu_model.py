"""Pure: no I/O, no clock, no logging. The CPU that a guest is fixed to, in QEMU's words, and whether QEMU can make it.

    Haswell,abm=on,...,xsaveopt=on,hle=off,...

Every feature is said, on or off, also those that the model has by itself: so the guest's CPUID doesn't depend on how a
QEMU version defines its model. Names are hostile: they come from a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vmx.guest.errors import GuestSpecError

__all__ = ["FixedCpu", "cpu_option"]

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FEATURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class FixedCpu:
    """What the guest sees. Checked when it is made.

    :raises GuestSpecError: a name that is none, or a feature that is both on and off.
    """

    model: str
    features: tuple[str, ...]
    disabled_features: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _MODEL.fullmatch(self.model):
            raise GuestSpecError("guest_cpu.model", f"{self.model!r} is not a CPU model")
        for feature in (*self.features, *self.disabled_features):
            if not _FEATURE.fullmatch(feature):
                raise GuestSpecError("guest_cpu.features", f"{feature!r} is not a CPU feature")
        both = set(self.features) & set(self.disabled_features)
        if both:
            raise GuestSpecError("guest_cpu.disabled_features", f"{min(both)} is on and off")

    def lacking(self, unavailable: Sequence[str]) -> list[str]:
        """Those of its features that QEMU says it can't make, sorted."""
        return sorted(set(self.features).intersection(unavailable))


def cpu_option(cpu_model: str, cpu: FixedCpu | None) -> str:
    """The value of QEMU's `-cpu`: the configuration's model where nothing is fixed.

    What the configuration says beside the model (`host-phys-bits=on`) stays where the guest has that model, except its
    features: those are in the lists, and QEMU doesn't take one that is said in two ways (`+x` and `x=on`).
    """
    if cpu is None:
        return cpu_model
    model, *rest = cpu_model.split(",")
    words = [cpu.model]
    if model == cpu.model:
        said = {*cpu.features, *cpu.disabled_features}
        words += [word for word in rest if "=" in word and word.partition("=")[0] not in said]
    words += [f"{feature}=on" for feature in cpu.features]
    words += [f"{feature}=off" for feature in cpu.disabled_features]
    return ",".join(words)
