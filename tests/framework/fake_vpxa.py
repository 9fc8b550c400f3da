"""FAKE vpxa: the real Vpxa service over real mutual TLS, on hosts that exist in memory only.

    FakeCluster      what the hosts share: datastores with VM homes and owner records, and migrations (fake_cluster)
    FakeVpxaHost     one host: its VMs, its server, and switches to make it misbehave
    FakeMigration    one migration as both its hosts see it; moved on by a test, or by itself (fake_migration)

It keeps the contract of proto/vpxa/v1 as far as vpxd can see it: power states, faults, masking, owner records.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc

from proto.host.v1 import operations_pb2 as ops
from proto.host.v1 import storage_pb2_grpc
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxa.v1 import service_pb2_grpc
from runtime.faults import (
    ConcurrentAccess,
    DuplicateName,
    FileLocked,
    FileNotFound,
    InvalidPowerState,
    ManagedObjectNotFound,
    MigrationNotReady,
    PastPointOfNoReturn,
    RequestCanceled,
    TaskInProgress,
    VimFault,
)
from runtime.rpc.faults import fault_to_proto
from runtime.rpc.identity import Identity, Role
from runtime.rpc.server import RpcServer, network_server
from tests.framework.fake_cluster import GIB, FakeCluster, set_power
from tests.framework.fake_host_storage import FakeHostStorage
from tests.framework.fake_migration import DISK_BYTES, FakeHome, FakeMigration, run_script

_Context = grpc.aio.ServicerContext[object, object]
_ON, _OFF = host_pb2.POWER_STATE_POWERED_ON, host_pb2.POWER_STATE_POWERED_OFF


@dataclass
class FakeVpxaHost(service_pb2_grpc.VpxaServicer):
    """One host. `mute`: WatchHost says nothing more while the connection stays.

    `refuse`: the rpc's name -> the fault to raise; `hold`: -> the event to wait for before answering.
    """

    cluster: FakeCluster
    identity: Identity
    info: host_pb2.HostInfo
    vms: dict[str, host_pb2.VmState] = field(default_factory=dict)
    mute: bool = False
    refuse: dict[str, VimFault] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    address: str = "127.0.0.1:0"
    hold: dict[str, asyncio.Event] = field(default_factory=dict)
    watchers: int = 0

    def __post_init__(self) -> None:
        self._server: RpcServer | None = None
        self._changed = asyncio.Event()
        self._scripts: set[asyncio.Task[None]] = set()
        self.cluster.hosts[self.info.name] = self

    async def start(self) -> None:
        """Listens, at the same address as before after a stop."""
        server = network_server(self.address, self.identity, frozenset({Role.VPXD}), f"vpxa@{self.info.name}")
        service_pb2_grpc.add_VpxaServicer_to_server(self, server.grpc)
        storage = FakeHostStorage(self, self.cluster.files)
        storage_pb2_grpc.add_HostStorageServicer_to_server(storage, server.grpc)
        await server.start()
        self._server, self.address = server, server.address

    async def stop(self) -> None:
        """As if vpxa had been killed: connections break, VMs and migrations stay."""
        if self._server is not None:
            await self._server.stop(0.0)
            self._server = None

    async def close(self) -> None:
        """The end of the test."""
        for script in self._scripts:
            script.cancel()
        await asyncio.gather(*self._scripts, return_exceptions=True)
        await self.stop()

    def changed(self) -> None:
        """Makes WatchHost tell the host's state now."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def home_key(self, path: str) -> str:
        """A home's key: paths on one datastore are the same on all hosts that see it."""
        name = path[1:].partition("]")[0]
        store = next((store for store in self.info.datastores if store.name == name), None)
        return path if store is None or store.uuid == self.cluster.shared.uuid else f"{store.uuid} {path}"

    def put_vm(
        self,
        name: str,
        *,
        on: bool = False,
        ram_bytes: int = GIB,
        datastore: str = "shared",
        networks: Sequence[str] = (),
        disks: int = 0,
    ) -> host_pb2.VmState:
        """A VM that is just there."""
        folder = f"[{datastore}] {name}"
        config = vm_config_pb2.VmConfig(
            uuid=str(uuid.uuid4()),
            name=name,
            vcpus=1,
            ram_bytes=ram_bytes,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            change_version=1,
        )
        for number in range(disks):
            config.disks.add(
                key=2000 + number, path=f"{folder}/disk{number}.vmdk", capacity_bytes=DISK_BYTES, format=1
            )
        for number, network in enumerate(networks):
            config.nics.add(
                key=4000 + number, mac=f"02:00:00:00:00:{number:02x}", network=network, connected=True
            )
        home = f"{folder}/{name}.vmx"
        self.cluster.homes[self.home_key(home)] = FakeHome(config, self.info.uuid)
        vm = self._state(config, home)
        if on:
            set_power(vm, on=True)
        self.vms[config.uuid] = vm
        self.changed()
        return vm

    async def GetHost(self, request: ops.GetHostRequest, context: _Context) -> ops.GetHostResponse:
        await self._enter("GetHost")
        return ops.GetHostResponse(host=self.info, usage=self._usage())

    async def WatchHost(
        self, request: ops.WatchHostRequest, context: _Context
    ) -> AsyncIterator[ops.WatchHostResponse]:
        await self._enter("WatchHost")
        self.watchers += 1
        sequence = 0
        while True:
            changed = self._changed
            if not self.mute:
                sequence += 1
                yield ops.WatchHostResponse(
                    host=self.info, usage=self._usage(), vms=self.vms.values(), sequence=sequence
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), request.heartbeat_s or 1.0)

    async def CreateVm(self, request: ops.CreateVmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("CreateVm")
        home = f"[{request.datastore}] {request.config.name}/{request.config.name}.vmx"
        if self.home_key(home) in self.cluster.homes:
            raise DuplicateName("there is such a VM", kind="vm", name=request.config.name)
        request.config.change_version = 1
        self.cluster.homes[self.home_key(home)] = FakeHome(request.config, self.info.uuid)
        return self._answer(self._state(request.config, home))

    async def RegisterVm(self, request: ops.RegisterVmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("RegisterVm")
        home = self.cluster.homes.get(self.home_key(request.home))
        if home is None:
            raise FileNotFound("there is no such file", path=request.home)
        others = [host for host in self.cluster.hosts.values() if home.config.uuid in host.vms]
        if others:
            raise FileLocked("another host owns it", path=request.home, owner=others[0].info.name)
        home.owner, home.epoch = self.info.uuid, home.epoch + 1
        return self._answer(self._state(home.config, request.home))

    async def UnregisterVm(self, request: ops.VmRequest, context: _Context) -> ops.EmptyResponse:
        await self._enter("UnregisterVm")
        del self.vms[self._vm(request.vm_uuid, _OFF).uuid]
        self.changed()
        return ops.EmptyResponse()

    async def DestroyVm(self, request: ops.VmRequest, context: _Context) -> ops.EmptyResponse:
        await self._enter("DestroyVm")
        vm = self._vm(request.vm_uuid, _OFF)
        del self.vms[vm.uuid], self.cluster.homes[self.home_key(vm.home)]
        self.changed()
        return ops.EmptyResponse()

    async def ReconfigureVm(self, request: ops.ReconfigureVmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("ReconfigureVm")
        vm = self._vm(request.vm_uuid, _OFF)
        if request.config.change_version != vm.config.change_version:
            raise ConcurrentAccess("changed meanwhile", kind="vm", key=vm.uuid)
        vm.config.CopyFrom(request.config)
        vm.config.change_version += 1
        vm.name = vm.config.name
        self.cluster.homes[self.home_key(vm.home)].config.CopyFrom(vm.config)
        return self._answer(vm)

    async def PowerOnVm(self, request: ops.VmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("PowerOnVm")
        vm = self._vm(request.vm_uuid, _OFF)
        set_power(vm, on=True)
        return self._answer(vm)

    async def PowerOffVm(self, request: ops.VmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("PowerOffVm")
        vm = self._vm(request.vm_uuid, _ON)
        set_power(vm, on=False)
        return self._answer(vm)

    async def ResetVm(self, request: ops.VmRequest, context: _Context) -> ops.VmResponse:
        await self._enter("ResetVm")
        return self._answer(self._vm(request.vm_uuid, _ON))

    async def ReadConsole(
        self, request: ops.ReadConsoleRequest, context: _Context
    ) -> AsyncIterator[ops.ReadConsoleResponse]:
        await self._enter("ReadConsole")
        vm = self._vm(request.vm_uuid)
        for word in ("hello ", "from ", vm.name):
            yield ops.ReadConsoleResponse(data=word.encode())

    async def PrepareDestination(
        self, request: ops.PrepareDestinationRequest, context: _Context
    ) -> ops.PrepareDestinationResponse:
        self.cluster.make_home(request.spec)
        self.cluster.add(FakeMigration(request.spec, self.cluster))
        await self._enter("PrepareDestination")
        ticket = spec_pb2.DestinationTicket(
            migration_id=request.spec.migration_id,
            vmotion_address=self.info.vmotion_address,
            port=8000,
            token=b"t" * 32,
            ram_bytes=request.spec.vm.ram_bytes,
            stream_version_min=1,
            stream_version_max=1,
        )
        return ops.PrepareDestinationResponse(ticket=ticket)

    async def StartSource(self, request: ops.StartSourceRequest, context: _Context) -> ops.EmptyResponse:
        await self._enter("StartSource")
        migration = self._migration(request.spec.migration_id)
        self._start(migration, "emigrating")
        return ops.EmptyResponse()

    async def StartRelocation(
        self, request: ops.StartRelocationRequest, context: _Context
    ) -> ops.EmptyResponse:
        self.cluster.make_home(request.spec)
        migration = FakeMigration(request.spec, self.cluster)
        self.cluster.add(migration)
        await self._enter("StartRelocation")
        self._start(migration, "relocating")
        return ops.EmptyResponse()

    async def WatchMigration(
        self, request: ops.MigrationRequest, context: _Context
    ) -> AsyncIterator[ops.WatchMigrationResponse]:
        await self._enter("WatchMigration")
        migration = self._started(request.migration_id)
        async for status in migration.watch():
            answer = ops.WatchMigrationResponse(status=status)
            if migration.fault is not None and status.phase == status_pb2.MIGRATION_PHASE_FAILED:
                answer.fault.CopyFrom(fault_to_proto(migration.fault, f"vmx@{self.info.name}"))
            yield answer

    async def CancelMigration(self, request: ops.MigrationRequest, context: _Context) -> ops.EmptyResponse:
        await self._enter("CancelMigration")
        migration = self._migration(request.migration_id)
        phase = migration.status.phase
        if status_pb2.MIGRATION_PHASE_SWITCHOVER <= phase <= status_pb2.MIGRATION_PHASE_SUCCEEDED:
            raise PastPointOfNoReturn("too late", phase="switchover")
        migration.canceled.add(self.info.name)
        if not migration.ended:
            migration.fail(RequestCanceled("canceled", phase=str(phase)))
        if self.info.uuid == migration.spec.destination.host_uuid:
            self.cluster.drop_home(migration.spec, new=True)
        vm = self.vms.get(migration.spec.vm.uuid)
        if vm is not None:
            vm.ClearField("lock")
            set_power(vm, on=vm.power_state == _ON)
        self.changed()
        return ops.EmptyResponse()

    async def CompleteMigration(self, request: ops.MigrationRequest, context: _Context) -> ops.VmResponse:
        await self._enter("CompleteMigration")
        migration = self._migration(request.migration_id)
        if migration.status.phase != status_pb2.MIGRATION_PHASE_SUCCEEDED:
            raise MigrationNotReady("it hasn't succeeded", reason="phase")
        migration.completed.add(self.info.name)
        if migration.within_host:
            self.vms[migration.spec.vm.uuid].ClearField("lock")
        if self.info.uuid == migration.spec.source.host_uuid:
            self.cluster.drop_home(migration.spec, new=False)
        if not migration.within_host and self.info.uuid == migration.spec.source.host_uuid:
            self.vms.pop(migration.spec.vm.uuid, None)
            self.changed()
            return ops.VmResponse()
        return ops.VmResponse(vm=self.vms[migration.spec.vm.uuid])

    async def SettleMigration(
        self, request: ops.SettleMigrationRequest, context: _Context
    ) -> ops.EmptyResponse:
        await self._enter("SettleMigration")
        migration = self._migration(request.migration_id)
        home = self.cluster.homes_of(migration.spec)[0]
        spec = migration.spec
        owner = spec.destination.host_uuid if request.destination_has_vm else spec.source.host_uuid
        home.owner, home.epoch = owner, home.epoch + 1
        return ops.EmptyResponse()

    async def QueryMigration(
        self, request: ops.MigrationRequest, context: _Context
    ) -> ops.QueryMigrationResponse:
        await self._enter("QueryMigration")
        migration = self._migration(request.migration_id)
        is_source = self.info.uuid == migration.spec.source.host_uuid
        if is_source:
            self._started(request.migration_id)
        homes = self.cluster.homes_of(migration.spec)
        home = homes[0] if is_source else homes[-1]
        answer = ops.QueryMigrationResponse(
            role=ops.MIGRATION_ROLE_SOURCE if is_source else ops.MIGRATION_ROLE_DESTINATION,
            status=migration.status,
            open=self.info.name not in migration.completed | migration.canceled,
        )
        answer.owner.owner_host_uuid, answer.owner.epoch = home.owner, home.epoch
        if migration.fault is not None:
            answer.fault.CopyFrom(fault_to_proto(migration.fault, f"vmx@{self.info.name}"))
        return answer

    async def enter(self, rpc: str) -> None:
        """An rpc of this host begins: it is noted, held back and refused as the test has ordered."""
        await self._enter(rpc)

    async def _enter(self, rpc: str) -> None:
        self.calls.append(rpc)
        if rpc in self.hold:
            await self.hold[rpc].wait()
        if rpc in self.refuse:
            raise self.refuse[rpc]

    def _vm(self, vm_uuid: str, required: int | None = None) -> host_pb2.VmState:
        vm = self.vms.get(vm_uuid)
        if vm is None:
            raise ManagedObjectNotFound("no such VM here", kind="vm", key=vm_uuid)
        if vm.HasField("lock"):
            raise TaskInProgress(
                "it is locked", entity=vm.name, task=vm.lock.task, operation=vm.lock.operation
            )
        if required is not None and vm.power_state != required:
            raise InvalidPowerState(
                "not in this power state", state=str(vm.power_state), required=str(required)
            )
        return vm

    def _start(self, migration: FakeMigration, operation: str) -> None:
        spec = migration.spec
        vm = self._vm(spec.vm.uuid, _OFF if spec.powered_off else _ON)
        migration.started = True
        if not spec.powered_off:
            vm.execution_state = host_pb2.EXECUTION_STATE_EMIGRATING
        vm.lock.operation, vm.lock.task = operation, spec.task_id
        if self.cluster.script is not None:
            self._scripts.add(asyncio.create_task(run_script(migration)))
        self.changed()

    def _migration(self, migration_id: int) -> FakeMigration:
        migration = self.cluster.migrations.get(migration_id)
        if migration is None:
            raise ManagedObjectNotFound("no such migration", kind="migration", key=str(migration_id))
        return migration

    def _started(self, migration_id: int) -> FakeMigration:
        migration = self._migration(migration_id)
        if not migration.started:
            raise ManagedObjectNotFound("no such migration", kind="migration", key=str(migration_id))
        return migration

    def _state(self, config: vm_config_pb2.VmConfig, home: str) -> host_pb2.VmState:
        return host_pb2.VmState(
            uuid=config.uuid,
            name=config.name,
            home=home,
            power_state=_OFF,
            execution_state=host_pb2.EXECUTION_STATE_OFF,
            config=config,
        )

    def _answer(self, vm: host_pb2.VmState) -> ops.VmResponse:
        self.vms[vm.uuid] = vm
        self.changed()
        return ops.VmResponse(vm=vm)

    def _usage(self) -> host_pb2.HostUsage:
        running = [vm for vm in self.vms.values() if vm.power_state == _ON]
        return host_pb2.HostUsage(
            memory_reserved_bytes=sum(vm.config.ram_bytes for vm in running),
            vcpus_reserved=sum(vm.config.vcpus for vm in running),
        )


def fake_host_info(name: str, number: int, cluster: FakeCluster) -> host_pb2.HostInfo:
    """A host with 8 GiB and 16 vCPUs, the shared datastore and a local one."""
    local = host_pb2.Datastore(
        name="local",
        uuid=str(uuid.uuid4()),
        capacity_bytes=10 * GIB,
        free_bytes=5 * GIB,
        accessible=True,
    )
    return host_pb2.HostInfo(
        uuid=str(uuid.uuid4()),
        name=name,
        management_address=f"127.0.1.{number}",
        vmotion_address=f"127.0.2.{number}",
        memory_bytes=8 * GIB,
        cpu_cores=2,
        vcpu_capacity=16,
        capability=host_pb2.HostCapability(
            qemu_version="7.2.22",
            machine_types=["pc-q35-7.1", "pc-q35-7.2"],
            cpu_models=["qemu64", "max"],
            accelerator="tcg",
            stream_version_min=1,
            stream_version_max=1,
        ),
        datastores=[cluster.shared, local],
        version="0.1.0",
    )
