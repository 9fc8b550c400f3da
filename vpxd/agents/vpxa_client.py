"""Calls to one host's vpxa, in vpxd's own values. Every call has a deadline; every failure is a VimFault."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from proto.host.v1 import operations_pb2 as ops
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxa.v1 import service_pb2_grpc
from runtime.faults import ManagedObjectNotFound, TimedOut, VimFault
from runtime.rpc.channel import ACTION_TIMEOUT_S, QUERY_TIMEOUT_S
from runtime.rpc.faults import fault_from_proto, remote_faults, remote_stream
from vpxd.inventory.values import HostInfo, HostReport, HostUsage, VmConfig, VmState
from vpxd.migration.progress import DiskCopy, MigrationProgress, Phase
from vpxd.migration.spec import Endpoint, MigrationSpec
from vpxd.migration.verdict import HostAnswer
from vpxd.wire import (
    host_info_from_wire,
    host_report_from_wire,
    host_usage_from_wire,
    vm_config_to_wire,
    vm_state_from_wire,
)

POWER_ON_TIMEOUT_S = 120.0  # a guest that is emulated and a host that is busy take their time
STATUS_SILENCE_S = 15.0  # vmx tells its status several times a second; without a word for so long, ask anew
CONSOLE_TIMEOUT_S = 60.0

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class _Stream(Protocol[M_co]):
    async def read(self) -> M_co | object: ...
    def cancel(self) -> bool: ...


@dataclass(frozen=True)
class ConsoleRange:
    """Which part of a console to read; `tail_bytes` 0: from the beginning; `port` "": the first one."""

    follow: bool
    tail_bytes: int
    port: str


@dataclass(frozen=True)
class MigrationUpdate:
    """One message of a migration's status; `fault` where it has failed."""

    progress: MigrationProgress
    fault: VimFault | None


