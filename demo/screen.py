"""What the demonstration shows: progress while it runs, tables at the end."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from demo.result import Migration, Result
from vpxd.cli.migration_report import report
from vpxd.cli.migration_view import LineView, LiveView, MigrationView
from vpxd.cli.output import Column, ColumnTable, console, print_view, table_of
from vpxd.cli.quantities import bytes_text, ms_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADING_CELLS = 100


class Screen:
    """Standard output, on a terminal or not."""

    def __init__(self) -> None:
        self._console = console()
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._console.print(f"[{time.monotonic() - self._began_s:5.1f} s] {text}")

    @contextmanager
    def migration(self, title: str) -> Iterator[MigrationView]:
        """A view of a migration while the body runs."""
        view: MigrationView
        if sys.stdout.isatty():
            view = LiveView(self._console, title)
        else:
            self.say(title)
            view = LineView(self._console)
        try:
            yield view
        finally:
            view.close()

    def report(self, one: Migration) -> None:
        """A migration's tables."""
        self.section(one.name, report(one.status))

    def section(self, heading: str, view: "RenderableType | ColumnTable") -> None:
        """Tables under a heading."""
        self._console.print(f"\n── {heading} ".ljust(_HEADING_CELLS, "─"), style="bold")
        print_view(self._console, view)

    def tell(self, text: str) -> None:
        """One line as it is."""
        self._console.print(text)

    def verdict(self, text: str, missed_goals: Sequence[str], problems: Sequence[str]) -> None:
        """What was missed, what went wrong, and `text` where nothing did."""
        for missed in missed_goals:
            self._console.print(f"slower than aimed at: {missed}", style="yellow")
        for problem in problems:
            self._console.print(f"PROBLEM: {problem}", style="bold red")
        if problems:
            self._console.print(f"FAILED: {len(problems)} problems, see above.", style="bold red")
        else:
            self._console.print(f"ok: {text}", style="bold green")

    def conclude(self, result: Result, path: Path) -> None:
        """The last word."""
        if result.migrations:
            self.section("all migrations", _summary(result))
        memory = "   ".join(f"{name} {mib:g}" for name, mib in result.idle_rss_mib.items())
        self._console.print()
        if memory:
            self._console.print(f"Idle memory in MiB: {memory}")
        self._console.print(
            f"{result.heartbeats} heartbeats seen, {result.wrong_stamps} wrong stamps, "
            f"{result.seconds.get('all', 0):.1f} s in all; written to {path}"
        )
        verdict = "The guest lived through every move, and both memories were equal each time."
        self.verdict(verdict, result.missed_goals, result.problems)


def _summary(result: Result) -> ColumnTable:
    columns = (
        Column("MIGRATION"),
        Column("TOTAL", "right"),
        Column("STUN", "right"),
        Column("GUEST SILENT", "right"),
        Column("PASSES", "right"),
        Column("RAM", "right"),
        Column("WIRE", "right"),
        Column("TRACER"),
        Column("ENCRYPTED"),
        Column("VERIFIED"),
    )
    rows = [
        (
            one.name,
            ms_text(one.status.total_ms),
            ms_text(one.status.stun_ms),
            "-" if one.guest_gap_ms is None else ms_text(one.guest_gap_ms),
            str(len(one.status.iterations)),
            bytes_text(one.status.ram_bytes),
            bytes_text(one.status.wire_bytes),
            one.status.tracer,
            "yes" if one.status.encrypted else "NO",
            "yes" if one.status.memory_verified else "NO",
        )
        for one in result.migrations
    ]
    return table_of(columns, rows)
