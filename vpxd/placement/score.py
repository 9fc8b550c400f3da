"""How well a host would take a VM. Pure: no I/O, no clock, no logging."""

from dataclasses import dataclass

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import VmConfig


@dataclass(frozen=True)
class Score:
    """Shares of the host, from 0 to 1, that would be left after taking the VM. The scarcer one counts."""

    memory_left: float
    vcpus_left: float

    @property
    def total(self) -> float:
        """The greater, the better."""
        return min(self.memory_left, self.vcpus_left)

    @property
    def reason(self) -> str:
        """For people."""
        return f"{self.memory_left:.0%} of its memory and {self.vcpus_left:.0%} of its vCPUs stay unreserved"


def score(config: VmConfig, host: HostFacts) -> Score:
    """The host's score for the VM, with the VM's reservation counted."""
    return Score(
        _left(host.info.memory_bytes, host.usage.memory_reserved_bytes + config.ram_bytes),
        _left(host.info.vcpu_capacity, host.usage.vcpus_reserved + config.vcpus),
    )


def _left(capacity: int, reserved: int) -> float:
    return max(0.0, 1.0 - reserved / capacity) if capacity > 0 else 0.0
