"""Calls to one VM's vmx process: a deadline on each, faults as exceptions."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from proto.host.v1 import operations_pb2
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vmx.v1 import service_pb2, service_pb2_grpc
from runtime.faults import HostNotReachable
from runtime.rpc.channel import unix_channel
from runtime.rpc.faults import remote_faults, remote_stream

POWER_ON_TIMEOUT_S = 60.0
POWER_OFF_TIMEOUT_S = 8.0
STATE_TIMEOUT_S = 5.0
PREPARE_TIMEOUT_S = 60.0
START_SOURCE_TIMEOUT_S = 30.0
CANCEL_TIMEOUT_S = 45.0
COMPLETE_TIMEOUT_S = 30.0
_CLOSE_GRACE_S = 1.0


class VmxClient:
    """One connection; made again by itself when it breaks. Every call raises VimFault, also where vmx is gone."""

    def __init__(self, socket_path: Path, vm_name: str) -> None:
        self._channel = unix_channel(socket_path)
        self._stub = service_pb2_grpc.VmxStub(self._channel)
        self._peer = f"vmx of {vm_name}"

    async def close(self) -> None:
        """Close the connection when the calls on it have ended, which they have soon where vmx is dead."""
        await self._channel.close(_CLOSE_GRACE_S)

    @contextlib.contextmanager
    def _calls(self) -> Iterator[None]:
        try:
            with remote_faults(self._peer):
                yield
        except grpc.aio.UsageError as error:  # the connection has been closed
            raise HostNotReachable(f"The {self._peer} has ended.", host=self._peer) from error

    async def power_on(
        self, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace
    ) -> service_pb2.GetStateResponse:
        """Start the guest; returns when it runs."""
        request = service_pb2.PowerOnRequest(config=config, place=place)
        with self._calls():
            response: service_pb2.GetStateResponse = await self._stub.PowerOn(
                request, timeout=POWER_ON_TIMEOUT_S
            )
        return response

    async def power_off(self) -> None:
        """End the guest and then vmx."""
        with self._calls():
            await self._stub.PowerOff(service_pb2.PowerOffRequest(), timeout=POWER_OFF_TIMEOUT_S)

    async def reset(self) -> service_pb2.GetStateResponse:
        """Reset the guest."""
        with self._calls():
            response: service_pb2.GetStateResponse = await self._stub.Reset(
                service_pb2.ResetRequest(), timeout=STATE_TIMEOUT_S
            )
        return response

    async def get_state(self, timeout_s: float = STATE_TIMEOUT_S) -> service_pb2.GetStateResponse:
        """What it does now."""
        with self._calls():
            response: service_pb2.GetStateResponse = await self._stub.GetState(
                service_pb2.GetStateRequest(), timeout=timeout_s
            )
        return response

    async def watch_state(self) -> AsyncIterator[service_pb2.GetStateResponse]:
        """Its state at once and after every change, until it ends."""
        with self._calls():
            call = self._stub.WatchState(service_pb2.GetStateRequest())
            async for state in remote_stream(call, self._peer):
                yield state

    async def prepare_destination(
        self, spec: spec_pb2.MigrationSpec, place: service_pb2.VmPlace
    ) -> spec_pb2.DestinationTicket:
        """Create the masked guest; returns where it listens."""
        request = service_pb2.PrepareDestinationRequest(spec=spec, place=place)
        with self._calls():
            response = await self._stub.PrepareDestination(request, timeout=PREPARE_TIMEOUT_S)
        return response.ticket

    async def start_relocation(
        self, spec: spec_pb2.MigrationSpec, source: service_pb2.VmPlace, destination: service_pb2.VmPlace
    ) -> None:
        """Start to move the VM's files within the host."""
        request = service_pb2.StartRelocationRequest(spec=spec, source=source, destination=destination)
        with self._calls():
            await self._stub.StartRelocation(request, timeout=START_SOURCE_TIMEOUT_S)

    async def commit_relocation(self, migration_id: int) -> None:
        """The new files count; returns when the VM stands on them."""
        request = operations_pb2.MigrationRequest(migration_id=migration_id)
        with self._calls():
            await self._stub.CommitRelocation(request, timeout=COMPLETE_TIMEOUT_S)

    async def start_source(
        self,
        spec: spec_pb2.MigrationSpec,
        ticket: spec_pb2.DestinationTicket,
        place: service_pb2.VmPlace | None = None,
    ) -> None:
        """Start to send the guest; of a VM that is off, the files at `place`."""
        request = service_pb2.StartSourceRequest(spec=spec, ticket=ticket, place=place)
        with self._calls():
            await self._stub.StartSource(request, timeout=START_SOURCE_TIMEOUT_S)

    async def watch_migration(
        self, migration_id: int
    ) -> AsyncIterator[operations_pb2.WatchMigrationResponse]:
        """The migration's status until its last state."""
        with self._calls():
            request = operations_pb2.MigrationRequest(migration_id=migration_id)
            async for status in remote_stream(self._stub.WatchMigration(request), self._peer):
                yield status

    async def cancel_migration(self, migration_id: int) -> None:
        """Undo it; returns when this side is as it was."""
        request = operations_pb2.MigrationRequest(migration_id=migration_id)
        with self._calls():
            await self._stub.CancelMigration(request, timeout=CANCEL_TIMEOUT_S)

    async def complete_migration(self, migration_id: int) -> None:
        """End it after success."""
        request = operations_pb2.MigrationRequest(migration_id=migration_id)
        with self._calls():
            await self._stub.CompleteMigration(request, timeout=COMPLETE_TIMEOUT_S)
