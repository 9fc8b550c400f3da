"""Tables and JSON."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vpxd.cli.output import Column, fit, table_of


def _printed(width: int, table: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(table, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_narrow_terminal_shortens_free_text_and_never_an_id() -> None:
    columns = (Column("ID"), Column("DONE", "right"), Column("WHAT", free_text=True))
    rows = [
        ("task-1234567890", "100 %", "a long story that nobody reads to its end"),
        ("task-2", "3 %", "short"),
    ]
    lines = _printed(40, table_of(columns, rows))
    assert lines[1] == "task-1234567890  100 %  a long story th…"
    assert lines[2] == "task-2             3 %  short"


def test_table_hopelessly_narrow_terminal_still_gets_every_id() -> None:
    columns = (Column("NAME"), Column("ID"))
    assert (
        _printed(10, table_of(columns, [("esx01.lab.example", "host-12345")]))[1]
        == "esx01.lab.example  host-12345"
    )


def test_table_cell_from_a_peer_cant_break_the_line() -> None:
    assert _printed(80, table_of((Column("NAME"),), [("a\nb\x1b[2Jc [bold]d",)])) == ["NAME", "a bc [bold]d"]


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=8), st.integers(1, 200))
def test_fit_shrinks_only_free_text_and_only_as_far_as_needed(
    columns: list[tuple[int, bool]], available: int
) -> None:
    widths, keep = [width for width, _ in columns], [kept for _, kept in columns]
    fitted = fit(widths, keep, available)
    needed, got = (sum(each) + 2 * (len(widths) - 1) for each in (widths, fitted))
    assert all(new == old for new, old, kept in zip(fitted, widths, keep, strict=True) if kept)
    assert got <= max(available, got if all(w <= 8 or k for w, k in zip(fitted, keep, strict=True)) else 0)
    assert got == needed or got >= min(available, needed)
