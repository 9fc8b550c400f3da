"""Every phase of the source meets every trouble there is: canceled, broken, cut off, killed, told to end.

The phases come from the enum: a new one runs here, or fails here for want of an expectation. A process stops exactly
where the phase begins (runtime/failpoint.py), the trouble comes, and afterwards there is one VM: on one host, with one
unbroken heartbeat and the memory it left, able to move to a third host. Or it is off, where its own process was killed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, host_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import MigrationNotReady, PastPointOfNoReturn
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.migration_scene import HERE, OFF, THERE, Scene, arm, pause_at
from tests.framework.vmx_hosts import VmxHosts
from tests.framework.vmx_invariants import (
    assert_guests_left,
    assert_heart_beats,
    assert_it_can_move_on,
    assert_one_unbroken_heartbeat,
    assert_vm_is_off,
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


# ---- the source

# A migration without disks never is in DISK_COPY: test_disk_migration_source_phases.py has its failures.
SOURCE_PHASES = [phase for phase in SourcePhase if not phase.is_end and phase is not SourcePhase.DISK_COPY]
BEFORE_HAND_OVER = {S.HANDSHAKE, S.PRE_COPY, S.STUN, S.LAST_PAGES, S.CHECKPOINT}


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_cancel_of_the_source_in_each_phase(scene: Scene, phase: SourcePhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        if phase in BEFORE_HAND_OVER:
            await scene.hosts.cancel(scene.source, scene.spec.migration_id)
            assert (await scene.source.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
            assert (await scene.outcome()).fault.type == fault_pb2.FAULT_TYPE_REQUEST_CANCELED
            await scene.expect(HERE, told=phase is not S.HANDSHAKE)
        else:
            with pytest.raises(PastPointOfNoReturn):
                await scene.hosts.cancel(scene.source, scene.spec.migration_id)
            pause.release()
            await scene.expect(THERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_defect_at_the_source_in_each_phase(scene: Scene, phase: SourcePhase) -> None:
    arm(scene.hosts, of_phase(phase), "error")
    await scene.begin()
    if phase is S.CONFIRM:  # nothing is known of the guest but that it was given: it isn't taken back
        assert (await scene.outcome()).HasField("fault")
        assert (await scene.source.state()).execution_state == host_pb2.EXECUTION_STATE_STUNNED
        with pytest.raises(PastPointOfNoReturn):
            await scene.hosts.cancel(scene.source, scene.spec.migration_id)
        with pytest.raises(MigrationNotReady):
            await scene.hosts.complete(scene.source, scene.spec.migration_id)
        await assert_heart_beats(scene.hosts)
        assert record_of(scene.hosts).owner_host_uuid == scene.destination.host.uuid
    else:
        await scene.expect(HERE, told=phase is not S.HANDSHAKE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_connection_cut_in_each_phase_of_the_source(scene: Scene, phase: SourcePhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        if phase is S.HAND_OVER:
            scene.link.cut()
            await scene.destination.ended()  # it has given up by a swap: the source's must fail
        else:
            scene.link.cut()
        pause.release()
        if phase is S.HANDSHAKE:  # nothing to cut yet
            await scene.expect(THERE)
        else:
            await scene.expect(THERE if phase is S.CONFIRM else HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_guest_killed_in_each_phase_of_the_source(scene: Scene, phase: SourcePhase) -> None:
    async with await pause_at(scene, of_phase(phase)) as pause:
        os.kill(scene.qemu_pids[0], signal.SIGKILL)
        if phase in BEFORE_HAND_OVER:
            await scene.expect(OFF, told=phase is not S.HANDSHAKE)
        else:
            await asyncio.sleep(0.2)  # time for vmx to do something rash
            pause.release()
            await scene.expect(THERE)  # its state was at the destination already
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_vmx_of_the_source_told_to_end_in_each_phase(scene: Scene, phase: SourcePhase) -> None:
    async with await pause_at(scene, of_phase(phase), FAKE_QEMU_DIE_WITH_PARENT="0") as pause:
        scene.source.process.terminate()
        if phase in BEFORE_HAND_OVER:
            assert await scene.source.ended() == 0
            if phase is S.HANDSHAKE:
                await scene.hosts.cancel(scene.destination, scene.spec.migration_id)
            assert await scene.destination.ended() == 0
            await assert_guests_left(scene.hosts, [scene.qemu_pids[0]])
            assert record_of(scene.hosts).owner_host_uuid == scene.source.host.uuid
        else:
            await asyncio.sleep(0.2)
            pause.release()
            assert await scene.source.ended() == 0
            await scene.hosts.complete(scene.destination, scene.spec.migration_id)
            assert record_of(scene.hosts).owner_host_uuid == scene.destination.host.uuid
        await assert_heart_beats(scene.hosts)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("phase", SOURCE_PHASES)
async def test_host_of_the_source_dies_in_each_phase(scene: Scene, phase: SourcePhase) -> None:
    async with await pause_at(scene, of_phase(phase)):
        scene.source.process.kill()
        os.kill(scene.qemu_pids[0], signal.SIGKILL)
        if phase is S.CONFIRM:
            await assert_vm_is_on(scene.hosts, scene.destination)
            await scene.hosts.complete(scene.destination, scene.spec.migration_id)
            await assert_it_can_move_on(scene.hosts, scene.destination, 2)
        elif phase is S.HANDSHAKE:  # it has never heard of the source; hostd cancels it, or its guard ends it
            await scene.hosts.cancel(scene.destination, scene.spec.migration_id)
            assert await scene.destination.ended() == 0
            await assert_vm_is_off(scene.hosts)
        else:
            assert await scene.destination.ended() == 0
            await assert_vm_is_off(scene.hosts)
            assert record_of(scene.hosts).owner_host_uuid == scene.source.host.uuid
    assert_one_unbroken_heartbeat(scene.hosts)


# ---- during the undoing


async def test_cancel_while_a_failure_is_undone_doesnt_leave_the_guest_stunned(scene: Scene) -> None:
    async with FailpointPause(scene.hosts.run_root / "pause.sock") as pause:
        arm(scene.hosts, of_phase(S.LAST_PAGES), f"error;source.roll_back={pause.action}")
        await scene.begin()
        await pause.reached()
        canceling = asyncio.create_task(scene.hosts.cancel(scene.source, scene.spec.migration_id))
        await asyncio.sleep(0.2)
        pause.release()
        await canceling
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_undo_that_fails_is_told_and_the_stunned_guest_can_be_powered_off(scene: Scene) -> None:
    arm(scene.hosts, of_phase(S.LAST_PAGES), "error;source.roll_back=error")
    await scene.begin()
    assert "couldn't be undone" in (await scene.outcome()).fault.message
    state = await scene.source.state()
    assert state.execution_state == host_pb2.EXECUTION_STATE_STUNNED
    await scene.source.stub.PowerOff(service_pb2.PowerOffRequest(), timeout=10)
    assert await scene.source.ended() == 0
    assert await scene.destination.ended() == 0
    await assert_vm_is_off(scene.hosts)
