"""Pure: no I/O, no clock, no logging.

What the storage demonstration found: out/storage.json, and the judgement whether all of it held. Sizes are bytes, rates
10^9 bytes per second. `ok` is about correctness; how fast it was is told by the figures and their goals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.heartbeat_observer import Beat, guest_gap_ms
from demo.pings import PingRecord, PingSpan, span_of
from demo.result import QEMU_RAM_LIMIT_BYTES, Migration, heartbeat_problems, migration_document
from images.cmdline import HEARTBEAT_MS_DEFAULT
from images.fsync_check import FsyncCheck
from images.guest_output import parse_fsync_state, parse_fsync_wrong, parse_heartbeat
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import status_pb2
from proto.vpxd.v1 import inventory_pb2

STUN_GOAL_MS = 50.0
DISK_RATE_GOAL = 0.9  # of qemu-img's
BOTH, STORAGE, COMPUTE = "compute and storage", "storage only", "compute only"


@dataclass(frozen=True)
class DiskState:
    """The VM's disk where it lies now; `taken_bytes` by the file system's word, `inode` of its extent."""

    path: str
    format: int
    capacity_bytes: int
    allocated_bytes: int
    taken_bytes: int
    inode: int


@dataclass(frozen=True)
class Act:
    """One relocation of the running VM. `times_s`: it began, its task ended, and it was watched until (monotonic)."""

    name: str
    before: inventory_pb2.Vm
    after: inventory_pb2.Vm
    status: status_pb2.MigrationStatus
    times_s: tuple[float, float, float]
    left: tuple[str, ...]
    disk_before: DiskState
    disk_after: DiskState
    complaints: tuple[str, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Of its moved disks, without holes."""
        return sum(disk.data_bytes for disk in self.status.disks)

    @property
    def copy_ms(self) -> float:
        """Of the bulk copies, which run one after the other."""
        return sum(disk.duration_ms for disk in self.status.disks)

    @property
    def disk_gbps(self) -> float:
        """Data copied per time of the bulk copy."""
        return _gbps(self.data_bytes, self.copy_ms)


@dataclass(frozen=True)
class Proof:
    """What the disk holds at the end: records of the fsync checker up to the acknowledged one, and the random file."""

    acknowledged: int
    check: FsyncCheck
    filler_whole: bool


@dataclass(frozen=True)
class Peer:
    """qemu-img on the same disk: how long it took beside the running guest and before there was one, in ms."""

    beside_guest_ms: float
    quiet_ms: float


@dataclass(frozen=True)
class Seen:
    """What the observers outside have."""

    beats: Sequence[Beat] = ()
    pings: PingRecord = field(default_factory=PingRecord)

    def gap_ms(self, act: Act) -> float | None:
        """The guest's longest silence in that act."""
        beats = [beat for beat in self.beats if parse_heartbeat(beat.line) is not None]
        begin_s, _, end_s = act.times_s
        return guest_gap_ms(beats, int(begin_s * 1e9), int(end_s * 1e9), HEARTBEAT_MS_DEFAULT)

    def span(self, act: Act) -> PingSpan:
        """The pings of that act."""
        return span_of(self.pings, act.times_s[0], act.times_s[2])


