"""One virtual machine: the owner of its execution state, its QEMU process, its run lock and its migration.

Everything here runs on the event loop; operations that exclude each other find out by the state (vm_state.py), which
changes in one place, `_move`. The process lives as long as its guest may: `ended` is set when there is nothing more to
do for it.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    GuestDied,
    InvalidArgument,
    InvalidState,
    ManagedObjectNotFound,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    RequestCanceled,
    SystemFault,
    TaskInProgress,
    VimFault,
)
from runtime.ondisk import owner_record
from vmx.checkpoint.errors import CheckpointError
from vmx.config import Config
from vmx.cpu_check import require_cpu
from vmx.faults import guest_died, start_fault
from vmx.guest import errors as guest_errors
from vmx.guest.memory import GuestMemoryError
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl
from vmx.messages import empty_disks
from vmx.migration.destination import DestinationGuest, DestinationMigration
from vmx.migration.order import MigrationOrder, Ticket
from vmx.migration.phases import PublishedPhase
from vmx.migration.relocation import Relocation
from vmx.migration.source import SourceGuest, SourceMigration
from vmx.running_guest import GuestMove, RunningGuest, spawn
from vmx.threads import to_the_end
from vmx.vm_state import MOVES, ExecutionState
from vmx.watched import Watched

# From the hand-over to the end of a session: closing connections, unless its storage stalls.
_LAST_STEPS_S = 10.0
_START_ERRORS = (VimFault, guest_errors.GuestError, GuestMemoryError, CheckpointError)

T = TypeVar("T")
AnySession = SourceMigration | DestinationMigration | Relocation

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What watchers see. `failure` says why the guest ended where it ended by itself."""

    state: ExecutionState = ExecutionState.OFF
    failure: str = ""
    migration_id: int = 0