class VpxaClient:
    """One host's vpxa over its channel. Faults are those of the Vpxa service, HostNotReachable and TimedOut."""

    def __init__(self, channel: grpc.aio.Channel, host_name: str) -> None:
        self._stub = service_pb2_grpc.VpxaStub(channel)
        self._peer = f"vpxa@{host_name}"

    async def get_host(self) -> tuple[HostInfo, HostUsage]:
        """What the host is and has, now."""
        with remote_faults(self._peer):
            answer = await self._stub.GetHost(ops.GetHostRequest(), timeout=QUERY_TIMEOUT_S)
        return host_info_from_wire(answer.host), host_usage_from_wire(answer.usage)

    async def watch_host(self, heartbeat_s: float, silence_s: float) -> AsyncGenerator[HostReport, None]:
        """The host's state for as long as it lasts. :raises TimedOut: nothing came for `silence_s`."""
        with remote_faults(self._peer):
            stream = self._stub.WatchHost(ops.WatchHostRequest(heartbeat_s=heartbeat_s))
            async for message in _messages(stream, ops.WatchHostResponse, silence_s, "WatchHost"):
                yield host_report_from_wire(message)

    async def create_vm(self, config: VmConfig, datastore: str, task: str) -> VmState:
        """Makes and registers a VM."""
        request = ops.CreateVmRequest(config=vm_config_to_wire(config), datastore=datastore, task=task)
        with remote_faults(self._peer):
            return _vm(await self._stub.CreateVm(request, timeout=ACTION_TIMEOUT_S))

    async def register_vm(self, home: str, task: str) -> VmState:
        """Registers a VM from its .vmx file."""
        with remote_faults(self._peer):
            request = ops.RegisterVmRequest(home=home, task=task)
            return _vm(await self._stub.RegisterVm(request, timeout=ACTION_TIMEOUT_S))

    async def unregister_vm(self, uuid: str, task: str) -> None:
        """Forgets a powered-off VM; its files stay."""
        with remote_faults(self._peer):
            await self._stub.UnregisterVm(_vm_request(uuid, task), timeout=ACTION_TIMEOUT_S)

    async def reconfigure_vm(self, uuid: str, config: VmConfig, task: str) -> VmState:
        """Changes a powered-off VM's configuration."""
        request = ops.ReconfigureVmRequest(vm_uuid=uuid, config=vm_config_to_wire(config), task=task)
        with remote_faults(self._peer):
            return _vm(await self._stub.ReconfigureVm(request, timeout=ACTION_TIMEOUT_S))

    async def power_on(self, uuid: str, task: str, evc_mode: str) -> VmState:
        """Starts the VM under its cluster's EVC mode; answers when its guest runs."""
        request = ops.VmRequest(vm_uuid=uuid, task=task, evc_baseline=evc_mode)
        with remote_faults(self._peer):
            return _vm(await self._stub.PowerOnVm(request, timeout=POWER_ON_TIMEOUT_S))

    async def power_off(self, uuid: str, task: str) -> VmState:
        """Ends the guest at once."""
        with remote_faults(self._peer):
            return _vm(await self._stub.PowerOffVm(_vm_request(uuid, task), timeout=ACTION_TIMEOUT_S))

    async def reset(self, uuid: str, task: str) -> VmState:
        """Resets the guest."""
        with remote_faults(self._peer):
            return _vm(await self._stub.ResetVm(_vm_request(uuid, task), timeout=ACTION_TIMEOUT_S))

    async def destroy_vm(self, uuid: str, task: str) -> None:
        """Deletes a powered-off VM and its files."""
        with remote_faults(self._peer):
            await self._stub.DestroyVm(_vm_request(uuid, task), timeout=ACTION_TIMEOUT_S)

    async def read_console(self, uuid: str, part: ConsoleRange) -> AsyncGenerator[bytes, None]:
        """What the guest wrote; with `follow` without end."""
        request = ops.ReadConsoleRequest(
            vm_uuid=uuid, follow=part.follow, tail_bytes=part.tail_bytes, port=part.port
        )
        timeout_s = None if part.follow else CONSOLE_TIMEOUT_S
        with remote_faults(self._peer):
            call = self._stub.ReadConsole(request, timeout=timeout_s)
            async for message in remote_stream(call, self._peer):
                yield message.data

    async def prepare_destination(self, spec: MigrationSpec) -> bytes:
        """Creates the VM masked; answers the destination's ticket, serialized."""
        request = ops.PrepareDestinationRequest(spec=_spec(spec))
        with remote_faults(self._peer):
            answer = await self._stub.PrepareDestination(request, timeout=ACTION_TIMEOUT_S)
        return answer.ticket.SerializeToString()

    async def start_source(self, spec: MigrationSpec, ticket: bytes) -> None:
        """Locks the VM and starts to send."""
        request = ops.StartSourceRequest(
            spec=_spec(spec), ticket=spec_pb2.DestinationTicket.FromString(ticket)
        )
        with remote_faults(self._peer):
            await self._stub.StartSource(request, timeout=ACTION_TIMEOUT_S)

    async def start_relocation(self, spec: MigrationSpec) -> None:
        """Locks the VM and starts to move its files within the host."""
        request = ops.StartRelocationRequest(spec=_spec(spec))
        with remote_faults(self._peer):
            await self._stub.StartRelocation(request, timeout=ACTION_TIMEOUT_S)

    async def watch_migration(self, migration_id: int) -> AsyncGenerator[MigrationUpdate, None]:
        """The migration's status; ends after its last one, or without one when vpxa ends."""
        with remote_faults(self._peer):
            stream = self._stub.WatchMigration(ops.MigrationRequest(migration_id=migration_id))
            async for message in _messages(
                stream, ops.WatchMigrationResponse, STATUS_SILENCE_S, "WatchMigration"
            ):
                fault = fault_from_proto(message.fault) if message.HasField("fault") else None
                yield MigrationUpdate(_progress(message.status), fault)

    async def cancel_migration(self, migration_id: int) -> None:
        """Undoes this side; one that never heard of it has nothing to undo. :raises PastPointOfNoReturn: too late."""
        request = ops.MigrationRequest(migration_id=migration_id)
        try:
            with remote_faults(self._peer):
                await self._stub.CancelMigration(request, timeout=ACTION_TIMEOUT_S)
        except ManagedObjectNotFound:
            return

    async def complete_migration(self, migration_id: int) -> VmState | None:
        """Ends the migration on this host; the VM as it is there now, None where it is gone."""
        request = ops.MigrationRequest(migration_id=migration_id)
        with remote_faults(self._peer):
            answer = await self._stub.CompleteMigration(request, timeout=ACTION_TIMEOUT_S)
        return vm_state_from_wire(answer.vm) if answer.HasField("vm") else None

    async def settle_migration(self, migration_id: int, *, destination_has_vm: bool) -> None:
        """Brings the source the destination's last word."""
        request = ops.SettleMigrationRequest(migration_id=migration_id, destination_has_vm=destination_has_vm)
        with remote_faults(self._peer):
            await self._stub.SettleMigration(request, timeout=ACTION_TIMEOUT_S)

    async def query_migration(self, migration_id: int) -> HostAnswer:
        """What this host knows of the migration."""
        request = ops.MigrationRequest(migration_id=migration_id)
        try:
            with remote_faults(self._peer):
                answer = await self._stub.QueryMigration(request, timeout=QUERY_TIMEOUT_S)
        except ManagedObjectNotFound:
            return HostAnswer(known=False)
        return HostAnswer(
            known=True,
            progress=_progress(answer.status),
            fault=fault_from_proto(answer.fault) if answer.HasField("fault") else None,
            owner_host_uuid=answer.owner.owner_host_uuid,
            owner_epoch=answer.owner.epoch,
            open=answer.open,
        )


