"""Every phase of both sides meets every trouble there is: canceled, broken, cut off, killed, told to end.

The phases come from the enums: a new one runs here, or fails here for want of an expectation. A process stops exactly
where the phase begins (runtime/failpoint.py), the trouble comes, and afterwards there is one VM: on one host, with one
unbroken heartbeat and the memory it left, able to move to a third host. Or it is off, where its own process was killed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path

import pytest

from proto.host.v1 import operations_pb2
from proto.vim.v1 import fault_pb2, host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import MigrationNotReady, PastPointOfNoReturn
from runtime.ondisk import owner_record
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.vmotion_link import VMotionLink
from tests.framework.vmx_hosts import VmxHosts, VmxProcess
from tests.framework.vmx_invariants import (
    VERIFIED,
    assert_guests_left,
    assert_heart_beats,
    assert_it_can_move_on,
    assert_memory_is_right,
    assert_one_unbroken_heartbeat,
    assert_vm_is_off,
    assert_vm_is_on,
    record_of,
    run_lock_is_held,
)
from vmx.migration import failpoints
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import DestinationPhase, SourcePhase

S, D = SourcePhase, DestinationPhase


class Ends(Enum):
    """Where the VM is in the end."""

    AT_SOURCE = "at the source"
    AT_DESTINATION = "at the destination"
    OFF = "off"


HERE, THERE, OFF = Ends.AT_SOURCE, Ends.AT_DESTINATION, Ends.OFF


class Scene:
    """One migration whose source and destination are real vmx processes, with a hand on the wire between them."""

    def __init__(self, hosts: VmxHosts) -> None:
        self.hosts = hosts
        self.source: VmxProcess
        self.destination: VmxProcess
        self.spec: spec_pb2.MigrationSpec
        self.link: VMotionLink
        self.qemu_pids: tuple[int, int]
        self.watching: asyncio.Task[operations_pb2.WatchMigrationResponse]

    async def begin(self, options: spec_pb2.MigrationOptions = VERIFIED) -> None:
        """Everything up to the source's start; the failpoints must be armed in `hosts.environment` before."""
        hosts = self.hosts
        self.source = await hosts.power_on()
        await hosts.heartbeats_beyond(5)
        self.spec = hosts.spec(hosts.hosts[0], hosts.hosts[1], options)
        self.spec.options.network_timeout_s = 3.0
        self.destination, ticket = await hosts.prepare(hosts.hosts[1], self.spec)
        source_pid = (await self.source.state()).qemu_pid
        self.qemu_pids = (source_pid, (await self.destination.state()).qemu_pid)
        self.link = VMotionLink(hosts.hosts[0], ticket)
        await self.link.__aenter__()
        await hosts.start(self.source, self.spec, self.link.ticket)
        self.watching = asyncio.create_task(hosts.outcome(self.source, self.spec.migration_id))

    async def outcome(self) -> operations_pb2.WatchMigrationResponse:
        """The source's last word."""
        return await self.watching

    async def expect(self, ends: Ends, *, told: bool = True) -> None:
        """What holds in the end, where both vmx processes live on (as far as they should).

        `told`: the sides had a connection. Else the destination waits, and its owner has to cancel it.
        """
        if ends is not THERE and not told:
            await self.outcome()
            await self.hosts.cancel(self.destination, self.spec.migration_id)
        if ends is HERE:
            assert (await self.outcome()).HasField("fault")
            assert await self.destination.ended() == 0
            await assert_vm_is_on(self.hosts, self.source)
            await assert_it_can_move_on(self.hosts, self.source, 2)
        elif ends is THERE:
            outcome = await self.outcome()
            assert outcome.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED, outcome
            await self.hosts.complete(self.destination, self.spec.migration_id)
            await self.hosts.complete(self.source, self.spec.migration_id)
            assert await self.source.ended() == 0
            await assert_vm_is_on(self.hosts, self.destination)
            await assert_it_can_move_on(self.hosts, self.destination, 2)
        else:
            assert (await self.outcome()).fault.type == fault_pb2.FAULT_TYPE_GUEST_DIED
            assert await self.source.ended() == 0
            assert await self.destination.ended() == 0
            await assert_vm_is_off(self.hosts)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    hosts = VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8)
    made = Scene(hosts)
    yield made
    if hasattr(made, "watching"):
        made.watching.cancel()
        await asyncio.gather(made.watching, return_exceptions=True)
    if hasattr(made, "link"):
        await made.link.__aexit__(None, None, None)
    await hosts.close()


