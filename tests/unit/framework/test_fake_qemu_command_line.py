"""The fake QEMU's reading of a command line, and its life."""

from __future__ import annotations

import pytest

from tests.framework.fake_qemu import CommandLine, CommandLineError, split_option
from tests.framework.fake_qemu_guest import StamperOptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {"": "a"}),
        ("socket,id=x", {"": "socket", "id": "x"}),
        ("path=/a,,b,server=on", {"path": "/a,b", "server": "on"}),
        ("name=a=b", {"name": "a=b"}),
    ],
)
def test_split_option_by_qemus_rules(text: str, expected: dict[str, str]) -> None:
    assert split_option(text) == expected


@pytest.mark.parametrize("arguments", [["-name"], ["disk.img"], ["-S", "-m"]])
def test_command_line_incomplete_is_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandLineError):
        CommandLine(arguments)


def test_stamper_options_by_the_guests_names() -> None:
    text = "quiet stamper.mib=8 stamper.rate_mib_s=max heartbeat_ms=5 stamper.order=random nokaslr"
    options = StamperOptions.from_kernel_command_line(text)
    assert (options.stamper_mib, options.heartbeat_ms, options.order) == (8, 5, "random")
    assert options.rate_mib_s > 1000
