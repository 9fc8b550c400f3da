"""The source's hand-over on a real record and a real run lock; the test is destination, network and storage."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock, is_held
from tests.framework.fake_control import FakeControlChannel
from tests.unit.vmx.migration.orders import DESTINATION, ORDER, SOURCE, THIRD
from vmx.files import VmFiles
from vmx.guest.errors import QmpTimeout
from vmx.migration.source_hand_over import SourceHandOver, Stake
from vmx.migration.switchover import SourceState
from vmx.stream import ControlChannel, ControlCode


class Source:
    """A source that stands at READY."""

    def __init__(self, home: Path, max_switchover_s: float = 20.0) -> None:
        self.files = VmFiles(home, "web01")
        self.record = owner_record.create(self.files.owner_record, ORDER.vm_uuid, SOURCE)
        self.run_lock = RunLock.open(self.files.run_lock)
        self.run_lock.acquire()
        self.control = FakeControlChannel()
        self.resumed = 0
        self.resume_error: Exception | None = None
        order = replace(ORDER, options=replace(ORDER.options, max_switchover_s=max_switchover_s))
        stake = Stake(self.files, self.record, self.run_lock, resume_guest=self._resume)
        self.hand_over = SourceHandOver(order, stake, cast(ControlChannel, self.control))

    async def _resume(self) -> None:
        if self.resume_error is not None:
            raise self.resume_error
        assert is_held(self.files.run_lock)
        assert self.now.owner_host_uuid == SOURCE
        self.resumed += 1

    def state(self) -> SourceState:
        return self.hand_over.state

    def resumes(self) -> int:
        return self.resumed

    @property
    def now(self) -> OwnerRecord:
        return owner_record.read(self.files.owner_record)

    def swap(self, to: str) -> OwnerRecord:
        return owner_record.swap(self.files.owner_record, self.now, to)


async def test_hand_over_that_goes_well_ends_done_with_the_lock_free(tmp_path: Path) -> None:
    source = Source(tmp_path)
    giving = asyncio.create_task(source.hand_over.hand_over())
    commit = await source.control.until_sent(ControlCode.COMMIT)
    assert commit.value == source.now.epoch == 2
    assert not is_held(source.files.run_lock)
    source.control.say(ControlCode.RESUMED)
    await giving
    assert source.state() is SourceState.CONFIRMING
    source.control.say(ControlCode.SETTLED, 3)
    await source.hand_over.confirm()
    assert source.state() is SourceState.DONE
    assert source.hand_over.gave_away
    assert not source.resumes()


async def test_destination_gave_up_first_the_guest_runs_on(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.swap(SOURCE)
    await source.hand_over.hand_over()
    assert source.state() is SourceState.ROLLED_BACK
    assert source.resumes() == 1
    assert not source.control.sent


async def test_record_already_names_the_destination_commit_is_sent(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.swap(DESTINATION)
    source.control.say(ControlCode.RESUMED)
    await source.hand_over.hand_over()
    assert source.state() is SourceState.CONFIRMING
    assert not source.resumes()


async def test_record_names_a_third_host_the_guest_stays_stunned_and_the_lock_is_free(tmp_path: Path) -> None:
    source = Source(tmp_path, max_switchover_s=0.2)
    third = source.swap(THIRD)
    await source.hand_over.hand_over()
    assert source.state() is SourceState.WATCHING
    assert source.hand_over.gave_away
    assert source.now == third
    assert not is_held(source.files.run_lock)
    assert not source.resumes()


async def test_third_host_takes_it_after_the_swap_that_is_no_settlement(tmp_path: Path) -> None:
    source = Source(tmp_path, max_switchover_s=0.3)
    source.control.lose()
    giving = asyncio.create_task(source.hand_over.hand_over())
    while source.now.owner_host_uuid != DESTINATION:
        await asyncio.sleep(0.001)
    source.swap(THIRD)
    await giving
    assert source.state() is SourceState.WATCHING


@pytest.mark.parametrize(
    "message", [ControlCode.FAILED, ControlCode.CANCEL, ControlCode.GIVE_BACK, ControlCode.READY]
)
async def test_destinations_word_alone_takes_nothing_back(tmp_path: Path, message: ControlCode) -> None:
    source = Source(tmp_path, max_switchover_s=0.4)
    source.control.say(message)
    await source.hand_over.hand_over()
    assert source.state() is SourceState.WATCHING
    assert not source.resumes()
    resolving = asyncio.create_task(source.hand_over.resolve())
    source.swap(SOURCE)
    await resolving
    assert source.state() is SourceState.ROLLED_BACK
    assert source.resumes() == 1


async def test_destination_that_vanished_ends_the_waiting_and_not_the_watching(tmp_path: Path) -> None:
    """The migration's time is up: whoever waits is told. The record is watched on: a late give-back still counts."""
    source = Source(tmp_path, max_switchover_s=0.3)
    source.control.lose()
    async with asyncio.timeout(5):
        await source.hand_over.hand_over()
    assert source.state() is SourceState.WATCHING
    assert source.hand_over.gave_away
    resolving = asyncio.create_task(source.hand_over.resolve())
    await asyncio.sleep(0.3)
    assert not resolving.done()
    source.swap(SOURCE)
    async with asyncio.timeout(5):
        await resolving
    assert not source.hand_over.gave_away
    assert source.resumes() == 1


