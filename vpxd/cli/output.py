"""What a command prints: tables for people, JSON for programs.

With `-o json` standard output holds one JSON document and nothing else: the message as json_format writes it, field
names as in the .proto files, fields with their default value included, so that keys don't come and go. (By
json_format's rules 64-bit numbers are strings and enums their names.) A stream is one document a line.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from google.protobuf import json_format
from google.protobuf.message import Message

from vpxd.cli.console_text import plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

_GAP = "  "
_LEAST = 8
_WIDE = 10_000  # of what isn't a terminal: rows are never folded, `grep` and `awk` see whole lines


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True)
class Column:
    """`free_text`: may be shortened on a narrow terminal; names, ids and numbers never are: they are typed again."""

    title: str
    align: Literal["left", "right"] = "left"
    free_text: bool = False


def json_of(message: Message) -> dict[str, object]:
    """The message as a JSON object with stable keys."""
    document: dict[str, object] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def print_json(document: object, *, one_line: bool = False) -> None:
    """One document on standard output."""
    sys.stdout.write(json.dumps(document, indent=None if one_line else 2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> "Console":
    """A console that guesses nothing: text is never taken for markup, emoji or something to highlight."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def print_view(to: "Console", view: "RenderableType") -> None:
    """Prints it; where nobody looks at a terminal without the blanks that fill a table's last column."""
    if to.is_terminal:
        to.print(view, crop=False)
        return
    with to.capture() as captured:
        to.print(view, crop=False)
    to.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)


class ColumnTable:
    """Rows in columns, without lines. On a narrow terminal only columns of free text are shortened.

    rich would shorten every column in proportion, names and ids included, and a shortened id is another id. What
    doesn't fit even so is left to the terminal to fold.
    """

    def __init__(self, columns: Sequence[Column], rows: Iterable[Sequence[str]], title: str) -> None:
        self._columns = columns
        self._rows = [[plain(cell) for cell in row] for row in rows]
        self._title = title

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        widths = fit(
            self._natural_widths(cell_len),
            [not column.free_text for column in self._columns],
            options.max_width,
        )
        if self._title:
            yield Text(self._title, style="bold")
        for number, row in enumerate([[column.title for column in self._columns], *self._rows]):
            cells = []
            for column, cell, width in zip(self._columns, row, widths, strict=True):
                text = cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
                blanks = " " * (width - cell_len(text))
                cells.append(blanks + text if column.align == "right" else text + blanks)
            yield Text(
                _GAP.join(cells).rstrip(),
                style="bold" if number == 0 else "",
                no_wrap=True,
                overflow="ignore",
            )

    def _natural_widths(self, cell_len: Callable[[str], int]) -> list[int]:
        return [
            max([cell_len(column.title), *(cell_len(row[index]) for row in self._rows)])
            for index, column in enumerate(self._columns)
        ]


def fit(widths: Sequence[int], keep: Sequence[bool], available: int) -> list[int]:
    """Widths of columns that fit into `available` cells with their gaps, as far as those not kept can shrink.

    Pure: the widest is shortened first, none below _LEAST cells.
    """
    fitted = list(widths)
    excess = sum(fitted) + len(_GAP) * (len(fitted) - 1) - available
    while excess > 0:
        candidates = [index for index, kept in enumerate(keep) if not kept and fitted[index] > _LEAST]
        if not candidates:
            break
        fitted[max(candidates, key=lambda index: fitted[index])] -= 1
        excess -= 1
    return fitted


def table_of(columns: Sequence[Column], rows: Iterable[Sequence[str]], title: str = "") -> ColumnTable:
    """A table without lines; what it shows has been made harmless for a terminal."""
    return ColumnTable(columns, rows, title)


def details_of(pairs: Iterable[tuple[str, str]]) -> "Table":
    """Names and values below one another."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(plain(value)))
    return table
