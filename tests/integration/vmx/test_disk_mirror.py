"""The mirror of a disk with a real QEMU: synchronous, exact, and gone without a trace however it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.framework.guest_disks import (
    KEY,
    MIB,
    disk_nodes,
    empty_extent,
    filled_extent,
    layout,
    qemu_io,
    spec_with_disks,
)
from tests.framework.guest_processes import GuestProcesses, qemu_binary
from vmx.disk import mirror as mirror_module
from vmx.disk.contract import DiskFormat
from vmx.disk.errors import (
    DiskError,
    DiskSpecError,
    MirrorFailed,
    MirrorMisused,
    MirrorStartFailed,
    NbdClosed,
)
from vmx.disk.mirror import DiskMirror, MirrorState
from vmx.disk.nodes import clear_leftovers, node_of_disk
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl

pytestmark = pytest.mark.qemu
CAPACITY = 8 * MIB
NODES = {"disk-2000", "file-2000"}


class FakeTarget:
    """A sink in memory. `error` is raised by writes; `gate`, while it is closed, holds them."""

    def __init__(self) -> None:
        self.content = bytearray(CAPACITY)
        self.error: DiskError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.flushes = 0

    def write_bulk(self, offset: int, data: memoryview) -> None:
        raise AssertionError("not the mirror's")

    def write_mirrored(self, offset: int, data: memoryview) -> None:
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.content[offset : offset + len(data)] = data

    def zero_mirrored(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.flushes += 1
        if self.error is not None:
            raise self.error


class Scene:
    """A guest with one disk, and a mirror into memory that runs."""

    def __init__(self, folder: Path, guest: GuestProcess, source: Path) -> None:
        self.folder = folder
        self.guest = guest
        self.source = source
        self.target = FakeTarget()
        self.mirror = self.new_mirror()

    def new_mirror(self, node: str = "disk-2000") -> DiskMirror:
        return DiskMirror(self.guest.qmp, layout(CAPACITY), node, self.folder, self.target)

    async def expect_nothing_left(self) -> None:
        assert await disk_nodes(self.guest) == NODES
        assert await self.guest.qmp.execute("query-jobs") == []
        assert not list(self.folder.glob("*.sock"))
        await qemu_io(self.guest, "write -P 0x42 7M 4k")
        assert self.source.read_bytes()[7 * MIB : 7 * MIB + 4096] == b"\x42" * 4096


@pytest.fixture
async def scene(folder: Path) -> AsyncIterator[Scene]:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    guests = GuestProcesses(binary, folder, has_kernel=False)
    source = filled_extent(folder / "source.vmdk", CAPACITY)
    guest = await guests.start(spec_with_disks(guests, DiskDevice(KEY, source, DiskFormat.THIN)))
    await RunControl(guest.qmp).cont()
    made = Scene(folder, guest, source)
    yield made
    made.target.gate.set()
    await made.mirror.cancel()
    await guests.end_all()


async def test_mirror_every_write_is_there_when_it_is_acknowledged(scene: Scene) -> None:
    await scene.mirror.start()
    for sector in (0, 1, 77, CAPACITY // 512 - 1):
        await qemu_io(scene.guest, f"write -P {sector % 250 + 1} {sector * 512} 512")
        start = sector * 512
        assert scene.target.content[start : start + 512] == bytes([sector % 250 + 1]) * 512
    assert scene.target.content.count(0) == CAPACITY - 4 * 512
    await qemu_io(scene.guest, "write -z 0 1024")
    assert scene.target.content[:1024] == bytes(1024)
    await qemu_io(scene.guest, "write -P 9 1M 6M")
    assert scene.target.content[MIB : 7 * MIB] == b"\x09" * 6 * MIB
    assert scene.mirror.mirrored_bytes == 4 * 512 + 1024 + 6 * MIB


async def test_mirror_finished_after_stop_has_all_writes_durable(scene: Scene) -> None:
    await scene.mirror.start()
    await qemu_io(scene.guest, "aio_write -P 3 0 4M")
    await RunControl(scene.guest.qmp).stop()
    await scene.mirror.finish_after_stop()
    assert scene.target.content[: 4 * MIB] == b"\x03" * 4 * MIB
    assert scene.target.flushes >= 1
    assert scene.mirror.state is MirrorState.FINISHED
    await scene.mirror.cancel()
    await scene.expect_nothing_left()
    assert scene.target.content[7 * MIB : 7 * MIB + 4096] == bytes(4096)


async def test_mirror_target_fails_guest_goes_on_and_the_reason_is_told(scene: Scene) -> None:
    await scene.mirror.start()
    scene.target.error = NbdClosed("write", "the link is down")
    await qemu_io(scene.guest, "write -P 3 0 4k")
    failure = await asyncio.wait_for(scene.mirror.wait_failed(), 10)
    assert failure.cause is scene.target.error
    assert scene.source.read_bytes()[:4096] == b"\x03" * 4096
    with pytest.raises(MirrorFailed):
        await scene.mirror.finish_after_stop()
    with pytest.raises(MirrorFailed):
        await scene.mirror.land_on(layout(CAPACITY), scene.source)
    await scene.mirror.cancel()
    await scene.mirror.cancel()
    await scene.expect_nothing_left()


async def test_mirror_flush_fails_at_the_end_is_a_failed_mirror(scene: Scene) -> None:
    await scene.mirror.start()
    await RunControl(scene.guest.qmp).stop()
    scene.target.error = NbdClosed("flush", "the link is down")
    with pytest.raises(MirrorFailed) as failed:
        await scene.mirror.finish_after_stop()
    assert failed.value.cause is scene.target.error
    await scene.mirror.cancel()
    await scene.expect_nothing_left()


async def test_mirror_target_hangs_cancel_frees_the_guest(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_SINK_RETURNS_S", 0.1)
    await scene.mirror.start()
    scene.target.gate.clear()
    await qemu_io(scene.guest, "aio_write -P 3 0 4k")
    await asyncio.wait_for(scene.mirror.cancel(), 10)
    await scene.expect_nothing_left()
    assert scene.source.read_bytes()[:4096] == b"\x03" * 4096


async def test_mirror_landing_that_fails_can_be_taken_back(scene: Scene) -> None:
    await scene.mirror.start()
    with pytest.raises(MirrorFailed):
        await scene.mirror.land_on(layout(CAPACITY), scene.folder / "missing.vmdk")
    await scene.mirror.cancel()
    await scene.expect_nothing_left()


async def test_mirror_that_can_not_start_leaves_nothing(scene: Scene) -> None:
    mirror = scene.new_mirror("no-such-node")
    with pytest.raises(MirrorStartFailed):
        await mirror.start()
    await mirror.cancel()
    await scene.expect_nothing_left()
    await scene.mirror.start()
    second = scene.new_mirror()
    with pytest.raises(MirrorStartFailed):
        await second.start()
    await qemu_io(scene.guest, "write -P 3 0 4k")
    assert scene.target.content[:4096] == b"\x03" * 4096


async def test_mirror_of_another_size_is_refused(scene: Scene) -> None:
    mirror = DiskMirror(scene.guest.qmp, layout(CAPACITY + MIB), "disk-2000", scene.folder, scene.target)
    with pytest.raises(MirrorStartFailed):
        await mirror.start()
    await scene.expect_nothing_left()


async def test_mirror_steps_out_of_order_are_refused(scene: Scene) -> None:
    with pytest.raises(MirrorMisused):
        await scene.mirror.finish_after_stop()
    await scene.mirror.start()
    for step in (scene.mirror.start, scene.mirror.pivot):
        with pytest.raises(MirrorMisused):
            await step()
    await scene.mirror.cancel()
    with pytest.raises(MirrorMisused):
        await scene.mirror.finish_after_stop()
    await scene.expect_nothing_left()


async def test_mirror_qemu_dies_is_told_and_cancel_is_no_error(scene: Scene) -> None:
    await scene.mirror.start()
    await scene.guest.kill()
    await asyncio.wait_for(scene.mirror.wait_failed(), 10)
    with pytest.raises(MirrorFailed):
        await scene.mirror.finish_after_stop()
    await scene.mirror.cancel()
    assert not list(scene.folder.glob("*.sock"))


@pytest.mark.parametrize("landed", [False, True])
async def test_clear_leftovers_after_a_vmx_that_died(scene: Scene, landed: bool) -> None:
    await scene.mirror.start()
    assert (await node_of_disk(scene.guest.qmp, KEY)).startswith("mirror-")
    if landed:
        target = empty_extent(scene.folder / "target.vmdk", CAPACITY)
        await scene.mirror.land_on(layout(CAPACITY), target)
    await clear_leftovers(scene.guest.qmp)
    assert await node_of_disk(scene.guest.qmp, KEY) == "disk-2000"
    await scene.expect_nothing_left()
    await clear_leftovers(scene.guest.qmp)
    with pytest.raises(DiskSpecError):
        await node_of_disk(scene.guest.qmp, 2009)
