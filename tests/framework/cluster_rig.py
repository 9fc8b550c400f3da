"""A whole cluster of real daemons with a fast guest, as tests use it: orders, looks, and what must hold after them.

    async with cluster_rig(tmp_path) as rig:
        await rig.power_on_new("web01", "esx01")
        task = await rig.migrate("web01", "esx02")

The guest is tests/framework/fake_qemu.py: real shared memory, stamps, a heartbeat. Everything else is the product.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import pytest

from demo.cluster_layout import BlockReservation, ClusterLayout
from demo.cluster_ready import wait_until_serving, wait_until_serving_locally
from demo.local_cluster import LocalCluster
from demo.processes import ProcessId, command_of
from images.cmdline import kernel_command_line
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxa.v1 import service_pb2_grpc as vpxa_grpc
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime.faults import VimFault
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import is_held
from runtime.rpc.channel import network_channel
from runtime.rpc.faults import STATUS_OF, fault_from_proto, fault_of
from runtime.rpc.identity import ClusterAuthority, Identity, Role
from tests.framework.guest_processes import FAKE_QEMU
from vpxd.cli.client import VpxdClient, connect
from vpxd.cli.errors import NoConnection

if TYPE_CHECKING:
    from proto.vpxa.v1.service_pb2_grpc import VpxaAsyncStub

    Request = TypeVar("Request")
    TaskMethod = Callable[..., grpc.aio.UnaryUnaryCall[Request, task_pb2.TaskInfo]]
else:
    Request = TypeVar("Request")

MIB = 1 << 20
TASK_S = 40.0
VERIFIED = spec_pb2.MigrationOptions(verify=spec_pb2.VERIFY_MODE_AFTER_RESUME)
_UNTIL_S = 20.0


class ClusterRig:
    """The running cluster and its administrator."""

    def __init__(self, cluster: LocalCluster, client: VpxdClient) -> None:
        self.cluster = cluster
        self.client = client
        self.layout = cluster.layout

    # -- identities ---------------------------------------------------------------------------------------------------

    @property
    def authority(self) -> ClusterAuthority:
        """The cluster's own CA."""
        return ClusterAuthority.load(self.layout.directory / "vpxd" / "ca")

    @property
    def vpxd_identity(self) -> Identity:
        """vpxd's own key and certificate: for orders that go straight to a vpxa."""
        return Identity.load(self.layout.directory / "vpxd" / "identity")

    @property
    def client_identity(self) -> Identity:
        """The administrator's key and certificate."""
        return Identity.load(self.layout.client_directory)

    def host_identity(self, name: str) -> Identity:
        """A host's own key and certificate."""
        return Identity.load(self.layout.directory / name / "vpxa" / "identity")

    def vpxa_address(self, name: str) -> str:
        """Where a host's vpxa listens."""
        address, port = self.layout.host_daemons(int(name[-2:]))[1].listens[0]
        return f"{address}:{port}"

    @asynccontextmanager
    async def vpxa(self, name: str, identity: Identity | None = None) -> AsyncIterator["VpxaAsyncStub"]:
        """A host's vpxa as vpxd sees it; what goes wrong is gRPC's error (see `refusal`)."""
        caller = identity or self.vpxd_identity
        async with network_channel(self.vpxa_address(name), caller, Role.HOST, name) as channel:
            yield vpxa_grpc.VpxaStub(channel)

    # -- orders -------------------------------------------------------------------------------------------------------

    async def do(self, method: "TaskMethod[Request]", request: Request) -> task_pb2.TaskInfo:
        """An order and its success. :raises VimFault: it was refused, or its task failed."""
        task = await self.client.call(method, request)
        return await self.client.wait(task.id, TASK_S)

    async def create(
        self,
        name: str,
        host: str = "",
        datastore: str = "shared",
        config: vm_config_pb2.VmConfig | None = None,
    ) -> str:
        """A powered-off VM; answers its id."""
        made = vm_config_pb2.VmConfig()
        made.CopyFrom(config or small_vm())
        made.name = name
        request = service_pb2.CreateVmRequest(config=made, datastore=datastore, host=host)
        return (await self.do(self.client.stub.CreateVm, request)).result

    async def power_on_new(
        self,
        name: str,
        host: str = "",
        datastore: str = "shared",
        config: vm_config_pb2.VmConfig | None = None,
    ) -> str:
        """A VM whose guest runs; answers its id."""
        made = await self.create(name, host, datastore, config)
        await self.power_on(name)
        if datastore == "shared":
            await self.beats(name, 3)
        return made

    async def power_on(self, vm: str) -> None:
        """Its guest runs."""
        await self.do(self.client.stub.PowerOnVm, service_pb2.VmOperationRequest(vm=vm))

    async def power_off(self, vm: str) -> None:
        """Its guest is ended."""
        await self.do(self.client.stub.PowerOffVm, service_pb2.VmOperationRequest(vm=vm))

    async def remove(self, vm: str) -> None:
        """Powered off if it runs, then deleted."""
        if (await self.vm(vm)).power_state == host_pb2.POWER_STATE_POWERED_ON:
            await self.power_off(vm)
        await self.do(self.client.stub.DestroyVm, service_pb2.VmOperationRequest(vm=vm))

    async def start_migration(
        self, vm: str, host: str = "", options: spec_pb2.MigrationOptions = VERIFIED
    ) -> str:
        """Answers the task's id."""
        request = service_pb2.MigrateVmRequest(vm=vm, host=host, options=options)
        return (await self.client.call(self.client.stub.MigrateVm, request)).id

    async def migrate(
        self, vm: str, host: str = "", options: spec_pb2.MigrationOptions = VERIFIED
    ) -> task_pb2.TaskInfo:
        """A whole migration that succeeds."""
        return await self.client.wait(await self.start_migration(vm, host, options), TASK_S)

    async def start_slow(self, vm: str, host: str, mib_s: float = 2.0) -> str:
        """A migration that lasts seconds, because its network is made slow; returns when memory flows."""
        options = spec_pb2.MigrationOptions(bandwidth_bytes_per_s=int(mib_s * MIB))
        task = await self.start_migration(vm, host, options)
        async for info in self.client.watch(task, TASK_S):
            if info.migration.pages_sent or info.state in (
                task_pb2.TASK_STATE_ERROR,
                task_pb2.TASK_STATE_SUCCESS,
            ):
                break
        assert info.state == task_pb2.TASK_STATE_RUNNING, info
        return task

    async def cancel(self, task: str) -> None:
        """Asks it to stop."""
        await self.client.call(self.client.stub.CancelTask, service_pb2.GetTaskRequest(task=task))

    # -- looks --------------------------------------------------------------------------------------------------------

    async def task(self, task: str) -> task_pb2.TaskInfo:
        """The task now."""
        return await self.client.call(self.client.stub.GetTask, service_pb2.GetTaskRequest(task=task))

    async def ended(self, task: str) -> task_pb2.TaskInfo:
        """The task's last state, success or error."""
        async for info in self.client.watch(task, TASK_S):
            last = info
        return last

    async def vm(self, vm: str) -> inventory_pb2.Vm:
        """The VM now."""
        return await self.client.call(self.client.stub.GetVm, service_pb2.GetVmRequest(vm=vm))

    async def vms(self, host: str = "") -> dict[str, inventory_pb2.Vm]:
        """All VMs, or a host's, by name."""
        answer = await self.client.call(self.client.stub.ListVms, service_pb2.ListVmsRequest(host=host))
        return {vm.name: vm for vm in answer.vms}

    async def host(self, name: str) -> inventory_pb2.Host:
        """The host now, as vpxd knows it."""
        answer = await self.client.call(self.client.stub.ListHosts, service_pb2.ListHostsRequest())
        return next(host for host in answer.hosts if host.name == name)

    async def host_itself(self, name: str) -> operations_pb2.WatchHostResponse:
        """The host now, by its own word: the first message of its state."""
        async with self.vpxa(name) as stub:
            stream = stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=10)
            async for picture in stream:
                stream.cancel()
                return picture
        raise AssertionError("no state of the host came")

    async def start_daemon(self, name: str) -> None:
        """Starts a daemon that has ended; returns when it serves."""
        await self.cluster.start_daemon(name)
        if name == "vpxd":
            await wait_until_serving(self.layout.server, self.client_identity, Role.VPXD, name)
            return
        host, _, daemon = name.partition("-")
        if daemon == "hostd":
            await wait_until_serving_locally(self.layout.hostd_socket(host))
        else:
            await wait_until_serving(self.vpxa_address(host), self.vpxd_identity, Role.HOST, host)
        if self.cluster.process(f"{host}-hostd") and self.cluster.process(f"{host}-vpxa"):
            # vpxa tries to reach a hostd that was away at growing intervals.
            await until(lambda: self._answers(host), f"{host} takes orders")

    async def _answers(self, host: str) -> bool:
        async with self.vpxa(host) as stub:
            try:
                await stub.GetHost(operations_pb2.GetHostRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return True

    async def until_connected(self, *names: str) -> None:
        """The hosts are connected to vpxd."""

        async def connected() -> bool:
            wanted = names or self.layout.host_names
            try:
                states = [(await self.host(name)).connection_state for name in wanted]
            except NoConnection:  # a vpxd that is only starting
                return False
            return all(state == host_pb2.HOST_CONNECTION_STATE_CONNECTED for state in states)

        await until(connected, "the hosts are connected")

    async def until_reserved(self, host: str, memory_bytes: int, within_s: float = _UNTIL_S) -> None:
        """The host has exactly so much memory reserved, by its own word."""

        async def reserved() -> bool:
            return (await self.host_itself(host)).usage.memory_reserved_bytes == memory_bytes

        await until(reserved, f"{host} has {memory_bytes} bytes reserved", within_s)

    async def picture(self) -> dict[str, object]:
        """All that an order could change: to be equal before and after one that is refused."""
        hosts = {name: await self.host_itself(name) for name in self.layout.host_names}
        return {
            "vms": {
                vm.id: (
                    vm.name,
                    vm.host,
                    vm.home,
                    vm.power_state,
                    vm.config.SerializeToString(),
                    vm.locked_by,
                )
                for vm in (await self.vms()).values()
            },
            "reserved": {
                name: (host.usage.memory_reserved_bytes, host.usage.vcpus_reserved)
                for name, host in hosts.items()
            },
            "listed": {
                name: sorted((vm.name, vm.execution_state, vm.lock.task) for vm in host.vms)
                for name, host in hosts.items()
            },
            "processes": sorted(one.pid for one in self.cluster.vm_processes()),
        }

    async def spec(self, vm: str, destination: str) -> spec_pb2.MigrationSpec:
        """A specification as vpxd would make it, for orders that go straight to a vpxa."""
        found = await self.vm(vm)
        source, target = await self.host(found.host_name), await self.host(destination)
        stores = {store.name: store.uuid for store in source.info.datastores}
        return spec_pb2.MigrationSpec(
            migration_id=secrets.randbits(62) + 1,
            task_id="task-by-hand",
            operation_id="by-hand",
            vm=found.config,
            vm_id=found.id,
            vm_home=found.home,
            home_datastore_uuid=stores[found.home.partition("]")[0].lstrip("[")],
            source=_endpoint(source),
            destination=_endpoint(target),
            key=secrets.token_bytes(32),
        )

    def guests(self) -> list[ProcessId]:
        """The living guests of all hosts."""
        found = self.cluster.vm_processes()
        return [one for one in found if any("fake_qemu.py" in word for word in command_of(one))]

    # -- the guest ----------------------------------------------------------------------------------------------------

    def home(self, vm: str) -> Path:
        """Its folder on the shared datastore."""
        return self.layout.shared_datastore / vm

    def heartbeat(self, vm: str) -> list[int]:
        """The numbers of all heartbeats so far, in the order in which they were written."""
        text = (self.home(vm) / "heartbeat.log").read_text()
        return [int(line.split()[1]) for line in text.split("\n")[:-1] if line.startswith("HB ")]

    async def beats(self, vm: str, count: int = 5) -> None:
        """The guest lives: `count` more heartbeats."""
        log = self.home(vm) / "heartbeat.log"
        before = log.stat().st_size if log.exists() else 0

        async def beaten() -> bool:
            if not log.exists():
                return False
            with log.open("rb") as file:
                file.seek(before)
                return file.read().count(b"\n") >= count

        await until(beaten, f"{vm}'s heart beats")

    async def assert_alive(self, vm: str, host: str) -> None:
        """It runs on that host and nowhere else, its memory is right, and every heartbeat came once and in order."""
        await self.beats(vm)
        now = await self.vm(vm)
        assert (now.host_name, now.power_state) == (host, host_pb2.POWER_STATE_POWERED_ON), now
        assert now.execution_state == host_pb2.EXECUTION_STATE_RUNNING, now
        assert "STAMP WRONG" not in (self.home(vm) / "console.log").read_text()
        seen = self.heartbeat(vm)
        assert seen == list(range(seen[0], seen[0] + len(seen))), "the heartbeat is broken"
        record = owner_record.read(owner_record.owner_path(self.home(vm), vm))
        assert record.owner_host_uuid == (await self.host(host)).info.uuid
        assert is_held(owner_record.run_lock_path(self.home(vm), vm))
        elsewhere = [name for name in self.layout.host_names if name != host and vm in await self.vms(name)]
        assert elsewhere == []


def _endpoint(host: inventory_pb2.Host) -> spec_pb2.HostEndpoint:
    return spec_pb2.HostEndpoint(
        host_id=host.id,
        host_uuid=host.info.uuid,
        name=host.name,
        management_address=host.info.management_address,
        vmotion_address=host.info.vmotion_address,
    )


async def refusal(call: Awaitable[object]) -> VimFault:
    """The fault of a call that must be refused: typed, from a daemon that says its name, under the right status.

    What the caller gets to see holds no traceback, no path of a source file and no Python repr of ours.
    """
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    fault = fault_of(error)
    assert fault.origin, f"no Fault in the details: {error}"
    assert error.code() is STATUS_OF[fault.fault_type], error
    assert_no_traceback(f"{error.details()} {error.trailing_metadata()!r}")
    return fault


def failure(task: task_pb2.TaskInfo) -> VimFault:
    """The fault with which a task failed."""
    assert task.state == task_pb2.TASK_STATE_ERROR, task
    assert_no_traceback(str(task))
    return fault_from_proto(task.error)


def assert_no_traceback(text: str) -> None:
    """Nothing of Python's own is in what a client sees."""
    for word in ("Traceback", 'File "', ".py", "object at 0x", "asyncio"):
        assert word not in text, text


def small_vm(
    ram_mib: int = 64, stamper_mib: int = 4, rate_mib_s: int = 2, vcpus: int = 1
) -> vm_config_pb2.VmConfig:
    """A VM that the fake guest runs; its firmware is another 1 MiB."""
    return vm_config_pb2.VmConfig(
        vcpus=vcpus,
        ram_bytes=ram_mib * MIB,
        boot=vm_config_pb2.Boot(
            kernel="[shared] images/vmlinuz",
            initrd="[shared] images/initrd.img",
            kernel_command_line=kernel_command_line(stamper_mib=stamper_mib, rate=rate_mib_s),
        ),
    )


async def until(
    condition: Callable[[], "asyncio.Future[bool]"] | Callable[[], object],
    what: str,
    within_s: float = _UNTIL_S,
) -> None:
    """Waits for something that no event tells. :raises AssertionError: it didn't come."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        answer = condition()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def linux_cluster_rig(
    folder: Path, host_count: int, cpu_generations: tuple[str, ...] = ()
) -> AsyncIterator[ClusterRig]:
    """A running cluster whose guests are real; afterwards nothing of it runs."""
    with BlockReservation() as block:
        layout = replace(block.layout(folder / "cluster", host_count), cpu_generations=cpu_generations)
        cluster = LocalCluster(layout)
        async with cluster.running(), connect(cluster.client_config) as client:
            yield ClusterRig(cluster, client)
        assert cluster.leftovers() == []


@asynccontextmanager
async def cluster_rig(
    folder: Path,
    host_count: int = 2,
    host_settings: tuple[tuple[str, str], ...] = (),
    cpu_generations: tuple[str, ...] = (),
) -> AsyncIterator[ClusterRig]:
    """A running cluster; afterwards nothing of it runs."""
    with BlockReservation() as block:
        layout = with_fake_guest(block.layout(folder / "cluster", host_count), host_settings)
        layout = replace(layout, cpu_generations=cpu_generations)
        provide_fake_images(layout)
        cluster = LocalCluster(layout, images=None)
        async with cluster.running(), connect(cluster.client_config) as client:
            yield ClusterRig(cluster, client)
        assert cluster.leftovers() == []


def with_fake_guest(layout: ClusterLayout, settings: tuple[tuple[str, str], ...] = ()) -> ClusterLayout:
    """The layout whose hosts run the fake QEMU."""
    return replace(
        layout,
        host_settings=(("HOST_QEMU", str(FAKE_QEMU)), ("HOST_ACCELERATOR", "tcg"), *settings),
        vpxd_settings=(("VPXD_HEARTBEAT_TIMEOUT_S", "2"), ("VPXD_VMOTION_LINK_GBPS", "1")),
    )


def provide_fake_images(layout: ClusterLayout) -> None:
    """Files that stand for a kernel and an initrd: the fake guest doesn't read them."""
    images = layout.shared_datastore / "images"
    images.mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        (images / name).write_bytes(b"fake")


@asynccontextmanager
async def removed_afterwards(rig: ClusterRig, *vms: str) -> AsyncIterator[None]:
    """The VMs are gone after the body, whatever became of them."""
    try:
        yield
    finally:
        for vm in vms:
            with suppress(VimFault):  # the test's own failure is the one to tell
                await rig.remove(vm)
