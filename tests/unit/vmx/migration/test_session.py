"""A session: its end from outside, its undoing, its outcome; with a role that does what the test says."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proto.vim.v1 import fault_pb2
from runtime.faults import MigrationFault, PastPointOfNoReturn, RequestCanceled, VimFault, VMotionLinkDown
from tests.unit.vmx.migration.orders import ORDER
from vmx.migration.phases import SOURCE_MOVES, PublishedPhase, SourcePhase
from vmx.migration.session import PhaseOrderError, Session
from vmx.stream.errors import PeerClosed

S = SourcePhase
ALL = [phase for phase in S if not phase.is_end]


class Role(Session[SourcePhase]):
    """Phases that do nothing, but for the one given."""

    def __init__(self, works: dict[SourcePhase, Callable[[], Awaitable[None]]] | None = None) -> None:
        super().__init__(ORDER, S.HANDSHAKE, SOURCE_MOVES, frozenset(ALL[:5]))
        self.works = works or {}
        self.undone: list[VimFault] = []
        self.undo_work: Callable[[], Awaitable[None]] = _nothing
        self.succeeds_all_the_same = False
        self.released: list[str] = []
        self._resources.callback(self.released.append, "all")

    async def _run_phases(self) -> None:
        for phase in ALL:
            await self._run_phase(phase, self.works.get(phase, _nothing))

    async def _undo(self, fault: VimFault) -> VimFault | None:
        assert not self.released, "resources are there while it undoes"
        await self.undo_work()
        self.undone.append(fault)
        return None if self.succeeds_all_the_same else fault

    async def _cause_of(self, error: BaseException) -> BaseException:
        return error


async def _nothing() -> None:
    return None


def failing(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        raise error

    return work


async def forever() -> None:
    await asyncio.Event().wait()


CANCELED = RequestCanceled("The migration was canceled.")


async def test_session_that_goes_well_is_finished_and_releases() -> None:
    role = Role()
    assert await role.run() is None
    assert role.phase is S.FINISHED
    assert role.board.now.phase is PublishedPhase.SUCCEEDED
    assert role.released == ["all"]
    assert not role.undone


@pytest.mark.parametrize("phase", ALL)
async def test_error_in_each_phase_is_undone_and_told(phase: SourcePhase) -> None:
    role = Role({phase: failing(ValueError("odd"))})
    fault = await role.run()
    assert isinstance(fault, MigrationFault)
    assert fault.phase == phase.value
    assert role.undone == [fault]
    assert role.board.now.fault is fault
    assert role.board.now.phase is PublishedPhase.FAILED
    assert role.released == ["all"]


@pytest.mark.parametrize("phase", ALL)
async def test_end_in_each_phase_is_its_reason_or_refused(phase: SourcePhase) -> None:
    may_go_on = asyncio.Event()

    async def waiting() -> None:
        await may_go_on.wait()

    role = Role({phase: waiting})
    running = asyncio.create_task(role.run())
    while role.phase is not phase:
        await asyncio.sleep(0)
    ended = role.end(CANCELED)
    assert ended == (phase in ALL[:5])
    if ended:
        role.check_may_end()
        assert await running is CANCELED
        assert role.undone == [CANCELED]
    else:
        with pytest.raises(PastPointOfNoReturn):
            role.check_may_end()
        await asyncio.sleep(0)
        may_go_on.set()
        assert await running is None


async def test_end_before_the_first_step_still_undoes_and_tells() -> None:
    role = Role()
    running = asyncio.create_task(role.run())
    assert role.end(CANCELED)
    assert await running is CANCELED
    assert role.undone == [CANCELED]
    assert role.board.now.fault is CANCELED


async def test_end_while_it_undoes_doesnt_interrupt_and_the_first_failure_counts() -> None:
    may_go_on = asyncio.Event()

    async def waiting() -> None:
        await may_go_on.wait()

    role = Role({S.STUN: failing(ValueError("odd"))})
    role.undo_work = waiting
    running = asyncio.create_task(role.run())
    for _ in range(5):
        await asyncio.sleep(0)
    role.end(CANCELED)
    role.end(CANCELED)
    await asyncio.sleep(0)
    assert not running.done()
    may_go_on.set()
    fault = await running
    assert fault is not CANCELED
    assert role.undone == [fault]


async def test_second_end_with_another_reason_changes_nothing() -> None:
    role = Role({S.PRE_COPY: forever})
    running = asyncio.create_task(role.run())
    await asyncio.sleep(0)
    role.end(CANCELED)
    role.end(MigrationFault("another"))
    assert await running is CANCELED


async def test_undo_that_fails_is_told_with_what_it_was_about() -> None:
    role = Role({S.STUN: failing(ValueError("odd"))})
    role.undo_work = failing(OSError("no answer"))
    fault = await role.run()
    assert fault is not None
    assert "odd" in str(fault)
    assert "no answer" in str(fault)
    assert role.released == ["all"]


async def test_role_may_find_that_it_has_succeeded_all_the_same() -> None:
    role = Role({S.CONFIRM: failing(ValueError("odd"))})
    role.succeeds_all_the_same = True
    assert await role.run() is None
    assert role.phase is S.FINISHED


@pytest.mark.parametrize("fails", [False, True])
async def test_resource_that_cant_be_released_changes_nothing_about_the_outcome(*, fails: bool) -> None:
    role = Role({S.STUN: failing(ValueError("odd"))} if fails else None)
    role._resources.push_async_callback(failing(OSError("can't unlink")))
    fault = await role.run()
    assert (fault is not None) == fails
    assert "unlink" not in str(fault)
    assert role.released == ["all"], "the others are released"


async def test_lost_connection_is_a_link_that_is_down() -> None:
    role = Role({S.PRE_COPY: failing(ExceptionGroup("group", [PeerClosed(1, "gone")]))})
    fault = await role.run()
    assert isinstance(fault, VMotionLinkDown)
    assert fault.fault_type == fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN
    assert (fault.host, fault.peer) == ("esx01", "esx02")


async def test_phase_out_of_order_is_a_defect_and_undone() -> None:
    role = Role()

    async def skipping() -> None:
        await role._run_phase(S.CONFIRM, _nothing)

    role.works = {S.PRE_COPY: skipping}
    fault = await role.run()
    assert fault is not None
    assert isinstance(fault.__cause__, PhaseOrderError)
    assert role.phase is S.FAILED
