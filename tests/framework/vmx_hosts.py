"""Real vmx processes on "hosts" that are no more than a name, an address and a run directory: no hostd, no vpxd.

Everything that is started here is ended by `close`, by pid.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from images.cmdline import kernel_command_line
from proto.host.v1 import operations_pb2
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2, service_pb2_grpc
from runtime.ondisk import owner_record
from runtime.rpc.channel import unix_channel
from runtime.rpc.faults import remote_faults
from tests.framework.guest_processes import GUEST_INITRD, GUEST_KERNEL

if TYPE_CHECKING:  # in the stubs only
    from proto.vmx.v1.service_pb2_grpc import VmxAsyncStub

REPOSITORY = Path(__file__).resolve().parents[2]
_START_DEADLINE_S = 20.0


@dataclass(frozen=True)
class VmxHost:
    """A host as far as vmx knows one."""

    name: str
    uuid: str
    vmotion_address: str


@dataclass
class VmxProcess:
    """One vmx process and its client."""

    host: VmxHost
    run_dir: Path
    process: subprocess.Popen[bytes]
    stub: "VmxAsyncStub"
    close_channel: contextlib.AsyncExitStack

    async def state(self) -> service_pb2.GetStateResponse:
        """What the VM does now."""
        response: service_pb2.GetStateResponse = await self.stub.GetState(
            service_pb2.GetStateRequest(), timeout=10
        )
        return response

    async def ended(self, deadline_s: float = 10.0) -> int:
        """Waits for the end of the process; returns its exit status."""
        return await asyncio.to_thread(self.process.wait, deadline_s)


@dataclass
class VmxHosts:
    """A VM's home on a datastore seen by all hosts, and the vmx processes that run or receive it.

    `environment`: what the vmx processes that start from now on have besides, by host name.
    """

    folder: Path
    qemu_binary: Path
    ram_bytes: int = 128 << 20
    stamper_mib: int = 16
    rate_mib_s: int = 20
    guest_cpu: vm_config_pb2.GuestCpu | None = None
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    started: list[VmxProcess] = field(default_factory=list)
    vm_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    _warm: dict[str, VmxProcess] = field(default_factory=dict)
    run_root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vmxt-")))

    def __post_init__(self) -> None:
        self.home = self.folder / "web01"
        self.home.mkdir(parents=True)
        self.hosts = [VmxHost(f"esx0{n}", str(uuid.uuid4()), f"127.0.212.{n}") for n in (1, 2, 3)]
        owner_record.create(owner_record.owner_path(self.home, "web01"), self.vm_uuid, self.hosts[0].uuid)

    @property
    def config(self) -> vm_config_pb2.VmConfig:
        """The VM's configuration."""
        return vm_config_pb2.VmConfig(
            uuid=self.vm_uuid,
            name="web01",
            vcpus=1,
            ram_bytes=self.ram_bytes,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            guest_cpu=self.guest_cpu,
            boot=vm_config_pb2.Boot(
                kernel_command_line=kernel_command_line(
                    stamper_mib=self.stamper_mib, rate=self.rate_mib_s, sweep_mib_s=64
                )
            ),
        )

    def place(self, host: VmxHost) -> service_pb2.VmPlace:
        """Where the VM's files are on `host`."""
        return service_pb2.VmPlace(
            home_directory=str(self.home),
            kernel_path=str(GUEST_KERNEL),
            initrd_path=str(GUEST_INITRD),
            host_uuid=host.uuid,
            host_name=host.name,
        )

    async def warm_up(self, *hosts: VmxHost) -> None:
        """Start vmx processes that `start_vmx` will find running: side by side it takes half the time."""
        for vmx in await asyncio.gather(*(self._start_vmx(host) for host in hosts)):
            self._warm[vmx.host.name] = vmx

    async def start_vmx(self, host: VmxHost) -> VmxProcess:
        """Start a vmx process on `host`; returns when it answers."""
        return self._warm.pop(host.name, None) or await self._start_vmx(host)

    async def _start_vmx(self, host: VmxHost) -> VmxProcess:
        run_dir = self.run_root / f"{len(self.started)}"
        run_dir.mkdir(mode=0o700)
        environment = {
            **os.environ,
            "VMX_VM_UUID": self.vm_uuid,
            "VMX_RUN_DIR": str(run_dir),
            "VMX_HOST_NAME": host.name,
            "VMX_HOST_UUID": host.uuid,
            "VMX_VMOTION_ADDRESS": host.vmotion_address,
            "VMX_QEMU": str(self.qemu_binary),
            "FAKE_QEMU_DIE_WITH_PARENT": "1",
            **self.environment.get(host.name, {}),
        }
        with open(run_dir / "vmx.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "vmx"], env=environment, cwd=REPOSITORY, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        channel = unix_channel(run_dir / "vmx.sock")
        resources = contextlib.AsyncExitStack()
        resources.push_async_callback(channel.close)
        started = VmxProcess(host, run_dir, process, service_pb2_grpc.VmxStub(channel), resources)
        self.started.append(started)
        await started.stub.GetState(
            service_pb2.GetStateRequest(), timeout=_START_DEADLINE_S, wait_for_ready=True
        )
        return started

    async def power_on(self, host: VmxHost | None = None) -> VmxProcess:
        """Start a vmx and its guest on `host` (the first one)."""
        vmx = await self.start_vmx(host or self.hosts[0])
        with remote_faults("vmx"):
            await vmx.stub.PowerOn(
                service_pb2.PowerOnRequest(config=self.config, place=self.place(vmx.host)), timeout=60
            )
        return vmx

    def spec(
        self, source: VmxHost, destination: VmxHost, options: spec_pb2.MigrationOptions | None = None
    ) -> spec_pb2.MigrationSpec:
        """The specification of one migration."""
        return spec_pb2.MigrationSpec(
            migration_id=secrets.randbits(63) or 1,
            task_id="task-1",
            vm=self.config,
            source=_endpoint(source),
            destination=_endpoint(destination),
            key=secrets.token_bytes(32),
            options=options,
        )

    async def prepare(
        self, destination: VmxHost, spec: spec_pb2.MigrationSpec
    ) -> tuple[VmxProcess, spec_pb2.DestinationTicket]:
        """A masked destination."""
        vmx = await self.start_vmx(destination)
        with remote_faults("vmx"):
            response = await vmx.stub.PrepareDestination(
                service_pb2.PrepareDestinationRequest(spec=spec, place=self.place(destination)), timeout=60
            )
        return vmx, response.ticket

    async def start(
        self, source: VmxProcess, spec: spec_pb2.MigrationSpec, ticket: spec_pb2.DestinationTicket
    ) -> None:
        """Start the source's half."""
        with remote_faults("vmx"):
            await source.stub.StartSource(
                service_pb2.StartSourceRequest(spec=spec, ticket=ticket), timeout=30
            )

    async def outcome(
        self, vmx: VmxProcess, migration_id: int, deadline_s: float = 60.0
    ) -> operations_pb2.WatchMigrationResponse:
        """The last state of a migration on one side."""
        last: operations_pb2.WatchMigrationResponse | None = None
        with remote_faults("vmx"):
            request = operations_pb2.MigrationRequest(migration_id=migration_id)
            async for status in vmx.stub.WatchMigration(request, timeout=deadline_s):
                last = status
        assert last is not None
        return last

    async def phase_reached(
        self, vmx: VmxProcess, migration_id: int, phase: status_pb2.MigrationPhase.ValueType
    ) -> None:
        """Waits until one side of a migration is in `phase` or beyond it."""
        request = operations_pb2.MigrationRequest(migration_id=migration_id)
        call = vmx.stub.WatchMigration(request, timeout=30)
        async for response in call:
            if response.status.phase >= phase:
                break
        call.cancel()

    async def complete(self, vmx: VmxProcess, migration_id: int) -> None:
        """Complete one side."""
        with remote_faults("vmx"):
            request = operations_pb2.MigrationRequest(migration_id=migration_id)
            await vmx.stub.CompleteMigration(request, timeout=30)

    async def cancel(self, vmx: VmxProcess, migration_id: int) -> None:
        """Cancel one side."""
        with remote_faults("vmx"):
            request = operations_pb2.MigrationRequest(migration_id=migration_id)
            await vmx.stub.CancelMigration(request, timeout=30)

    def heartbeat_lines(self) -> list[str]:
        """Whole lines of the guest's heartbeat so far, from whichever host."""
        path = self.home / "heartbeat.log"
        return path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []

    async def heartbeats_beyond(self, count: int, deadline_s: float = 60.0) -> list[str]:
        """Waits until more than `count` heartbeats are there. A file has no event to wait for: it is read again."""
        async with asyncio.timeout(deadline_s):
            while len(lines := self.heartbeat_lines()) <= count:
                await asyncio.sleep(0.02)
        return lines

    def console(self) -> str:
        """The guest's console so far."""
        path = self.home / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def qemu_pids(self) -> list[int]:
        """The living guest processes of this VM, whoever's they are: their sockets are below `run_root`."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.fsencode(self.run_root) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False  # it has ended meanwhile

    async def close(self) -> None:
        """End every process that was started here, guests included."""
        for vmx in self.started:
            if vmx.process.poll() is None:
                vmx.process.kill()
                await asyncio.to_thread(vmx.process.wait)
            await vmx.close_channel.aclose()
        for pid in self.qemu_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.run_root, ignore_errors=True)


def _endpoint(host: VmxHost) -> spec_pb2.HostEndpoint:
    return spec_pb2.HostEndpoint(
        host_id="host-1",
        host_uuid=host.uuid,
        name=host.name,
        management_address="127.0.0.1",
        vmotion_address=host.vmotion_address,
    )
