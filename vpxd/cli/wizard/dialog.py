"""Questions on a terminal: numbered choices, a line as the answer.

Lines are read by the event loop from the terminal's own line discipline, so Ctrl-C ends a question at once (a thread
in input() would have to be waited for), and editing, erasing and pasting are the terminal's.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from vpxd.cli.console_text import plain
from vpxd.cli.errors import Interrupted
from vpxd.cli.input_stream import readable
from vpxd.cli.output import Column, print_view, table_of

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_BACK, _QUIT = ("b", "back"), ("q", "quit", "cancel")
_MAX_LINE_BYTES = 64 * 1024
NOTHING_STARTED = "Canceled: nothing was started."


class StepBack(Exception):
    """The answer "back": to the step before."""


@dataclass(frozen=True)
class Option(Generic[T]):
    """One numbered answer. `cells`: its row, the first of them its name, which may be typed instead of the number.

    Options of one `heading` stand together below it; a `note` is said in full under them.
    """

    value: T
    cells: tuple[str, ...]
    heading: str = ""
    note: str = ""


class Dialog:
    """Asks on `console`, reads lines from the terminal `fd`."""

    def __init__(self, console: "Console", fd: int) -> None:
        self._console = console
        self._fd = fd
        self._buffer = b""

    def tell(self, text: str = "") -> None:
        """A line."""
        self._console.print(plain(text))

    def head(self, text: str) -> None:
        """A step's headline."""
        self._console.print()
        self._console.print(plain(text), style="bold cyan")

    async def choose(
        self, question: str, columns: Sequence[str], options: Sequence[Option[T]], current: T | None = None
    ) -> T:
        """The value of the option that is chosen by its number or name; Enter takes `current` if it is offered.

        :raises StepBack: "b".  :raises Interrupted: "q", or the end of the input.
        """
        self.tell()
        self.tell(question)
        self._show(columns, options, current)
        default = next((number for number, one in enumerate(options, 1) if one.value == current), 0)
        while True:
            answer = await self.line(f"1-{len(options)}" + (f" [{default}]" if default else ""))
            if not answer and default:
                return options[default - 1].value
            found = _found(answer, options)
            if found is not None:
                return found.value
            self.tell(f"Type a number from 1 to {len(options)}, b for back, or q to cancel.")

    async def go_on(self, *, blocked: bool) -> bool:
        """Whether to go on to the next step; False: to choose again. `blocked`: going on isn't offered.

        :raises StepBack: :raises Interrupted: as `choose`.
        """
        offered = "c: choose again" if blocked else "Enter: next, c: choose again"
        while True:
            answer = (await self.line(offered)).lower()
            if answer in ("c", "choose"):
                return False
            if answer in ("", "n", "next") and not blocked:
                return True
            if blocked:
                self.tell("An error stands against it: choose something else, go back, or cancel.")
            else:
                self.tell("Press Enter to go on, or type c, b or q.")

    async def line(self, prompt: str) -> str:
        """A line that is typed, without its end.

        :raises StepBack: :raises Interrupted: as `choose`.
        """
        self._console.out(f"{prompt}, b: back, q: cancel > ", end="", highlight=False)
        self._console.file.flush()
        answer = await self._read_line()
        if answer.lower() in _BACK:
            raise StepBack
        if answer.lower() in _QUIT:
            raise Interrupted(NOTHING_STARTED)
        return answer

    async def _read_line(self) -> str:
        while b"\n" not in self._buffer:
            data = await self._read_some()
            if not data or len(self._buffer) > _MAX_LINE_BYTES:  # Ctrl-D, or no person
                self.tell()
                raise Interrupted(NOTHING_STARTED)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return plain(line.decode("utf-8", "replace"))

    async def _read_some(self) -> bytes:
        await readable(self._fd)
        try:
            return os.read(self._fd, 4096)  # doesn't block: a whole line is there
        except OSError:  # EIO: the terminal has gone
            return b""

    def _show(self, columns: Sequence[str], options: Sequence[Option[T]], current: T | None) -> None:
        rows: dict[str, list[tuple[str, ...]]] = {}
        for number, option in enumerate(options, 1):
            mark = "*" if option.value == current else " "
            rows.setdefault(option.heading, []).append((f"{mark}{number}", *option.cells))
        wide = max((len(option.cells) for option in options), default=1)
        titles = [*columns, *([""] * (wide - len(columns)))]
        heads = (
            Column("#", "right"),
            *(Column(title, free_text=index > 0) for index, title in enumerate(titles)),
        )
        for heading, under in rows.items():
            if heading:
                self.tell(heading)
            cells = [(*row, *([""] * (wide + 1 - len(row)))) for row in under]
            print_view(self._console, table_of(heads, cells))
            for option in options:
                if option.note and option.heading == heading:
                    self.tell(f"{option.cells[0]}: {option.note}")


def _found(answer: str, options: Sequence[Option[T]]) -> Option[T] | None:
    if answer.isascii() and answer.isdigit() and len(answer) < 6:
        number = int(answer)
        return options[number - 1] if 1 <= number <= len(options) else None
    named = [one for one in options if one.cells[0] == answer]
    return named[0] if len(named) == 1 else None
