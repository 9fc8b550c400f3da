"""Text of guests and peers made harmless for a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpxd.cli.console_text import ConsoleCleaner, plain


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\r\nnext\ttab", "plain\nnext\ttab"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;owned\x07title", "title"),
        (b"\x1b]0;owned\x1b\\title", "title"),
        (b"\x1bPq#0\x1b\\sixel", "sixel"),
        (b"\x1b(Bcharset \x1b7save\x1b8", "charset save"),
        (b"bell\x07 back\x08 nul\x00", "bell back nul"),
        ("grün €".encode(), "grün €"),
        (b"bad \xff byte", "bad \ufffd byte"),
        (b"\xc2\x9b31mC1", "31mC1"),
    ],
)
def test_clean_sequences_are_dropped_and_text_stays(data: bytes, text: str) -> None:
    cleaner = ConsoleCleaner()
    assert cleaner.clean(data) + cleaner.rest() == text


@pytest.mark.parametrize("data", [b"a\x1b[31mb", b"a\x1b]0;title\x07b", "a€b".encode(), b"a\x1b]0;t\x1b\\b"])
def test_clean_cut_anywhere_prints_the_same(data: bytes) -> None:
    whole = ConsoleCleaner()
    expected = whole.clean(data) + whole.rest()
    for cut in range(len(data)):
        cleaner = ConsoleCleaner()
        assert cleaner.clean(data[:cut]) + cleaner.clean(data[cut:]) + cleaner.rest() == expected


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_clean_of_anything_has_no_control_characters(pieces: list[bytes]) -> None:
    cleaner = ConsoleCleaner()
    text = "".join(cleaner.clean(piece) for piece in pieces) + cleaner.rest()
    assert all(c.isprintable() or c in "\n\t" for c in text)


def test_clean_endless_sequence_is_not_kept_for_ever() -> None:
    cleaner = ConsoleCleaner()
    cleaner.clean(b"\x1b]0;" + b"x" * 10_000)
    assert "after" in cleaner.clean(b"after")


@given(st.text())
def test_plain_of_anything_is_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()
