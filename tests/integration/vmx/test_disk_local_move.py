"""A running guest's disks moved on one host, by a real QEMU: nothing lost, nothing left, and the way back."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.framework.guest_disks import (
    KEY,
    MIB,
    GuestWriter,
    disk_nodes,
    empty_extent,
    filled_extent,
    is_open_in,
    layout,
    qemu_io,
    spec_with_disks,
)
from tests.framework.guest_processes import GuestProcesses, qemu_binary
from vmx.disk.bulk import BulkOptions
from vmx.disk.contract import DiskFormat
from vmx.disk.errors import DiskCopyCancelled, DiskError, DiskFull, DiskSpecError, MirrorFailed, PartlyPivoted
from vmx.disk.local_move import DiskMove, LocalMove
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.process import GuestProcess

pytestmark = pytest.mark.qemu
CAPACITY = 24 * MIB


@pytest.fixture
async def guests(folder: Path) -> AsyncIterator[GuestProcesses]:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    processes = GuestProcesses(binary, folder, has_kernel=False)
    yield processes
    await processes.end_all()


class Scene:
    """A guest with one filled disk, and an empty target."""

    def __init__(self, folder: Path, guests: GuestProcesses) -> None:
        self.folder = folder
        self.guests = guests
        self.source = filled_extent(folder / "source,a b.vmdk", CAPACITY)
        self.target = empty_extent(folder / "target,c d.vmdk", CAPACITY)

    async def start(self) -> GuestProcess:
        disk = DiskDevice(KEY, self.source, DiskFormat.THIN)
        return await self.guests.start(spec_with_disks(self.guests, disk))

    def move(self, guest: GuestProcess | None, options: BulkOptions | None = None) -> LocalMove:
        move = DiskMove(layout(CAPACITY), self.source, layout(CAPACITY), self.target)
        return LocalMove([move], self.folder, guest.qmp if guest else None, options)


@pytest.fixture
def scene(folder: Path, guests: GuestProcesses) -> Scene:
    return Scene(folder, guests)


async def test_local_move_random_writes_meanwhile_target_equals_source(scene: Scene) -> None:
    guest = await scene.start()
    writer = GuestWriter(guest, CAPACITY)
    move = scene.move(guest, BulkOptions(throttle=writer.pace))
    writing = asyncio.create_task(writer.write_on())
    await move.prepare()
    # Landed: still mirrored, now by QEMU alone.
    wanted = writer.writes + 20
    while writer.writes < wanted:
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    await qemu_io(guest, "flush")
    assert scene.source.read_bytes() == scene.target.read_bytes()
    (progress,) = move.progress
    assert progress.copied_bytes == progress.data_bytes > 0
    assert progress.zero_bytes > 0
    assert progress.mirrored_bytes > 0
    nodes = await move.commit()
    assert nodes == {KEY: "disk-2000-1"}


async def test_local_move_after_pivot_writes_land_in_target_only(scene: Scene) -> None:
    guest = await scene.start()
    move = scene.move(guest)
    await move.prepare()
    await move.commit()
    before = scene.source.read_bytes()
    await qemu_io(guest, "write -P 0xab 1M 64k")
    await qemu_io(guest, "read -P 0xab 1M 64k")
    assert scene.source.read_bytes() == before
    assert scene.target.read_bytes()[MIB : MIB + 65536] == b"\xab" * 65536
    assert not is_open_in(guest, scene.source)
    assert is_open_in(guest, scene.target)
    assert await disk_nodes(guest) == {"disk-2000-1", "file-2000-1"}
    assert not list(scene.folder.glob("*.sock"))


async def test_local_move_twice_comes_back(scene: Scene) -> None:
    guest = await scene.start()
    for _ in range(2):
        move = scene.move(guest)
        await move.prepare()
        nodes = await move.commit()
        await qemu_io(guest, "write -P 0x77 3M 4k")
        assert scene.target.read_bytes()[3 * MIB : 3 * MIB + 4096] == b"\x77" * 4096
        scene.source, scene.target = scene.target, empty_extent(scene.folder / "third.vmdk", CAPACITY)
    assert nodes == {KEY: "disk-2000-2"}
    assert await disk_nodes(guest) == {"disk-2000-2", "file-2000-2"}


@pytest.mark.parametrize("when", ["copying", "ready"])
async def test_local_move_cancelled_leaves_guest_on_source_and_nothing_else(scene: Scene, when: str) -> None:
    guest = await scene.start()
    nodes = await disk_nodes(guest)
    writer = GuestWriter(guest, CAPACITY)
    move = scene.move(guest, BulkOptions(throttle=writer.pace) if when == "copying" else None)
    preparing = asyncio.create_task(move.prepare())
    if when == "copying":
        while move.progress[0].copied_bytes == 0:
            await writer.write_once()
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
    else:
        await preparing
        await qemu_io(guest, "write -P 5 0 4k")
        await move.cancel()
    assert await disk_nodes(guest) == nodes
    assert not is_open_in(guest, scene.target)
    assert await guest.qmp.execute("query-jobs") == []
    assert not list(scene.folder.glob("*.sock"))
    target = scene.target.read_bytes()
    await qemu_io(guest, "write -P 0xcd 2M 64k")
    assert scene.source.read_bytes()[2 * MIB : 2 * MIB + 65536] == b"\xcd" * 65536
    assert scene.target.read_bytes() == target
    await move.cancel()


async def test_local_move_target_full_fails_and_guest_goes_on(scene: Scene) -> None:
    guest = await scene.start()
    writer = GuestWriter(guest, CAPACITY)
    move = scene.move(guest, BulkOptions(throttle=writer.pace))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # EFBIG for this process, which writes the target; QEMU started before.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, before[1]))
    try:
        preparing = asyncio.create_task(move.prepare())
        while move.progress[0].copied_bytes == 0:
            await writer.write_once()
        await qemu_io(guest, "write -P 0x99 10M 64k")
        with pytest.raises(MirrorFailed) as failed:
            await preparing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(failed.value.cause, DiskFull)
    assert failed.value.cause.needed_bytes > 0
    await qemu_io(guest, "write -P 0x98 11M 64k")
    await qemu_io(guest, "read -P 0x99 10M 64k")
    assert scene.source.read_bytes()[11 * MIB : 11 * MIB + 65536] == b"\x98" * 65536
    assert await guest.qmp.execute("query-jobs") == []
    assert await disk_nodes(guest) == {"disk-2000", "file-2000"}


async def test_local_move_qemu_killed_is_a_typed_error_and_nothing_is_left(scene: Scene) -> None:
    guest = await scene.start()
    writer = GuestWriter(guest, CAPACITY)
    move = scene.move(guest, BulkOptions(throttle=writer.pace))
    preparing = asyncio.create_task(move.prepare())
    while move.progress[0].copied_bytes == 0:
        await writer.write_once()
    await guest.kill()
    with pytest.raises(MirrorFailed):
        await preparing
    assert not list(scene.folder.glob("*.sock"))
    await move.cancel()


async def test_local_move_qemu_killed_when_ready_commit_says_that_nothing_moved(scene: Scene) -> None:
    guest = await scene.start()
    move = scene.move(guest)
    await move.prepare()
    failing = asyncio.create_task(move.wait_failed())
    await guest.kill()
    await failing
    with pytest.raises(PartlyPivoted) as failed:
        await move.commit()
    assert failed.value.pivoted == {}
    assert set(failed.value.failures) == {KEY}


async def test_local_move_two_disks_thick_and_thin(scene: Scene) -> None:
    second = filled_extent(scene.folder / "second.vmdk", 4 * MIB, seed=5)
    thick = empty_extent(scene.folder / "thick.vmdk", 4 * MIB)
    with thick.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)
    disks = DiskDevice(KEY, scene.source, DiskFormat.THIN), DiskDevice(2001, second, DiskFormat.THIN)
    guest = await scene.guests.start(spec_with_disks(scene.guests, *disks))
    lazy = layout(4 * MIB, DiskFormat.THICK_LAZY_ZEROED, key=2001)
    moves = [
        DiskMove(layout(CAPACITY), scene.source, layout(CAPACITY), scene.target),
        DiskMove(layout(4 * MIB, key=2001), second, lazy, thick),
    ]
    move = LocalMove(moves, scene.folder, guest.qmp)
    await move.prepare()
    await qemu_io(guest, "write -z -u 0 1M", key=2001)
    assert await move.commit() == {KEY: "disk-2000-1", 2001: "disk-2001-1"}
    await qemu_io(guest, "discard 0 1M", key=2001)
    assert thick.stat().st_blocks * 512 >= 4 * MIB
    assert thick.read_bytes()[:MIB] == bytes(MIB)
    assert thick.read_bytes()[MIB:] == second.read_bytes()[MIB:]
    assert scene.target.read_bytes() == scene.source.read_bytes()


async def qcow2_image(path: Path) -> Path:
    for arguments in (
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(CAPACITY)],
        [
            "qemu-io",
            "-c",
            "write -P 17 1M 3M",
            "-c",
            "write -P 18 20M 64k",
            "-c",
            "write -z 2M 1M",
            str(path),
        ],
    ):
        child = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL)
        assert await child.wait() == 0
    return path


def image_bytes() -> bytes:
    content = bytearray(CAPACITY)
    content[MIB : 2 * MIB] = bytes([17]) * MIB
    content[3 * MIB : 4 * MIB] = bytes([17]) * MIB
    content[20 * MIB : 20 * MIB + 65536] = bytes([18]) * 65536
    return bytes(content)


async def test_local_move_running_qcow2_becomes_raw(scene: Scene) -> None:
    image = await qcow2_image(scene.folder / "disk.qcow2")
    guest = await scene.guests.start(spec_with_disks(scene.guests, DiskDevice(KEY, image, DiskFormat.QCOW2)))
    writer = GuestWriter(guest, CAPACITY)
    source = layout(CAPACITY, DiskFormat.QCOW2)
    options = BulkOptions(throttle=writer.pace)
    move = LocalMove(
        [DiskMove(source, image, layout(CAPACITY), scene.target)], scene.folder, guest.qmp, options
    )
    preparing = asyncio.create_task(move.prepare())
    while move.progress[0].copied_bytes == 0:
        await writer.write_once()
    await qemu_io(guest, "write -P 0x31 1536 1536")
    writer.free()
    await preparing
    before_pivot = scene.target.read_bytes()
    await qemu_io(guest, "write -P 0x32 12M 4k")
    await move.commit()
    assert before_pivot[1536:3072] == b"\x31" * 1536
    assert before_pivot[20 * MIB + 4096 : 20 * MIB + 8192].strip(b"\x12") in (
        b"",
        before_pivot[20 * MIB + 4096 : 20 * MIB + 8192],
    )
    assert scene.target.read_bytes()[12 * MIB : 12 * MIB + 4096] == b"\x32" * 4096
    assert not is_open_in(guest, image)
    await guest.kill()
    child = await asyncio.create_subprocess_exec(
        "qemu-img",
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        str(image),
        str(scene.target),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await child.wait() == 0


async def test_local_move_running_guest_refuses_qcow2_target(scene: Scene) -> None:
    guest = await scene.start()
    target = layout(CAPACITY, DiskFormat.QCOW2)
    with pytest.raises(DiskSpecError):
        LocalMove([DiskMove(layout(CAPACITY), scene.source, target, scene.target)], scene.folder, guest.qmp)


async def test_local_move_powered_off_raw(scene: Scene) -> None:
    move = scene.move(None)
    await move.prepare()
    assert await move.commit() == {}
    assert scene.target.read_bytes() == scene.source.read_bytes()
    assert scene.target.stat().st_blocks <= scene.source.stat().st_blocks


async def test_local_move_powered_off_cancelled_between_chunks(scene: Scene) -> None:
    moving: list[LocalMove] = []
    options = BulkOptions(threads=1, throttle=lambda _bytes: cancel())
    move = scene.move(None, options)
    preparing = asyncio.create_task(move.prepare())
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        loop.call_soon_threadsafe(preparing.cancel)

    with pytest.raises((asyncio.CancelledError, DiskCopyCancelled)):
        await preparing
    assert not moving


async def test_local_move_powered_off_qcow2_both_ways(scene: Scene) -> None:
    image = await qcow2_image(scene.folder / "disk.qcow2")
    as_image, as_raw = layout(CAPACITY, DiskFormat.QCOW2), layout(CAPACITY)
    to_raw = LocalMove([DiskMove(as_image, image, as_raw, scene.target)], scene.folder, None)
    await to_raw.prepare()
    assert scene.target.read_bytes() == image_bytes()
    back = scene.folder / "back,x.qcow2"
    to_image = LocalMove([DiskMove(as_raw, scene.target, as_image, back)], scene.folder, None)
    await to_image.prepare()
    assert to_image.progress[0].copied_bytes == CAPACITY
    again = empty_extent(scene.folder / "again.vmdk", CAPACITY)
    await LocalMove([DiskMove(as_image, back, as_raw, again)], scene.folder, None).prepare()
    assert again.read_bytes() == image_bytes()


async def test_local_move_powered_off_broken_image_is_a_typed_error(scene: Scene) -> None:
    broken = scene.folder / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + bytes(70_000))
    as_image, as_raw = layout(CAPACITY, DiskFormat.QCOW2), layout(CAPACITY)
    for target in (as_raw, as_image):
        move = LocalMove([DiskMove(as_image, broken, target, scene.target)], scene.folder, None)
        with pytest.raises(DiskError):
            await move.prepare()
