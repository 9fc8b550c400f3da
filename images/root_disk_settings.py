"""Pure: no I/O, no clock, no logging.

What the guest on a root disk is told on its kernel command line, beside what images/cmdline.py has for every guest.
"""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from images.cmdline import kernel_command_line

ROOT_DEVICE = "/dev/vda2"
CHECK_DEVICE = "/dev/vda3"
FSYNC_RATE_DEFAULT = 50
FSYNC_RATE_MAX = 100_000
CHECK_MIB_S_DEFAULT = 4
CHECK_MIB_S_MAX = 65_536

FsyncRate = int | Literal["max"]
FsyncMode = Literal["fdatasync", "dsync"]


@dataclass(frozen=True)
class FsyncSettings:
    """The fsync checker's options. `device` empty: it doesn't run.

    :ivar rate: records per second; 0 only checks, "max" knows no pause
    :ivar check_mib_s: MiB per second that are read back meanwhile
    :ivar mode: how a record is made durable
    """

    device: str = CHECK_DEVICE
    rate: FsyncRate = FSYNC_RATE_DEFAULT
    check_mib_s: int = CHECK_MIB_S_DEFAULT
    mode: FsyncMode = "fdatasync"

    def words(self) -> tuple[str, ...]:
        """Its words on the command line.

        :raises ValueError: a value that the guest doesn't take.
        """
        if not self.device:
            return ()
        _check_device(self.device)
        if self.rate != "max":
            _check_range("rate", self.rate, FSYNC_RATE_MAX)
        _check_range("check_mib_s", self.check_mib_s, CHECK_MIB_S_MAX)
        if self.mode not in ("fdatasync", "dsync"):
            raise ValueError(f"mode is {self.mode!r}, and must be fdatasync or dsync")
        return (
            f"fsync.device={self.device}",
            f"fsync.rate={self.rate}",
            f"fsync.check_mib_s={self.check_mib_s}",
            f"fsync.mode={self.mode}",
        )


def address_word(address: str, gateway: str = "") -> str:
    """The word that gives the guest's first NIC its address: "vpx.ip=10.0.0.5/24".

    :raises ValueError: it is no IPv4 address with its prefix ("10.0.0.5/24"), or the gateway is no address.
    """
    interface = ipaddress.IPv4Interface(address)
    if "/" not in address:
        raise ValueError(f"{address!r} has no prefix: 10.0.0.5/24")
    via = f",{ipaddress.IPv4Address(gateway)}" if gateway else ""
    return f"vpx.ip={interface.with_prefixlen}{via}"


def root_disk_command_line(
    stamper_words: str = "", fsync: FsyncSettings = FsyncSettings(), more_words: tuple[str, ...] = ()
) -> str:
    """The command line of a guest whose root is on its first disk.

    :param stamper_words: what `kernel_command_line` gives; empty: its defaults.
    :param more_words: others, such as an `address_word`.
    :raises ValueError: a value that the guest doesn't take.
    """
    words = stamper_words or kernel_command_line()
    return " ".join((words, f"vpx.root={ROOT_DEVICE}", *fsync.words(), *more_words))


def boot_loader_config(command_line: str) -> str:
    """The text of syslinux.cfg: boots the kernel at once.

    :raises ValueError: a command line that isn't one printable line.
    """
    if not command_line.isprintable():
        raise ValueError("the command line must be one printable line")
    lines = (
        "DEFAULT guest",
        "PROMPT 0",
        "TIMEOUT 0",
        "LABEL guest",
        "  LINUX /vmlinuz",
        "  INITRD /initrd.img",
        f"  APPEND {command_line}",
    )
    return "\n".join(lines) + "\n"


def _check_device(device: str) -> None:
    if not device.startswith("/dev/") or len(device) > 63 or not device.isprintable() or " " in device:
        raise ValueError(f"device is {device!r}, and must be a path under /dev")


def _check_range(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, and must be a whole number from 0 to {most}")
