"""One virtual machine: the owner of its execution state, its QEMU process, its run lock and its migration.

Everything here runs on the event loop; operations that exclude each other find out by the state (vm_state.py), which
changes in one place, `_move`. The process lives as long as its guest may: `ended` is set when there is nothing more to
do for it.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

import structlog

from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    FileFault,
    GuestDied,
    GuestStartFailed,
    InvalidArgument,
    InvalidState,
    ManagedObjectNotFound,
    MigrationNotReady,
    NotOwner,
    RequestCanceled,
    SystemFault,
    TaskInProgress,
    VimFault,
)
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import RunLock
from vmx.checkpoint.errors import CheckpointError
from vmx.config import Config
from vmx.files import VmFiles
from vmx.guest import errors as guest_errors
from vmx.guest.memory import GuestMemory, GuestMemoryError
from vmx.guest.process import GuestProcess, Launch
from vmx.guest.run_control import RunControl
from vmx.messages import guest_spec, vm_files
from vmx.migration.destination import DestinationGuest, DestinationMigration
from vmx.migration.order import MigrationOrder, Ticket
from vmx.migration.phases import PublishedPhase
from vmx.migration.source import SourceGuest, SourceMigration
from vmx.threads import in_thread
from vmx.vm_state import MOVES, ExecutionState
from vmx.watched import Watched

# From the hand-over to the end of a session: closing connections, unless its storage stalls.
_LAST_STEPS_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What watchers see. `failure` says why the guest ended where it ended by itself."""

    state: ExecutionState = ExecutionState.OFF
    failure: str = ""
    migration_id: int = 0


@dataclass
class _Guest:
    """All that exists of a guest while its process does."""

    process: GuestProcess
    files: VmFiles
    record: OwnerRecord
    run_lock: RunLock
    started_at: float


