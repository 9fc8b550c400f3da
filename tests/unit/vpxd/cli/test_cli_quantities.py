"""Sizes, rates and times as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpxd.cli.quantities import bytes_text, ms_text, parse_rate, parse_size, rate_text, seconds_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("4096B", 4096),
        ("10GB", 10**10),
        ("1 KiB", 1024),
        (" 4kib ", 4096),
        ("0B", 0),
    ],
)
def test_parse_size_whole_number_and_unit_gives_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "512",
        "512M",
        "0.5GiB",
        "-1GiB",
        "1e3MiB",
        "512MiB/s",
        "MiB",
        "9999999999999TiB",
        "٣GiB",
        "1\n2GiB",
    ],
)
def test_parse_size_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no size|too large"):
        parse_size(text)


@given(st.integers(0, 2**63 - 1), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "KB", "MB", "GB", "TB"]))
def test_parse_size_any_number_gives_it_or_refuses(number: int, unit: str) -> None:
    try:
        size = parse_size(f"{number}{unit}")
    except ValueError:
        assert number > 10**6
    else:
        assert size % number == 0 if number else size == 0


def test_parse_rate_bytes_per_second() -> None:
    assert parse_rate("125MB/s") == 125_000_000
    assert parse_rate("1GiB/s") == 1 << 30


@pytest.mark.parametrize("text", ["125MB", "1Gb/s", "1Gib/s", "125MB/h", "/s", "fast", "100/s"])
def test_parse_rate_bits_and_missing_units_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse_rate(text)


def test_bytes_text_keeps_three_digits() -> None:
    assert bytes_text(512 << 20) == "512 MiB"
    assert bytes_text(1536 << 20) == "1.5 GiB"
    assert bytes_text(812) == "812 B"
    assert rate_text(0) == "0 B/s"


def test_ms_text_chooses_the_unit() -> None:
    assert ms_text(6.314) == "6.31 ms"
    assert ms_text(48.04) == "48.0 ms"
    assert ms_text(1234) == "1.23 s"
    assert ms_text(125_000) == "2 min 05 s"
    assert seconds_text(11_520) == "3 h 12 min"
    assert seconds_text(4 * 86_400 + 7_200) == "4 d 02 h"
