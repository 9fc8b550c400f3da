"""A guest's disk when the guest moves: the order of mirror, stop, device state and activation, with two real QEMUs.

ExtentWriter stands where the stream between hosts is otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.guest_disks import (
    KEY,
    MIB,
    empty_extent,
    filled_extent,
    layout,
    qemu_io,
    spec_with_disks,
)
from tests.framework.guest_processes import GuestProcesses, qemu_binary
from vmx.checkpoint.capture import CheckpointCapture
from vmx.checkpoint.restore import CheckpointRestore
from vmx.disk.bulk import BulkCopy, RawSource
from vmx.disk.contract import DiskFormat
from vmx.disk.extent import ExtentWriter
from vmx.disk.mirror import DiskMirror
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.memory import GuestMemory
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl

pytestmark = pytest.mark.qemu
CAPACITY = 8 * MIB


@pytest.fixture
async def guests(folder: Path) -> AsyncIterator[GuestProcesses]:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    processes = GuestProcesses(binary, folder, has_kernel=False)
    yield processes
    await processes.end_all()


async def start(guests: GuestProcesses, extent: Path, *, incoming: bool = False) -> GuestProcess:
    spec = spec_with_disks(guests, DiskDevice(KEY, extent, DiskFormat.THIN))
    guest = await guests.start(replace(spec, incoming=incoming))
    if not incoming:
        await RunControl(guest.qmp).cont()
    return guest


def copy_memory(source: GuestMemory, destination: GuestMemory) -> None:
    with source.mapped(writable=False) as old, destination.mapped() as new:
        new.view[:] = old.view


@contextmanager
def bulk_copied(source: Path, target: Path) -> Iterator[ExtentWriter]:
    with RawSource(source, CAPACITY) as reader, ExtentWriter(target, layout(CAPACITY)) as writer:
        BulkCopy(reader, writer).run()
        yield writer


async def test_guest_and_disk_move_all_writes_are_at_the_destination(
    guests: GuestProcesses, folder: Path
) -> None:
    old = filled_extent(folder / "old.vmdk", CAPACITY)
    new = empty_extent(folder / "new.vmdk", CAPACITY)
    source = await start(guests, old)
    # It has the extent open before the data is in it.
    destination = await start(guests, new, incoming=True)
    with bulk_copied(old, new) as writer:
        mirror = DiskMirror(source.qmp, layout(CAPACITY), "disk-2000", source.spec.run_dir, writer)
        await mirror.start()
        await qemu_io(source, "write -P 0x51 1536 4k")
        async with CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore:
            async with CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture:
                await capture.stop_guest()
                await mirror.finish_after_stop()
                captured = await capture.save()
            await asyncio.to_thread(copy_memory, source.memory, destination.memory)
            await restore.feed(captured.device_state)
            await restore.loaded()
            await restore.resume()
    assert new.read_bytes() == old.read_bytes()
    await qemu_io(destination, "read -P 0x51 1536 4k")
    await qemu_io(destination, "write -P 0x52 2M 4k")
    assert new.read_bytes()[2 * MIB : 2 * MIB + 4096] == b"\x52" * 4096
    assert old.read_bytes()[2 * MIB : 2 * MIB + 4096] != b"\x52" * 4096


async def test_guest_that_comes_back_after_the_mirror_ended_writes_to_its_source(
    guests: GuestProcesses, folder: Path
) -> None:
    old = filled_extent(folder / "old.vmdk", CAPACITY)
    new = empty_extent(folder / "new.vmdk", CAPACITY)
    source = await start(guests, old)
    # The second attempt mirrors anew, and fails no more than the first.
    for byte in (0x53, 0x63):
        with bulk_copied(old, new) as writer:
            mirror = DiskMirror(source.qmp, layout(CAPACITY), "disk-2000", source.spec.run_dir, writer)
            await mirror.start()
            async with CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture:
                await capture.stop_guest()
                await mirror.finish_after_stop()
                await capture.save()
                await capture.cancel()
            await mirror.cancel()
        await qemu_io(source, f"write -P {byte} 3M 4k")
        assert old.read_bytes()[3 * MIB : 3 * MIB + 4096] == bytes([byte]) * 4096
        assert new.read_bytes()[3 * MIB : 3 * MIB + 4096] != bytes([byte]) * 4096
        new = empty_extent(folder / "newer.vmdk", CAPACITY)


async def test_guest_moves_and_its_disk_stays_on_shared_storage(guests: GuestProcesses, folder: Path) -> None:
    shared = filled_extent(folder / "shared.vmdk", CAPACITY)
    source = await start(guests, shared)
    destination = await start(guests, shared, incoming=True)
    await qemu_io(source, "write -P 0x54 0 4k")
    async with CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore:
        async with CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture:
            await capture.stop_guest()
            captured = await capture.save()
        await asyncio.to_thread(copy_memory, source.memory, destination.memory)
        await restore.feed(captured.device_state)
        await restore.loaded()
        await restore.resume()
    await qemu_io(destination, "read -P 0x54 0 4k")
    await qemu_io(destination, "write -P 0x55 0 4k")
    assert shared.read_bytes()[:4096] == b"\x55" * 4096


async def test_guest_comes_back_while_its_destination_still_has_the_shared_disk_open(
    guests: GuestProcesses, folder: Path
) -> None:
    shared = filled_extent(folder / "shared.vmdk", CAPACITY)
    source = await start(guests, shared)
    destination = await start(guests, shared, incoming=True)
    async with (
        CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore,
        CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture,
    ):
        await capture.stop_guest()
        captured = await capture.save()
        await asyncio.to_thread(copy_memory, source.memory, destination.memory)
        await restore.feed(captured.device_state)
        await restore.loaded()
        await capture.cancel()
    await qemu_io(source, "write -P 0x56 0 4k")
    assert shared.read_bytes()[:4096] == b"\x56" * 4096
