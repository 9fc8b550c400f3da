"""A fake vmx: a real process that serves the Vmx service on its unix socket, with a `sleep` as its guest.

    python tests/framework/fake_vmx.py     with the environment that hostd gives a vmx

It keeps to vmx's contract with hostd: socket, pid file, run lock inherited by the guest, owner record, states, end of
the process. What it does beyond that is told to it: at the start by words in the VM's annotation (`fail-start`,
`fail-prepare`, `hang-prepare`, `deaf-power-off`, `fail-commit`), later by lines on its control socket (`control` below
sends them):

    progress N     the migration is in iteration N of pre-copy
    hand-over      source: the owner record names the destination, the guest is stunned
    succeed        source: hand-over, if not done yet, and the status ends with success
    arrive         destination: the guest runs here and the status ends with success
    copies-equal   relocation: both copies of every moved disk are equal; its commit ends the status with success, with
                   `fail-commit` in the annotation with a failure after the first disk was switched
    fail           the status ends with a failure; a destination ends, and so does a VM that is powered off
    guest-dies     the guest's process dies
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2, service_pb2_grpc
from runtime.faults import (
    GuestStartFailed,
    InvalidState,
    ManagedObjectNotFound,
    MigrationFault,
    MigrationNotReady,
    PastPointOfNoReturn,
    TaskInProgress,
)
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import RunLock
from runtime.rpc.faults import fault_to_proto
from runtime.rpc.server import unix_server

COMMAND = f"{sys.executable} {Path(__file__).resolve()}"
_LAST_PHASES = frozenset({status_pb2.MIGRATION_PHASE_SUCCEEDED, status_pb2.MIGRATION_PHASE_FAILED})
_COPIED = frozenset({status_pb2.MIGRATION_PHASE_SWITCHOVER, *_LAST_PHASES})
_LIFE_S = "120"  # of a guest that everybody has forgotten
_RAM_USED_BYTES = 12 << 20


async def control(run_directory: Path, line: str) -> None:
    """Tell the fake vmx in this run directory to do something; returns when it's done."""
    reader, writer = await asyncio.open_unix_connection(str(run_directory / "control.sock"))
    writer.write(line.encode() + b"\n")
    answer = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    assert answer == b"ok\n", answer


