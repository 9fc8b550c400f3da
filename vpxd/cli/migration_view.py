"""A migration while it runs: live bars on a terminal, one line per phase and pass elsewhere."""

import time
from typing import TYPE_CHECKING, Protocol

from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import status_pb2
from vpxd.cli.console_text import plain
from vpxd.cli.migration_report import PhaseTimes, report, summary
from vpxd.cli.quantities import count_text, ms_text, rate_text
from vpxd.cli.wording import PHASE_NAMES, phase_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_BAR_CELLS = 28
_SHOWN = tuple(
    phase
    for phase in PHASE_NAMES
    if status_pb2.MIGRATION_PHASE_UNSPECIFIED < phase < status_pb2.MIGRATION_PHASE_SUCCEEDED
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
        self.times = PhaseTimes()

    def update(self, task: task_pb2.TaskInfo) -> None:
        """One line per new phase and per pass that has ended."""
        status = task.migration
        phase = status.phase or status_pb2.MIGRATION_PHASE_PREPARE
        new_phase = self.times.see(phase, time.monotonic())
        if new_phase and phase in _SHOWN and phase <= status_pb2.MIGRATION_PHASE_PRE_COPY:
            self._line(phase_text(phase), task.description)
        for one in status.iterations[self._passes :]:
            rate = rate_text(one.ram_bytes * 1000 / one.duration_ms) if one.duration_ms else "-"
            text = f"{count_text(one.pages)} pages in {ms_text(one.duration_ms)}, {rate}, "
            self._line(f"pass {one.number}", f"{text}{count_text(one.dirty_pages)} pages dirtied meanwhile")
        self._passes = max(self._passes, len(status.iterations))
        if new_phase and phase in _SHOWN and phase > status_pb2.MIGRATION_PHASE_PRE_COPY:
            self._line(phase_text(phase), task.description)

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
    for phase in _SHOWN:
        if phase == status_pb2.MIGRATION_PHASE_VERIFY and phase > now:
            continue  # only a verified migration has this phase
        lines.append(_phase_line(phase, now, task, lasted))
        if phase == status_pb2.MIGRATION_PHASE_PRE_COPY and phase == status.phase:
            lines += _pre_copy_lines(status)
    return Group(*lines)


def _phase_line(phase: int, now: int, task: task_pb2.TaskInfo, lasted_ms: dict[int, float]) -> "Text":
    from rich.text import Text

    name = f"{phase_text(phase):<11}"
    time_text = f"{ms_text(lasted_ms[phase]):>10}" if phase in lasted_ms else ""
    if task.state == task_pb2.TASK_STATE_ERROR:
        if phase == _last_real(lasted_ms):
            return Text.assemble(("  ✗ ", "red"), name, (time_text, "dim"))
        passed = phase in lasted_ms
    else:
        passed = phase < now or task.state == task_pb2.TASK_STATE_SUCCESS
        if phase == now and not passed:
            return Text.assemble(("  ▸ ", "cyan"), (name, "bold"), time_text)
    if passed:
        return Text.assemble(("  ✓ ", "green"), name, (time_text, "dim"))
    return Text(f"  · {name}", style="dim")


def _last_real(lasted_ms: dict[int, float]) -> int:
    real = [phase for phase in lasted_ms if phase in _SHOWN]
    return real[-1] if real else 0


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
