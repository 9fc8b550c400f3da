"""A migration while it runs: live bars on a terminal, one line per phase and pass elsewhere."""

import time
from typing import TYPE_CHECKING, Protocol

from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import status_pb2
from vpxd.cli.console_text import plain
from vpxd.cli.migration_report import PhaseTimes, gigabytes_text, report, summary
from vpxd.cli.quantities import bytes_text, count_text, ms_text, rate_text
from vpxd.cli.wording import PHASE_NAMES, phase_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_BAR_CELLS = 28
_SHOWN = tuple(
    phase
    for phase in PHASE_NAMES
    if phase
    not in (
        status_pb2.MIGRATION_PHASE_UNSPECIFIED,
        status_pb2.MIGRATION_PHASE_SUCCEEDED,
        status_pb2.MIGRATION_PHASE_FAILED,
    )
)
_PRE_COPY_AT = _SHOWN.index(status_pb2.MIGRATION_PHASE_PRE_COPY)
_OF_MEMORY = frozenset(
    {
        status_pb2.MIGRATION_PHASE_PRE_COPY,
        status_pb2.MIGRATION_PHASE_STUN,
        status_pb2.MIGRATION_PHASE_CHECKPOINT,
    }
)
_FRAMES_PER_S = 12


class MigrationView(Protocol):
    """Something that shows a migration's task while it runs."""

    times: PhaseTimes

    def update(self, task: task_pb2.TaskInfo) -> None:
        """Shows the task as it is now."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class LineView:
    """Plain lines: for logs, pipes and dumb terminals."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._passes = 0
        self._position = 0
        self._disks_told = False
        self.times = PhaseTimes()

    def update(self, task: task_pb2.TaskInfo) -> None:
        """One line per new phase and per pass that has ended."""
        status = task.migration
        phase = status.phase or status_pb2.MIGRATION_PHASE_PREPARE
        new_phase = self.times.see(phase, time.monotonic())
        if task.queue_position != self._position and task.queue_position:
            self._line("queued", f"number {task.queue_position} in line: {task.queue_reason}")
        self._position = task.queue_position
        before_passes = phase in _SHOWN and _SHOWN.index(phase) <= _PRE_COPY_AT
        if new_phase and before_passes:
            self._line(phase_text(phase), task.description)
        if new_phase and phase != status_pb2.MIGRATION_PHASE_DISK_COPY and not self._disks_told:
            self._tell_disks(status)
        for one in status.iterations[self._passes :]:
            rate = rate_text(one.ram_bytes * 1000 / one.duration_ms) if one.duration_ms else "-"
            text = f"{count_text(one.pages)} pages in {ms_text(one.duration_ms)}, {rate}, "
            self._line(f"pass {one.number}", f"{text}{count_text(one.dirty_pages)} pages dirtied meanwhile")
        self._passes = max(self._passes, len(status.iterations))
        if new_phase and phase in _SHOWN and not before_passes:
            self._line(phase_text(phase), task.description)

    def _tell_disks(self, status: status_pb2.MigrationStatus) -> None:
        self._disks_told = bool(status.disks)
        for disk in status.disks:
            rate = gigabytes_text(disk.copied_bytes, disk.duration_ms)
            text = f"{bytes_text(disk.copied_bytes)} in {ms_text(disk.duration_ms)}, {rate}, "
            self._line(f"disk {disk.key}", f"{text}{bytes_text(disk.mirrored_bytes)} mirrored")

    def close(self) -> None:
        """Nothing to leave."""

    def _line(self, name: str, text: str) -> None:
        self._console.print(f"{name:<11} {plain(text)}".rstrip())


