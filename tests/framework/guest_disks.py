"""Disks of real guests in tests: extents, writes as the guest's device makes them, and what is open in QEMU."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.framework.guest_processes import GuestProcesses
from vmx.disk.contract import SECTOR_BYTES, DiskFormat, DiskLayout
from vmx.disk.nodes import node_names
from vmx.guest.command_line import GuestSpec
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.process import GuestProcess

KEY = 2000
MIB = 1 << 20


def layout(capacity_bytes: int, disk_format: DiskFormat = DiskFormat.THIN, key: int = KEY) -> DiskLayout:
    """A disk's layout."""
    return DiskLayout(key, capacity_bytes, disk_format)


def empty_extent(path: Path, capacity_bytes: int) -> Path:
    """A thin extent, as hostd makes it."""
    with path.open("wb") as file:
        file.truncate(capacity_bytes)
    return path


def filled_extent(path: Path, capacity_bytes: int, seed: int = 1) -> Path:
    """A thin extent with data, written zeros, holes, and a hole whose ends are no block's."""
    pattern = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(capacity_bytes)
        for start in range(0, capacity_bytes, 2 * MIB):
            file.seek(start)
            file.write(pattern.randbytes(300 * SECTOR_BYTES))
            file.write(bytes(200 << 10))
            file.write(pattern.randbytes(SECTOR_BYTES))
    return path


def spec_with_disks(guests: GuestProcesses, *disks: DiskDevice) -> GuestSpec:
    """A guest of the given kind with disks."""
    return replace(guests.spec(), disks=disks)


async def qemu_io(guest: GuestProcess, command: str, key: int = KEY) -> None:
    """Runs a command of qemu-io(1) through the guest's device, above every filter: as the guest itself would."""
    device = f"/machine/peripheral/disk-{key}-device/virtio-backend"
    line = f'qemu-io -d {device} "{command}"'
    reply = await guest.qmp.execute("human-monitor-command", {"command-line": line}, deadline_s=60)
    text = str(reply)
    if "failed" in text.lower() or "error" in text.lower():
        raise OSError(text.strip())


@dataclass
class GuestWriter:
    """Random writes, zeroes and discards of a guest; `pace` makes a bulk copy wait for them."""

    guest: GuestProcess
    capacity_bytes: int
    random: random.Random = field(default_factory=lambda: random.Random(7))
    writes: int = 0
    _progress: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _freed: bool = False

    async def write_once(self) -> None:
        """One request of 1 to 64 sectors."""
        sectors = self.random.randrange(1, 65)
        start = self.random.randrange(0, self.capacity_bytes // SECTOR_BYTES - sectors) * SECTOR_BYTES
        kind = self.random.choice(
            [f"write -P {self.random.randrange(1, 256)}"] * 3 + ["write -z", "write -z -u"]
        )
        await qemu_io(self.guest, f"{kind} {start} {sectors * SECTOR_BYTES}")
        self.writes += 1
        self._progress.release()

    async def write_on(self) -> None:
        """Writes until it is cancelled."""
        while True:
            await self.write_once()

    def pace(self, _byte_count: int) -> None:
        """A throttle for BulkOptions: lets one piece go per write."""
        if not self._freed:
            self._progress.acquire(timeout=0.3)

    def free(self) -> None:
        """Lets the copy run without waiting."""
        self._freed = True
        self._progress.release(64)


def is_open_in(guest: GuestProcess, path: Path) -> bool:
    """Whether QEMU has a file open."""
    wanted = os.path.realpath(path)
    for entry in os.scandir(f"/proc/{guest.pid}/fd"):
        try:
            if os.readlink(entry.path) == wanted:
                return True
        except OSError:
            continue
    return False


async def disk_nodes(guest: GuestProcess) -> set[str]:
    """QEMU's block nodes."""
    return await node_names(guest.qmp)
