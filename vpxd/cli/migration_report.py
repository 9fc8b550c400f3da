"""The tables at the end of a migration: its passes, its phases, and where the stun's milliseconds went."""

from typing import TYPE_CHECKING, Final

from proto.vmotion.v1 import status_pb2
from vpxd.cli.output import Column, ColumnTable, table_of
from vpxd.cli.quantities import bytes_text, count_text, ms_text, rate_text
from vpxd.cli.wording import phase_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_BAR_CELLS = 24
_RIGHT: Final = "right"

_PHASES_OF_STUN = frozenset(
    {
        status_pb2.MIGRATION_PHASE_STUN,
        status_pb2.MIGRATION_PHASE_CHECKPOINT,
        status_pb2.MIGRATION_PHASE_SWITCHOVER,
    }
)
_MEASURED_BY = {status_pb2.MIGRATION_PHASE_PREPARE: "vpxd", status_pb2.MIGRATION_PHASE_COMPLETE: "vpxd"}


class PhaseTimes:
    """How long each phase lasted, as seen by whoever watches; phases that were too short to be seen are missing."""

    def __init__(self) -> None:
        self._began: dict[int, float] = {}

    def see(self, phase: int, now_s: float) -> bool:
        """Notes the phase; True when it is a new one. Checks and placement at vpxd count as preparing."""
        phase = phase or status_pb2.MIGRATION_PHASE_PREPARE
        if phase in self._began:
            return False
        self._began[phase] = now_s
        return True

    @property
    def seen(self) -> list[int]:
        """The phases seen so far, in order."""
        return list(self._began)

    def lasted_ms(self, now_s: float) -> dict[int, float]:
        """Milliseconds by phase, the last one up to now."""
        phases = list(self._began)
        ends = [*(self._began[phase] for phase in phases), now_s][1:]
        return {phase: (end - self._began[phase]) * 1000 for phase, end in zip(phases, ends, strict=True)}


def passes_table(status: status_pb2.MigrationStatus) -> ColumnTable:
    """One row for each pass of pre-copy."""
    columns = (
        Column("PASS", _RIGHT),
        Column("PAGES", _RIGHT),
        Column("ZERO", _RIGHT),
        Column("RAM", _RIGHT),
        Column("WIRE", _RIGHT),
        Column("TIME", _RIGHT),
        Column("RATE", _RIGHT),
        Column("DIRTIED MEANWHILE", _RIGHT),
    )
    rows = [
        (
            str(one.number),
            count_text(one.pages),
            count_text(one.zero_pages),
            bytes_text(one.ram_bytes),
            bytes_text(one.wire_bytes),
            ms_text(one.duration_ms),
            rate_text(one.ram_bytes * 1000 / one.duration_ms) if one.duration_ms else "-",
            f"{count_text(one.dirty_pages)} pages",
        )
        for one in status.iterations
    ]
    return table_of(columns, rows, "Passes over the memory")


def disks_table(status: status_pb2.MigrationStatus) -> ColumnTable:
    """One row for each disk that moves."""
    columns = (
        Column("DISK"),
        Column("CAPACITY", _RIGHT),
        Column("DATA", _RIGHT),
        Column("COPIED", _RIGHT),
        Column("ZERO", _RIGHT),
        Column("MIRRORED", _RIGHT),
        Column("WIRE", _RIGHT),
        Column("TIME", _RIGHT),
        Column("RATE", _RIGHT),
    )
    rows = [
        (
            str(disk.key),
            bytes_text(disk.capacity_bytes),
            bytes_text(disk.data_bytes),
            bytes_text(disk.copied_bytes),
            bytes_text(disk.zero_bytes),
            bytes_text(disk.mirrored_bytes),
            bytes_text(disk.wire_bytes),
            ms_text(disk.duration_ms) if disk.duration_ms else "-",
            gigabytes_text(disk.copied_bytes, disk.duration_ms),
        )
        for disk in status.disks
    ]
    return table_of(columns, rows, "Disks")


