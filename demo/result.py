"""Pure: no I/O, no clock, no logging.

What the demonstration found: out/demo.json, and the judgement whether all of it held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from images.guest_output import parse_heartbeat
from proto.vmotion.v1 import status_pb2

STUN_GOAL_MS = 50.0
GAP_GOAL_MS = 100.0
RSS_GOAL_MIB = 90.0
QEMU_RAM_LIMIT_BYTES = 4 << 20
_MOST_TOLD = 10


@dataclass(frozen=True)
class Migration:
    """One migration of the demonstration; `guest_gap_ms` None: no heartbeat was seen."""

    source: str
    destination: str
    status: status_pb2.MigrationStatus
    guest_gap_ms: float | None

    @property
    def name(self) -> str:
        return f"{self.source} → {self.destination}"


@dataclass
class Result:
    """Everything that goes into demo.json."""

    migrations: list[Migration] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    idle_rss_mib: dict[str, float] = field(default_factory=dict)
    heartbeats: int = 0
    wrong_stamps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all that has to hold did."""
        return not self.problems

    @property
    def missed_goals(self) -> list[str]:
        """Figures that were worse than aimed at. They depend on the machine and what else it does: no failure."""
        missed = []
        for one in self.migrations:
            if one.status.stun_ms >= STUN_GOAL_MS:
                missed.append(f"{one.name}: stun {one.status.stun_ms:.1f} ms, aimed at {STUN_GOAL_MS:g}")
            if one.guest_gap_ms is not None and one.guest_gap_ms >= GAP_GOAL_MS:
                missed.append(f"{one.name}: guest gap {one.guest_gap_ms:.1f} ms, aimed at {GAP_GOAL_MS:g}")
        for daemon, mib in self.idle_rss_mib.items():
            if mib >= RSS_GOAL_MIB:
                missed.append(f"{daemon}: {mib:.1f} MiB resident when idle, aimed at {RSS_GOAL_MIB:g}")
        return missed

    def document(self) -> dict[str, Any]:
        """demo.json."""
        return {
            "ok": self.ok,
            "migrations": [migration_document(one) for one in self.migrations],
            "problems": self.problems,
            "missed_goals": self.missed_goals,
            "idle_rss_mib": self.idle_rss_mib,
            "heartbeats": self.heartbeats,
            "wrong_stamps": self.wrong_stamps,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def migration_document(one: Migration) -> dict[str, Any]:
    """One entry of "migrations"."""
    status, parts = one.status, one.status.stun_parts
    return {
        "source": one.source,
        "destination": one.destination,
        "total_ms": round(status.total_ms, 2),
        "stun_ms": round(status.stun_ms, 3),
        "stun_parts_ms": {
            "stop": round(parts.stop_ms, 3),
            "last_pages": round(parts.last_pages_ms, 3),
            "device_state": round(parts.device_state_ms, 3),
            "hand_over": round(parts.hand_over_ms, 3),
            "resume": round(parts.resume_ms, 3),
        },
        "guest_gap_ms": one.guest_gap_ms,
        "iterations": [
            {
                "pages": each.pages,
                "bytes": each.ram_bytes,
                "duration_ms": round(each.duration_ms, 3),
                "dirty_pages": each.dirty_pages,
                "zero_pages": each.zero_pages,
                "wire_bytes": each.wire_bytes,
            }
            for each in status.iterations
        ],
        "ram_bytes": status.ram_bytes,
        "wire_bytes": status.wire_bytes,
        "tracer": status.tracer,
        "encrypted": status.encrypted,
        "memory_verified": status.memory_verified,
        "streams": status.streams,
        "device_state_bytes": status.device_state_bytes,
        "qemu_ram_transferred_bytes": status.qemu_ram_transferred_bytes,
        "switchover_reason": status.switchover_reason,
    }


def migration_problems(one: Migration) -> list[str]:
    """What didn't hold of one migration."""
    status, found = one.status, []
    if not status.memory_verified:
        found.append("its memory isn't verified")
    if not status.encrypted:
        found.append("its streams weren't encrypted")
    if status.qemu_ram_transferred_bytes >= QEMU_RAM_LIMIT_BYTES:
        found.append(f"QEMU's own stream carried {status.qemu_ram_transferred_bytes} bytes of RAM")
    if not status.stun_ms:
        found.append("its stun wasn't measured")
    if not status.iterations:
        found.append("it tells no passes over the memory")
    if one.guest_gap_ms is None:
        found.append("no heartbeat was seen while it ran")
    return [f"{one.name}: {text}" for text in found]


def heartbeat_problems(lines: Sequence[str]) -> list[str]:
    """What the sequence of heartbeats shows: each number once, rising by one, never a wrong stamp, no boot."""
    problems: list[str] = []
    previous: int | None = None
    for line in lines:
        beat = parse_heartbeat(line)
        if beat is None:
            problems.append(f"a line that is no heartbeat: {line[:60]!r}")
            continue
        if previous is not None and beat.sequence != previous + 1:
            problems.append(_jump(previous, beat.sequence))
        if beat.wrong:
            problems.append(f"heartbeat {beat.sequence} tells {beat.wrong} wrong stamps")
        previous = beat.sequence
    if previous is None:
        problems.append("no heartbeat was seen at all")
    more = len(problems) - _MOST_TOLD
    return problems if more <= 0 else [*problems[:_MOST_TOLD], f"... and {more} more of this kind"]


def _jump(previous: int, sequence: int) -> str:
    if sequence == 0:
        return f"the guest booted anew after heartbeat {previous}"
    if sequence <= previous:
        return f"heartbeat {sequence} came after {previous}: a repetition"
    return f"heartbeats {previous + 1} to {sequence - 1} are missing"