class FakeVmx(service_pb2_grpc.VmxServicer):
    """One VM; the rpcs do what the module's docstring says."""

    def __init__(self, run_directory: Path, host_uuid: str) -> None:
        self.ended = asyncio.Event()
        self._run_directory = run_directory
        self._host_uuid = host_uuid
        self._state = service_pb2.GetStateResponse(
            vm_uuid=os.environ["VMX_VM_UUID"], execution_state=host_pb2.EXECUTION_STATE_OFF
        )
        self._changed = asyncio.Event()
        self._guest: subprocess.Popen[bytes] | None = None
        self._lock: RunLock | None = None
        self._owner_path = Path()
        self._annotation = ""
        self._spec: spec_pb2.MigrationSpec | None = None
        self._is_source = False
        self._new_home: tuple[Path, RunLock] | None = None  # of a relocation: owner record and lock
        self._status = operations_pb2.WatchMigrationResponse()

    # ---- the service

    async def PowerOn(
        self, request: service_pb2.PowerOnRequest, context: Any
    ) -> service_pb2.GetStateResponse:
        if self._state.execution_state != host_pb2.EXECUTION_STATE_OFF:
            raise InvalidState("not off")
        self._set(host_pb2.EXECUTION_STATE_STARTING)
        lock = self._open(request.config, request.place)
        lock.acquire()
        if "fail-start" in self._annotation:
            raise GuestStartFailed("The fake guest was told not to start.", reason="fail-start")
        self._start_guest(lock)
        with open(Path(request.place.home_directory) / "console.log", "ab") as console:
            console.write(b"fake guest boots\n")
        self._set(host_pb2.EXECUTION_STATE_RUNNING)
        return self._state

    async def PowerOff(
        self, request: service_pb2.PowerOffRequest, context: Any
    ) -> service_pb2.PowerOffResponse:
        if self._migrating:
            raise TaskInProgress("migrating", task="task-of-vmx")
        if "deaf-power-off" in self._annotation:
            await asyncio.sleep(600)
        self._end()
        return service_pb2.PowerOffResponse()

    async def Reset(self, request: service_pb2.ResetRequest, context: Any) -> service_pb2.GetStateResponse:
        return self._state

    async def GetState(
        self, request: service_pb2.GetStateRequest, context: Any
    ) -> service_pb2.GetStateResponse:
        return self._state

    async def WatchState(
        self, request: service_pb2.GetStateRequest, context: Any
    ) -> AsyncIterator[service_pb2.GetStateResponse]:
        while True:
            changed = self._changed
            yield self._state
            if self.ended.is_set():
                return
            await changed.wait()

    async def PrepareDestination(
        self, request: service_pb2.PrepareDestinationRequest, context: Any
    ) -> operations_pb2.PrepareDestinationResponse:
        self._spec = request.spec
        lock = self._open(request.spec.vm, request.place)
        if "fail-prepare" in self._annotation:
            raise GuestStartFailed("The fake guest was told not to be prepared.", reason="fail-prepare")
        if not request.spec.powered_off:
            self._start_guest(lock)
        if "hang-prepare" in self._annotation:
            await asyncio.sleep(600)
        self._publish(status_pb2.MIGRATION_PHASE_PREPARE)
        if not request.spec.powered_off:
            self._set(host_pb2.EXECUTION_STATE_IMMIGRATING)
        ticket = spec_pb2.DestinationTicket(
            migration_id=request.spec.migration_id,
            vmotion_address=request.spec.destination.vmotion_address,
            port=8000,
            token=b"t" * 32,
            ram_bytes=0 if request.spec.powered_off else request.spec.vm.ram_bytes,
        )
        return operations_pb2.PrepareDestinationResponse(ticket=ticket)

    async def StartSource(
        self, request: service_pb2.StartSourceRequest, context: Any
    ) -> operations_pb2.EmptyResponse:
        assert request.spec.key == b"k" * 32, "the key comes through unchanged"
        if request.spec.powered_off:
            self._open(request.spec.vm, request.place).acquire()
        self._spec, self._is_source = request.spec, True
        self._publish(status_pb2.MIGRATION_PHASE_HANDSHAKE)
        if not request.spec.powered_off:
            self._set(host_pb2.EXECUTION_STATE_EMIGRATING)
        return operations_pb2.EmptyResponse()

    async def StartRelocation(
        self, request: service_pb2.StartRelocationRequest, context: Any
    ) -> operations_pb2.EmptyResponse:
        spec = request.spec
        if self._migrating:
            raise TaskInProgress("migrating", task="task-of-vmx")
        if (self._state.execution_state == host_pb2.EXECUTION_STATE_RUNNING) == spec.powered_off:
            raise InvalidState("not as the specification says")
        assert spec.source.host_uuid == spec.destination.host_uuid == self._host_uuid
        there = {disk.key: Path(disk.extent_path) for disk in request.destination.disks}
        assert all(there[key].exists() for key in spec.moved_disks), "hostd makes the files"
        if spec.powered_off:
            self._open(spec.vm, request.source).acquire()
        elif _moves_home(spec):
            home = Path(request.destination.home_directory)
            lock = RunLock.open(owner_record.run_lock_path(home, spec.vm.name))
            lock.acquire()
            self._new_home = owner_record.owner_path(home, spec.vm.name), lock
        self._spec, self._is_source = spec, True
        self._status.Clear()
        self._publish(status_pb2.MIGRATION_PHASE_DISK_COPY)
        return operations_pb2.EmptyResponse()

    async def CommitRelocation(
        self, request: operations_pb2.MigrationRequest, context: Any
    ) -> operations_pb2.EmptyResponse:
        self._require_migration(request)
        if self._status.status.phase not in _COPIED:
            raise MigrationNotReady("the copies aren't equal", reason="copying")
        if self._status.HasField("fault"):
            raise MigrationFault(self._status.status.failure, phase="confirm")
        self._commit()
        return operations_pb2.EmptyResponse()

    async def WatchMigration(
        self, request: operations_pb2.MigrationRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchMigrationResponse]:
        self._require_migration(request)
        while True:
            changed = self._changed
            yield self._status
            if self._status.status.phase in _LAST_PHASES:
                return
            await changed.wait()

    async def CancelMigration(
        self, request: operations_pb2.MigrationRequest, context: Any
    ) -> operations_pb2.EmptyResponse:
        self._require_migration(request)
        if self._status.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
            raise PastPointOfNoReturn("over")
        if self._migrating:
            self._do("fail")
        return operations_pb2.EmptyResponse()

    async def CompleteMigration(
        self, request: operations_pb2.MigrationRequest, context: Any
    ) -> operations_pb2.EmptyResponse:
        self._require_migration(request)
        if self._status.status.phase != status_pb2.MIGRATION_PHASE_SUCCEEDED:
            raise MigrationNotReady("not yet")
        assert self._spec is not None
        if self._is_source and (not self._is_relocation or self._spec.powered_off):
            self._end()
        return operations_pb2.EmptyResponse()

    # ---- what it is told

    async def serve_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One line, one answer."""
        line = (await reader.readline()).decode().strip()
        try:
            self._do(line)
            writer.write(b"ok\n")
        except Exception as error:  # noqa: BLE001 told to the test
            writer.write(f"{type(error).__name__}: {error}\n".encode())
        await writer.drain()
        writer.close()

    def _do(self, line: str) -> None:
        match line.split():
            case ["progress", iteration]:
                self._status.status.iteration = int(iteration)
                self._publish(status_pb2.MIGRATION_PHASE_PRE_COPY)
            case ["hand-over"]:
                self._hand_over()
            case ["succeed"]:
                if self._state.execution_state != host_pb2.EXECUTION_STATE_STUNNED:
                    self._hand_over()
                self._publish(status_pb2.MIGRATION_PHASE_SUCCEEDED)
            case ["arrive"]:
                self._arrive()
                self._publish(status_pb2.MIGRATION_PHASE_SUCCEEDED)
            case ["copies-equal"]:
                assert self._is_relocation
                self._publish(status_pb2.MIGRATION_PHASE_SWITCHOVER)
            case ["fail"]:
                self._fail(MigrationFault("The fake migration was told to fail.", phase="pre-copy"))
            case ["guest-dies"]:
                assert self._guest is not None
                self._guest.kill()
                self._guest.wait()
                self._state.failure = "The fake guest died."
                self._set(host_pb2.EXECUTION_STATE_FAILED)
                self.ended.set()
            case _:
                raise ValueError(line)

    def _hand_over(self) -> None:
        assert self._spec is not None
        assert self._lock is not None
        record = owner_record.read(self._owner_path)
        owner_record.swap(self._owner_path, record, self._spec.destination.host_uuid)
        self._lock.release()
        if not self._spec.powered_off:
            self._set(host_pb2.EXECUTION_STATE_STUNNED)

    def _arrive(self) -> None:
        assert self._spec is not None
        assert self._lock is not None
        if _moves_home(self._spec):  # its own record, by COMMIT and by settling
            for _ in range(2):
                owner_record.swap(self._owner_path, owner_record.read(self._owner_path), self._host_uuid)
        if not self._spec.powered_off:
            self._lock.acquire()
            self._set(host_pb2.EXECUTION_STATE_RUNNING)

    def _commit(self) -> None:
        assert self._spec is not None
        if self._status.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
            return
        moved = list(self._spec.moved_disks)
        fails = "fail-commit" in self._annotation
        for key in moved[:1] if fails else moved:
            self._status.status.disks.add(key=key, switched=True)
        if fails:
            fault = MigrationFault("The fake relocation was told to fail.", phase="confirm")
            self._fail(fault)
            raise fault
        if self._new_home is not None:
            assert self._lock is not None
            self._lock.close()
            self._owner_path, self._lock = self._new_home
            self._new_home = None
        self._publish(status_pb2.MIGRATION_PHASE_SUCCEEDED)

    def _fail(self, fault: MigrationFault) -> None:
        assert self._spec is not None
        self._status.status.failure = fault.message
        self._status.fault.CopyFrom(fault_to_proto(fault, "vmx@fake"))
        if self._new_home is not None:
            self._new_home[1].close()
            self._new_home = None
        self._publish(status_pb2.MIGRATION_PHASE_FAILED)
        if self._spec.powered_off or not self._is_source:
            self._end()
        else:
            self._set(host_pb2.EXECUTION_STATE_RUNNING)

    # ---- inside

    @property
    def _migrating(self) -> bool:
        return self._spec is not None and self._status.status.phase not in _LAST_PHASES

    @property
    def _is_relocation(self) -> bool:
        return self._spec is not None and self._spec.source.host_uuid == self._spec.destination.host_uuid

    def _require_migration(self, request: operations_pb2.MigrationRequest) -> None:
        if self._spec is None or self._spec.migration_id != request.migration_id:
            raise ManagedObjectNotFound("no such migration", kind="migration")

    def _open(self, config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> RunLock:
        assert config.uuid == os.environ["VMX_VM_UUID"]
        assert place.host_uuid == self._host_uuid
        home = Path(place.home_directory)
        self._annotation = config.annotation
        self._owner_path = owner_record.owner_path(home, config.name)
        self._lock = RunLock.open(owner_record.run_lock_path(home, config.name))
        return self._lock

    def _start_guest(self, lock: RunLock) -> None:
        self._guest = subprocess.Popen(
            ["sleep", _LIFE_S], pass_fds=(lock.descriptor,), start_new_session=True
        )
        (self._run_directory / "fake-guest.pid").write_text(str(self._guest.pid))
        self._state.qemu_pid = self._guest.pid
        self._state.memory_used_bytes = _RAM_USED_BYTES

    def _end(self) -> None:
        if self._guest is not None:
            self._guest.kill()
            self._guest.wait()
        self._set(host_pb2.EXECUTION_STATE_OFF)
        self.ended.set()

    def _publish(self, phase: status_pb2.MigrationPhase.ValueType) -> None:
        assert self._spec is not None
        self._status.status.migration_id = self._spec.migration_id
        self._status.status.phase = phase
        self._ring()

    def _set(self, state: host_pb2.ExecutionState.ValueType) -> None:
        self._state.execution_state = state
        self._ring()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _moves_home(spec: spec_pb2.MigrationSpec) -> bool:
    return spec.destination_home not in ("", spec.vm_home)


async def _main() -> None:
    run_directory = Path(os.environ["VMX_RUN_DIR"])
    fake = FakeVmx(run_directory, os.environ["VMX_HOST_UUID"])
    server = unix_server(run_directory / "vmx.sock", "vmx@fake")
    service_pb2_grpc.add_VmxServicer_to_server(fake, server.grpc)
    start_time = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (run_directory / "vmx.pid").write_text(f"{os.getpid()} {start_time}\n")
    listener = await asyncio.start_unix_server(fake.serve_control, str(run_directory / "control.sock"))
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    waiting = [asyncio.create_task(fake.ended.wait()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    listener.close()
    with contextlib.suppress(asyncio.CancelledError):
        await server.stop(0.5)


if __name__ == "__main__":
    uvloop.run(_main())