def gigabytes_text(size_bytes: int, duration_ms: float) -> str:
    """ "1.24 GB/s", in powers of ten as disks are sold; "-" where no time was measured."""
    return f"{size_bytes / duration_ms / 1e6:.2f} GB/s" if duration_ms else "-"


def phase_rows(status: status_pb2.MigrationStatus) -> list[tuple[str, float, str]]:
    """Name, milliseconds and who measured. The stun's phases are one row."""
    rows: list[tuple[str, float, str]] = []
    for one in status.phases:
        if one.phase not in _PHASES_OF_STUN:
            rows.append((phase_text(one.phase), one.duration_ms, _MEASURED_BY.get(one.phase, "source")))
        elif status.stun_ms and ("stun", status.stun_ms, "source") not in rows:
            rows.append(("stun", status.stun_ms, "source"))
    if status.total_ms:
        rows.append(("total", status.total_ms, "vpxd"))
    return rows


def phases_table(status: status_pb2.MigrationStatus) -> ColumnTable:
    """One row for each phase."""
    columns = (Column("PHASE"), Column("TIME", _RIGHT), Column("MEASURED BY"))
    rows = [(name, ms_text(ms), how) for name, ms, how in phase_rows(status)]
    return table_of(columns, rows, "Phases")


def stun_parts(status: status_pb2.MigrationStatus) -> list[tuple[str, float]]:
    """The stun's parts in order, in milliseconds."""
    parts = status.stun_parts
    return [
        ("stop the vCPUs", parts.stop_ms),
        ("last pages", parts.last_pages_ms),
        ("device state", parts.device_state_ms),
        ("hand-over", parts.hand_over_ms),
        ("resume", parts.resume_ms),
    ]


def stun_table(status: status_pb2.MigrationStatus) -> ColumnTable:
    """Where the stun's time went: milliseconds and share."""
    columns = (Column("PART"), Column("TIME", _RIGHT), Column("SHARE", _RIGHT), Column(""))
    whole = status.stun_ms or sum(ms for _, ms in stun_parts(status))
    rows = [
        (
            name,
            ms_text(ms),
            f"{100 * ms / whole:.0f} %" if whole else "-",
            "█" * round(_BAR_CELLS * ms / whole) if whole else "",
        )
        for name, ms in stun_parts(status)
    ]
    return table_of(columns, [*rows, ("stun", ms_text(whole), "100 %", "")], "Stun")


def summary(status: status_pb2.MigrationStatus) -> str:
    """One sentence of what it cost."""
    memory, wire = bool(status.stun_ms or status.iterations), bool(status.wire_bytes or status.stun_ms)
    words = [f"stunned for {ms_text(status.stun_ms)}"] if memory else []
    words.append(f"{ms_text(status.total_ms)} in all")
    if memory:
        words.append(f"{bytes_text(status.ram_bytes)} of RAM")
    if status.disks:
        copied = bytes_text(sum(disk.copied_bytes for disk in status.disks))
        words.append(f"{copied} of disk data")
    if wire:
        words.append(f"{bytes_text(status.wire_bytes)} on the wire over {status.streams} streams")
        words.append("encrypted" if status.encrypted else "NOT encrypted")
    if memory:
        words.append("memory verified" if status.memory_verified else "memory not verified")
    return ", ".join(words)


def report(status: status_pb2.MigrationStatus) -> "RenderableType":
    """All tables that have something to say, and what else is worth knowing."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if status.disks:
        parts += [Text(), disks_table(status)]
    if status.iterations:
        parts += [Text(), passes_table(status)]
    parts += [Text(), phases_table(status)]
    if status.stun_ms:
        parts += [Text(), stun_table(status)]
    notes = []
    if status.switchover_reason:
        notes.append(f"Switchover: {status.switchover_reason}.".replace("..", "."))
    if not status.iterations:
        return Group(*parts, *(Text("\n" + note, style="dim") for note in notes))
    notes.append(
        f"Traced by {status.tracer or '-'}; device state {bytes_text(status.device_state_bytes)}; "
        f"RAM in QEMU's own stream {bytes_text(status.qemu_ram_transferred_bytes)}."
    )
    return Group(*parts, Text(), Text("\n".join(notes), style="dim"))
