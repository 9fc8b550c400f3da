"""Pure: no I/O, no clock, no logging. QEMU's arguments for a guest's disks.

    virtio-blk-pci disk-2000-device -> raw or qcow2 node disk-2000 -> file node file-2000 -> the extent

Each device's PCI address follows from its key, so that the machine is the same on every host, whatever other disks it
has. What the guest is offered (discard, write zeroes) never depends on the format: a live move may change that.
Buffered I/O through the page cache on purpose: see the package vmx.disk, which reads what QEMU has written there, and
the page tracer, which can't see what O_DIRECT writes to guest memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmx.disk.contract import DiskFormat
from vmx.guest.errors import GuestSpecError

__all__ = ["DISK_KEYS", "DiskDevice", "arguments", "check_disks", "discard_mode", "file_node"]

DISK_KEYS: Final = range(2000, 2016)
# Slots 0x02-0x11 of the root bus: before them is the chipset, after them are the NICs.
_FIRST_SLOT: Final = 0x02


@dataclass(frozen=True)
class DiskDevice:
    """One disk: its key, its data file as this host sees it, and what that file holds.

    `arrives`: the file is written on this host while the guest is on its way here, so this host's page cache has its
    true content. What QEMU would do at the resume, inside the stun, is to drop that cache: of a file of some hundred
    MiB it takes longer than all the rest of the resume.

    :raises GuestSpecError: naming the field that is not fit.
    """

    key: int
    extent_path: Path
    format: DiskFormat
    arrives: bool = False

    def __post_init__(self) -> None:
        if self.key not in DISK_KEYS:
            raise GuestSpecError(
                "disks", f"the key {self.key} isn't between {DISK_KEYS.start} and {DISK_KEYS.stop - 1}"
            )
        if not self.extent_path.is_absolute() or not str(self.extent_path).isprintable():
            raise GuestSpecError(
                "disks", f"{str(self.extent_path)!r} isn't an absolute path of printable characters"
            )


def discard_mode(disk_format: DiskFormat) -> str:
    """What a node does with a discard: a thick disk keeps its blocks."""
    return "unmap" if disk_format in (DiskFormat.THIN, DiskFormat.QCOW2) else "ignore"


def file_node(node_name: str, extent_path: Path, disk_format: DiskFormat) -> dict[str, object]:
    """The options of the node that opens an extent (`BlockdevOptionsFile` of QEMU's QMP reference)."""
    return {
        "driver": "file",
        "node-name": node_name,
        "filename": str(extent_path),
        "aio": "threads",
        "cache": {"direct": False, "no-flush": False},
        "discard": discard_mode(disk_format),
        "auto-read-only": False,
        "locking": "on",
    }


def check_disks(disks: Sequence[DiskDevice]) -> None:
    """Check that disks can be in one guest. :raises GuestSpecError: two have the same key, or the same extent."""
    for values in ([disk.key for disk in disks], [disk.extent_path for disk in disks]):
        if len(set(values)) != len(disks):
            raise GuestSpecError("disks", f"two disks have the same one of {values}")


def arguments(disks: Sequence[DiskDevice], *, boots_from_disk: bool) -> list[str]:
    """The arguments for all disks, in their order; if the guest boots from a disk at all, it is the first."""
    words: list[str] = []
    for index, disk in enumerate(disks):
        words += ["-blockdev", json.dumps(_disk_node(disk))]
        device: dict[str, object] = {
            "driver": "virtio-blk-pci",
            "id": f"disk-{disk.key}-device",
            "drive": f"disk-{disk.key}",
            "serial": str(disk.key),
            "addr": f"{_FIRST_SLOT + disk.key - DISK_KEYS.start:#x}",
            "discard": True,
            "write-zeroes": True,
        }
        if boots_from_disk and index == 0:
            device["bootindex"] = 1
        words += ["-device", json.dumps(device)]
    return words


def _disk_node(disk: DiskDevice) -> dict[str, object]:
    file = file_node(f"file-{disk.key}", disk.extent_path, disk.format)
    if disk.arrives:
        file["drop-cache"] = False
    node: dict[str, object] = {
        "driver": "raw" if disk.format.is_raw else "qcow2",
        "node-name": f"disk-{disk.key}",
        "discard": discard_mode(disk.format),
        "file": file,
    }
    if not disk.format.is_raw:
        # An image came from somewhere: whatever file it names as its backing must not be opened.
        node["backing"] = None
    return node
