"""What the storage demonstration shows at its end: tables of each act, all acts beside each other, the verdict."""

from pathlib import Path

from demo.screen import Screen
from demo.storage_result import Act, StorageResult
from vpxd.cli.migration_report import report as migration_tables
from vpxd.cli.output import Column, ColumnTable, table_of
from vpxd.cli.quantities import bytes_text, ms_text


def report(screen: Screen, act: Act) -> None:
    """An act's tables."""
    screen.section(act.name, migration_tables(act.status))


def conclude(screen: Screen, result: StorageResult, path: Path) -> None:
    """The last word."""
    if result.acts:
        screen.section("all acts", _summary(result))
    document = result.document()
    rates = (document["disk_gbps"], document["qemu_img_gbps"], document["qemu_img_quiet_gbps"])
    if all(rate is not None for rate in rates):
        screen.tell(
            f"\nDisk to disk: {rates[0]:.2f} GB/s between the hosts; qemu-img convert on one host {rates[1]:.2f} "
            f"beside the same guest, {rates[2]:.2f} before it was powered on."
        )
    fsync = document["fsync"]
    if fsync is not None:
        screen.tell(
            f"{fsync['acknowledged']} records were acknowledged, the slowest after {fsync['longest_write_ms']} ms; "
            f"{fsync['checked_by_guest']} reads by the guest and {fsync['checked_on_disk']} records on the disk at "
            f"the end were compared."
        )
    screen.tell(f"{result.seconds.get('all', 0):.1f} s in all; written to {path}")
    verdict = "The guest kept every record that its disk had acknowledged, and never noticed where it was."
    screen.verdict(verdict, result.missed_goals, result.problems)


def _summary(result: StorageResult) -> ColumnTable:
    columns = (
        Column("ACT"),
        Column("TOTAL", "right"),
        Column("STUN", "right"),
        Column("GUEST SILENT", "right"),
        Column("PINGS LOST", "right"),
        Column("DISK", "right"),
        Column("MIRRORED", "right"),
        Column("WIRE", "right"),
        Column("TAKES AFTERWARDS", "right"),
    )
    rows = []
    for act in result.acts:
        gap_ms, span = result.seen.gap_ms(act), result.seen.span(act)
        rows.append(
            (
                act.name,
                ms_text(act.status.total_ms),
                ms_text(act.status.stun_ms) if act.status.stun_ms else "none",
                "-" if gap_ms is None else ms_text(gap_ms),
                f"{span.lost} of {span.sent}",
                bytes_text(act.data_bytes),
                bytes_text(sum(disk.mirrored_bytes for disk in act.status.disks)),
                bytes_text(act.status.wire_bytes),
                f"{bytes_text(act.disk_after.taken_bytes)} of {bytes_text(act.disk_after.capacity_bytes)}",
            )
        )
    return table_of(columns, rows)