def arm(hosts: VmxHosts, point: str, action: str, **environment: str) -> None:
    """Arm a failpoint on the host that has it."""
    host = hosts.hosts[0 if point.startswith("source.") else 1]
    hosts.environment[host.name] = {"VPX_FAILPOINTS": f"{point}={action}", **environment}


async def pause_at(scene: Scene, point: str, **environment: str) -> FailpointPause:
    """The migration stands at `point`."""
    pause = FailpointPause(scene.hosts.run_root / "pause.sock")
    await pause.__aenter__()
    arm(scene.hosts, point, pause.action, **environment)
    await scene.begin()
    await pause.reached()
    return pause


# ---- the source

SOURCE_PHASES = [phase for phase in SourcePhase if not phase.is_end]
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


# ---- inside the hand-over


INSIDE = [
    (failpoints.SOURCE_BEFORE_SWAP, HERE),
    (failpoints.SOURCE_AFTER_SWAP, THERE),
    (failpoints.SOURCE_AFTER_COMMIT, THERE),
    (failpoints.DESTINATION_AFTER_READY, None),  # both sides swap at once, one wins
    (failpoints.DESTINATION_BEFORE_LOCK, THERE),
    (failpoints.DESTINATION_BEFORE_RESUME, THERE),
    (failpoints.DESTINATION_BEFORE_SETTLE, THERE),
]


@pytest.mark.parametrize(("point", "ends"), INSIDE, ids=[point for point, _ in INSIDE])
async def test_connection_cut_inside_the_hand_over(scene: Scene, point: str, ends: Ends | None) -> None:
    async with await pause_at(scene, point) as pause:
        scene.link.cut()
        if point == failpoints.SOURCE_BEFORE_SWAP:
            await scene.destination.ended()
        pause.release()
        if ends is None:
            failed = (await scene.outcome()).HasField("fault")
            ends = HERE if failed else THERE
        await scene.expect(ends)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize(
    ("point", "ends"),
    [(point, ends) for point, ends in INSIDE if ends is not None],
    ids=[point for point, ends in INSIDE if ends is not None],
)
async def test_silence_inside_the_hand_over_ends_the_same_way(scene: Scene, point: str, ends: Ends) -> None:
    async with await pause_at(scene, point) as pause:
        scene.link.stall()
        if point == failpoints.SOURCE_BEFORE_SWAP:
            await scene.destination.ended()
        pause.release()
        await scene.expect(ends)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("point", [point for point, _ in INSIDE if point.startswith("destination.")])
async def test_defect_inside_the_destinations_hand_over_leaves_one_guest(scene: Scene, point: str) -> None:
    arm(scene.hosts, point, "error")
    await scene.begin()
    if point == failpoints.DESTINATION_BEFORE_SETTLE:
        await scene.expect(THERE)
    elif point == failpoints.DESTINATION_AFTER_READY:
        await scene.expect(HERE if (await scene.outcome()).HasField("fault") else THERE)
    else:
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("point", [point for point, _ in INSIDE if point.startswith("source.")])
async def test_defect_inside_the_sources_hand_over_the_record_tells_who_has_the_guest(
    scene: Scene, point: str
) -> None:
    arm(scene.hosts, point, "error")
    await scene.begin()
    assert (await scene.outcome()).HasField("fault")
    if point == failpoints.SOURCE_BEFORE_SWAP:
        assert await scene.destination.ended() == 0
        await assert_vm_is_on(scene.hosts, scene.source)
        await assert_it_can_move_on(scene.hosts, scene.source, 2)
    elif point == failpoints.SOURCE_AFTER_SWAP:  # broken off while it still held the run lock
        await assert_one_of_both_runs(scene)
    else:
        await assert_heart_beats(scene.hosts)
        assert record_of(scene.hosts).owner_host_uuid == scene.destination.host.uuid
    assert_one_unbroken_heartbeat(scene.hosts)


