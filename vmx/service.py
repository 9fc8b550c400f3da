"""The Vmx service: each rpc is parsed, handed to the VM, and its result mapped back. No decisions here."""

import contextlib
from collections.abc import AsyncIterator

import structlog

from proto.host.v1 import operations_pb2
from proto.vmx.v1 import service_pb2, service_pb2_grpc
from runtime.rpc.faults import fault_to_proto
from runtime.rpc.server import Context
from vmx import messages
from vmx.guest.cpu_time import cpu_seconds_of
from vmx.guest.memory import GuestMemoryError
from vmx.guest.pages import PAGE_BYTES, page_total
from vmx.offline_vm import OfflineVm
from vmx.status_message import migration_status
from vmx.stream import OLDEST_STREAM_VERSION, STREAM_VERSION
from vmx.threads import in_thread
from vmx.virtual_machine import VirtualMachine

# Telling a change costs work in five processes up to the client: often enough for people, and hardly ever in a stun.
_STATUS_EVERY_S = 0.1


class VmxService(service_pb2_grpc.VmxServicer):
    """Adapter between gRPC and one VirtualMachine, or an OfflineVm where only files move."""

    def __init__(self, vm: VirtualMachine, offline: OfflineVm, vm_uuid: str, origin: str) -> None:
        self._vm = vm
        self._offline = offline
        self._vm_uuid = vm_uuid
        self._origin = origin

    async def PowerOn(
        self, request: service_pb2.PowerOnRequest, context: Context
    ) -> service_pb2.GetStateResponse:
        await self._vm.power_on(request.config, request.place)
        return await self._state()

    async def PowerOff(
        self, request: service_pb2.PowerOffRequest, context: Context
    ) -> service_pb2.PowerOffResponse:
        await self._vm.power_off()
        return service_pb2.PowerOffResponse()

    async def Reset(
        self, request: service_pb2.ResetRequest, context: Context
    ) -> service_pb2.GetStateResponse:
        await self._vm.reset()
        return await self._state()

    async def GetState(
        self, request: service_pb2.GetStateRequest, context: Context
    ) -> service_pb2.GetStateResponse:
        return await self._state()

    async def WatchState(
        self, request: service_pb2.GetStateRequest, context: Context
    ) -> AsyncIterator[service_pb2.GetStateResponse]:
        async for _ in self._vm.watched.watch():
            yield await self._state()

    async def PrepareDestination(
        self, request: service_pb2.PrepareDestinationRequest, context: Context
    ) -> operations_pb2.PrepareDestinationResponse:
        order = messages.migration_order(request.spec)
        messages.require_two_hosts(order)
        config = messages.destination_config(request.spec)
        structlog.contextvars.bind_contextvars(migration_id=f"{order.migration_id} D:")
        if order.powered_off:
            ticket = await self._offline.prepare_destination(order, config, request.place)
        else:
            ticket = await self._vm.prepare_destination(order, config, request.place)
        message = messages.ticket_message(ticket, OLDEST_STREAM_VERSION, STREAM_VERSION)
        return operations_pb2.PrepareDestinationResponse(ticket=message)

    async def StartSource(
        self, request: service_pb2.StartSourceRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        order = messages.migration_order(request.spec)
        messages.require_two_hosts(order)
        ticket = messages.ticket_of(request.ticket, order)
        structlog.contextvars.bind_contextvars(migration_id=f"{order.migration_id} S:")
        if order.powered_off:
            await self._offline.start_source(order, ticket, request.spec.vm, request.place)
        else:
            await self._vm.start_source(order, ticket)
        return operations_pb2.EmptyResponse()

    async def StartRelocation(
        self, request: service_pb2.StartRelocationRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        order = messages.migration_order(request.spec)
        messages.require_one_host(order)
        structlog.contextvars.bind_contextvars(migration_id=f"{order.migration_id} R:")
        if order.powered_off:
            await self._offline.start_relocation(order, request.spec.vm, request.source, request.destination)
        else:
            await self._vm.start_relocation(order, request.destination)
        return operations_pb2.EmptyResponse()

    async def CommitRelocation(
        self, request: operations_pb2.MigrationRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        if self._is_offline(request.migration_id):
            await self._offline.commit_relocation()
        else:
            await self._vm.commit_relocation(request.migration_id)
        return operations_pb2.EmptyResponse()

    async def WatchMigration(
        self, request: operations_pb2.MigrationRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchMigrationResponse]:
        offline = self._offline.session if self._is_offline(request.migration_id) else None
        session = offline or self._vm.session(request.migration_id)
        async for progress in session.board.watched.watch(_STATUS_EVERY_S):
            response = operations_pb2.WatchMigrationResponse(status=migration_status(progress))
            if progress.fault is not None:
                response.fault.CopyFrom(fault_to_proto(progress.fault, self._origin))
            yield response

    async def CancelMigration(
        self, request: operations_pb2.MigrationRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        if self._is_offline(request.migration_id):
            await self._offline.cancel()
        else:
            await self._vm.cancel_migration(request.migration_id)
        return operations_pb2.EmptyResponse()

    async def CompleteMigration(
        self, request: operations_pb2.MigrationRequest, context: Context
    ) -> operations_pb2.EmptyResponse:
        if self._is_offline(request.migration_id):
            self._offline.complete()
        else:
            await self._vm.complete_migration(request.migration_id)
        return operations_pb2.EmptyResponse()

    def _is_offline(self, migration_id: int) -> bool:
        session = self._offline.session
        return session is not None and session.order.migration_id == migration_id

    async def _state(self) -> service_pb2.GetStateResponse:
        vm, snapshot = self._vm, self._vm.watched.value
        response = service_pb2.GetStateResponse(
            vm_uuid=self._vm_uuid,
            execution_state=messages.execution_state(snapshot.state),
            uptime_s=vm.uptime_s,
            migration_id=snapshot.migration_id,
            failure=snapshot.failure,
        )
        guest = vm.guest
        if guest is not None:
            response.qemu_pid = guest.pid
            response.cpu_seconds = cpu_seconds_of(guest.pid)
            # A guest that ends while we count has nothing to count; its end is told by the next state.
            with contextlib.suppress(GuestMemoryError, OSError):
                runs = await in_thread(guest.memory.populated_runs)
                response.memory_used_bytes = page_total(runs) * PAGE_BYTES
        return response
