"""Every phase of a source that gives away its guest, its disk and its home meets every trouble there is.

The homes are parted: each host has an owner record and a run lock of its own, and where the connection can't carry the
destination's last word vpxd does. Afterwards the guest runs on one host, from its home there, with the disk that it
left; no job, node, export or socket is left; and the next move succeeds.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from enum import Enum

import pytest

from runtime.faults import GuestDied, PastPointOfNoReturn, RequestCanceled
from tests.framework.disk_scene import DiskScene, until
from tests.framework.guest_processes import qemu_binary
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import SourcePhase
from vmx.vm_state import ExecutionState

pytestmark = pytest.mark.qemu
S = SourcePhase


class Trouble(Enum):
    """What happens to a phase."""

    CANCEL = "cancel"
    DEFECT = "defect"
    CUT = "cut"
    SILENT = "silent"
    DEATH = "death of the guest"
    TOLD_TO_END = "told to end"


PHASES = [phase for phase in SourcePhase if not phase.is_end and phase is not S.HANDSHAKE]
BEFORE_HAND_OVER = {S.DISK_COPY, S.PRE_COPY, S.STUN, S.LAST_PAGES, S.CHECKPOINT}
T = Trouble


@pytest.fixture
async def scene() -> AsyncIterator[DiskScene]:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    made = DiskScene(binary)
    await made.open()
    made.add_host()
    yield made
    await made.close()


async def trouble_it(scene: DiskScene, trouble: Trouble) -> asyncio.Task[None] | None:
    """The migration stands at its phase's begin."""
    vm, link = scene.source.vm, scene.link
    assert link is not None
    assert vm.guest is not None
    match trouble:
        case T.CANCEL:
            return asyncio.create_task(vm.cancel_migration(scene.order_id))
        case T.TOLD_TO_END:
            return asyncio.create_task(vm.let_go())
        case T.CUT:
            link.cut()
        case T.SILENT:
            link.stall()
        case T.DEATH:
            os.kill(vm.guest.pid, signal.SIGKILL)
    return None


@pytest.mark.parametrize("trouble", Trouble)
@pytest.mark.parametrize("phase", PHASES)
async def test_source_with_a_disk_in_each_phase(
    scene: DiskScene, phase: SourcePhase, trouble: Trouble
) -> None:
    source, destination = scene.source, scene.destination
    contents = source.extent.read_bytes()
    if trouble is T.DEFECT:
        scene.arm(of_phase(phase), "error")
        await scene.begin(source, destination)
        told = None
    else:
        pause = await scene.pause_at(of_phase(phase))
        await scene.begin(source, destination)
        await pause.reached()
        told = await trouble_it(scene, trouble)
        if phase in {S.HAND_OVER, S.CONFIRM}:
            if trouble is T.CUT:  # the other side notices first
                await until(lambda: destination.vm.ended.is_set() or phase is S.CONFIRM)
            await asyncio.sleep(0.1)  # time for vmx to do something rash
            pause.release()
        elif trouble in {T.CUT, T.SILENT}:
            pause.release()
        await pause.__aexit__(None, None, None)
    await ends_as_it_should(scene, phase, trouble, told)
    if trouble is T.DEATH and phase in BEFORE_HAND_OVER:
        scene.assert_contents_at(source, contents)
        return
    runs_on = destination if destination.vm.state is ExecutionState.RUNNING else source
    scene.assert_contents_at(runs_on, contents)
    await scene.assert_it_is_on(runs_on)
    if trouble is not T.TOLD_TO_END:
        if runs_on is destination:
            if await scene.outcome(source) is None:
                await source.vm.complete_migration(scene.order_id)
            await destination.vm.complete_migration(scene.order_id)
        await scene.assert_it_can_move_on(runs_on)


async def ends_as_it_should(
    scene: DiskScene, phase: SourcePhase, trouble: Trouble, told: asyncio.Task[None] | None
) -> None:
    source, destination = scene.source, scene.destination
    if phase in BEFORE_HAND_OVER:
        fault = await scene.outcome(source)
        assert fault is not None
        if trouble is T.DEATH:
            assert isinstance(fault, GuestDied)
        if told is not None:
            await told
            assert isinstance(fault, RequestCanceled)
        await until(destination.vm.ended.is_set)
        assert source.record.epoch == 1, "nothing was given away"
        return
    if trouble is T.CANCEL:
        assert told is not None
        with pytest.raises(PastPointOfNoReturn):
            await told
    lost = trouble in {T.CUT, T.SILENT} or (trouble is T.DEFECT and phase is S.CONFIRM)
    if lost:
        await scene.relay()
    if told is not None and trouble is T.TOLD_TO_END:
        await told
    gives_back = phase is S.HAND_OVER and trouble in {T.CUT, T.DEFECT, T.SILENT}
    if gives_back:
        assert await scene.outcome(source) is not None
        await until(lambda: source.vm.state is ExecutionState.RUNNING)
        await until(destination.vm.ended.is_set)
        return
    await until(lambda: destination.vm.state is ExecutionState.RUNNING)
    assert await scene.outcome(destination) is None
    assert scene.gave_away(source)


@pytest.mark.parametrize("trouble", [T.CANCEL, T.TOLD_TO_END, T.CUT, T.DEATH])
async def test_disk_copy_whose_target_takes_nothing_more_can_be_ended(
    scene: DiskScene, trouble: Trouble
) -> None:
    """In the middle of the copy, the mirror on: nothing may wait for a network that has fallen silent."""
    scene.silent_s = 60.0
    source, contents = scene.source, scene.source.extent.read_bytes()
    pause = await scene.pause_at(of_phase(S.DISK_COPY))
    await scene.begin(source, scene.destination)
    await pause.reached()
    assert scene.link is not None
    scene.link.stall()
    pause.release()
    guest = source.vm.guest
    assert guest is not None
    async with asyncio.timeout(10):
        while not await guest.qmp.execute("query-block-jobs"):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # time for the copy to fill every buffer
    told = await trouble_it(scene, trouble)
    if told is not None:
        await told
    assert await scene.outcome(source) is not None
    scene.assert_contents_at(source, contents)
    if trouble is not T.DEATH:
        await scene.assert_it_is_on(source)
    scene.link.flow()
    await until(scene.destination.vm.ended.is_set)
    await pause.__aexit__(None, None, None)
    if trouble in {T.CANCEL, T.CUT}:
        await scene.assert_it_can_move_on(source)
