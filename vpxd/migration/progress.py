"""How far a migration is, for people. Pure: no I/O, no clock, no logging.

    2..5 prepare, handshake   5..70 first pass, by its pages   70..85 further passes   86..99 stun and after

A pass beyond the first halves what is left of its range, however long it takes; so the number always rises and
never claims an end that the guest can still push away.
"""

from dataclasses import dataclass
from enum import IntEnum

_PAGE_BYTES = 4096
_MIB = 1024 * 1024


class Phase(IntEnum):
    """Numbers of proto.vmotion.v1.MigrationPhase, in the order in which they happen; FAILED may follow any."""

    UNSPECIFIED = 0
    PREPARE = 1
    HANDSHAKE = 2
    PRE_COPY = 3
    STUN = 4
    CHECKPOINT = 5
    SWITCHOVER = 6
    VERIFY = 7
    COMPLETE = 8
    SUCCEEDED = 9
    FAILED = 10


_FIXED = {
    Phase.UNSPECIFIED: 0,
    Phase.PREPARE: 2,
    Phase.HANDSHAKE: 4,
    Phase.STUN: 86,
    Phase.CHECKPOINT: 89,
    Phase.SWITCHOVER: 92,
    Phase.VERIFY: 95,
    Phase.COMPLETE: 98,
    Phase.SUCCEEDED: 99,
    Phase.FAILED: 0,
}
_WORDS = {
    Phase.UNSPECIFIED: "starting",
    Phase.PREPARE: "preparing the destination",
    Phase.HANDSHAKE: "connecting on the vMotion network",
    Phase.STUN: "stunned: last pages",
    Phase.CHECKPOINT: "stunned: device state",
    Phase.SWITCHOVER: "switching over",
    Phase.VERIFY: "comparing memories",
    Phase.COMPLETE: "letting the source go",
    Phase.SUCCEEDED: "the guest runs at the destination",
    Phase.FAILED: "failed",
}
_FIRST_PASS, _LATER_PASSES, _PASSES_END = 5, 70, 85


@dataclass(frozen=True)
class MigrationProgress:
    """The part of a MigrationStatus that vpxd reads; `status` is the whole message, serialized."""

    phase: Phase
    iteration: int = 0
    pages_total: int = 0
    pages_sent: int = 0
    pages_remaining: int = 0
    failure: str = ""
    status: bytes = b""

    @property
    def handed_over(self) -> bool:
        """Whether it has come to the point of no return."""
        return Phase.SWITCHOVER <= self.phase <= Phase.SUCCEEDED


def percent(progress: MigrationProgress) -> int:
    """From 0 to 99. Of a failed migration 0: a task's progress doesn't go back anyway."""
    if progress.phase is not Phase.PRE_COPY:
        return _FIXED[progress.phase]
    done = min(1.0, progress.pages_sent / progress.pages_total) if progress.pages_total > 0 else 0.0
    if progress.iteration == 0:
        return int(_FIRST_PASS + (_LATER_PASSES - _FIRST_PASS) * done)
    passes = min(progress.iteration, 50) - 1 + done  # beyond 50 the share left is nothing
    return int(_LATER_PASSES + (_PASSES_END - _LATER_PASSES) * (1.0 - 0.5**passes))


def words(progress: MigrationProgress) -> str:
    """What it does now."""
    if progress.phase is not Phase.PRE_COPY:
        return _WORDS[progress.phase]
    left_mib = progress.pages_remaining * _PAGE_BYTES / _MIB
    return f"copying memory: pass {progress.iteration}, {left_mib:.0f} MiB left"
