"""Real hostd processes for tests, each a host of its own: state, run directory, addresses. All that a host has started
is ended with it, by pid."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc

from proto.host.v1 import operations_pb2, storage_pb2, storage_pb2_grpc
from proto.hostd.v1 import service_pb2_grpc
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from runtime.rpc.channel import unix_channel
from runtime.rpc.faults import remote_faults
from runtime.rpc.upload import answer_of
from tests.framework import fake_vmx

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
_T = TypeVar("_T")
_START_TIMEOUT_S = 30.0


async def read_one(call: grpc.aio.UnaryStreamCall[Any, _T]) -> _T:
    """The next message of a stream that hasn't ended."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    return cast(_T, message)


class HostdHost:
    """One host with a hostd; `shared` is the datastore that it has in common with others."""

    def __init__(
        self, directory: Path, number: int, shared: Path, *, vmx_command: str = fake_vmx.COMMAND
    ) -> None:
        self.name = f"esx{number:02}"
        self.state_directory = directory / self.name
        self.run_directory = Path(tempfile.mkdtemp(prefix="hd", dir="/tmp"))
        self.local = directory / f"{self.name}-local"
        self.local.mkdir()
        self.environment = {
            **os.environ,
            "HOST_NAME": self.name,
            "HOST_STATE_DIR": str(self.state_directory),
            "HOST_RUN_DIR": str(self.run_directory),
            "HOST_MANAGEMENT_ADDRESS": f"127.0.1.{number}",
            "HOST_VMOTION_ADDRESS": f"127.0.2.{number}",
            "HOST_DATASTORES": f"shared={shared},local={self.local}",
            "HOST_MEMORY_BYTES": str(1024 * MIB),
            "HOST_VCPU_CAPACITY": "8",
            "HOSTD_VMX_COMMAND": vmx_command,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.aio.Channel | None = None
        self.hostd: service_pb2_grpc.HostdAsyncStub
        self.storage: storage_pb2_grpc.HostStorageAsyncStub

    async def start(self) -> None:
        """Start hostd; returns when it serves."""
        self.state_directory.mkdir(exist_ok=True)
        with open(self.state_directory / "hostd.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hostd"], env=self.environment, cwd=ROOT, stdout=log, stderr=log
            )
        self._channel = unix_channel(self.run_directory / "hostd.sock")
        self.hostd = service_pb2_grpc.HostdStub(self._channel)
        self.storage = storage_pb2_grpc.HostStorageStub(self._channel)
        await self.hostd.GetHost(
            operations_pb2.GetHostRequest(), timeout=_START_TIMEOUT_S, wait_for_ready=True
        )

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End hostd alone; vmx processes and guests live on. Returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = await asyncio.to_thread(self.process.wait, 20)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        self.process = None
        return status

    async def end(self) -> None:
        """End everything of this host."""
        if self.process is not None:
            await self.stop(signal.SIGKILL)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def pids(self) -> Iterator[int]:
        """Every vmx, guest and virtual switch that may live: all of them leave their pids in their run directories."""
        for name in ("vmx.pid", "fake-guest.pid", "guest.pid", "vswitch.pid"):
            for path in self.run_directory.glob(f"*/{name}"):
                yield int(path.read_text().split()[0])

    def vmx_directory(self, vm_uuid: str) -> Path:
        """The run directory of a VM."""
        return self.run_directory / vm_uuid[:13]

    def log(self) -> str:
        """What hostd has logged."""
        return (self.state_directory / "hostd.log").read_text()

    # ---- calls

    async def info(self) -> operations_pb2.GetHostResponse:
        """GetHost."""
        response: operations_pb2.GetHostResponse = await self.hostd.GetHost(
            operations_pb2.GetHostRequest(), timeout=5
        )
        return response

    async def vms(self) -> dict[str, host_pb2.VmState]:
        """The VMs in the first message of WatchHost, by name."""
        call = self.hostd.WatchHost(operations_pb2.WatchHostRequest(), timeout=10)
        first = await read_one(call)
        call.cancel()
        return {vm.name: vm for vm in first.vms}

    async def until(self, name: str, condition: str, timeout_s: float = 15) -> host_pb2.VmState | None:
        """Wait by WatchHost until the VM is "on", "off", "gone", "locked" or "unlocked"."""
        tests: dict[str, Callable[[host_pb2.VmState | None], bool]] = {
            "on": lambda vm: vm is not None and vm.power_state == host_pb2.POWER_STATE_POWERED_ON,
            "off": lambda vm: vm is not None and vm.power_state == host_pb2.POWER_STATE_POWERED_OFF,
            "gone": lambda vm: vm is None,
            "locked": lambda vm: vm is not None and vm.HasField("lock"),
            "unlocked": lambda vm: vm is not None and not vm.HasField("lock"),
        }
        async for response in self.hostd.WatchHost(operations_pb2.WatchHostRequest(), timeout=timeout_s):
            vm = next((vm for vm in response.vms if vm.name == name), None)
            if tests[condition](vm):
                return vm
        raise AssertionError("the stream ended")

    async def create(self, config: vm_config_pb2.VmConfig, datastore: str = "shared") -> host_pb2.VmState:
        """CreateVm."""
        request = operations_pb2.CreateVmRequest(config=config, datastore=datastore, task="task-1")
        with remote_faults(self.name):
            response = await self.hostd.CreateVm(request, timeout=20)
        return response.vm

    async def call(self, rpc: str, vm_uuid: str, task: str = "task-2") -> host_pb2.VmState | None:
        """An rpc that takes a VmRequest."""
        request = operations_pb2.VmRequest(vm_uuid=vm_uuid, task=task)
        with remote_faults(self.name):
            response = await getattr(self.hostd, rpc)(request, timeout=60)
        return response.vm if isinstance(response, operations_pb2.VmResponse) else None

    async def register(self, home: str) -> host_pb2.VmState:
        """RegisterVm."""
        request = operations_pb2.RegisterVmRequest(home=home, task="task-3")
        with remote_faults(self.name):
            response = await self.hostd.RegisterVm(request, timeout=20)
        return response.vm

    async def prepare(self, spec: spec_pb2.MigrationSpec) -> spec_pb2.DestinationTicket:
        """PrepareDestination."""
        with remote_faults(self.name):
            response = await self.hostd.PrepareDestination(
                operations_pb2.PrepareDestinationRequest(spec=spec), timeout=60
            )
        return response.ticket

    async def start_source(self, spec: spec_pb2.MigrationSpec, ticket: spec_pb2.DestinationTicket) -> None:
        """StartSource."""
        with remote_faults(self.name):
            await self.hostd.StartSource(
                operations_pb2.StartSourceRequest(spec=spec, ticket=ticket), timeout=60
            )

    async def migration(
        self, rpc: str, spec: spec_pb2.MigrationSpec
    ) -> operations_pb2.QueryMigrationResponse:
        """CancelMigration, CompleteMigration or QueryMigration."""
        request = operations_pb2.MigrationRequest(migration_id=spec.migration_id)
        with remote_faults(self.name):
            return await getattr(self.hostd, rpc)(request, timeout=60)  # type: ignore[no-any-return]

    async def statuses(self, spec: spec_pb2.MigrationSpec) -> list[operations_pb2.WatchMigrationResponse]:
        """WatchMigration to its end."""
        request = operations_pb2.MigrationRequest(migration_id=spec.migration_id)
        with remote_faults(self.name):
            return [status async for status in self.hostd.WatchMigration(request, timeout=60)]

    async def browse(self, path: str) -> dict[str, storage_pb2.FileInfo]:
        """BrowseFolder, by name."""
        with remote_faults(self.name):
            response = await self.storage.BrowseFolder(storage_pb2.FileRequest(path=path), timeout=20)
        return {file.name: file for file in response.files}

    async def upload(self, path: str, content: bytes, size_bytes: int | None = None) -> str:
        """WriteFile; its SHA-256."""
        with remote_faults(self.name):
            response = await answer_of(
                self.storage.WriteFile(upload_of(path, content, size_bytes), timeout=60)
            )
        return response.sha256

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """DeleteFile."""
        with remote_faults(self.name):
            await self.storage.DeleteFile(storage_pb2.FileRequest(path=path, recursive=recursive), timeout=20)

    async def tell_vmx(self, vm_uuid: str, line: str) -> None:
        """Tell the fake vmx of a VM to do something."""
        await fake_vmx.control(self.vmx_directory(vm_uuid), line)


