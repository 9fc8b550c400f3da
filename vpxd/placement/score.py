"""How well a host would take a VM. Pure: no I/O, no clock, no logging.

A weighted sum of shares from 0 to 1. What is reserved counts most, because it decides whether VMs can be powered on;
then how busy the host really is; then what disturbs the VM or its owner there.
"""

from dataclasses import dataclass, field

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import VmConfig

HEADROOM, IDLE, RULES, QUIET, FILES, EVC = 0.40, 0.20, 0.15, 0.10, 0.10, 0.05


@dataclass(frozen=True)
class Traits:
    """What is special about this host for this VM.

    `here`: the VM is on it, its reservation is counted there already; `broken_rules`: not mandatory ones;
    `warnings`: others that the checks found; `moved_share`: of the VM's disk space that has to be moved; `evc_mode`:
    its cluster's, with which the VM could go on to any other host of that cluster.
    """

    here: bool = False
    broken_rules: tuple[str, ...] = ()
    warnings: int = 0
    moved_share: float = 0.0
    evc_mode: str = ""


@dataclass(frozen=True)
class Score:
    """Shares of the host, from 0 to 1, that would be left after taking the VM; the scarcer counts."""

    memory_left: float
    vcpus_left: float
    idle: float = 1.0
    traits: Traits = field(default_factory=Traits)

    @property
    def total(self) -> float:
        """From 0 to 1; the greater, the better."""
        traits = self.traits
        return (
            HEADROOM * min(self.memory_left, self.vcpus_left)
            + IDLE * self.idle
            + RULES * (not traits.broken_rules)
            + QUIET * (not traits.warnings)
            + FILES * (1.0 - traits.moved_share)
            + EVC * bool(traits.evc_mode)
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """What makes the score, for people."""
        traits = self.traits
        told = [
            f"{self.memory_left:.0%} of its memory and {self.vcpus_left:.0%} of its vCPUs stay unreserved",
            f"its CPUs are {1.0 - self.idle:.0%} busy",
        ]
        if traits.here:
            told.append("the VM is there already")
        told += [f"it breaks the rule {rule}" for rule in traits.broken_rules]
        if traits.warnings:
            told.append(f"{traits.warnings} {'warning' if traits.warnings == 1 else 'warnings'}")
        if traits.moved_share > 0:
            told.append(f"{traits.moved_share:.0%} of the VM's disk space has to be moved")
        if traits.evc_mode:
            told.append(f"EVC {traits.evc_mode}")
        return tuple(told)

    @property
    def reason(self) -> str:
        """All reasons as one sentence."""
        return ", ".join(self.reasons)


def score(config: VmConfig, host: HostFacts, traits: Traits | None = None) -> Score:
    """The host's score for the VM, with the VM's reservation counted."""
    present = traits or Traits()
    ram_bytes, vcpus = (0, 0) if present.here else (config.ram_bytes, config.vcpus)
    return Score(
        _left(host.info.memory_bytes, host.usage.memory_reserved_bytes + ram_bytes),
        _left(host.info.vcpu_capacity, host.usage.vcpus_reserved + vcpus),
        _left(100 * max(1, host.info.cpu_cores), host.usage.cpu_percent),
        present,
    )


def _left(capacity: float, used: float) -> float:
    return min(1.0, max(0.0, 1.0 - used / capacity)) if capacity > 0 else 0.0