async def test_silent_destination_settles_by_the_record(tmp_path: Path) -> None:
    source = Source(tmp_path, max_switchover_s=0.3)
    await source.hand_over.hand_over()
    source.swap(DESTINATION)
    async with asyncio.timeout(5):
        await source.hand_over.resolve()
    assert source.state() is SourceState.DONE


async def test_confirm_has_its_own_time(tmp_path: Path) -> None:
    source = Source(tmp_path, max_switchover_s=0.5)
    source.control.say(ControlCode.RESUMED)
    await source.hand_over.hand_over()
    await asyncio.sleep(0.6)  # comparing the memories took longer than the hand-over may
    confirming = asyncio.create_task(source.hand_over.confirm())
    await asyncio.sleep(0.1)
    source.control.say(ControlCode.SETTLED)
    await confirming
    assert source.state() is SourceState.DONE


async def test_run_lock_held_by_another_is_waited_for_before_the_guest_resumes(tmp_path: Path) -> None:
    source = Source(tmp_path)
    giving = asyncio.create_task(source.hand_over.hand_over())
    await source.control.until_sent(ControlCode.COMMIT)
    other = RunLock.open(source.files.run_lock)
    other.acquire()
    source.swap(SOURCE)
    source.control.say(ControlCode.GIVE_BACK, 3)
    await asyncio.sleep(0.4)
    assert not source.resumes()
    other.close()
    await giving
    assert source.resumes() == 1


async def test_refused_write_is_certain_and_lets_the_guest_run_on(tmp_path: Path) -> None:
    source = Source(tmp_path)
    lock = tmp_path / owner_record.LOCK_NAME
    lock.unlink()
    lock.mkdir()
    await source.hand_over.hand_over()
    assert source.state() is SourceState.ROLLED_BACK
    assert source.now == source.record


@pytest.mark.parametrize(
    "garbage", [b"", b"{}", b"\xff\xfe", b'{"vm_uuid": 1, "owner_host_uuid": 2, "epoch": "x"}', b"[" * 5000]
)
async def test_unreadable_record_keeps_the_guest_stunned_until_it_can_be_read(
    tmp_path: Path, garbage: bytes
) -> None:
    source = Source(tmp_path, max_switchover_s=0.3)
    source.files.owner_record.write_bytes(garbage)
    await source.hand_over.hand_over()
    assert source.state() is SourceState.RECLAIMING
    assert not source.resumes()
    assert is_held(source.files.run_lock)
    source.files.owner_record.unlink()
    resolving = asyncio.create_task(source.hand_over.resolve())
    await asyncio.sleep(0.3)
    assert not resolving.done()
    owner_record.create(source.files.owner_record, ORDER.vm_uuid, SOURCE)
    await resolving
    assert source.resumes() == 1
    assert source.now.epoch == 2, "it has made certain by a swap of its own"


async def test_uncertain_write_that_landed_is_gone_on_with(tmp_path: Path) -> None:
    source = Source(tmp_path, max_switchover_s=0.3)
    source.files.owner_record.write_bytes(b"stalled")
    await source.hand_over.hand_over()
    source.files.owner_record.unlink()
    owner_record.create(source.files.owner_record, ORDER.vm_uuid, DESTINATION)
    source.control.lose()
    resolving = asyncio.create_task(source.hand_over.resolve())
    await asyncio.sleep(0.5)
    assert source.state() is SourceState.WATCHING
    assert not is_held(source.files.run_lock)
    source.swap(DESTINATION)
    await resolving
    assert source.state() is SourceState.DONE


async def test_guest_that_cant_be_resumed_is_raised_and_tried_again_by_resolve(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.swap(SOURCE)
    source.resume_error = QmpTimeout("cont", 1.0)
    with pytest.raises(QmpTimeout):
        await source.hand_over.hand_over()
    assert source.state() is SourceState.RESUMING_HERE
    assert not source.hand_over.gave_away
    source.resume_error = None
    await source.hand_over.resolve()
    assert source.state() is SourceState.ROLLED_BACK