async def upload_of(
    path: str, content: bytes, size_bytes: int | None = None
) -> AsyncIterator[storage_pb2.WriteFileRequest]:
    """The messages of an upload."""
    size = len(content) if size_bytes is None else size_bytes
    yield storage_pb2.WriteFileRequest(path=path, size_bytes=size)
    for offset in range(0, len(content), MIB):
        yield storage_pb2.WriteFileRequest(data=content[offset : offset + MIB])


def small_vm(name: str, *, annotation: str = "", ram_mib: int = 64, vcpus: int = 1) -> vm_config_pb2.VmConfig:
    """A VM without a kernel."""
    return vm_config_pb2.VmConfig(name=name, vcpus=vcpus, ram_bytes=ram_mib * MIB, annotation=annotation)


async def spec_between(
    source: HostdHost, destination: HostdHost, vm: host_pb2.VmState
) -> spec_pb2.MigrationSpec:
    """A spec as vpxd makes it."""
    first, second = (await source.info()).host, (await destination.info()).host
    stores = {store.name: store.uuid for store in first.datastores}
    return spec_pb2.MigrationSpec(
        migration_id=secrets.randbits(62) + 1,
        task_id="task-9",
        operation_id="0badcafe",
        vm=vm.config,
        vm_id="vm-1",
        vm_home=vm.home,
        home_datastore_uuid=stores[vm.home[1:].partition("]")[0]],
        source=spec_pb2.HostEndpoint(
            host_id="host-1", host_uuid=first.uuid, name=first.name, vmotion_address=first.vmotion_address
        ),
        destination=spec_pb2.HostEndpoint(
            host_id="host-2", host_uuid=second.uuid, name=second.name, vmotion_address=second.vmotion_address
        ),
        key=b"k" * 32,
    )
