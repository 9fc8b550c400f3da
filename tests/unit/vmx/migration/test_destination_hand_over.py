"""The destination's hand-over on a real record and a real run lock; the test is source, network and storage."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from runtime.faults import SystemFault
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock, is_held
from tests.framework.fake_control import FakeControlChannel
from tests.unit.vmx.migration.orders import DESTINATION, ORDER, SOURCE, THIRD
from vmx.files import VmFiles
from vmx.migration.destination_hand_over import DestinationHandOver, Stake
from vmx.migration.switchover import DestinationState
from vmx.stream import ControlCode, DestinationStreams


class Destination:
    """A destination that has loaded everything. The test holds the source's run lock."""

    def __init__(self, home: Path, max_switchover_s: float = 20.0) -> None:
        self.files = VmFiles(home, "web01")
        record = owner_record.create(self.files.owner_record, ORDER.vm_uuid, SOURCE)
        self.source_lock = RunLock.open(self.files.run_lock)
        self.source_lock.acquire()
        self.run_lock = RunLock.open(self.files.run_lock)
        self.control = FakeControlChannel()
        self.guest_ended = asyncio.Event()
        self.resume_error: Exception | None = None
        self.ends = 0
        self.sent_at_announcement: list[ControlCode] = []
        order = replace(ORDER, options=replace(ORDER.options, max_switchover_s=max_switchover_s))
        stake = Stake(
            self.files,
            record,
            self.run_lock,
            resume_guest=self._resume,
            end_guest=self._end,
            guest_ended=self.guest_ended.wait,
            announce_guest=self._announce,
        )
        self.hand_over = DestinationHandOver(order, stake, cast(DestinationStreams, self.control))

    async def _resume(self) -> None:
        if self.resume_error is not None:
            raise self.resume_error
        assert self.now.owner_host_uuid == DESTINATION
        assert is_held(self.files.run_lock)

    def _announce(self) -> None:
        self.sent_at_announcement = [one.code for one in self.control.sent]

    async def _end(self) -> None:
        self.ends += 1

    @property
    def now(self) -> OwnerRecord:
        return owner_record.read(self.files.owner_record)

    def swap(self, to: str) -> OwnerRecord:
        return owner_record.swap(self.files.owner_record, self.now, to)

    def commit(self) -> None:
        """What a source does after READY."""
        self.swap(DESTINATION)
        self.source_lock.release()
        self.control.say(ControlCode.COMMIT, self.now.epoch)

    async def run(self) -> None:
        if self.hand_over.state is DestinationState.LOADING:
            await self.hand_over.take_over()
        await self.hand_over.settle()


async def running(destination: Destination) -> None:
    destination.commit()
    await destination.hand_over.take_over()
    assert destination.hand_over.state is DestinationState.RUNNING


