"""What a migration tells the world about itself while it runs: one frozen value, replaced as a whole."""

from dataclasses import dataclass, field, replace

from runtime.faults import VimFault
from vmx.migration.phases import PublishedPhase
from vmx.watched import Watched


@dataclass(frozen=True)
class IterationReport:
    """One pass of pre-copy; `dirty_pages` is what the guest wrote meanwhile."""

    number: int
    pages: int
    zero_pages: int
    ram_bytes: int
    wire_bytes: int
    duration_ms: float
    dirty_pages: int


@dataclass(frozen=True)
class StunReport:
    """The parts of the stun, in order; they add up to `stun_ms`."""

    stop_ms: float = 0.0
    last_pages_ms: float = 0.0
    device_state_ms: float = 0.0
    hand_over_ms: float = 0.0
    resume_ms: float = 0.0

    @property
    def stun_ms(self) -> float:
        """From the order to stop the vCPUs to the arrival of RESUMED, on the source's monotonic clock."""
        return self.stop_ms + self.last_pages_ms + self.device_state_ms + self.hand_over_ms + self.resume_ms


@dataclass(frozen=True)
class PhaseReport:
    """A phase that has ended, and how long it took."""

    phase: PublishedPhase
    duration_ms: float


@dataclass(frozen=True)
class DiskReport:
    """How the copy of one disk goes: proto.vmotion.v1.DiskProgress. `switched`: the guest is on the new files."""

    key: int
    capacity_bytes: int
    data_bytes: int = 0
    copied_bytes: int = 0
    zero_bytes: int = 0
    wire_bytes: int = 0
    mirrored_bytes: int = 0
    duration_ms: float = 0.0
    switched: bool = False


@dataclass(frozen=True)
class Progress:
    """A migration as it is now. Rates in bytes of guest RAM per second."""

    migration_id: int
    ram_bytes: int
    phase: PublishedPhase = PublishedPhase.PREPARE
    iteration: int = 0
    pages_total: int = 0
    pages_sent: int = 0
    rate_bytes_per_s: float = 0.0
    dirty_rate_bytes_per_s: float = 0.0
    wire_bytes: int = 0
    iterations: tuple[IterationReport, ...] = ()
    stun: StunReport = field(default_factory=StunReport)
    device_state_bytes: int = 0
    qemu_ram_transferred_bytes: int = 0
    tracer: str = ""
    encrypted: bool = True
    memory_verified: bool = False
    total_ms: float = 0.0
    streams: int = 0
    switchover_reason: str = ""
    fault: VimFault | None = None
    phases: tuple[PhaseReport, ...] = ()
    disks: tuple[DiskReport, ...] = ()


class ProgressBoard:
    """Where one migration's progress hangs for all to see; its owner changes it, nobody else."""

    def __init__(self, first: Progress) -> None:
        self.watched = Watched(first)

    @property
    def now(self) -> Progress:
        """The newest progress."""
        return self.watched.value

    def enter(self, phase: PublishedPhase) -> None:
        """Publish a new phase; phases never go back."""
        if phase.order > self.now.phase.order:
            self.watched.set(replace(self.now, phase=phase))

    def leave(self, phase: PublishedPhase, duration_ms: float) -> None:
        """Publish that a phase, or a part of the one published, has ended."""
        done = self.now.phases
        if done and done[-1].phase is phase:
            done, duration_ms = done[:-1], done[-1].duration_ms + duration_ms
        self.watched.set(replace(self.now, phases=(*done, PhaseReport(phase, duration_ms))))

    def publish(self, progress: Progress) -> None:
        """Publish everything else."""
        self.watched.set(progress)

    def close(self, phase: PublishedPhase, fault: VimFault | None = None) -> None:
        """Publish the last state; watchers end after it."""
        self.watched.set(replace(self.now, phase=phase, fault=fault))
        self.watched.close()
