"""Every phase of a destination that takes a guest, its disk and its home meets every trouble there is, as
test_disk_migration_source_phases.py has it for the source."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from enum import Enum

import pytest

from runtime.faults import PastPointOfNoReturn
from tests.framework.disk_scene import DiskScene, until
from tests.framework.guest_processes import qemu_binary
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import DestinationPhase
from vmx.vm_state import ExecutionState

pytestmark = pytest.mark.qemu
D = DestinationPhase


class Trouble(Enum):
    """What happens to a phase."""

    CANCEL = "cancel"
    DEFECT = "defect"
    CUT = "cut"
    SILENT = "silent"
    DEATH = "death of the guest"
    TOLD_TO_END = "told to end"


T = Trouble
PHASES = [phase for phase in DestinationPhase if not phase.is_end and phase is not D.LISTEN]
BEFORE_READY = {D.RECEIVE, D.RESTORE}


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


def ends_here(phase: DestinationPhase, trouble: Trouble) -> bool:
    """Whether the guest goes on at the source."""
    if phase in BEFORE_READY or trouble is T.DEATH:
        return True
    return phase is D.HAND_OVER and trouble in {T.DEFECT, T.CUT, T.SILENT}


@pytest.mark.parametrize("trouble", Trouble)
@pytest.mark.parametrize("phase", PHASES)
async def test_destination_with_a_disk_in_each_phase(
    scene: DiskScene, phase: DestinationPhase, trouble: Trouble
) -> None:
    source, destination = scene.source, scene.destination
    contents = source.extent.read_bytes()
    told: asyncio.Task[None] | None = None
    if trouble is T.DEFECT:
        scene.arm(of_phase(phase), "error")
        await scene.begin(source, destination)
    else:
        pause = await scene.pause_at(of_phase(phase))
        await scene.begin(source, destination)
        await pause.reached()
        told = trouble_it(scene, trouble)
        if trouble in {T.CUT, T.SILENT, T.DEATH} or phase not in BEFORE_READY:
            await asyncio.sleep(0.1)  # time for vmx to do something rash
            pause.release()
        if trouble is T.CANCEL and phase not in BEFORE_READY:
            assert told is not None
            with pytest.raises(PastPointOfNoReturn):
                await told
        elif told is not None:
            await told
        await pause.__aexit__(None, None, None)
    await scene.relay()
    here = ends_here(phase, trouble)
    runs_on = source if here else destination
    await until(lambda: runs_on.vm.state is ExecutionState.RUNNING)
    if here:
        assert await scene.outcome(source) is not None
        await until(destination.vm.ended.is_set)
    else:
        assert scene.gave_away(source)
    scene.assert_contents_at(runs_on, contents)
    await scene.assert_it_is_on(runs_on)
    if here:
        await scene.assert_it_can_move_on(source)


def trouble_it(scene: DiskScene, trouble: Trouble) -> asyncio.Task[None] | None:
    """The migration stands at its phase's begin."""
    vm, link = scene.destination.vm, scene.link
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
