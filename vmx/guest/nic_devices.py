"""Pure: no I/O, no clock, no logging. A guest's NICs on QEMU's command line.

    -netdev dgram            frames as unix datagrams: QEMU binds the port's socket itself, in place of an old one, and
                             sends to the virtual switch's. Neither needs the other to be there.
    -device virtio-net-pci   no boot ROM; at a PCI address that depends on its key alone, so that the machine is laid
                             out the same on every host. Disconnected: no backend at all.

A NIC without a backend would still show a carrier: who starts the guest has to pull the plug (run_control.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vmx.guest.errors import GuestSpecError

__all__ = ["NIC_KEYS", "NicDevice", "nic_arguments"]

NIC_KEYS = range(4000, 4010)
# Devices 0x12-0x1b of the root bus: 0x00-0x01 and 0x1f are the chipset's, those between are left to disks.
_FIRST_PCI_DEVICE = 0x12
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
# sizeof(sockaddr_un.sun_path) less the closing zero: unix(7).
_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class NicDevice:
    """One NIC. Without `port_path` and `switch_path` it isn't connected.

    :raises GuestSpecError: naming the field that is not fit.
    """

    key: int
    mac: str
    port_path: Path | None = None
    switch_path: Path | None = None

    def __post_init__(self) -> None:
        field = f"nics[{self.key}]"
        if self.key not in NIC_KEYS:
            raise GuestSpecError(field, f"the key is not between {NIC_KEYS.start} and {NIC_KEYS.stop - 1}")
        if not _MAC.fullmatch(self.mac):
            raise GuestSpecError(field, f"{self.mac!r} is not a unicast MAC in lower case with colons")
        if (self.port_path is None) != (self.switch_path is None):
            raise GuestSpecError(field, "a port without a switch, or a switch without a port")
        for path in (self.port_path, self.switch_path):
            if path is not None and (not path.is_absolute() or not str(path).isprintable()):
                raise GuestSpecError(field, f"{str(path)!r} is not an absolute path of printable characters")
            if path is not None and len(str(path).encode()) > _SOCKET_PATH_BYTES:
                raise GuestSpecError(field, f"too long for a socket's address: {str(path)!r}")

    @property
    def device_id(self) -> str:
        """QEMU's name of the device, and of its link."""
        return f"nic-{self.key}"

    @property
    def connected(self) -> bool:
        """Whether the plug is in."""
        return self.port_path is not None


def nic_arguments(nics: tuple[NicDevice, ...]) -> list[str]:
    """The NICs' part of the argument vector."""
    arguments: list[str] = []
    for nic in nics:
        backend = ""
        if nic.port_path is not None and nic.switch_path is not None:
            port, switch = (str(path).replace(",", ",,") for path in (nic.port_path, nic.switch_path))
            local, remote = f"local.type=unix,local.path={port}", f"remote.type=unix,remote.path={switch}"
            arguments += ["-netdev", f"dgram,id=net-{nic.key},{local},{remote}"]
            backend = f"netdev=net-{nic.key},"
        address = hex(_FIRST_PCI_DEVICE + nic.key - NIC_KEYS.start)
        device = f"virtio-net-pci,id={nic.device_id},{backend}mac={nic.mac},romfile=,addr={address}"
        arguments += ["-device", device]
    return arguments