@dataclass
class StorageResult:
    """Everything that goes into storage.json."""

    acts: list[Act] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    proof: Proof | None = None
    peer: Peer | None = None
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all that has to hold did."""
        return not self.problems

    @property
    def fsync_verified(self) -> bool:
        """Whether every record that the guest was told is safe is there: by its own word, and by the disk's bytes."""
        return self.proof is not None and not fsync_problems(self.seen.beats, self.proof)

    @property
    def missed_goals(self) -> list[str]:
        """Figures that were worse than aimed at. They depend on the machine and what else it does: no failure."""
        missed = []
        for act in self.acts:
            span, stun_ms = self.seen.span(act), act.status.stun_ms
            if stun_ms > STUN_GOAL_MS:
                missed.append(f"{act.name}: stun {stun_ms:.1f} ms, aimed at {STUN_GOAL_MS:g}")
            allowed = span.allowed(stun_ms, self.seen.pings.interval_ms)
            if span.lost > allowed:
                missed.append(f"{act.name}: {span.lost} pings lost, aimed at {allowed}")
        if self.acts and self.peer is not None:
            peer = _gbps(self.acts[0].data_bytes, self.peer.beside_guest_ms)
            if self.acts[0].disk_gbps < DISK_RATE_GOAL * peer:
                rates = f"{self.acts[0].disk_gbps:.2f} GB/s, aimed at {DISK_RATE_GOAL:g} of {peer:.2f}"
                missed.append(f"{self.acts[0].name}: disk {rates}")
        return missed

    def judge(self) -> None:
        """Adds what didn't hold of what was seen."""
        beats = [beat.line for beat in self.seen.beats if parse_heartbeat(beat.line) is not None]
        self.problems += heartbeat_problems(beats)
        if self.proof is not None:
            self.problems += fsync_problems(self.seen.beats, self.proof)
            if not self.proof.filler_whole:
                self.problems.append("the file of random bytes on the root isn't what it was")
        for act in self.acts:
            self.problems += [f"{act.name}: {text}" for text in act_problems(act, self.seen)]

    def document(self) -> dict[str, Any]:
        """storage.json: the first act's figures at the top, every act's under "acts"."""
        head = act_document(self.acts[0], self.seen) if self.acts else {}
        first = ("total_ms", "stun_ms", "guest_gap_ms", "disk_bytes", "wire_bytes", "ping_sent", "ping_lost")
        return {
            "ok": self.ok,
            **{name: head.get(name) for name in first},
            "fsync_verified": self.fsync_verified,
            "disk_gbps": head.get("disk_gbps"),
            **self._peer_document(),
            "stun_parts_ms": head.get("stun_parts_ms"),
            "acts": [act_document(act, self.seen) for act in self.acts],
            "fsync": self._fsync_document(),
            "problems": self.problems,
            "missed_goals": self.missed_goals,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def _peer_document(self) -> dict[str, float | None]:
        if self.peer is None or not self.acts:
            return {"qemu_img_gbps": None, "qemu_img_quiet_gbps": None}
        data_bytes = self.acts[0].data_bytes
        return {
            "qemu_img_gbps": round(_gbps(data_bytes, self.peer.beside_guest_ms), 3),
            "qemu_img_quiet_gbps": round(_gbps(data_bytes, self.peer.quiet_ms), 3),
        }

    def _fsync_document(self) -> dict[str, Any] | None:
        if self.proof is None:
            return None
        states = [state for beat in self.seen.beats if (state := parse_fsync_state(beat.line)) is not None]
        return {
            "acknowledged": self.proof.acknowledged,
            "highest_on_disk": self.proof.check.highest,
            "checked_on_disk": self.proof.check.checked,
            "checked_by_guest": max((state.checked for state in states), default=0),
            "longest_write_ms": max((state.longest_ms for state in states), default=0),
            "filler_whole": self.proof.filler_whole,
        }


def act_document(act: Act, seen: Seen) -> dict[str, Any]:
    """One entry of "acts"."""
    status, span = act.status, seen.span(act)
    memory = _memory_document(status) if status.stun_ms else {}
    return {
        "name": act.name,
        "source": f"{act.before.host_name} {act.disk_before.path}",
        "destination": f"{act.after.host_name} {act.disk_after.path}",
        "total_ms": round(status.total_ms, 2),
        "stun_ms": round(status.stun_ms, 3),
        "guest_gap_ms": seen.gap_ms(act),
        "disk_bytes": act.data_bytes,
        "wire_bytes": status.wire_bytes,
        "disk_wire_bytes": sum(disk.wire_bytes for disk in status.disks),
        "disk_gbps": round(act.disk_gbps, 3) if act.copy_ms else None,
        "ping_sent": span.sent,
        "ping_lost": span.lost,
        "ping_longest_gap_ms": span.longest_gap_ms,
        "pinger_longest_pause_ms": span.sender_gap_ms,
        "announcements": span.announcements,
        "disks": [_disk_document(disk) for disk in status.disks],
        "allocated_bytes": {"before": act.disk_before.taken_bytes, "after": act.disk_after.taken_bytes},
        "capacity_bytes": act.disk_after.capacity_bytes,
        "format": vm_config_pb2.DiskFormat.Name(vm_config_pb2.DiskFormat.ValueType(act.disk_after.format)),
        "phases_ms": {
            status_pb2.MigrationPhase.Name(one.phase).removeprefix("MIGRATION_PHASE_").lower(): round(
                one.duration_ms, 2
            )
            for one in status.phases
        },
        **memory,
    }


def _memory_document(status: status_pb2.MigrationStatus) -> dict[str, Any]:
    """What the first demonstration tells of a migration's memory, too."""
    wanted = ("stun_parts_ms", "iterations", "ram_bytes", "tracer", "encrypted", "memory_verified", "streams")
    document = migration_document(Migration("", "", status, None))
    return {name: document[name] for name in wanted}


def act_problems(act: Act, seen: Seen) -> list[str]:
    """What didn't hold of one act."""
    found = [f"the guest says: {line}" for line in act.complaints]
    found += [f"{path} is still there" for path in act.left]
    span = seen.span(act)
    if seen.gap_ms(act) is None:
        found.append("no heartbeat was seen while it ran")
    if not span.sent or span.lost == span.sent:
        found.append("no ping was answered while it ran")
    found += _host_problems(act) if act.before.host != act.after.host else _same_host_problems(act)
    found += _disk_problems(act)
    return found


def fsync_problems(beats: Sequence[Beat], proof: Proof) -> list[str]:
    """What was acknowledged and isn't there, or was read wrong."""
    found = [f"the guest says: {beat.line}" for beat in beats if parse_fsync_wrong(beat.line) is not None]
    states = [state for beat in beats if (state := parse_fsync_state(beat.line)) is not None]
    if not states or not states[-1].acknowledged:
        found.append("the guest acknowledged nothing")
    elif states[-1].wrong:
        found.append(f"the guest read {states[-1].wrong} of its records wrong")
    check = proof.check
    if not check.ok:
        found.append(
            f"of {check.acknowledged} acknowledged records {check.wrong_count} are wrong on the disk, whose highest "
            f"is {check.highest}"
        )
    return found


def _host_problems(act: Act) -> list[str]:
    status, found = act.status, []
    if not status.memory_verified:
        found.append("its memory isn't verified")
    if not status.encrypted:
        found.append("its streams weren't encrypted")
    if not status.stun_ms:
        found.append("its stun wasn't measured")
    if status.qemu_ram_transferred_bytes >= QEMU_RAM_LIMIT_BYTES:
        found.append(f"QEMU's own stream carried {status.qemu_ram_transferred_bytes} bytes of RAM")
    return found


def _same_host_problems(act: Act) -> list[str]:
    found = []
    if act.status.stun_ms:
        found.append(f"the guest was stunned for {act.status.stun_ms:.1f} ms")
    if act.status.wire_bytes:
        found.append(f"{act.status.wire_bytes} bytes went over the vMotion network")
    return found


def _disk_problems(act: Act) -> list[str]:
    before, after, found = act.disk_before, act.disk_after, []
    if act.name == COMPUTE:
        if act.status.disks or before.inode != after.inode or before.path != after.path:
            found.append("its disk was copied")
        return found
    if not act.data_bytes:
        found.append("it tells no data copied")
    for disk in act.status.disks:
        if disk.copied_bytes < disk.data_bytes:
            found.append(
                f"of {disk.data_bytes} bytes of disk {disk.key} only {disk.copied_bytes} were copied"
            )
    if before.path == after.path and act.before.host == act.after.host:
        found.append("its disk is where it was")
    if after.format == vm_config_pb2.DISK_FORMAT_THIN and after.taken_bytes >= after.capacity_bytes:
        found.append(f"its thin disk takes all of its {after.capacity_bytes} bytes")
    return found


def _disk_document(disk: status_pb2.DiskProgress) -> dict[str, Any]:
    return {
        "key": disk.key,
        "capacity_bytes": disk.capacity_bytes,
        "data_bytes": disk.data_bytes,
        "copied_bytes": disk.copied_bytes,
        "zero_bytes": disk.zero_bytes,
        "mirrored_bytes": disk.mirrored_bytes,
        "wire_bytes": disk.wire_bytes,
        "duration_ms": round(disk.duration_ms, 3),
        "gbps": round(_gbps(disk.data_bytes, disk.duration_ms), 3),
    }


def _gbps(size_bytes: int, duration_ms: float) -> float:
    return size_bytes / duration_ms / 1e6 if duration_ms else 0.0
