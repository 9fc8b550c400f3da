"""A real vpxd server in this process, with FAKE vpxa hosts that have really joined it, and a real client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc

from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vpxd.v1 import clusters_pb2_grpc, inventory_pb2, service_pb2, service_pb2_grpc, storage_pb2_grpc
from runtime.faults import VimFault
from runtime.rpc.channel import network_channel
from runtime.rpc.enrollment import join
from runtime.rpc.faults import fault_from_proto, remote_faults
from runtime.rpc.identity import Identity, Role
from runtime.rpc.upload import answer_of
from tests.framework.fake_cluster import GIB, FakeCluster
from tests.framework.fake_vpxa import FakeVpxaHost, fake_host_info
from vpxd.config import Config
from vpxd.migration.parts import Patience
from vpxd.server import VpxdServer

T = TypeVar("T")
FAST = Patience(
    lost_s=0.4, undecided_s=1.5, complete_s=1.0, complete_source_s=0.4, pause_s=0.05, cancel_s=0.4
)
DEADLINE_S = 20.0


class VpxdRig:
    """vpxd with its client; `restart` ends it and starts it again on the same state."""

    def __init__(self, directory: Path, patience: Patience = FAST) -> None:
        self.config = Config(
            state_dir=directory,
            listen="127.0.0.1:0",
            join_listen="127.0.0.1:0",
            advertise="127.0.0.1:0",
            client_dir=directory / "clients" / "admin",
            database_url=f"sqlite+aiosqlite:///{directory / 'vpxd.sqlite'}",
            heartbeat_timeout_s=1.0,
            stop_grace_s=0.2,
        )
        self.patience = patience
        self.fakes = FakeCluster()
        self.directory = directory
        self._stack = contextlib.AsyncExitStack()
        self.server: VpxdServer
        self.stub: service_pb2_grpc.VpxdAsyncStub
        self.storage: storage_pb2_grpc.StorageAsyncStub
        self.clusters: clusters_pb2_grpc.ClustersAsyncStub

    async def start(self) -> None:
        """Starts vpxd and connects the client."""
        self._stack = contextlib.AsyncExitStack()
        running = VpxdServer(self.config, self.patience).running()
        self.server = await self._stack.enter_async_context(running)
        identity = Identity.load(self.config.client_dir)
        channel = network_channel(self.server.address, identity, Role.VPXD, "vpxd")
        self._stack.push_async_callback(channel.close)
        self.stub = service_pb2_grpc.VpxdStub(channel)
        self.storage = storage_pb2_grpc.StorageStub(channel)
        self.clusters = clusters_pb2_grpc.ClustersStub(channel)

    async def stop(self) -> None:
        """Ends vpxd in good order."""
        await self._stack.aclose()

    async def restart(self) -> None:
        """Ends vpxd and starts it on the same state."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        """The end of the test."""
        await self.stop()
        for host in self.fakes.hosts.values():
            await host.close()

    async def join(self, name: str) -> FakeVpxaHost:
        """A fake host that joins with a real token and listens; not added yet."""
        token = await self.stub.CreateJoinToken(service_pb2.CreateJoinTokenRequest(host_name=name))
        identity = await join(
            self.server.join_address, token.token, token.ca_fingerprint, name, "127.0.0.1:1"
        )
        info = fake_host_info(name, len(self.fakes.hosts) + 1, self.fakes)
        host = FakeVpxaHost(self.fakes, identity, info)
        await host.start()
        return host

    async def add(self, *names: str) -> list[FakeVpxaHost]:
        """Fake hosts that join and are added."""
        hosts = [await self.join(name) for name in names]
        for host in hosts:
            request = service_pb2.AddHostRequest(name=host.info.name, address=host.address)
            await self.done(self.stub.AddHost(request))
        return hosts

    async def end_of(self, task: str) -> task_pb2.TaskInfo:
        """Watches a task to its end."""
        last = task_pb2.TaskInfo()
        with remote_faults("vpxd"):
            async for info in self.stub.WatchTask(service_pb2.GetTaskRequest(task=task), timeout=DEADLINE_S):
                assert info.progress_percent >= last.progress_percent, "progress went back"
                last = info
        assert last.state in (task_pb2.TASK_STATE_SUCCESS, task_pb2.TASK_STATE_ERROR)
        return last

    async def done(self, call: Awaitable[task_pb2.TaskInfo]) -> task_pb2.TaskInfo:
        """Orders a task and awaits its success. :raises VimFault: the task's error."""
        with remote_faults("vpxd"):
            ordered = await call
        last = await self.end_of(ordered.id)
        if last.state == task_pb2.TASK_STATE_ERROR:
            raise fault_from_proto(last.error)
        return last

    async def fault(self, call: Awaitable[object]) -> VimFault:
        """The fault with which an rpc is refused at once."""
        try:
            with remote_faults("vpxd"):
                await (answer_of(call) if isinstance(call, grpc.aio.StreamUnaryCall) else call)
        except VimFault as fault:
            return fault
        raise AssertionError("the call was not refused")

    async def vm(self, key: str) -> inventory_pb2.Vm:
        with remote_faults("vpxd"):
            return await self.stub.GetVm(service_pb2.GetVmRequest(vm=key))

    async def host(self, name: str) -> inventory_pb2.Host:
        hosts = await self.stub.ListHosts(service_pb2.ListHostsRequest())
        return next(host for host in hosts.hosts if host.name == name)

    async def event_types(self, entity: str = "") -> list[str]:
        events = await self.stub.ListEvents(service_pb2.ListEventsRequest(entity=entity, limit=1000))
        return [event.type for event in events.events]

    async def create(self, name: str, host: str = "", **fields: int) -> inventory_pb2.Vm:
        """A VM on the shared datastore."""
        config = vm_config_pb2.VmConfig(name=name, vcpus=1, ram_bytes=GIB)
        for field, value in fields.items():
            setattr(config, field, value)
        request = service_pb2.CreateVmRequest(config=config, datastore="shared", host=host)
        task = await self.done(self.stub.CreateVm(request))
        return await self.vm(task.result)

    async def running(self, name: str, host: str) -> inventory_pb2.Vm:
        """A VM that is powered on."""
        vm = await self.create(name, host)
        await self.done(self.stub.PowerOnVm(service_pb2.VmOperationRequest(vm=vm.id)))
        return await self.vm(vm.id)

    def migrate(self, vm: str, host: str = "") -> Awaitable[task_pb2.TaskInfo]:
        return self.stub.MigrateVm(service_pb2.MigrateVmRequest(vm=vm, host=host))


async def until(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """Looks again until what is seen holds; an AssertionError after DEADLINE_S."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                seen = await look()
                if holds(seen):
                    return seen
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never held; last seen: {seen}") from None


@contextlib.asynccontextmanager
async def vpxd_rig(directory: Path, *hosts: str, patience: Patience = FAST) -> AsyncIterator[VpxdRig]:
    """A running rig with these hosts added."""
    rig = VpxdRig(directory, patience)
    await rig.start()
    try:
        await rig.add(*hosts)
        yield rig
    finally:
        await rig.close()