class LiveView:
    """Redraws one block of a terminal: a line for each phase, a bar for the one under way."""

    def __init__(self, console: "Console", title: str) -> None:
        from rich.live import Live

        self.times = PhaseTimes()
        self._title = plain(title)
        self._task = task_pb2.TaskInfo()
        self._live: Live = Live(
            get_renderable=self._picture,
            console=console,
            refresh_per_second=_FRAMES_PER_S,
            transient=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def update(self, task: task_pb2.TaskInfo) -> None:
        """Takes the newest state; it is drawn at the next frame."""
        self.times.see(task.migration.phase, time.monotonic())
        self._task = task

    def close(self) -> None:
        """The last picture stays."""
        self._live.stop()

    def _picture(self) -> "RenderableType":
        return picture(self._title, self._task, self.times, time.monotonic())


def picture(title: str, task: task_pb2.TaskInfo, times: PhaseTimes, now_s: float) -> "RenderableType":
    """The block that LiveView draws."""
    from rich.console import Group
    from rich.text import Text

    status = task.migration
    now = status.phase or status_pb2.MIGRATION_PHASE_PREPARE
    lasted = times.lasted_ms(now_s)
    head = Text.assemble((title, "bold"), f"   {task.progress_percent} %", (f"   {task.id}", "dim"))
    lines = [head]
    if task.queue_position:
        lines.append(
            Text(plain(f"  number {task.queue_position} in line: {task.queue_reason}"), style="yellow")
        )
    for phase in _SHOWN:
        if _never_comes(phase, now, status, lasted):
            continue
        lines.append(_phase_line(phase, now, task, lasted))
        if phase == status_pb2.MIGRATION_PHASE_PRE_COPY and phase == status.phase:
            lines += _pre_copy_lines(status)
        if phase == status_pb2.MIGRATION_PHASE_DISK_COPY and phase == status.phase:
            lines += [_disk_line(disk) for disk in status.disks]
    return Group(*lines)


def _never_comes(
    phase: int, now: int, status: status_pb2.MigrationStatus, lasted_ms: dict[int, float]
) -> bool:
    """Phases that not every migration has: those of memory, of disks, and the comparison."""
    if phase == status_pb2.MIGRATION_PHASE_VERIFY:
        return not _reached(phase, now)
    if phase == status_pb2.MIGRATION_PHASE_DISK_COPY:
        return not status.disks and phase != now
    beyond_copy = _reached(status_pb2.MIGRATION_PHASE_SWITCHOVER, now)
    return phase in _OF_MEMORY and bool(status.disks) and beyond_copy and phase not in lasted_ms


def _reached(phase: int, now: int) -> bool:
    """Whether a migration that is in the phase `now` has come to `phase`; in the order in which they happen."""
    if now == status_pb2.MIGRATION_PHASE_SUCCEEDED:
        return True
    return now in _SHOWN and _SHOWN.index(now) >= _SHOWN.index(phase)


def _phase_line(phase: int, now: int, task: task_pb2.TaskInfo, lasted_ms: dict[int, float]) -> "Text":
    from rich.text import Text

    name = f"{phase_text(phase):<11}"
    time_text = f"{ms_text(lasted_ms[phase]):>10}" if phase in lasted_ms else ""
    if task.state == task_pb2.TASK_STATE_ERROR:
        if phase == _last_real(lasted_ms):
            return Text.assemble(("  ✗ ", "red"), name, (time_text, "dim"))
        passed = phase in lasted_ms
    else:
        passed = (phase != now and _reached(phase, now)) or task.state == task_pb2.TASK_STATE_SUCCESS
        if phase == now and not passed:
            return Text.assemble(("  ▸ ", "cyan"), (name, "bold"), time_text)
    if passed:
        return Text.assemble(("  ✓ ", "green"), name, (time_text, "dim"))
    return Text(f"  · {name}", style="dim")


def _last_real(lasted_ms: dict[int, float]) -> int:
    real = [phase for phase in lasted_ms if phase in _SHOWN]
    return real[-1] if real else 0


def _disk_line(disk: status_pb2.DiskProgress) -> "Text":
    from rich.text import Text

    share = min(1.0, disk.copied_bytes / disk.data_bytes) if disk.data_bytes else 0.0
    cells = round(_BAR_CELLS * share)
    mirrored = f", {bytes_text(disk.mirrored_bytes)} mirrored" if disk.mirrored_bytes else ""
    return Text.assemble(
        f"      disk {disk.key} ",
        ("━" * cells, "cyan"),
        ("━" * (_BAR_CELLS - cells), "dim"),
        f" {100 * share:3.0f} %  {bytes_text(disk.copied_bytes)} of {bytes_text(disk.data_bytes)}{mirrored}",
    )


def _pre_copy_lines(status: status_pb2.MigrationStatus) -> "list[Text]":
    from rich.text import Text

    share = status.pages_sent / status.pages_total if status.pages_total else 0.0
    cells = round(_BAR_CELLS * min(share, 1.0))
    bar = Text.assemble(
        f"      pass {status.iteration:<3} ",
        ("━" * cells, "cyan"),
        ("━" * (_BAR_CELLS - cells), "dim"),
        f" {100 * min(share, 1.0):3.0f} %  {rate_text(status.rate_bytes_per_s):>10}",
    )
    numbers = f"      {count_text(status.pages_remaining)} of {count_text(status.pages_total)} pages remain"
    if status.iterations:  # known from the end of the first pass on
        dirty = count_text(status.iterations[-1].dirty_pages)
        numbers += (
            f", {dirty} dirtied in the last pass, guest writes {rate_text(status.dirty_rate_bytes_per_s)}"
        )
    return [bar, Text(numbers, style="dim")]


def final_words(name: str, source: str, destination: str, task: task_pb2.TaskInfo) -> str:
    """ "web01 has moved from esx01 to esx02: stunned for 6.3 ms, ..."."""
    route = f" from {source} to {destination}" if source and destination else ""
    if not task.HasField("migration") or not task.migration.total_ms:
        return f"{name} has moved{route}."
    return f"{name} has moved{route}: {summary(task.migration)}."


def final_report(task: task_pb2.TaskInfo) -> "RenderableType":
    """The tables at the end."""
    return report(task.migration)