async def assert_one_of_both_runs(scene: Scene) -> None:
    """Exactly one side has the guest, and the record names it."""
    await assert_heart_beats(scene.hosts)
    runs = [
        vmx.host.uuid
        for vmx in (scene.source, scene.destination)
        if vmx.process.poll() is None
        and (await vmx.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
    ]
    assert runs == [record_of(scene.hosts).owner_host_uuid]


@pytest.mark.parametrize("point", [point for point, _ in INSIDE if point.startswith("source.")])
async def test_host_of_the_source_dies_inside_the_hand_over(scene: Scene, point: str) -> None:
    async with await pause_at(scene, point):
        scene.source.process.kill()
        os.kill(scene.qemu_pids[0], signal.SIGKILL)
        if point == failpoints.SOURCE_BEFORE_SWAP:
            assert await scene.destination.ended() == 0
            await assert_vm_is_off(scene.hosts)
            assert record_of(scene.hosts).owner_host_uuid == scene.source.host.uuid
        else:
            await assert_vm_is_on(scene.hosts, scene.destination)
            await assert_it_can_move_on(scene.hosts, scene.destination, 2)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_guest_killed_at_the_destination_before_it_resumes_comes_back(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.DESTINATION_BEFORE_RESUME) as pause:
        os.kill(scene.qemu_pids[1], signal.SIGKILL)
        await asyncio.sleep(0.2)
        pause.release()
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


# ---- storage


async def test_swap_that_is_refused_outright_lets_the_guest_run_on_at_once(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.SOURCE_BEFORE_SWAP) as pause:
        lock = scene.hosts.home / ".owner.lock"
        lock.unlink()
        lock.mkdir()  # as a full or read-only datastore: the write is refused before it begins
        pause.release()
        assert (await scene.outcome()).HasField("fault")
        await assert_heart_beats(scene.hosts)
        lock.rmdir()
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_garbage_in_the_owner_record_keeps_the_guest_stunned_until_it_is_mended(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.SOURCE_BEFORE_SWAP) as pause:
        path = owner_record.owner_path(scene.hosts.home, "web01")
        right = path.read_bytes()
        path.write_bytes(b"\x00garbage")
        pause.release()
        before = len(scene.hosts.heartbeat_lines())
        await asyncio.sleep(1.0)
        assert len(scene.hosts.heartbeat_lines()) == before, "nobody may run it while nobody is named"
        path.write_bytes(right)
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_record_that_names_a_third_host_stops_the_source(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.SOURCE_BEFORE_SWAP) as pause:
        path = owner_record.owner_path(scene.hosts.home, "web01")
        third = owner_record.swap(path, owner_record.read(path), scene.hosts.hosts[2].uuid)
        pause.release()
        before = len(scene.hosts.heartbeat_lines())
        await asyncio.sleep(1.0)
        scene.link.cut()
        assert await scene.destination.ended() == 0
        assert len(scene.hosts.heartbeat_lines()) == before, "it isn't the source's to run"
        assert owner_record.read(path) == third, "nor to take back"
        assert not run_lock_is_held(scene.hosts), "nor in the third host's way"
        owner_record.swap(path, third, scene.hosts.hosts[0].uuid)
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_resource_that_cant_be_released_changes_nothing_about_the_guest(
    scene: Scene, side: str
) -> None:
    point = of_phase(S.CONFIRM) if side == "source" else of_phase(D.CONFIRM)
    async with await pause_at(scene, point) as pause:
        vmx = scene.source if side == "source" else scene.destination
        socket_path = vmx.run_dir / ("state-out.sock" if side == "source" else "state-in.sock")
        socket_path.unlink()
        socket_path.mkdir()  # can't be unlinked
        pause.release()
        assert (await scene.outcome()).status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
        await scene.hosts.complete(scene.destination, scene.spec.migration_id)
        socket_path.rmdir()
        await scene.expect(THERE)
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


# ---- a peer that stands still


async def test_destination_that_stands_still_in_pre_copy_is_given_up_and_ends_when_it_wakes(
    scene: Scene,
) -> None:
    async with await pause_at(scene, of_phase(S.PRE_COPY)) as pause:
        scene.destination.process.send_signal(signal.SIGSTOP)
        pause.release()
        assert (await scene.outcome()).fault.type == fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN
        assert (await scene.source.state()).execution_state == host_pb2.EXECUTION_STATE_RUNNING
        scene.destination.process.send_signal(signal.SIGCONT)
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_destination_that_stands_still_after_the_swap_takes_over_when_it_wakes(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.SOURCE_BEFORE_SWAP) as pause:
        scene.destination.process.send_signal(signal.SIGSTOP)
        pause.release()
        await asyncio.sleep(4.0)  # longer than the silence that the source bears
        assert (await scene.source.state()).execution_state == host_pb2.EXECUTION_STATE_EMIGRATING
        scene.destination.process.send_signal(signal.SIGCONT)
        await scene.expect(THERE)
    assert_one_unbroken_heartbeat(scene.hosts)


async def test_source_that_stands_still_at_ready_finds_that_the_destination_gave_up(scene: Scene) -> None:
    async with await pause_at(scene, failpoints.SOURCE_BEFORE_SWAP) as pause:
        scene.source.process.send_signal(signal.SIGSTOP)
        pause.release()
        assert await scene.destination.ended() == 0
        assert record_of(scene.hosts).epoch == 2
        scene.source.process.send_signal(signal.SIGCONT)
        await scene.expect(HERE)
    assert_one_unbroken_heartbeat(scene.hosts)
