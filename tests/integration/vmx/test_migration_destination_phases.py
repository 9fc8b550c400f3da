"""Every phase of the destination meets every trouble there is, as test_migration_source_phases.py has it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import status_pb2
from runtime.faults import PastPointOfNoReturn
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.migration_scene import HERE, THERE, Scene, arm, pause_at
from tests.framework.vmx_hosts import VmxHosts
from tests.framework.vmx_invariants import (
    assert_guests_left,
    assert_heart_beats,
    assert_it_can_move_on,
    assert_memory_is_right,
    assert_one_unbroken_heartbeat,
    assert_vm_is_on,
    record_of,
)
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import DestinationPhase, SourcePhase

S, D = SourcePhase, DestinationPhase


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8))
    yield made
    await made.close()


# ---- the destination

DESTINATION_PHASES = [phase for phase in DestinationPhase if not phase.is_end]
BEFORE_READY = {D.LISTEN, D.RECEIVE, D.RESTORE}


@pytest.mark.parametrize("phase", DESTINATION_PHASES)
async def test_cancel_of_the_destination_in_each_phase(scene: Scene, phase: DestinationPhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        if phase in BEFORE_READY:
            await scene.hosts.cancel(scene.destination, scene.spec.migration_id)
            assert await scene.destination.ended() == 0
            await scene.expect(HERE)
        else:
            with pytest.raises(PastPointOfNoReturn):
                await scene.hosts.cancel(scene.destination, scene.spec.migration_id)
            pause.release()
            await scene.expect(THERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", DESTINATION_PHASES)
async def test_defect_at_the_destination_in_each_phase(scene: Scene, phase: DestinationPhase) -> None:
    arm(scene.hosts, of_phase(phase), "error")
    await scene.begin()
    if phase is D.CONFIRM:  # the guest runs here: no defect may end it
        assert (await scene.outcome()).status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
        await assert_heart_beats(scene.hosts)
        assert record_of(scene.hosts).owner_host_uuid == scene.destination.host.uuid
        state = await scene.destination.state()
        assert state.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    else:
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", DESTINATION_PHASES)
async def test_connection_cut_in_each_phase_of_the_destination(scene: Scene, phase: DestinationPhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        await scene.link.opened()
        scene.link.cut()
        pause.release()
        await scene.expect(THERE if phase is D.CONFIRM else HERE, told=phase is not D.LISTEN)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", DESTINATION_PHASES)
async def test_guest_killed_in_each_phase_of_the_destination(scene: Scene, phase: DestinationPhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        os.kill(scene.qemu_pids[1], signal.SIGKILL)
        if phase not in BEFORE_READY:
            await asyncio.sleep(0.2)
        pause.release()
        await scene.expect(HERE)
    if phase is D.CONFIRM:  # it ran there for a moment: the source goes on from the stun
        assert_memory_is_right(scene.hosts)
    else:
        assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", DESTINATION_PHASES)
async def test_vmx_of_the_destination_told_to_end_in_each_phase(
    scene: Scene, phase: DestinationPhase
) -> None:
    async with await pause_at(scene, of_phase(phase), FAKE_QEMU_DIE_WITH_PARENT="0") as pause:
        scene.destination.process.terminate()
        if phase in BEFORE_READY:
            assert await scene.destination.ended() == 0
            await scene.expect(HERE)
        else:
            await asyncio.sleep(0.2)
            pause.release()
            assert await scene.destination.ended() == 0
            assert (await scene.outcome()).status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
            await scene.hosts.complete(scene.source, scene.spec.migration_id)
            await assert_guests_left(scene.hosts, [scene.qemu_pids[1]])
            await assert_heart_beats(scene.hosts)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", [phase for phase in DESTINATION_PHASES if phase is not D.CONFIRM])
async def test_host_of_the_destination_dies_in_each_phase_before_it_runs(
    scene: Scene, phase: DestinationPhase
) -> None:
    async with await pause_at(scene, of_phase(phase)):
        scene.destination.process.kill()
        os.kill(scene.qemu_pids[1], signal.SIGKILL)
        await scene.destination.ended()
        assert (await scene.outcome()).HasField("fault")
        await assert_vm_is_on(scene.hosts, scene.source)
        await assert_it_can_move_on(scene.hosts, scene.source, 2)
    assert_one_unbroken_heartbeat(scene.hosts)
