"""The kernel command line: every option lands in it, and what the guest would refuse is refused here."""

from typing import Any

import pytest

from images.cmdline import FIXED_OPTIONS, kernel_command_line


def test_kernel_command_line_by_default_has_the_stated_load() -> None:
    words = kernel_command_line().split(" ")

    assert words[: len(FIXED_OPTIONS)] == list(FIXED_OPTIONS)
    assert words[len(FIXED_OPTIONS) :] == [
        "stamper.mib=64",
        "stamper.rate_mib_s=20",
        "stamper.order=seq",
        "stamper.sweep_mib_s=4",
        "heartbeat_ms=10",
    ]


def test_kernel_command_line_with_all_values_carries_them() -> None:
    text = kernel_command_line(256, "max", "random", heartbeat_ms=5, sweep_mib_s=0)

    assert text.endswith(
        "stamper.mib=256 stamper.rate_mib_s=max stamper.order=random stamper.sweep_mib_s=0 heartbeat_ms=5"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stamper_mib", 0),
        ("stamper_mib", True),
        ("stamper_mib", 1.5),
        ("rate", -1),
        ("rate", "fast"),
        ("rate", "1 init=/bin/sh"),
        ("order", "reverse"),
        ("heartbeat_ms", 0),
        ("sweep_mib_s", -1),
    ],
)
def test_kernel_command_line_with_a_bad_value_names_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        kernel_command_line(**{name: value})
