"""A Linux guest moves with its disk while it writes to it: between two vmx processes, and between two homes of a host.

The guest's fsync checker writes numbered records to a disk of its own, and says which of them were acknowledged.
Afterwards each of those is looked for in the bytes of the disk's file at its new place, with no guest in between.
"""

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.build import build_guest
from images.cmdline import kernel_command_line
from images.fsync_check import check_area
from images.guest_output import parse_fsync_state
from images.root_disk_settings import FsyncSettings
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2
from runtime.rpc.faults import remote_faults
from tests.framework.disk_vmx_hosts import DiskVmxHosts
from tests.framework.guest_disks import MIB, empty_extent
from tests.framework.vmx_hosts import VmxProcess
from tests.framework.vmx_invariants import VERIFIED, heartbeat_numbers

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]
RATE = 400
WRITTEN = 1200  # records that the disk holds when its move begins
SERIOUS = 100  # records that are acknowledged while the disk is copied, and after the move
_DEADLINE_S = 90.0
_SLOW_BYTES_PER_S = 12 * MIB  # so that the guest writes while its disk is copied


@dataclass
class WritingGuest(DiskVmxHosts):
    """The VM's disk is its guest's checker's alone."""

    boot_words: str = " ".join(
        (kernel_command_line(4, 1, sweep_mib_s=4), *FsyncSettings("/dev/vda", RATE).words())
    )

    def acknowledged(self, home: Path) -> int:
        """The highest record that the disk has acknowledged, as the guest says in this home's logs."""
        path = home / "heartbeat.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        states = filter(None, map(parse_fsync_state, text.split("\n")[:-1]))
        return max((state.acknowledged for state in states), default=0)

    async def acknowledged_beyond(self, home: Path, count: int) -> int:
        """Waits for the guest's word. A file has no event to wait for: it is read again."""
        async with asyncio.timeout(_DEADLINE_S):
            while (now := self.acknowledged(home)) <= count:
                await asyncio.sleep(0.05)
        return now


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[WritingGuest]:
    await asyncio.to_thread(build_guest)
    binary = shutil.which("qemu-system-x86_64")
    assert binary is not None
    made = WritingGuest(tmp_path, Path(binary))
    empty_extent(made.extent_in(made.home), made.capacity_bytes)
    yield made
    await made.close()


def assert_console_is_clean(*homes: Path) -> None:
    """Neither the memory's nor the disk's checker has missed anything."""
    for home in homes:
        text = (home / "console.log").read_text(errors="replace")
        assert not re.search(r"STAMP WRONG|FSYNC WRONG|I/O error", text), text[-2000:]


async def assert_records_are_there(guest: WritingGuest, vmx: VmxProcess, home: Path) -> None:
    """Stops the guest as a crash would, and looks for what it was told is safe."""
    acknowledged = guest.acknowledged(home)
    await vmx.stub.PowerOff(service_pb2.PowerOffRequest(), timeout=30)
    result = check_area(guest.extent_in(home), max(acknowledged, guest.acknowledged(home)), partition=0)
    assert result.ok, result.wrong
    assert result.checked >= min(result.slots, acknowledged) - 1


async def test_guest_that_writes_moves_with_its_disk_to_another_host(guest: WritingGuest) -> None:
    here, there = guest.hosts[:2]
    await guest.warm_up(here, there)
    source = await guest.power_on()
    before = await guest.acknowledged_beyond(guest.home, WRITTEN)
    options = spec_pb2.MigrationOptions(bandwidth_bytes_per_s=_SLOW_BYTES_PER_S)
    options.MergeFrom(VERIFIED)
    spec = guest.spec(here, there, options)
    new_home = guest.homes[there.name] = guest.make_home("esx02-local", here)
    destination, ticket = await guest.prepare(there, spec)
    await guest.start(source, spec, ticket)
    status = (await guest.watched(source, spec))[-1]
    assert status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    assert status.memory_verified
    assert sum(disk.mirrored_bytes for disk in status.disks) > 0, "it wrote meanwhile"
    await guest.complete(destination, spec.migration_id)
    await guest.complete(source, spec.migration_id)
    assert await source.ended() == 0
    at_source = guest.acknowledged(guest.home)
    assert at_source >= before
    old_bytes = await asyncio.to_thread(guest.extent_in(guest.home).read_bytes)
    await guest.acknowledged_beyond(new_home, at_source + SERIOUS)
    assert guest.extent_in(guest.home).read_bytes() == old_bytes, "nobody writes to the old disk"
    assert_console_is_clean(guest.home, new_home)
    await assert_records_are_there(guest, destination, new_home)


async def test_guest_that_writes_moves_with_its_disk_within_its_host(guest: WritingGuest) -> None:
    host = guest.hosts[0]
    vmx = await guest.power_on()
    before = await guest.acknowledged_beyond(guest.home, WRITTEN)
    spec = guest.spec(host, host)
    spec.migration_id, spec.key = secrets.randbits(62) + 1, b""
    new_home = guest.make_home("other", host)
    request = service_pb2.StartRelocationRequest(
        spec=spec, source=guest.place(host), destination=guest.place_in(host, new_home)
    )
    with remote_faults("vmx"):
        await vmx.stub.StartRelocation(request, timeout=30)
    status = (await guest.watched(vmx, spec))[-1]
    assert status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    assert [disk.switched for disk in status.disks] == [True]
    await guest.complete(vmx, spec.migration_id)
    old_bytes = await asyncio.to_thread(guest.extent_in(guest.home).read_bytes)
    await guest.acknowledged_beyond(new_home, max(before, guest.acknowledged(guest.home)) + SERIOUS)
    assert guest.extent_in(guest.home).read_bytes() == old_bytes, "nobody writes to the old disk"
    assert heartbeat_numbers(guest), "its first heartbeats are in the old home"
    assert_console_is_clean(guest.home, new_home)
    await assert_records_are_there(guest, vmx, new_home)
