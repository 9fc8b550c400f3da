"""A guest that boots from its first disk, beside as many disks as there may be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.framework.guest_disks import MIB, empty_extent, spec_with_disks
from tests.framework.guest_processes import GuestProcesses, console_text, qemu_binary
from vmx.disk.contract import DiskFormat
from vmx.disk.nodes import node_of_disk
from vmx.guest.disk_devices import DISK_KEYS, DiskDevice
from vmx.guest.run_control import RunControl

# mov dx, 0x3f8; then mov al, c; out dx, al for every character; then cli; hlt
_BOOT_CODE = b"\xba\xf8\x03" + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in b"BOOTED") + b"\xfa\xf4"


@pytest.mark.qemu
async def test_guest_boots_from_its_first_disk_of_sixteen(folder: Path) -> None:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    disks = []
    # The one to boot from is neither the lowest key nor the lowest PCI address.
    for key in reversed(DISK_KEYS):
        path = empty_extent(folder / f"{key}.vmdk", MIB)
        disks.append(DiskDevice(key, path, DiskFormat.THIN))
    with disks[0].extent_path.open("r+b") as file:
        file.write(_BOOT_CODE.ljust(510, b"\0") + b"\x55\xaa")
    guests = GuestProcesses(binary, folder, has_kernel=False)
    try:
        guest = await guests.start(spec_with_disks(guests, *disks))
        assert [await node_of_disk(guest.qmp, key) for key in (2000, 2015)] == ["disk-2000", "disk-2015"]
        await RunControl(guest.qmp).cont()
        async with asyncio.timeout(60):
            # A file that another process appends to: there is no event to wait for.
            while "BOOTED" not in console_text(guest):
                await asyncio.sleep(0.02)
    finally:
        await guests.end_all()
