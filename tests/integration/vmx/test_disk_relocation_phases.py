"""Every phase of a move of files that doesn't move a guest between hosts meets every trouble there is: within a host
with a guest that runs on, and between hosts of a VM that is off."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from enum import Enum
from itertools import product

import pytest

from runtime.faults import GuestDied, MigrationNotReady, PastPointOfNoReturn, RequestCanceled
from runtime.ondisk.run_lock import is_held
from tests.framework.disk_scene import DiskScene, until
from tests.framework.guest_processes import qemu_binary
from vmx.migration.failpoints import of_phase
from vmx.migration.phases import DestinationPhase, SourcePhase
from vmx.migration.relocation import Relocation
from vmx.vm_state import ExecutionState

pytestmark = pytest.mark.qemu
S, D = SourcePhase, DestinationPhase


class Trouble(Enum):
    """What happens to a phase."""

    CANCEL = "cancel"
    DEFECT = "defect"
    TOLD_TO_END = "told to end"
    DEATH = "death of the guest"
    CUT = "cut"
    SILENT = "silent"


T = Trouble


async def made_scene(*, powered_off: bool) -> DiskScene:
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    made = DiskScene(binary, powered_off=powered_off)
    await made.open()
    made.add_host(like=None if powered_off else made.source)
    return made


# ---- within a host, under a running guest


@pytest.fixture
async def scene() -> AsyncIterator[DiskScene]:
    made = await made_scene(powered_off=False)
    yield made
    await made.close()


async def begin(scene: DiskScene) -> Relocation:
    here, there = scene.hosts[0], scene.hosts[-1]
    scene.make_home(there, here.identity.uuid)
    scene.order = order = scene.order_for(here, there)
    await here.vm.start_relocation(order, there.place)
    session = here.vm.session(order.migration_id)
    assert isinstance(session, Relocation)
    return session


async def commit(scene: DiskScene, session: Relocation) -> None:
    await until(lambda: session.phase is S.HAND_OVER or session.is_over)
    await scene.source.vm.commit_relocation(scene.order_id)


WITHIN = [S.DISK_COPY, S.HAND_OVER, S.CONFIRM]


@pytest.mark.parametrize(
    ("phase", "trouble"), list(product(WITHIN, [T.CANCEL, T.DEFECT, T.TOLD_TO_END, T.DEATH]))
)
async def test_relocation_under_a_guest_in_each_phase(
    scene: DiskScene, phase: SourcePhase, trouble: Trouble
) -> None:
    here, there = scene.hosts
    vm, contents = here.vm, here.extent.read_bytes()
    committing: asyncio.Task[None] | None = None
    if trouble is T.DEFECT:
        scene.arm(of_phase(phase), "error")
        session = await begin(scene)
        if phase is S.CONFIRM:
            with pytest.raises(Exception, match="failpoint"):
                await commit(scene, session)
    else:
        pause = await scene.pause_at(of_phase(phase))
        session = await begin(scene)
        if phase is S.CONFIRM:
            committing = asyncio.create_task(commit(scene, session))
        await pause.reached()
        await trouble_it(scene, trouble, phase)
        pause.release()
        await pause.__aexit__(None, None, None)
    moved = phase is S.CONFIRM and trouble in {T.CANCEL, T.TOLD_TO_END}
    if committing is not None:
        await asyncio.wait([committing])
        assert (committing.exception() is None) == moved
    await until(lambda: session.is_over)
    if trouble is T.DEATH:
        assert isinstance(session.board.now.fault, GuestDied), session.board.now.fault
        await until(vm.ended.is_set)
        scene.assert_contents_at(there if phase is not S.DISK_COPY else here, contents)
        return
    if not moved and phase is not S.CONFIRM:
        with pytest.raises(MigrationNotReady):
            await vm.commit_relocation(scene.order_id)
    home, other = (there, here) if moved else (here, there)
    assert all(disk.switched == moved for disk in session.board.now.disks)
    scene.assert_contents_at(home, contents)
    await scene.assert_it_is_on(here, home)
    assert not is_held(other.home / "web01.runlock") or moved, "QEMU keeps the old home's until it ends"
    if trouble is not T.TOLD_TO_END:
        await can_relocate_again(scene)


async def trouble_it(scene: DiskScene, trouble: Trouble, phase: SourcePhase) -> None:
    vm = scene.source.vm
    match trouble:
        case T.CANCEL if phase is S.CONFIRM:
            with pytest.raises(PastPointOfNoReturn):
                await vm.cancel_migration(scene.order_id)
        case T.CANCEL:
            await vm.cancel_migration(scene.order_id)
            assert isinstance(vm.session(scene.order_id).board.now.fault, RequestCanceled)
        case T.TOLD_TO_END:
            telling = asyncio.create_task(vm.let_go())
            await asyncio.sleep(0.05)
            if phase is not S.CONFIRM:
                await telling
        case T.DEATH:
            assert vm.guest is not None
            os.kill(vm.guest.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)


async def can_relocate_again(scene: DiskScene) -> None:
    there = scene.add_host(like=scene.source)
    session = await begin(scene)
    await commit(scene, session)
    assert session.board.now.fault is None
    await scene.assert_it_is_on(scene.source, there)


async def test_mirror_that_fails_while_the_commit_is_awaited_ends_the_move(scene: DiskScene) -> None:
    session = await begin(scene)
    await until(lambda: session.phase is S.HAND_OVER)
    guest = scene.source.vm.guest
    assert guest is not None
    await guest.qmp.execute("block-job-cancel", {"device": "mirror-2000-1", "force": True})
    await until(lambda: session.is_over)
    assert session.board.now.fault is not None
    await scene.assert_it_is_on(scene.source)
    await can_relocate_again(scene)


# ---- between hosts, powered off


@pytest.fixture
async def cold() -> AsyncIterator[DiskScene]:
    made = await made_scene(powered_off=True)
    yield made
    await made.close()


COLD_TROUBLES = [T.CANCEL, T.DEFECT, T.TOLD_TO_END, T.CUT, T.SILENT]
COLD = [*product([S.DISK_COPY, S.HAND_OVER, S.CONFIRM], COLD_TROUBLES)]
COLD_THERE = [*product([D.RECEIVE, D.HAND_OVER, D.CONFIRM], COLD_TROUBLES)]


@pytest.mark.parametrize(("phase", "trouble"), [*COLD, *COLD_THERE])
async def test_files_of_a_vm_that_is_off_in_each_phase(
    cold: DiskScene, phase: SourcePhase | DestinationPhase, trouble: Trouble
) -> None:
    source, destination = cold.source, cold.destination
    contents = source.extent.read_bytes()
    if trouble is T.DEFECT:
        cold.arm(of_phase(phase), "error")
        await cold.begin(source, destination)
    else:
        pause = await cold.pause_at(of_phase(phase))
        await cold.begin(source, destination)
        await pause.reached()
        told = await trouble_cold(cold, phase, trouble)
        await asyncio.sleep(0.05)
        pause.release()
        await pause.__aexit__(None, None, None)
        if told is not None:
            await told
    await cold.relay()
    there = await cold.outcome(destination) is None
    owner, other = (destination, source) if there else (source, destination)
    early = phase in {S.DISK_COPY, D.RECEIVE}
    gives_back = phase in {S.HAND_OVER, D.HAND_OVER} and trouble in {T.CUT, T.SILENT, T.DEFECT}
    assert there == (not early and not gives_back)
    assert source.record.owner_host_uuid == owner.identity.uuid
    if there:
        assert destination.record.owner_host_uuid == owner.identity.uuid
    else:
        assert destination.record.owner_host_uuid != destination.identity.uuid
        await until(source.vm.ended.is_set)
    cold.assert_contents_at(owner, contents)
    for host in (source, destination):
        if there and await cold.outcome(host) is None:
            host.offline.complete()
        await until(lambda host=host: not host.lock_is_held)  # type: ignore[misc]
        assert not list(host.config.run_dir.glob("*.sock"))
    assert other.vm.state is ExecutionState.OFF


async def trouble_cold(
    cold: DiskScene, phase: SourcePhase | DestinationPhase, trouble: Trouble
) -> asyncio.Task[None] | None:
    host = cold.source if isinstance(phase, SourcePhase) else cold.destination
    assert cold.link is not None
    match trouble:
        case T.CANCEL if phase in {S.DISK_COPY, D.RECEIVE}:
            await host.offline.cancel()
        case T.CANCEL:
            with pytest.raises(PastPointOfNoReturn):
                await host.offline.cancel()
        case T.TOLD_TO_END:
            return asyncio.create_task(host.offline.let_go())
        case T.CUT:
            cold.link.cut()
        case T.SILENT:
            cold.link.stall()
    return None
