"""The VM of this process while it is powered off: its files are moved, and the process ends with the move.

The run lock is held meanwhile, so that nobody powers the VM on; the owner record names this host, or the source.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import structlog

from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    InvalidArgument,
    InvalidState,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    RequestCanceled,
    VimFault,
)
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import RunLock
from vmx.config import Config
from vmx.messages import disk_places, empty_disks, vm_files
from vmx.migration.cold import ColdDestination, ColdDestinationVm, ColdSource, ColdSourceVm
from vmx.migration.hand_over import Claim
from vmx.migration.order import MigrationOrder, Ticket
from vmx.migration.phases import PublishedPhase
from vmx.migration.relocation import RelocatedVm, Relocation

ColdSession = ColdSource | ColdDestination | Relocation

_log = structlog.get_logger(__name__)


class OfflineVm:
    """Used once: one move. `on_end` is called when there is nothing more to do for the VM."""

    def __init__(self, config: Config, on_end: Callable[[], None]) -> None:
        self.session: ColdSession | None = None
        self._config = config
        self._on_end = on_end
        self._held = contextlib.ExitStack()
        self._running: asyncio.Task[None] | None = None
        self._is_over = asyncio.Event()  # the session; what becomes of a hand-over in doubt may last

    async def prepare_destination(
        self, order: MigrationOrder, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace
    ) -> Ticket:
        """Open the empty disks and listen for the source. :raises VimFault: it can't be; the process ends."""
        with self._beginning(order, order.destination.host_uuid, "destination"):
            claim = await self._claim(order, config, place, owner=order.source.host_uuid)
            session = ColdDestination(order, ColdDestinationVm(claim, empty_disks(place, order)))
            ticket = await session.prepare()
            self._start(session)
        return ticket

    async def start_source(
        self,
        order: MigrationOrder,
        ticket: Ticket,
        config: vm_config_pb2.VmConfig,
        place: service_pb2.VmPlace,
    ) -> None:
        """Begin to send the files. :raises VimFault: it can't be; the process ends."""
        with self._beginning(order, order.source.host_uuid, "source"):
            claim = await self._claim(order, config, place, owner=self._config.host_uuid)
            claim.run_lock.acquire()
            moved = {disk.key for disk in order.disks}
            disks = tuple(disk for disk in disk_places(place) if disk.key in moved)
            self._start(ColdSource(order, ticket, ColdSourceVm(claim, disks, self._config.run_dir)))

    async def start_relocation(
        self,
        order: MigrationOrder,
        config: vm_config_pb2.VmConfig,
        source: service_pb2.VmPlace,
        destination: service_pb2.VmPlace,
    ) -> None:
        """Begin to copy within the host. :raises VimFault: it can't be; the process ends."""
        with self._beginning(order, order.source.host_uuid, "source"):
            claim = await self._claim(order, config, source, owner=self._config.host_uuid)
            claim.run_lock.acquire()
            moved = {disk.key for disk in order.disks}
            vm = RelocatedVm(
                disks=tuple(disk for disk in disk_places(source) if disk.key in moved),
                targets=tuple(disk for disk in disk_places(destination) if disk.key in moved),
                process=None,
                run_dir=self._config.run_dir,
                take_new_home=_nothing_more,
            )
            self._start(Relocation(order, vm))

    async def commit_relocation(self) -> None:
        """hostd has written down that the new files count; returns when they do.

        :raises MigrationNotReady: the copies aren't made. :raises VimFault: it failed.
        """
        session = self.session
        if not isinstance(session, Relocation):
            raise MigrationNotReady("This is no move within a host.", reason="role")
        session.commit()
        if self._running is not None:
            await asyncio.wait([self._running])
        if session.board.now.fault is not None:
            raise session.board.now.fault

    async def cancel(self) -> None:
        """Cancel it before the hand-over; returns when this side is as it was. Idempotent.

        :raises PastPointOfNoReturn: the hand-over has begun, or it has succeeded.
        """
        session = self.session
        assert session is not None, "looked up by its id"
        if isinstance(session, ColdSource) and session.given_away:
            raise PastPointOfNoReturn("The VM was handed over.", phase=session.phase.value)
        if session.is_over and session.board.now.fault is not None:
            return
        session.check_may_end()
        await self._end_session(RequestCanceled("The migration was canceled.", phase=session.phase.value))

    def complete(self) -> None:
        """After success: the process ends. Idempotent.

        :raises MigrationNotReady: it hasn't succeeded.
        """
        assert self.session is not None, "looked up by its id"
        phase = self.session.board.now.phase
        if phase is not PublishedPhase.SUCCEEDED:
            name = phase.name.lower()
            raise MigrationNotReady(f"The migration isn't done: it is in its phase {name}.", phase=name)
        self._finish()

    async def let_go(self) -> None:
        """This process is told to end: what is under way is undone, or finished where it can't be."""
        await self._end_session(RequestCanceled("The VM's process was told to end.", phase="stopping"))
        if self._running is not None:  # it waits for a record's next word, however long
            self._running.cancel()
            await asyncio.wait([self._running])
        self._held.close()

    # ---- inside

    @contextlib.contextmanager
    def _beginning(self, order: MigrationOrder, host_uuid: str, end: str) -> Iterator[None]:
        if self.session is not None:
            raise InvalidState("This process moves the VM's files already.", state="moving")
        if host_uuid != self._config.host_uuid:
            raise InvalidArgument(f"The specification's {end} is another host.", argument=end)
        if order.vm_uuid != self._config.vm_uuid:
            raise InvalidArgument("The specification is for another VM.", argument="vm")
        try:
            yield
        except BaseException:
            self._finish()
            raise

    async def _claim(
        self, order: MigrationOrder, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace, owner: str
    ) -> Claim:
        files = vm_files(config, place)
        record = await asyncio.to_thread(owner_record.read, files.owner_record)
        if record.vm_uuid != self._config.vm_uuid or record.owner_host_uuid != owner:
            message = "The owner record doesn't name the migration's source for this VM."
            raise NotOwner(message, owner=record.owner_host_uuid, epoch=record.epoch)
        run_lock = RunLock.open(files.run_lock)
        self._held.callback(run_lock.close)
        return Claim(files, record, run_lock, order.moves_home)

    def _start(self, session: ColdSession) -> None:
        self.session = session
        self._running = asyncio.create_task(self._run(session), name="move-files")

    async def _run(self, session: ColdSession) -> None:
        fault: VimFault | None = await session.run()
        self._is_over.set()
        if fault is None:
            return  # its completion ends the process
        if isinstance(session, ColdSource) and session.given_away:
            await session.resolve()
        self._finish()

    async def _end_session(self, reason: VimFault) -> None:
        """End it with `reason`, if it still may be ended; returns when it is over."""
        if self.session is not None and self._running is not None:
            self.session.end(reason)
            await self._is_over.wait()

    def _finish(self) -> None:
        self._held.close()
        self._on_end()


async def _nothing_more() -> None:
    """A VM that is off holds nothing in its old home."""
