"""How far a migration is, for people. Pure: no I/O, no clock, no logging.

    2..5 prepare, handshake   5..d disks, by their bytes   d..70 first pass, by its pages   70..85 further passes
    86..99 stun and after

d divides the way from 5 to 70 as the bytes of disks and memory are to each other: without disks it is 5; where no
memory moves, the disks go up to 85. A pass beyond the first halves what is left of its range, however long it takes;
so the number always rises and never claims an end that the guest can still push away.
"""

from dataclasses import dataclass
from enum import IntEnum

_PAGE_BYTES = 4096
_MIB = 1024 * 1024


class Phase(IntEnum):
    """Numbers of proto.vmotion.v1.MigrationPhase. FAILED may follow any."""

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
    DISK_COPY = 11  # between HANDSHAKE and PRE_COPY


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
    Phase.SUCCEEDED: "the VM is at the destination",
    Phase.FAILED: "failed",
}
_COPY_BEGINS, _LATER_PASSES, _PASSES_END = 5, 70, 85


@dataclass(frozen=True)
class DiskCopy:
    """How far the copy of one disk is. `data_bytes`: what has to be read of it, holes left out."""

    key: int
    data_bytes: int
    copied_bytes: int


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
    ram_bytes: int = 0
    disks: tuple[DiskCopy, ...] = ()

    @property
    def handed_over(self) -> bool:
        """Whether it has come to the point of no return."""
        return Phase.SWITCHOVER <= self.phase <= Phase.SUCCEEDED

    @property
    def disk_bytes(self) -> tuple[int, int]:
        """Copied, and all that is to be copied, of all disks."""
        whole = sum(disk.data_bytes for disk in self.disks)
        return min(sum(disk.copied_bytes for disk in self.disks), whole), whole


def percent(progress: MigrationProgress, moves_memory: bool = True) -> int:
    """From 0 to 99. Of a failed migration 0: a task's progress doesn't go back anyway."""
    if progress.phase is Phase.DISK_COPY:
        copied, whole = progress.disk_bytes
        share = copied / whole if whole else 0.0
        return int(_COPY_BEGINS + (_disks_end(progress, moves_memory) - _COPY_BEGINS) * share)
    if progress.phase is not Phase.PRE_COPY:
        return _FIXED[progress.phase]
    done = min(1.0, progress.pages_sent / progress.pages_total) if progress.pages_total > 0 else 0.0
    if progress.iteration == 0:
        begins = _disks_end(progress, moves_memory)
        return int(begins + (_LATER_PASSES - begins) * done)
    passes = min(progress.iteration, 50) - 1 + done  # beyond 50 the share left is nothing
    return int(_LATER_PASSES + (_PASSES_END - _LATER_PASSES) * (1.0 - 0.5**passes))


def words(progress: MigrationProgress) -> str:
    """What it does now."""
    if progress.phase is Phase.DISK_COPY:
        copied, whole = progress.disk_bytes
        named = (
            f"disk {progress.disks[0].key}" if len(progress.disks) == 1 else f"{len(progress.disks)} disks"
        )
        return f"copying {named}: {copied / _MIB:.0f} of {whole / _MIB:.0f} MiB"
    if progress.phase is not Phase.PRE_COPY:
        return _WORDS[progress.phase]
    left_mib = progress.pages_remaining * _PAGE_BYTES / _MIB
    return f"copying memory: pass {progress.iteration}, {left_mib:.0f} MiB left"


def _disks_end(progress: MigrationProgress, moves_memory: bool) -> float:
    """Where the disks' range ends. At 70 at most where memory follows, so that its passes have theirs."""
    if not moves_memory:
        return _PASSES_END
    _copied, disks = progress.disk_bytes
    whole = disks + progress.ram_bytes
    share = disks / whole if whole else 0.0
    return _COPY_BEGINS + (_LATER_PASSES - _COPY_BEGINS) * share