class VirtualMachine:
    """The VM of this process. Used once: after its guest has ended the process ends too."""

    def __init__(self, config: Config) -> None:
        self.ended = asyncio.Event()
        self.watched = Watched(Snapshot())
        self._config = config
        self._guest: RunningGuest | None = None
        self._session: AnySession | None = None
        # At most one each: what brings the guest up, its migration, what becomes of a hand-over in doubt.
        self._starting: asyncio.Task[object] | None = None
        self._running: asyncio.Task[None] | None = None
        self._resolving: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._exit_watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> ExecutionState:
        """What it does now."""
        return self.watched.value.state

    @property
    def guest(self) -> GuestProcess | None:
        """The guest's process, while there is one."""
        return self._guest.process if self._guest is not None else None

    @property
    def uptime_s(self) -> float:
        """Since this host runs the guest; 0.0 while it doesn't."""
        running = self._guest is not None and self.state is not ExecutionState.IMMIGRATING
        return time.monotonic() - self._guest.started_at if running and self._guest is not None else 0.0

    def session(self, migration_id: int) -> AnySession:
        """The migration of this process under this id, over or not.

        :raises ManagedObjectNotFound: there is none.
        """
        if self._session is None or self._session.order.migration_id != migration_id:
            message = "This process has no such migration."
            raise ManagedObjectNotFound(message, kind="migration", key=str(migration_id))
        return self._session

    # ---- power

    async def power_on(self, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> None:
        """Start the guest; returns when it runs.

        :raises InvalidState: this process has or had a guest.
        :raises NotOwner: the owner record names another host.
        :raises FileLocked: another process may run the guest.
        :raises GuestStartFailed: QEMU didn't come up.
        In every case but the first the process ends.
        """
        self._require(ExecutionState.OFF)
        self._move(ExecutionState.STARTING)
        await self._bring_up(self._boot(config, place))
        self._move(ExecutionState.RUNNING)

    async def _boot(self, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> None:
        guest = await self._spawn(config, place)
        control, nics = RunControl(guest.process.qmp), guest.process.spec.nics
        await control.unplug(nics)
        await control.cont()
        await control.announce(nics)

    async def power_off(self) -> None:
        """End the guest at once, one that is just being started too; the process ends afterwards. Idempotent.

        :raises TaskInProgress: the VM is migrating, or was given away and not let go yet.
        """
        self._refuse_while_migrating("powerOff")
        await to_the_end(self._end_all())

    async def reset(self) -> None:
        """Press the reset button.

        :raises InvalidState: the guest doesn't run.
        :raises TaskInProgress: the VM is migrating.
        :raises GuestDied: QEMU doesn't answer any more.
        """
        self._refuse_while_migrating("reset")
        self._require(ExecutionState.RUNNING)
        assert self._guest is not None, "there is one while it runs"
        process = self._guest.process
        try:
            await RunControl(process.qmp).reset()
        except guest_errors.QmpFailure as error:
            cause = await process.cause_of(error)
            raise GuestDied(
                f"The guest can't be reset: {cause}", exit_status=str(process.exit_status)
            ) from error

    # ---- migration

    async def prepare_destination(
        self, order: MigrationOrder, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace
    ) -> Ticket:
        """Create the guest masked and listen for the source.

        :raises VimFault: it can't be; nothing is left, and the process ends.
        """
        self._require(ExecutionState.OFF)
        if order.destination.host_uuid != self._config.host_uuid:
            raise InvalidArgument("The specification's destination is another host.", argument="destination")
        if order.vm_uuid != self._config.vm_uuid:
            raise InvalidArgument("The specification is for another VM.", argument="vm")
        self._move(ExecutionState.IMMIGRATING, order.migration_id)
        session, ticket = await self._bring_up(self._make_shell(order, config, place))
        self._session = session
        self._running = asyncio.create_task(self._immigrate(session), name="immigrate")
        return ticket

    async def _make_shell(
        self, order: MigrationOrder, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace
    ) -> tuple[DestinationMigration, Ticket]:
        guest = await self._spawn(config, place, order)
        lent = DestinationGuest(
            guest.process,
            guest.files,
            guest.record,
            guest.run_lock,
            self._config.run_dir,
            self._end_guest,
            self._de_mask,
            empty_disks(place, order),
        )
        session = DestinationMigration(order, lent)
        return session, await session.prepare()

    async def start_source(self, order: MigrationOrder, ticket: Ticket) -> None:
        """Begin to send the guest away; returns at once.

        :raises InvalidState: the guest doesn't run.
        :raises TaskInProgress: it is migrating already.
        :raises NotOwner: the owner record doesn't name this host any more.
        :raises InvalidArgument: the order is for another VM or another source.
        """
        self._refuse_while_migrating("migrate")
        self._require(ExecutionState.RUNNING)
        guest = self._guest
        assert guest is not None, "there is one while it runs"
        if order.vm_uuid != self._config.vm_uuid or order.ram_bytes != guest.process.memory.ram_bytes:
            raise InvalidArgument("The specification is for another VM.", argument="vm")
        if order.source.host_uuid != self._config.host_uuid:
            raise InvalidArgument("The specification's source is another host.", argument="source")
        disks = guest.moved_disks(order)
        self._move(ExecutionState.EMIGRATING, order.migration_id)
        try:
            guest.record = await asyncio.to_thread(owner_record.read, guest.files.owner_record)
            if guest.record.owner_host_uuid != self._config.host_uuid:
                message = "The owner record names another host."
                raise NotOwner(message, owner=guest.record.owner_host_uuid, epoch=guest.record.epoch)
        except BaseException:  # a caller that goes away too
            if self.state is ExecutionState.EMIGRATING:
                self._move(ExecutionState.RUNNING)
            raise
        self._require(ExecutionState.EMIGRATING)  # it may have ended meanwhile
        lent = SourceGuest(
            guest.process, guest.files, guest.record, guest.run_lock, self._config.run_dir, disks
        )
        session = SourceMigration(order, ticket, lent)
        self._session = session
        self._running = asyncio.create_task(self._emigrate(session), name="emigrate")

    async def start_relocation(self, order: MigrationOrder, place: service_pb2.VmPlace) -> None:
        """Begin to move the guest's files to `place` on this host; the guest runs on. Returns at once.

        :raises InvalidState: the guest doesn't run. :raises TaskInProgress: it is migrating already.
        :raises InvalidArgument: the order is for another VM, host or disks. :raises NotOwner: of the new home.
        :raises FileLocked: the new home's run lock is held.
        """
        self._refuse_while_migrating("relocate")
        self._require(ExecutionState.RUNNING)
        guest = self._guest
        assert guest is not None, "there is one while it runs"
        if order.vm_uuid != self._config.vm_uuid or order.source.host_uuid != self._config.host_uuid:
            raise InvalidArgument("The specification is for another VM or host.", argument="vm")
        move = GuestMove(order, guest, place, self._config.run_dir)
        self._session = session = Relocation(order, move.relocated_vm())
        self.watched.set(replace(self.watched.value, migration_id=order.migration_id))
        self._running = asyncio.create_task(self._relocate(session, move), name="relocate")

    async def commit_relocation(self, migration_id: int) -> None:
        """hostd has written down that the new files count; returns when the guest stands on them.

        :raises ManagedObjectNotFound: :raises MigrationNotReady: the copies aren't made.
        :raises VimFault: it failed; the progress tells which disks were switched.
        """
        session = self.session(migration_id)
        if not isinstance(session, Relocation):
            raise MigrationNotReady("This is no move within a host.", reason="role")
        session.commit()
        if self._running is not None:
            await asyncio.wait([self._running])
        if session.board.now.fault is not None:
            raise session.board.now.fault

    async def _relocate(self, session: Relocation, move: GuestMove) -> None:
        structlog.contextvars.bind_contextvars(migration_id=f"{session.order.migration_id} R:")
        await session.run()
        move.conclude({disk.key for disk in session.board.now.disks if disk.switched})
        if not self.ended.is_set():
            self.watched.set(replace(self.watched.value, migration_id=0))

    async def cancel_migration(self, migration_id: int) -> None:
        """Cancel it before the hand-over; returns when this side is as it was. Idempotent: one that failed is canceled.

        :raises ManagedObjectNotFound: there is no such migration.
        :raises PastPointOfNoReturn: the hand-over has begun, or it has succeeded.
        """
        session = self.session(migration_id)
        if isinstance(session, SourceMigration) and session.guest_left:
            name = session.order.destination.name
            message = f"The guest was handed over to {name}: it can't be canceled any more."
            raise PastPointOfNoReturn(message, phase=session.phase.value)
        if session.is_over and session.board.now.fault is not None:
            return
        session.check_may_end()
        await self._end_session(RequestCanceled("The migration was canceled.", phase=session.phase.value))

    async def complete_migration(self, migration_id: int) -> None:
        """After success: the source's stunned guest ends; the destination is a VM like any other. Idempotent.

        :raises ManagedObjectNotFound: there is no such migration.
        :raises MigrationNotReady: it hasn't succeeded.
        """
        session = self.session(migration_id)
        phase = session.board.now.phase
        if PublishedPhase.SWITCHOVER.order <= phase.order <= PublishedPhase.COMPLETE.order and self._running:
            # The other side has heard of the end already; this one is about to.
            await asyncio.wait([self._running], timeout=_LAST_STEPS_S)
            phase = session.board.now.phase
        if phase is not PublishedPhase.SUCCEEDED:
            message = f"The migration isn't done: it is in its phase {phase.name.lower()}."
            raise MigrationNotReady(message, phase=phase.name.lower(), reason="not succeeded")
        if isinstance(session, SourceMigration):
            await to_the_end(self._end_all())
        elif not self.ended.is_set():
            self.watched.set(replace(self.watched.value, migration_id=0))

    def end_without_guest(self) -> None:
        """The process only moved files, and is done."""
        self._end()

    async def let_go(self) -> None:
        """This process ends and its guest doesn't: what is under way is undone, or finished where it can't be."""
        self._is_leaving = True
        await self._stop_starting()
        await self._end_session(RequestCanceled("The VM's process was told to end.", phase="stopping"))
        if self._resolving is not None:
            self._resolving.cancel()
            await asyncio.wait([self._resolving])

    # ---- inside

    async def _bring_up(self, work: Coroutine[object, object, T]) -> T:
        """Do what brings the guest up. If it fails, if the caller goes away or the VM is powered off meanwhile,
        nothing is left and the process ends.

        :raises VimFault: why not.
        """
        self._starting = starting = asyncio.ensure_future(work)
        try:
            result = await starting
            if self._guest is None:  # it died, or was powered off, after its last step
                raise InvalidState("The guest has ended meanwhile.", state=self.state.value)
        except BaseException as error:
            await to_the_end(self._end_guest())
            self._end()
            if isinstance(error, _START_ERRORS):
                raise start_fault(error) from error
            if starting.cancelled() and self._starting is None:
                raise InvalidState("The VM was powered off meanwhile.", state="off") from None
            raise
        self._starting = None
        return result

    async def _stop_starting(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])

    async def _emigrate(self, session: SourceMigration) -> None:
        structlog.contextvars.bind_contextvars(migration_id=f"{session.order.migration_id} S:")
        fault = await session.run()
        guest = self._guest
        assert guest is not None, "its end waits for its migration's"
        if session.guest_left:
            self._move(ExecutionState.STUNNED, session.order.migration_id)
            if fault is not None:
                self._resolving = asyncio.create_task(self._resolve(session), name="resolve-hand-over")
        elif guest.process.exit_status is None:  # else its end is told by who watches for it
            self._move(ExecutionState.STUNNED if session.guest_stunned else ExecutionState.RUNNING)

    async def _resolve(self, session: SourceMigration) -> None:
        """The migration is over and whose the guest is isn't known: stunned until the record tells."""
        try:
            await session.resolve()
        except guest_errors.GuestError as error:
            _log.error("guest_not_resumed", reason=str(error))
            return
        _log.info("hand_over_resolved", guest_left=session.guest_left)
        if not session.guest_left and self.state is ExecutionState.STUNNED:
            self._move(ExecutionState.RUNNING)

    async def _immigrate(self, session: DestinationMigration) -> None:
        structlog.contextvars.bind_contextvars(migration_id=f"{session.order.migration_id} D:")
        fault = await session.run()
        if fault is not None:
            await self._end_guest()
            self._end(str(fault))

    def _de_mask(self) -> None:
        """The guest runs here: from now on it is a VM like any other to the world."""
        assert self._guest is not None, "there is one while it immigrates"
        self._guest.started_at = time.monotonic()
        self._move(ExecutionState.RUNNING, self.watched.value.migration_id)

    async def _end_session(self, reason: VimFault) -> None:
        """End the running migration with `reason`, if it still may be ended; returns when it is over."""
        session, running = self._session, self._running
        if session is not None and running is not None and not running.done():
            session.end(reason)
            await asyncio.wait([running])

    async def _spawn(
        self,
        config: vm_config_pb2.VmConfig,
        place: service_pb2.VmPlace,
        incoming: MigrationOrder | None = None,
    ) -> RunningGuest:
        guest = await spawn(self._config, config, place, incoming=incoming)
        self._adopt_guest(guest)
        await require_cpu(guest.process, self._config.host_name)
        return guest

    def _adopt_guest(self, guest: RunningGuest) -> None:
        self._guest = guest
        self._exit_watch = asyncio.create_task(self._watch_exit(guest), name="watch-guest-exit")

    async def _watch_exit(self, guest: RunningGuest) -> None:
        """Only QEMU's own death is the VM's death."""
        status = await guest.process.wait_exit()
        if self._guest is not guest:
            return  # ended by us
        _log.error("guest_died", exit_status=str(status), state=self.state.value)
        fault = guest_died(status)
        # A migration past its point of no return goes on: the guest's state may be in safety at the destination.
        await self._end_session(fault)
        if self._guest is not guest:
            return
        session = self._session
        if self._resolving is not None:
            self._resolving.cancel()
        await self._end_guest()
        if isinstance(session, SourceMigration) and session.guest_left and session.board.now.fault is None:
            return  # what died was no VM any more; its completion ends this process
        self._end(str(fault), ExecutionState.FAILED)

    async def _end_guest(self) -> None:
        """End QEMU and release everything that is held for it. Idempotent."""
        guest, self._guest = self._guest, None
        if guest is None:
            return
        await guest.process.kill()
        guest.run_lock.close()
        await guest.process.close()

    async def _end_all(self) -> None:
        """End the guest, even one that is just being started, and with it this process's task. Idempotent."""
        await self._stop_starting()
        await self._end_guest()
        self._end()

    def _end(self, failure: str = "", state: ExecutionState = ExecutionState.OFF) -> None:
        """There is no guest and there won't be one: the process may end. Idempotent, the first reason stays."""
        if self.state not in {ExecutionState.OFF, ExecutionState.FAILED}:
            self._move(state, failure=failure)
        self.watched.close()
        self.ended.set()

    def _require(self, state: ExecutionState) -> None:
        if self.ended.is_set() or self._is_leaving:
            raise InvalidState("The VM's process is about to end.", state="ending", required=state.value)
        if self.state is not state:
            message = f"The VM's process is {self.state.value}, not {state.value}."
            raise InvalidState(message, state=self.state.value, required=state.value)

    def _refuse_while_migrating(self, operation: str) -> None:
        session = self._session
        left = isinstance(session, SourceMigration) and session.guest_left
        if (session is None or session.is_over) and not left and self.state is not ExecutionState.EMIGRATING:
            return
        name, task = ("the VM", "") if session is None else (session.order.vm_name, session.order.task_id)
        message = f"{operation} isn't possible: {name} migrates in {task or 'another call'}."
        raise TaskInProgress(message, entity=name, task=task, operation="migrate")

    def _move(self, state: ExecutionState, migration_id: int = 0, failure: str = "") -> None:
        if (self.state, state) not in MOVES:
            raise SystemFault(f"No way leads from {self.state.value} to {state.value}.")
        _log.info("execution_state", before=self.state.value, state=state.value)
        self.watched.set(Snapshot(state, failure, migration_id))