async def _messages(
    stream: _Stream[M], kind: type[M], silence_s: float, operation: str
) -> AsyncGenerator[M, None]:
    """The stream's messages; the stream is canceled when the caller leaves or nothing comes for too long."""
    try:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await stream.read()
            except TimeoutError as error:
                raise TimedOut(
                    f"nothing was heard for {silence_s:g} s", operation=operation, timeout_s=silence_s
                ) from error
            if not isinstance(message, kind):
                return  # the end of the stream
            yield message
    finally:
        stream.cancel()


def _vm_request(uuid: str, task: str) -> ops.VmRequest:
    return ops.VmRequest(vm_uuid=uuid, task=task)


def _vm(answer: ops.VmResponse) -> VmState:
    return vm_state_from_wire(answer.vm)


def _progress(status: status_pb2.MigrationStatus) -> MigrationProgress:
    known = status.phase in Phase._value2member_map_
    return MigrationProgress(
        phase=Phase(status.phase) if known else Phase.UNSPECIFIED,
        iteration=status.iteration,
        pages_total=status.pages_total,
        pages_sent=status.pages_sent,
        pages_remaining=status.pages_remaining,
        ram_bytes=status.ram_bytes,
        disks=tuple(DiskCopy(disk.key, disk.data_bytes, disk.copied_bytes) for disk in status.disks),
        failure=status.failure,
        status=status.SerializeToString(),
    )


def _spec(spec: MigrationSpec) -> spec_pb2.MigrationSpec:
    options = spec.options
    return spec_pb2.MigrationSpec(
        migration_id=spec.migration_id,
        task_id=spec.task,
        operation_id=spec.operation_id,
        vm=vm_config_to_wire(spec.vm),
        vm_id=spec.vm_id,
        vm_home=spec.vm_home,
        home_datastore_uuid=spec.home_datastore_uuid,
        source=_endpoint(spec.source),
        destination=_endpoint(spec.destination),
        key=spec.key,
        destination_vm=None if spec.destination_vm is None else vm_config_to_wire(spec.destination_vm),
        destination_home=spec.destination_home,
        destination_home_datastore_uuid=spec.destination_home_datastore_uuid,
        moved_disks=spec.moved_disks,
        powered_off=spec.powered_off,
        options=spec_pb2.MigrationOptions(
            verify=spec_pb2.VerifyMode.ValueType(options.verify),
            encryption=spec_pb2.EncryptionMode.ValueType(options.encryption),
            priority=spec_pb2.Priority.ValueType(options.priority),
            switchover_goal_ms=options.switchover_goal_ms,
            max_iterations=options.max_iterations,
            streams=options.streams,
            bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
            tracer=options.tracer,
            network_timeout_s=options.network_timeout_s,
        ),
    )


def _endpoint(endpoint: Endpoint) -> spec_pb2.HostEndpoint:
    return spec_pb2.HostEndpoint(
        host_id=endpoint.host_id,
        host_uuid=endpoint.host_uuid,
        name=endpoint.name,
        management_address=endpoint.management_address,
        vmotion_address=endpoint.vmotion_address,
    )
