"""The Hostd service: from message to call and back.

What changes something runs to its end even when its caller leaves: a half-done change helps nobody, and the caller can
ask again what became of it.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog

from hostd.services.picture import HostPicture
from hostd.vm.console import read_console
from hostd.vm.library import VmLibrary, console_file
from hostd.vm.machine import Machine
from hostd.vm.power import Power
from hostd.vmotion.destination import DestinationMigrations
from hostd.vmotion.ends import HostParts, read_owner
from hostd.vmotion.journal import LAST_PHASES, Role
from hostd.vmotion.relocation import Relocations
from hostd.vmotion.source import SourceMigrations
from proto.host.v1 import operations_pb2
from proto.hostd.v1 import service_pb2_grpc
from proto.vmotion.v1 import ownership_pb2
from runtime.faults import VimFault

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class HostdCalls:
    """What the service calls."""

    parts: HostParts
    picture: HostPicture
    library: VmLibrary
    power: Power
    source: SourceMigrations
    destination: DestinationMigrations
    relocation: Relocations


class HostdServicer(service_pb2_grpc.HostdServicer):
    """The rpcs, in the order of the .proto file."""

    def __init__(self, calls: HostdCalls) -> None:
        self._calls = calls
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """At hostd's end: cancel what still runs, which undoes itself, and wait for it."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def GetHost(
        self, request: operations_pb2.GetHostRequest, context: _Context
    ) -> operations_pb2.GetHostResponse:
        picture = self._calls.picture
        return operations_pb2.GetHostResponse(host=picture.host(), usage=picture.usage())

    async def WatchHost(
        self, request: operations_pb2.WatchHostRequest, context: _Context
    ) -> AsyncIterator[operations_pb2.WatchHostResponse]:
        async for response in self._calls.picture.watch(request.heartbeat_s):
            yield response

    async def CreateVm(
        self, request: operations_pb2.CreateVmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        library = self._calls.library
        return self._vm(await self._whole(library.create(request.config, request.datastore, request.task)))

    async def RegisterVm(
        self, request: operations_pb2.RegisterVmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        return self._vm(await self._whole(self._calls.library.register(request.home, request.task)))

    async def UnregisterVm(
        self, request: operations_pb2.VmRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        await self._whole(self._calls.library.unregister(request.vm_uuid, request.task))
        return operations_pb2.EmptyResponse()

    async def ReconfigureVm(
        self, request: operations_pb2.ReconfigureVmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        library = self._calls.library
        return self._vm(await self._whole(library.reconfigure(request.vm_uuid, request.config, request.task)))

    async def PowerOnVm(
        self, request: operations_pb2.VmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        work = self._calls.power.power_on(request.vm_uuid, request.task, request.evc_baseline)
        return self._vm(await self._whole(work))

    async def PowerOffVm(
        self, request: operations_pb2.VmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        return self._vm(await self._whole(self._calls.power.power_off(request.vm_uuid, request.task)))

    async def ResetVm(
        self, request: operations_pb2.VmRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        return self._vm(await self._whole(self._calls.power.reset(request.vm_uuid, request.task)))

    async def DestroyVm(
        self, request: operations_pb2.VmRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        await self._whole(self._calls.library.destroy(request.vm_uuid, request.task))
        return operations_pb2.EmptyResponse()

    async def ReadConsole(
        self, request: operations_pb2.ReadConsoleRequest, context: _Context
    ) -> AsyncIterator[operations_pb2.ReadConsoleResponse]:
        parts = self._calls.parts
        machine = parts.registry.get(request.vm_uuid)
        path = await asyncio.to_thread(console_file, machine, request.port, parts.datastores)
        async for data in read_console(path, request.tail_bytes, follow=request.follow):
            yield operations_pb2.ReadConsoleResponse(data=data)

    async def PrepareDestination(
        self, request: operations_pb2.PrepareDestinationRequest, context: _Context
    ) -> operations_pb2.PrepareDestinationResponse:
        with structlog.contextvars.bound_contextvars(migration_id=request.spec.migration_id):
            ticket = await self._whole(self._calls.destination.prepare(request.spec))
        return operations_pb2.PrepareDestinationResponse(ticket=ticket)

    async def StartSource(
        self, request: operations_pb2.StartSourceRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        with structlog.contextvars.bound_contextvars(migration_id=request.spec.migration_id):
            await self._whole(self._calls.source.start(request.spec, request.ticket))
        return operations_pb2.EmptyResponse()

    async def StartRelocation(
        self, request: operations_pb2.StartRelocationRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        with structlog.contextvars.bound_contextvars(migration_id=request.spec.migration_id):
            await self._whole(self._calls.relocation.start(request.spec))
        return operations_pb2.EmptyResponse()

    async def WatchMigration(
        self, request: operations_pb2.MigrationRequest, context: _Context
    ) -> AsyncIterator[operations_pb2.WatchMigrationResponse]:
        migration = self._calls.parts.journal.get(request.migration_id)
        while True:
            version = migration.published.version
            ended = migration.status.phase in LAST_PHASES
            fault = migration.fault if ended else None
            yield operations_pb2.WatchMigrationResponse(status=migration.status, fault=fault)
            if ended:
                return
            await migration.published.wait_past(version)

    async def CancelMigration(
        self, request: operations_pb2.MigrationRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        migration = self._calls.parts.journal.get(request.migration_id)
        calls = self._calls
        ends: dict[Role, SourceMigrations | DestinationMigrations | Relocations] = {
            Role.SOURCE: calls.source,
            Role.DESTINATION: calls.destination,
            Role.RELOCATION: calls.relocation,
        }
        await self._whole(ends[migration.role].cancel(migration))
        return operations_pb2.EmptyResponse()

    async def CompleteMigration(
        self, request: operations_pb2.MigrationRequest, context: _Context
    ) -> operations_pb2.VmResponse:
        migration = self._calls.parts.journal.get(request.migration_id)
        if migration.role is Role.SOURCE:
            await self._whole(self._calls.source.complete(migration))
            return operations_pb2.VmResponse()
        if migration.role is Role.RELOCATION:
            return self._vm(await self._whole(self._calls.relocation.complete(migration)))
        return self._vm(await self._whole(self._calls.destination.complete(migration)))

    async def SettleMigration(
        self, request: operations_pb2.SettleMigrationRequest, context: _Context
    ) -> operations_pb2.EmptyResponse:
        migration = self._calls.parts.journal.get(request.migration_id)
        settled = self._calls.source.settle(migration, destination_has_vm=request.destination_has_vm)
        await self._whole(settled)
        return operations_pb2.EmptyResponse()

    async def QueryMigration(
        self, request: operations_pb2.MigrationRequest, context: _Context
    ) -> operations_pb2.QueryMigrationResponse:
        migration = self._calls.parts.journal.get(request.migration_id)
        response = operations_pb2.QueryMigrationResponse(
            role=migration.proto_role, status=migration.status, fault=migration.fault, open=migration.open
        )
        try:
            owner = await read_owner(self._calls.parts, migration.home)
        except VimFault as fault:  # left unset: the caller sees that it isn't known
            _log.warning("owner_record_unreadable", migration_id=migration.id, reason=str(fault))
            return response
        if owner is not None:
            response.owner.CopyFrom(
                ownership_pb2.OwnerRecord(
                    vm_uuid=owner.vm_uuid, owner_host_uuid=owner.owner_host_uuid, epoch=owner.epoch
                )
            )
        return response

    def _vm(self, machine: Machine) -> operations_pb2.VmResponse:
        return operations_pb2.VmResponse(vm=self._calls.picture.vm(machine))

    async def _whole(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The work's result; it goes on when the caller leaves."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("call_refused", fault=type(error).__name__, reason=str(error))
