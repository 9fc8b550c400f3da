"""The moments of the hand-over that its table speaks of: between READY and the last word of the destination."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.ondisk import owner_record
from tests.framework.guest_processes import FAKE_QEMU
from tests.framework.migration_scene import HERE, THERE, Ends, Scene, arm, pause_at
from tests.framework.vmx_hosts import VmxHosts
from tests.framework.vmx_invariants import (
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


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8))
    yield made
    await made.close()


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
        await asyncio.sleep(3.0)  # longer than the silence that the source bears
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


# ---- what the two sides believe differs


async def test_record_changed_between_prepare_and_start_fails_before_the_hand_over(scene: Scene) -> None:
    hosts = scene.hosts
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    spec = hosts.spec(vmx.host, hosts.hosts[1])
    destination, ticket = await hosts.prepare(hosts.hosts[1], spec)
    path = owner_record.owner_path(hosts.home, "web01")
    owner_record.swap(path, record_of(hosts), vmx.host.uuid)  # the late giving up of an earlier migration
    await hosts.start(vmx, spec, ticket)
    assert "owner record" in (await hosts.outcome(vmx, spec.migration_id)).fault.message
    assert await destination.ended() == 0
    await assert_vm_is_on(hosts, vmx)
    await assert_it_can_move_on(hosts, vmx, 2)
    assert_one_unbroken_heartbeat(hosts)


def spoil_a_page(qemu_pid: int) -> None:
    """Write into guest RAM that the guest doesn't use."""
    folder = Path(f"/proc/{qemu_pid}/fd")
    memory = next(entry for entry in folder.iterdir() if "memfd:" in os.readlink(entry))
    with open(memory, "r+b", buffering=0) as ram:
        ram.seek(20 << 20)
        ram.write(b"spoilt")


@pytest.mark.parametrize(
    ("mode", "phase"),
    [
        (spec_pb2.VERIFY_MODE_AFTER_RESUME, S.CONFIRM),
        (spec_pb2.VERIFY_MODE_BEFORE_RESUME, S.CHECKPOINT),
    ],
    ids=["after-resume", "before-resume"],
)
async def test_memory_that_differs_brings_the_guest_back(
    scene: Scene, mode: spec_pb2.VerifyMode.ValueType, phase: SourcePhase
) -> None:
    async with await pause_at(
        scene, of_phase(phase), options=spec_pb2.MigrationOptions(verify=mode)
    ) as pause:
        spoil_a_page(scene.qemu_pids[0])
        pause.release()
        outcome = await scene.outcome()
        assert outcome.fault.type == fault_pb2.FAULT_TYPE_MEMORY_VERIFICATION_FAILED
        await scene.expect(HERE)
    if mode == spec_pb2.VERIFY_MODE_AFTER_RESUME:  # it ran there for a moment: it goes on from the stun
        assert_memory_is_right(scene.hosts)
    else:
        assert_one_unbroken_heartbeat(scene.hosts)
