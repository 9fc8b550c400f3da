"""FakeVpxd: a small in-process Vpxd service over real mutual TLS, for tests of clients.

It keeps three hosts and the VMs that were put into it, and plays scripted tasks: a script is a list of TaskInfo that
WatchTask tells one after the other. It checks nothing: what a test wants refused, it says in `refusals`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import status_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2, service_pb2_grpc
from runtime.faults import ManagedObjectNotFound, VimFault
from runtime.rpc.faults import fault_to_proto
from runtime.rpc.identity import ClusterAuthority, Role
from runtime.rpc.server import network_server

MIB = 1 << 20

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]  # generic in its stub only
else:
    Context = grpc.aio.ServicerContext


@dataclass
class World:
    """What the fake answers; a test changes it at will (from its own thread: between calls)."""

    hosts: list[inventory_pb2.Host] = field(default_factory=list)
    vms: list[inventory_pb2.Vm] = field(default_factory=list)
    tasks: dict[str, list[task_pb2.TaskInfo]] = field(default_factory=dict)
    scripts: dict[str, list[task_pb2.TaskInfo]] = field(default_factory=dict)  # by rpc name: the next task's
    refusals: dict[str, VimFault] = field(default_factory=dict)  # by rpc name
    findings: list[service_pb2.HostFindings] = field(default_factory=list)
    console: list[bytes] = field(default_factory=list)
    events: list[task_pb2.Event] = field(default_factory=list)
    requests: list[tuple[str, Message]] = field(default_factory=list)  # what was asked
    step_s: float = 0.0  # between two states of a watched task
    hold: bool = False  # watched tasks stay at their first state


class FakeVpxd(service_pb2_grpc.VpxdServicer):
    """The servicer; `running_fake_vpxd` starts it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _asked(self, name: str, request: Message) -> None:
        self.world.requests.append((name, request))
        if name in self.world.refusals:
            raise self.world.refusals[name]

    def _begin(self, name: str, operation: str, entity: str, request: Message) -> task_pb2.TaskInfo:
        self._asked(name, request)
        number = len(self.world.tasks) + 1
        script = self.world.scripts.get(name) or [
            task(state=task_pb2.TASK_STATE_SUCCESS, progress_percent=100)
        ]
        states = []
        for one in script:
            state = task_pb2.TaskInfo()
            state.CopyFrom(one)
            state.id, state.operation, state.entity_name = f"task-{number}", operation, entity
            states.append(state)
        self.world.tasks[f"task-{number}"] = states
        return states[0]

    def _vm(self, key: str) -> inventory_pb2.Vm:
        for vm in self.world.vms:
            if key in (vm.id, vm.name):
                return vm
        raise ManagedObjectNotFound(f"There is no VM {key}.", kind="vm", key=key)

    def _task(self, key: str) -> list[task_pb2.TaskInfo]:
        if key not in self.world.tasks:
            raise ManagedObjectNotFound(f"There is no task {key}.", kind="task", key=key)
        return self.world.tasks[key]

    async def GetAbout(self, request: Any, context: Context) -> service_pb2.GetAboutResponse:
        self._asked("GetAbout", request)
        return service_pb2.GetAboutResponse(
            product="vpx", version="0.1.0", cluster_uuid="u", ca_fingerprint="f" * 64
        )

    async def CreateJoinToken(self, request: Any, context: Context) -> service_pb2.CreateJoinTokenResponse:
        self._asked("CreateJoinToken", request)
        return service_pb2.CreateJoinTokenResponse(
            token="tkn-1", ca_fingerprint="f" * 64, join_address="127.0.0.1:7444"
        )

    async def AddHost(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._begin("AddHost", "HostSystem.add", request.name, request)

    async def RemoveHost(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._begin("RemoveHost", "HostSystem.remove", request.host, request)

    async def ListHosts(self, request: Any, context: Context) -> service_pb2.ListHostsResponse:
        self._asked("ListHosts", request)
        return service_pb2.ListHostsResponse(hosts=self.world.hosts)

    async def ListDatacenters(self, request: Any, context: Context) -> service_pb2.ListDatacentersResponse:
        self._asked("ListDatacenters", request)
        one = inventory_pb2.Datacenter(id="datacenter-1", name="Datacenter")
        return service_pb2.ListDatacentersResponse(datacenters=[one])

    async def ListClusters(self, request: Any, context: Context) -> service_pb2.ListClustersResponse:
        self._asked("ListClusters", request)
        one = inventory_pb2.Cluster(id="domain-c1", name="Cluster", datacenter="datacenter-1", host_count=3)
        return service_pb2.ListClustersResponse(clusters=[one])

    async def CreateCluster(self, request: Any, context: Context) -> inventory_pb2.Cluster:
        self._asked("CreateCluster", request)
        return inventory_pb2.Cluster(id="domain-c2", name=request.name, datacenter="datacenter-1")

    async def ListDatastores(self, request: Any, context: Context) -> service_pb2.ListDatastoresResponse:
        self._asked("ListDatastores", request)
        hosts = [host.id for host in self.world.hosts]
        one = inventory_pb2.Datastore(
            id="datastore-1",
            name="shared",
            uuid="d-1",
            capacity_bytes=10 << 30,
            free_bytes=7 << 30,
            hosts=hosts,
        )
        return service_pb2.ListDatastoresResponse(datastores=[one])

    async def ListNetworks(self, request: Any, context: Context) -> service_pb2.ListNetworksResponse:
        self._asked("ListNetworks", request)
        hosts = [host.id for host in self.world.hosts]
        one = inventory_pb2.Network(id="network-1", name="VM Network", hosts=hosts)
        return service_pb2.ListNetworksResponse(networks=[one])

    async def ListVms(self, request: Any, context: Context) -> service_pb2.ListVmsResponse:
        self._asked("ListVms", request)
        found = [
            vm
            for vm in self.world.vms
            if request.name in ("", vm.name) and request.host in ("", vm.host, vm.host_name)
        ]
        return service_pb2.ListVmsResponse(vms=found)

    async def GetVm(self, request: Any, context: Context) -> inventory_pb2.Vm:
        self._asked("GetVm", request)
        return self._vm(request.vm)

    async def CreateVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._begin("CreateVm", "Folder.createVm", request.config.name, request)

    async def RegisterVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._begin("RegisterVm", "Folder.registerVm", request.home, request)

    async def UnregisterVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("UnregisterVm", "VirtualMachine.unregister", request)

    async def PowerOnVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("PowerOnVm", "VirtualMachine.powerOn", request)

    async def PowerOffVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("PowerOffVm", "VirtualMachine.powerOff", request)

    async def ResetVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("ResetVm", "VirtualMachine.reset", request)

    async def DestroyVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("DestroyVm", "VirtualMachine.destroy", request)

    async def ReconfigureVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("ReconfigureVm", "VirtualMachine.reconfigure", request)

    async def MigrateVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("MigrateVm", "VirtualMachine.migrate", request)

    def _on_vm(self, name: str, operation: str, request: Any) -> task_pb2.TaskInfo:
        return self._begin(name, operation, self._vm(request.vm).name, request)

    async def CheckMigrate(self, request: Any, context: Context) -> service_pb2.CheckMigrateResponse:
        self._asked("CheckMigrate", request)
        self._vm(request.vm)
        return service_pb2.CheckMigrateResponse(hosts=self.world.findings)

    async def RelocateVm(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        return self._on_vm("RelocateVm", "VirtualMachine.relocate", request)

    async def CheckRelocate(self, request: Any, context: Context) -> service_pb2.CheckMigrateResponse:
        self._asked("CheckRelocate", request)
        self._vm(request.vm)
        return service_pb2.CheckMigrateResponse(hosts=self.world.findings)

    async def RecommendHosts(self, request: Any, context: Context) -> service_pb2.RecommendHostsResponse:
        self._asked("RecommendHosts", request)
        self._vm(request.vm)
        return service_pb2.RecommendHostsResponse()

    async def ReadConsole(
        self, request: Any, context: Context
    ) -> AsyncIterator[operations_pb2.ReadConsoleResponse]:
        self._asked("ReadConsole", request)
        self._vm(request.vm)
        for data in self.world.console:
            yield operations_pb2.ReadConsoleResponse(data=data)
        if request.follow:
            await asyncio.Event().wait()

    async def ListTasks(self, request: Any, context: Context) -> service_pb2.ListTasksResponse:
        self._asked("ListTasks", request)
        return service_pb2.ListTasksResponse(tasks=[states[-1] for states in self.world.tasks.values()])

    async def GetTask(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        self._asked("GetTask", request)
        return self._task(request.task)[-1]

    async def WatchTask(self, request: Any, context: Context) -> AsyncIterator[task_pb2.TaskInfo]:
        self._asked("WatchTask", request)
        for state in self._task(request.task):
            yield state
            if self.world.hold:
                await asyncio.Event().wait()
            await asyncio.sleep(self.world.step_s)

    async def CancelTask(self, request: Any, context: Context) -> task_pb2.TaskInfo:
        self._asked("CancelTask", request)
        return self._task(request.task)[-1]

    async def ListEvents(self, request: Any, context: Context) -> service_pb2.ListEventsResponse:
        self._asked("ListEvents", request)
        return service_pb2.ListEventsResponse(events=self.world.events)

    async def WatchEvents(self, request: Any, context: Context) -> AsyncIterator[task_pb2.Event]:
        self._asked("WatchEvents", request)
        for event in self.world.events:
            if event.id > request.after_id:
                yield event
        await asyncio.Event().wait()


@contextmanager
def running_fake_vpxd(directory: Path, world: World) -> Iterator[Path]:
    """Serves on a free port in a thread of its own while the body runs; gives the client.json for it."""
    authority = ClusterAuthority.create(directory / "ca", "test cluster")
    identity = authority.new_identity(Role.VPXD, "vpxd", ["127.0.0.1"])
    client = directory / "client"
    authority.new_identity(Role.CLIENT, "admin").save(client)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    address: list[str] = []
    ready = threading.Event()

    async def serve() -> None:
        server = network_server("127.0.0.1:0", identity, frozenset({Role.CLIENT}), "vpxd")
        service_pb2_grpc.add_VpxdServicer_to_server(FakeVpxd(world), server.grpc)
        await server.start()
        address.append(server.address)
        ready.set()
        await stop.wait()
        await server.stop(0.0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="fake-vpxd")
    thread.start()
    assert ready.wait(10), "the fake vpxd doesn't start"
    config = client / "client.json"
    config.write_text(f'{{"server": "{address[0]}", "server_name": "vpxd"}}')
    try:
        yield config
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def task(**values: Any) -> task_pb2.TaskInfo:
    """A state of a scripted task."""
    values.setdefault("id", "task-1")
    values.setdefault("state", task_pb2.TASK_STATE_RUNNING)
    values.setdefault("user", "admin")
    return task_pb2.TaskInfo(**values)


def failed(error: VimFault, origin: str = "vpxd") -> task_pb2.TaskInfo:
    """The last state of a task that ends with the fault and its causes."""
    return task(state=task_pb2.TASK_STATE_ERROR, error=fault_to_proto(error, origin))


def host(number: int) -> inventory_pb2.Host:
    """esx01, esx02, ..."""
    name = f"esx{number:02}"
    info = host_pb2.HostInfo(
        uuid=f"0000-{number}",
        name=name,
        management_address=f"127.0.1.{number}:8443",
        vmotion_address=f"127.0.2.{number}",
        memory_bytes=8 << 30,
        cpu_cores=2,
        vcpu_capacity=16,
        capability=host_pb2.HostCapability(
            qemu_version="7.2.22",
            machine_types=["pc-q35-2.9", "pc-q35-7.2", "pc-q35-7.1"],
            accelerator="tcg",
            stream_version_min=1,
            stream_version_max=1,
        ),
        datastores=[
            host_pb2.Datastore(
                name="shared", uuid="d", capacity_bytes=10 << 30, free_bytes=7 << 30, accessible=True
            )
        ],
        version="0.1.0",
    )
    usage = host_pb2.HostUsage(memory_reserved_bytes=512 * MIB, vcpus_reserved=1, cpu_percent=12.4)
    return inventory_pb2.Host(
        id=f"host-{number}",
        name=name,
        cluster="domain-c1",
        address=f"127.0.1.{number}:8443",
        connection_state=host_pb2.HOST_CONNECTION_STATE_CONNECTED,
        info=info,
        usage=usage,
        vm_count=1,
    )


def vm(name: str = "web01", number: int = 1, on: bool = True) -> inventory_pb2.Vm:
    """A VM on esx01."""
    power = host_pb2.POWER_STATE_POWERED_ON if on else host_pb2.POWER_STATE_POWERED_OFF
    doing = host_pb2.EXECUTION_STATE_RUNNING if on else host_pb2.EXECUTION_STATE_OFF
    return inventory_pb2.Vm(
        id=f"vm-{number}",
        name=name,
        host="host-1",
        host_name="esx01",
        home=f"[shared] {name}/{name}.vmx",
        connection_state=inventory_pb2.VM_CONNECTION_STATE_CONNECTED,
        power_state=power,
        execution_state=doing,
        memory_used_bytes=143 * MIB if on else 0,
        cpu_percent=17.3 if on else 0.0,
        uptime_s=3725.0 if on else 0.0,
        config=vm_config_pb2.VmConfig(
            uuid="52c0ffee-0000-4000-8000-000000000001",
            name=name,
            vcpus=1,
            ram_bytes=512 * MIB,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            boot=vm_config_pb2.Boot(
                kernel="[shared] images/vmlinuz",
                initrd="[shared] images/initrd.img",
                kernel_command_line="console=ttyS0",
            ),
            change_version=4,
        ),
    )


_LAST_FIGURES: dict[str, Any] = {
    "wire_bytes": 156_000_000,
    "stun_ms": 7.86,
    "stun_parts": status_pb2.StunParts(
        stop_ms=0.62, last_pages_ms=1.31, device_state_ms=3.9, hand_over_ms=1.53, resume_ms=0.5
    ),
    "phases": [
        status_pb2.PhaseTime(phase=phase, duration_ms=duration_ms)  # type: ignore[arg-type]
        for phase, duration_ms in (
            (1, 96.0),
            (2, 9.1),
            (3, 201.0),
            (4, 1.9),
            (5, 3.9),
            (6, 2.0),
            (7, 61.0),
            (8, 12.5),
        )
    ],
    "device_state_bytes": 231_442,
    "qemu_ram_transferred_bytes": 8_192,
    "total_ms": 412.7,
    "switchover_reason": "143 pages left can be sent in 0.7 ms, within the switchover goal of 10 ms",
}


def migration_script(steps_per_pass: int = 4) -> list[task_pb2.TaskInfo]:
    """A live migration as vpxd tells it: prepare, two passes, stun, verification, success."""
    states: list[task_pb2.TaskInfo] = []
    passes: list[status_pb2.Iteration] = []

    def add(phase: int, percent: int, words: str, **values: Any) -> None:
        status = status_pb2.MigrationStatus(
            migration_id=0x1234567890ABCDEF,
            phase=phase,  # type: ignore[arg-type]
            ram_bytes=512 * MIB,
            iterations=passes,
            tracer="pagemap_scan",
            encrypted=True,
            streams=2,
            **values,
        )
        states.append(
            task(progress_percent=percent, description=words, cancelable=percent < 80, migration=status)
        )

    add(status_pb2.MIGRATION_PHASE_PREPARE, 2, "preparing the destination esx02")
    add(status_pb2.MIGRATION_PHASE_HANDSHAKE, 5, "connecting on the vMotion network")
    for number, (pages, zero, dirty, ms) in enumerate(((36_608, 1_204, 2_611, 181.4), (2_611, 0, 143, 9.7))):
        for step in range(steps_per_pass):
            sent = pages * step // steps_per_pass
            add(
                status_pb2.MIGRATION_PHASE_PRE_COPY,
                10 + 60 * number // 2 + 30 * step // steps_per_pass,
                f"copying memory, pass {number}",
                iteration=number,
                pages_total=pages,
                pages_sent=sent,
                pages_remaining=pages - sent,
                rate_bytes_per_s=820e6,
                dirty_rate_bytes_per_s=21e6,
            )
        passes.append(
            status_pb2.Iteration(
                number=number,
                pages=pages,
                zero_pages=zero,
                ram_bytes=pages * 4096,
                wire_bytes=(pages - zero) * 4112,
                duration_ms=ms,
                dirty_pages=dirty,
            )
        )
    add(status_pb2.MIGRATION_PHASE_STUN, 80, "guest stunned, last pages")
    add(status_pb2.MIGRATION_PHASE_VERIFY, 90, "comparing both memories", **_LAST_FIGURES)
    add(status_pb2.MIGRATION_PHASE_SUCCEEDED, 100, "done", memory_verified=True, **_LAST_FIGURES)
    states[-1].state = task_pb2.TASK_STATE_SUCCESS
    return states
