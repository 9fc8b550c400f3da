"""What may be chosen for a migration. Pure: no I/O, no clock, no logging."""

from dataclasses import dataclass
from enum import IntEnum

from runtime.faults import InvalidArgument

MAX_ITERATIONS = 1_000
MAX_STREAMS = 16
MAX_SWITCHOVER_GOAL_MS = 100_000
MAX_NETWORK_TIMEOUT_S = 600.0
TRACERS = ("", "pagemap_scan", "hash_scan")


class Priority(IntEnum):
    """Numbers of proto.vmotion.v1.Priority."""

    UNSPECIFIED = 0
    DEFAULT = 1
    HIGH = 2
    LOW = 3


class EncryptionMode(IntEnum):
    """Numbers of proto.vmotion.v1.EncryptionMode."""

    UNSPECIFIED = 0
    REQUIRED = 1
    DISABLED = 2


class VerifyMode(IntEnum):
    """Numbers of proto.vmotion.v1.VerifyMode."""

    UNSPECIFIED = 0
    OFF = 1
    AFTER_RESUME = 2
    BEFORE_RESUME = 3


@dataclass(frozen=True)
class MigrationOptions:
    """As a client chose them; 0 and "" leave the choice to the hosts."""

    verify: int = 0
    encryption: int = 0
    priority: int = 0
    switchover_goal_ms: int = 0
    max_iterations: int = 0
    streams: int = 0
    bandwidth_bytes_per_s: int = 0
    tracer: str = ""
    network_timeout_s: float = 0.0

    def require_valid(self) -> None:
        """:raises InvalidArgument: a value that can't be; `argument` names it."""
        limits = {
            "verify": (self.verify, max(VerifyMode)),
            "encryption": (self.encryption, max(EncryptionMode)),
            "priority": (self.priority, max(Priority)),
            "switchover_goal_ms": (self.switchover_goal_ms, MAX_SWITCHOVER_GOAL_MS),
            "max_iterations": (self.max_iterations, MAX_ITERATIONS),
            "streams": (self.streams, MAX_STREAMS),
            "network_timeout_s": (self.network_timeout_s, MAX_NETWORK_TIMEOUT_S),
        }
        for name, (value, highest) in limits.items():
            if not 0 <= value <= highest:  # also false for a number that is none (NaN)
                raise InvalidArgument(
                    f"{name} must be from 0 to {highest}, not {value}", argument=f"options.{name}"
                )
        if self.tracer not in TRACERS:
            choices = ", ".join(repr(tracer) for tracer in TRACERS)
            raise InvalidArgument(
                f"tracer must be one of {choices}, not {self.tracer[:40]!r}", argument="options.tracer"
            )