async def test_take_over_that_goes_well_settles_at_the_next_epoch(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    await running(destination)
    assert [one.code for one in destination.control.sent] == [ControlCode.READY, ControlCode.RESUMED]
    assert destination.sent_at_announcement[-1] is ControlCode.RESUMED, "the stun is over before"
    assert destination.control.sent[0].value == 1, "READY tells which record it could give up"
    destination.control.say(ControlCode.VERIFIED)
    await destination.hand_over.settle()
    assert destination.hand_over.state is DestinationState.SETTLED
    assert destination.hand_over.has_guest
    assert destination.now == OwnerRecord(ORDER.vm_uuid, DESTINATION, 3)


async def test_time_for_commit_begins_at_the_hand_over_and_not_with_the_memory(tmp_path: Path) -> None:
    destination = Destination(tmp_path, max_switchover_s=0.5)
    await asyncio.sleep(0.6)  # pre-copy takes as long as it takes
    taking = asyncio.create_task(destination.hand_over.take_over())
    await destination.control.until_sent(ControlCode.READY)
    await asyncio.sleep(0.1)
    destination.commit()
    await taking
    assert destination.hand_over.state is DestinationState.RUNNING
    await asyncio.sleep(0.6)  # so does comparing the memories
    settling = asyncio.create_task(destination.hand_over.settle())
    await asyncio.sleep(0.1)
    destination.control.say(ControlCode.WRONG_MEMORY, 7)
    await settling
    assert destination.now.owner_host_uuid == SOURCE


async def test_no_commit_in_time_gives_up_so_that_the_source_cant_hand_over_later(tmp_path: Path) -> None:
    destination = Destination(tmp_path, max_switchover_s=0.2)
    await destination.hand_over.take_over()
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now == OwnerRecord(ORDER.vm_uuid, SOURCE, 2)
    assert destination.ends == 1


async def test_commit_lost_the_record_is_obeyed(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    destination.swap(DESTINATION)
    destination.source_lock.release()
    destination.control.lose()
    await destination.run()
    assert destination.hand_over.state is DestinationState.SETTLED


async def test_commit_that_the_record_doesnt_bear_out_is_not_obeyed(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    destination.swap(THIRD)
    destination.control.say(ControlCode.COMMIT, 2)
    await destination.run()
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now.owner_host_uuid == THIRD
    assert destination.hand_over.failure is not None


@pytest.mark.parametrize("state", ["ready", "running"])
async def test_guest_that_ends_by_itself_goes_back_to_the_source(tmp_path: Path, state: str) -> None:
    destination = Destination(tmp_path)
    if state == "running":
        await running(destination)
    destination.guest_ended.set()
    await destination.run()
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now.owner_host_uuid == SOURCE
    assert destination.ends == 1


async def test_exception_of_the_de_masking_gives_the_guest_back(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    destination.resume_error = SystemFault("No way leads from failed to running.")
    destination.commit()
    await destination.run()
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now == OwnerRecord(ORDER.vm_uuid, SOURCE, 3)
    assert destination.control.sent[-1].code is ControlCode.GIVE_BACK
    assert not is_held(destination.files.run_lock)


async def test_record_taken_away_while_it_waits_for_the_lock_stops_the_resume(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    destination.swap(DESTINATION)
    destination.control.say(ControlCode.COMMIT, 2)  # and the source's lock isn't released
    taking = asyncio.create_task(destination.run())
    await asyncio.sleep(0.2)
    given_back = destination.swap(SOURCE)
    destination.source_lock.release()
    await taking
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now == given_back, "what isn't ours is left alone"


@pytest.mark.parametrize("at", ["give-up", "read", "settle"])
async def test_storage_that_stalls_is_waited_for(tmp_path: Path, at: str) -> None:
    destination = Destination(tmp_path, max_switchover_s=0.2)
    path = destination.files.owner_record
    if at == "settle":
        await running(destination)
        right = path.read_bytes()
        path.write_bytes(b"")
        destination.control.say(ControlCode.VERIFIED)
        going_on = asyncio.create_task(destination.hand_over.settle())
    else:
        if at == "read":
            destination.commit()
        right = path.read_bytes()
        path.write_bytes(b"")
        going_on = asyncio.create_task(destination.run())
    await asyncio.sleep(0.5)
    assert not going_on.done()
    path.write_bytes(right)
    await going_on
    ends = DestinationState.DESTROYED if at == "give-up" else DestinationState.SETTLED
    assert destination.hand_over.state is ends


async def test_digests_are_sent_where_the_migration_is_verified_and_refused_else(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    destination.control.digests = np.zeros(5, dtype=np.uint64)
    await running(destination)
    destination.control.say(ControlCode.DIGESTS_WANTED)
    destination.control.say(ControlCode.VERIFIED)
    await destination.hand_over.settle()
    assert [one.value for one in destination.control.sent if one.code is ControlCode.DIGESTS_WANTED] == [5]


async def test_digests_asked_for_without_verification_settle_it(tmp_path: Path) -> None:
    destination = Destination(tmp_path)
    await running(destination)
    destination.control.say(ControlCode.DIGESTS_WANTED)
    await destination.hand_over.settle()
    assert destination.hand_over.state is DestinationState.SETTLED


@pytest.mark.parametrize("code", set(ControlCode) - {ControlCode.COMMIT})
async def test_anything_but_commit_at_ready_gives_up(tmp_path: Path, code: ControlCode) -> None:
    destination = Destination(tmp_path)
    destination.control.say(code)
    await destination.hand_over.take_over()
    assert destination.hand_over.state is DestinationState.DESTROYED
    assert destination.now == OwnerRecord(ORDER.vm_uuid, SOURCE, 2)