class VirtualMachine:
    """The VM of this process. Used once: after its guest has ended the process ends too."""

    def __init__(self, config: Config) -> None:
        self.ended = asyncio.Event()
        self.watched = Watched(Snapshot())
        self._config = config
        self._guest: _Guest | None = None
        self._session: SourceMigration | DestinationMigration | None = None
        self._running: asyncio.Task[None] | None = None
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

    def session(self, migration_id: int) -> SourceMigration | DestinationMigration:
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
        try:
            files = vm_files(config, place)
            record = await asyncio.to_thread(owner_record.read, files.owner_record)
            if record.owner_host_uuid != self._config.host_uuid or record.vm_uuid != config.uuid:
                message = "The owner record doesn't name this host for this VM."
                raise NotOwner(message, owner=record.owner_host_uuid, epoch=record.epoch)
            with contextlib.ExitStack() as undo:
                run_lock = RunLock.open(files.run_lock)
                undo.callback(run_lock.close)
                run_lock.acquire()
                process = await self._spawn(config, place, run_lock, incoming=False)
                self._adopt_guest(_Guest(process, files, record, run_lock, time.monotonic()))
                undo.pop_all()
            await RunControl(process.qmp).cont()
        except (VimFault, guest_errors.GuestError, GuestMemoryError) as error:
            await self._end_guest()
            self._end()
            raise _start_fault(error) from error
        self._move(ExecutionState.RUNNING)

    async def power_off(self) -> None:
        """End the guest at once; the process ends afterwards. Idempotent.

        :raises TaskInProgress: the VM is migrating.
        """
        self._refuse_while_migrating("powerOff")
        await self._end_guest()
        self._end()

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
        self._move(ExecutionState.IMMIGRATING, order.migration_id)
        try:
            files = vm_files(config, place)
            record = await asyncio.to_thread(owner_record.read, files.owner_record)
            with contextlib.ExitStack() as undo:
                run_lock = RunLock.open(files.run_lock)
                undo.callback(run_lock.close)
                # Inherited without the lock: QEMU holds it from the moment we take it, at the hand-over.
                process = await self._spawn(config, place, run_lock, incoming=True)
                self._adopt_guest(_Guest(process, files, record, run_lock, time.monotonic()))
                undo.pop_all()
            lent = DestinationGuest(
                process, files, record, run_lock, self._config.run_dir, self._end_guest, self._de_mask
            )
            session = DestinationMigration(order, lent)
            ticket = await session.prepare()
        except (VimFault, guest_errors.GuestError, GuestMemoryError, CheckpointError) as error:
            await self._end_guest()
            self._end()
            raise _start_fault(error) from error
        self._session = session
        self._running = asyncio.create_task(self._immigrate(session), name="immigrate")
        return ticket

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
        self._move(ExecutionState.EMIGRATING, order.migration_id)
        try:
            guest.record = await asyncio.to_thread(owner_record.read, guest.files.owner_record)
            if guest.record.owner_host_uuid != self._config.host_uuid:
                message = "The owner record names another host."
                raise NotOwner(message, owner=guest.record.owner_host_uuid, epoch=guest.record.epoch)
        except (NotOwner, FileFault):
            self._move(ExecutionState.RUNNING)
            raise
        lent = SourceGuest(guest.process, guest.files, guest.record, guest.run_lock, self._config.run_dir)
        session = SourceMigration(order, ticket, lent)
        self._session = session
        self._running = asyncio.create_task(self._emigrate(session), name="emigrate")

    async def cancel_migration(self, migration_id: int) -> None:
        """Cancel it before the hand-over; returns when this side is as it was. Idempotent: one that failed is canceled.

        :raises ManagedObjectNotFound: there is no such migration.
        :raises PastPointOfNoReturn: the hand-over has begun, or it has succeeded.
        """
        session = self.session(migration_id)
        if session.board.now.phase is PublishedPhase.FAILED:
            return
        session.check_may_cancel()
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
            await self._end_guest()
            self._end()
        else:
            self.watched.set(replace(self.watched.value, migration_id=0))

    # ---- inside

    async def _emigrate(self, session: SourceMigration) -> None:
        structlog.contextvars.bind_contextvars(migration_id=f"{session.order.migration_id} S:")
        await session.run()  # its fault is told to the session's watchers
        if self.state is not ExecutionState.EMIGRATING:
            return  # the guest died meanwhile
        if session.guest_left:
            self._move(ExecutionState.STUNNED, session.order.migration_id)
        else:
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
        """End the running migration with `reason` and wait until it has undone everything."""
        session, running = self._session, self._running
        if session is None or running is None or running.done():
            return
        if session.end_reason is None:
            session.end_reason = reason
            running.cancel()
        await asyncio.wait([running])

    async def _spawn(
        self, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace, run_lock: RunLock, incoming: bool
    ) -> GuestProcess:
        if config.uuid != self._config.vm_uuid:
            raise InvalidArgument("The configuration is another VM's.", argument="config.uuid")
        spec = guest_spec(config, place, self._config.run_dir, self._config.accelerator, incoming)
        launch = Launch(self._config.qemu_binary, vm_files(config, place).qemu_log, run_lock.descriptor)
        memory = await in_thread(GuestMemory.create, config.name, config.ram_bytes)
        try:
            return await GuestProcess.spawn(spec, memory, launch)
        except BaseException:
            memory.close()
            raise

    def _adopt_guest(self, guest: _Guest) -> None:
        self._guest = guest
        self._exit_watch = asyncio.create_task(self._watch_exit(guest), name="watch-guest-exit")

    async def _watch_exit(self, guest: _Guest) -> None:
        """Only QEMU's own death is the VM's death."""
        status = await guest.process.wait_exit()
        if self._guest is not guest:
            return  # ended by us
        _log.error("guest_died", exit_status=str(status), state=self.state.value)
        fault = GuestDied(f"The guest's process ended by itself: {status}.", exit_status=str(status))
        session = self._session
        if session is not None and session.board.now.phase.order < PublishedPhase.SWITCHOVER.order:
            await self._end_session(fault)
        if self._guest is guest:
            self._guest = None
            guest.run_lock.close()
            await guest.process.close()
            self._move(ExecutionState.FAILED, failure=str(fault))
            self._end()

    async def _end_guest(self) -> None:
        """End QEMU and release everything that is held for it. Idempotent."""
        guest, self._guest = self._guest, None
        if guest is None:
            return
        await guest.process.kill()
        guest.run_lock.close()
        await guest.process.close()

    def _end(self, failure: str = "") -> None:
        if self.state not in {ExecutionState.OFF, ExecutionState.FAILED}:
            self._move(ExecutionState.OFF, failure=failure)
        self.watched.close()
        self.ended.set()

    def _require(self, state: ExecutionState) -> None:
        if self.state is not state:
            message = f"The VM's process is {self.state.value}, not {state.value}."
            raise InvalidState(message, state=self.state.value, required=state.value)

    def _refuse_while_migrating(self, operation: str) -> None:
        session = self._session
        if session is None:
            return
        over = session.board.now.phase in {PublishedPhase.SUCCEEDED, PublishedPhase.FAILED}
        if not over or self.state is ExecutionState.STUNNED:
            name, task = session.order.vm_name, session.order.task_id
            message = f"{operation} isn't possible: {name} migrates in {task or 'another call'}."
            raise TaskInProgress(message, entity=name, task=task, operation="migrate")

    def _move(self, state: ExecutionState, migration_id: int = 0, failure: str = "") -> None:
        if (self.state, state) not in MOVES:
            raise SystemFault(f"No way leads from {self.state.value} to {state.value}.")
        _log.info("execution_state", before=self.state.value, state=state.value)
        self.watched.set(Snapshot(state, failure, migration_id))


def _start_fault(error: Exception) -> VimFault:
    """Why a guest didn't come up, as a fault; the details are in QEMU's log, whose last lines `error` carries."""
    if isinstance(error, VimFault):
        return error
    return GuestStartFailed(f"The guest can't be started: {error}", reason=str(error)[:1000])
