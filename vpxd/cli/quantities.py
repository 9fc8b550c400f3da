"""Pure: no I/O, no clock, no logging.

Sizes, rates and times as people write and read them. Reading is strict: "512MiB" and "512MB" are different numbers,
and "512M" or "0.5GB" could be taken for either, so they are refused.
"""

import re

MIB = 1 << 20
PAGE_BYTES = 4096

_UNITS = {
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_QUANTITY = re.compile(r"([0-9]{1,15})\s?([A-Za-z]{1,3})", re.ASCII)
_STEPS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_MAX = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of "512MiB", "2GiB", "4096B", "10GB".

    :raises ValueError: no unit, an unknown unit, a fraction, or too large; the message says what is taken.
    """
    match = _QUANTITY.fullmatch(text.strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size: a whole number and a unit, such as 512MiB, 2GiB or 10GB")
    size = int(match[1]) * factor
    if size > _MAX:
        raise ValueError(f"{text!r} is too large")
    return size


def parse_rate(text: str) -> int:
    """Bytes per second of "125MB/s", "1GiB/s".

    :raises ValueError: as parse_size; also bits ("1Gb/s"): rates here are in bytes.
    """
    size, separator, per = text.strip().partition("/")
    if separator != "/" or per != "s" or re.search(r"[0-9 ][KMGTkmgt]?i?b$", size):
        raise ValueError(f"{text!r} is no rate: bytes per second, such as 125MB/s or 1GiB/s")
    try:
        return parse_size(size)
    except ValueError as error:
        raise ValueError(f"{text!r} is no rate: bytes per second, such as 125MB/s or 1GiB/s") from error


def bytes_text(size: float) -> str:
    """ "512 MiB", "1.5 GiB", "812 B": three digits that mean something."""
    for step, unit in _STEPS:
        if size >= step:
            return f"{_three_digits(size / step)} {unit}"
    return f"{size:.0f} B"


def rate_text(bytes_per_s: float) -> str:
    """ "1.2 GiB/s"."""
    return f"{bytes_text(bytes_per_s)}/s"


def ms_text(ms: float) -> str:
    """ "6.31 ms", "48.0 ms", "1.23 s", "2 min 05 s"."""
    if ms < 1000:
        return f"{_three_digits(ms) if ms >= 10 else f'{ms:.2f}'} ms"
    if ms < 60_000:
        return f"{ms / 1000:.2f} s"
    return seconds_text(ms / 1000)


def seconds_text(seconds: float) -> str:
    """A duration of a second and more: "42 s", "2 min 05 s", "3 h 12 min", "4 d 02 h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole // 60 % 60:02} min"
    return f"{whole // 86_400} d {whole // 3600 % 24:02} h"


def count_text(number: int) -> str:
    """Thousands apart: "131,072"."""
    return f"{number:,}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}"
