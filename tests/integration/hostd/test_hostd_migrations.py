"""Two real hostds with fake vmx processes: one migration's way, its locks, every undo, and each daemon's death."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostd.host.process import identify, read_pid_file
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import (
    DuplicateName,
    GuestStartFailed,
    InaccessibleDatastore,
    InsufficientMemoryResources,
    InvalidArgument,
    InvalidPowerState,
    ManagedObjectNotFound,
    MigrationNotReady,
    NotOwner,
    PastPointOfNoReturn,
    RequestCanceled,
    TaskInProgress,
    VimFault,
)
from runtime.ondisk import owner_record, run_lock
from runtime.rpc.faults import fault_from_proto, remote_faults
from tests.framework.hostd_process import HostdHost, small_vm, spec_between

pytestmark = pytest.mark.cluster
MIB = 1 << 20


@dataclass
class Pair:
    """Two hosts, a VM that runs on the first, and where its files are."""

    source: HostdHost
    destination: HostdHost
    vm: host_pb2.VmState
    home: Path

    async def spec(self) -> spec_pb2.MigrationSpec:
        return await spec_between(self.source, self.destination, self.vm)

    async def begin(self) -> spec_pb2.MigrationSpec:
        """A migration that is under way."""
        spec = await self.spec()
        ticket = await self.destination.prepare(spec)
        await self.source.start_source(spec, ticket)
        return spec

    async def tell(self, host: HostdHost, line: str) -> None:
        await host.tell_vmx(self.vm.uuid, line)

    async def finish(self, spec: spec_pb2.MigrationSpec) -> None:
        """Let the fakes succeed, and complete both ends."""
        await self.tell(self.source, "hand-over")
        await self.tell(self.destination, "arrive")
        await self.tell(self.source, "succeed")
        await self.source.statuses(spec)
        await self.destination.until(self.vm.name, "on")
        await self.destination.migration("CompleteMigration", spec)
        await self.source.migration("CompleteMigration", spec)

    def owner(self) -> str:
        return owner_record.read(owner_record.owner_path(self.home, self.vm.name)).owner_host_uuid

    async def assert_as_before(self) -> None:
        """Nothing is left on the destination; the VM runs at the source, unlocked, and is its."""
        info = await self.destination.info()
        assert (info.usage.memory_reserved_bytes, info.usage.vcpus_reserved) == (0, 0)
        assert await self.destination.vms() == {}
        assert self.living(self.destination) == []
        vm = (await self.source.vms())[self.vm.name]
        assert (vm.power_state, vm.HasField("lock")) == (host_pb2.POWER_STATE_POWERED_ON, False)
        assert self.owner() == (await self.source.info()).host.uuid

    def living(self, host: HostdHost) -> list[int]:
        return [pid for pid in host.pids() if identify(pid) is not None]

    def kill(self, host: HostdHost, *names: str) -> None:
        for name in names:
            process = read_pid_file(host.vmx_directory(self.vm.uuid) / name)
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    shared = tmp_path / "shared"
    shared.mkdir()
    source, destination = HostdHost(tmp_path, 41, shared), HostdHost(tmp_path, 42, shared)
    try:
        await asyncio.gather(source.start(), destination.start())
        vm = await source.create(small_vm("web01"))
        on = await source.call("PowerOnVm", vm.uuid)
        assert on is not None
        yield Pair(source, destination, on, shared / "web01")
    finally:
        await asyncio.gather(source.end(), destination.end())


async def test_migration_whole_way_moves_the_vm_and_all_that_is_its(pair: Pair) -> None:
    spec = await pair.spec()
    ticket = await pair.destination.prepare(spec)
    assert ticket.vmotion_address == "127.0.2.42"
    assert await pair.destination.vms() == {}  # masked
    assert (await pair.destination.info()).usage.memory_reserved_bytes == 64 * MIB
    await pair.source.start_source(spec, ticket)
    lock = (await pair.source.vms())["web01"].lock
    assert (lock.operation, lock.task, lock.migration_id) == ("emigrating", "task-9", spec.migration_id)
    await pair.tell(pair.source, "progress 3")
    watching = asyncio.create_task(pair.source.statuses(spec))
    await pair.tell(pair.source, "hand-over")
    await pair.tell(pair.destination, "arrive")
    arrived = await pair.destination.until("web01", "on")
    assert arrived is not None
    assert arrived.lock.operation == "immigrating"
    with pytest.raises(MigrationNotReady):
        await pair.source.migration("CompleteMigration", spec)
    await pair.tell(pair.source, "succeed")
    statuses = await watching
    assert statuses[-1].status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    for host in (pair.destination, pair.source, pair.destination, pair.source):  # idempotent
        await host.migration("CompleteMigration", spec)
    assert await pair.source.vms() == {}
    assert (await pair.source.info()).usage.memory_reserved_bytes == 0
    assert pair.living(pair.source) == []
    vm = (await pair.destination.vms())["web01"]
    assert not vm.HasField("lock")
    assert vm.config == pair.vm.config
    query = await pair.source.migration("QueryMigration", spec)
    assert (query.role, query.open) == (operations_pb2.MIGRATION_ROLE_SOURCE, False)
    assert query.owner.owner_host_uuid == (await pair.destination.info()).host.uuid
    assert query.owner.epoch == 2
    pair.vm = vm
    back = await spec_between(pair.destination, pair.source, vm)
    await pair.destination.start_source(back, await pair.source.prepare(back))  # and the way back is free


async def test_lock_refuses_everything_while_migrating_and_names_the_task(pair: Pair) -> None:
    spec = await pair.begin()
    uuid = pair.vm.uuid
    request = operations_pb2.ReconfigureVmRequest(vm_uuid=uuid, config=pair.vm.config)
    other = await pair.spec()
    ticket = spec_pb2.DestinationTicket(
        migration_id=other.migration_id,
        vmotion_address=other.destination.vmotion_address,
        port=8000,
        token=b"t" * 32,
        ram_bytes=other.vm.ram_bytes,
    )

    async def reconfigure() -> None:
        with remote_faults("hostd"):
            await pair.source.hostd.ReconfigureVm(request, timeout=5)

    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "PowerOnVm": lambda: pair.source.call("PowerOnVm", uuid),
        "PowerOffVm": lambda: pair.source.call("PowerOffVm", uuid),
        "ResetVm": lambda: pair.source.call("ResetVm", uuid),
        "DestroyVm": lambda: pair.source.call("DestroyVm", uuid),
        "UnregisterVm": lambda: pair.source.call("UnregisterVm", uuid),
        "ReconfigureVm": reconfigure,
        "StartSource": lambda: pair.source.start_source(other, ticket),
        "PrepareDestination": lambda: pair.destination.prepare(other),
    }
    for rpc, attempt in attempts.items():
        with pytest.raises(TaskInProgress) as caught:
            await attempt()
        assert caught.value.task == "task-9", rpc
        assert caught.value.operation in ("emigrating", "immigrating")
    with pytest.raises(TaskInProgress):
        await pair.destination.register(pair.vm.home)
    await pair.finish(spec)


async def test_cancel_on_both_ends_leaves_all_as_before_and_the_next_try_works(pair: Pair) -> None:
    spec = await pair.begin()
    await pair.tell(pair.source, "progress 1")
    for host in (pair.source, pair.destination, pair.source, pair.destination):  # idempotent
        await host.migration("CancelMigration", spec)
    await pair.assert_as_before()
    last = (await pair.source.statuses(spec))[-1]
    assert last.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    query = await pair.destination.migration("QueryMigration", spec)
    assert not query.open
    await pair.finish(await pair.begin())


async def test_cancel_of_a_prepared_destination_alone_frees_it(pair: Pair) -> None:
    spec = await pair.spec()
    await pair.destination.prepare(spec)
    await pair.destination.migration("CancelMigration", spec)
    await pair.assert_as_before()
    with pytest.raises(ManagedObjectNotFound):
        await pair.source.migration("CancelMigration", spec)


async def test_cancel_after_the_hand_over_is_refused(pair: Pair) -> None:
    spec = await pair.begin()
    await pair.tell(pair.source, "hand-over")
    await pair.tell(pair.destination, "arrive")
    await pair.tell(pair.source, "succeed")
    await pair.source.statuses(spec)
    await pair.destination.until("web01", "on")
    for host in (pair.source, pair.destination):
        with pytest.raises(PastPointOfNoReturn):
            await host.migration("CancelMigration", spec)
    await pair.destination.migration("CompleteMigration", spec)
    await pair.source.migration("CompleteMigration", spec)


async def test_failure_told_by_vmx_frees_the_lock_before_it_is_told_on(pair: Pair) -> None:
    spec = await pair.begin()
    watching = asyncio.create_task(pair.source.statuses(spec))
    await pair.tell(pair.source, "fail")
    last = (await watching)[-1]
    assert last.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    fault = fault_from_proto(last.fault)
    assert (str(fault), fault.origin) == ("The fake migration was told to fail.", "vmx@fake")
    assert not (await pair.source.vms())["web01"].HasField("lock")
    await pair.destination.migration("CancelMigration", spec)
    await pair.assert_as_before()


async def test_prepare_that_cannot_be_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    refused: list[tuple[type[VimFault], str, object]] = [
        (InvalidArgument, "key", b"short"),
        (InvalidArgument, "migration_id", 0),
        (InaccessibleDatastore, "home_datastore_uuid", "another"),
        (InvalidArgument, "vm_home", "[shared] ../web01.vmx"),
    ]
    for fault, field, value in refused:
        spec = await pair.spec()
        setattr(spec, field, value)
        with pytest.raises(fault):
            await pair.destination.prepare(spec)
    spec = await pair.spec()
    spec.vm.change_version += 1
    with pytest.raises(MigrationNotReady):
        await pair.destination.prepare(spec)
    spec = await pair.spec()
    spec.vm.ram_bytes = 2048 * MIB
    with pytest.raises(InsufficientMemoryResources):
        await pair.destination.prepare(spec)
    spec = await pair.spec()
    spec.vm.annotation = "fail-prepare"
    with pytest.raises(GuestStartFailed):
        await pair.destination.prepare(spec)
    assert not (await pair.destination.migration("QueryMigration", spec)).open
    await pair.assert_as_before()
    taken = await pair.destination.create(small_vm("web01"), "local")
    with pytest.raises(DuplicateName):
        await pair.destination.prepare(await pair.spec())
    await pair.destination.call("DestroyVm", taken.uuid)
    local = await pair.source.create(small_vm("onlocal"), "local")
    on = await pair.source.call("PowerOnVm", local.uuid)
    assert on is not None
    with pytest.raises(InaccessibleDatastore):
        await pair.destination.prepare(await spec_between(pair.source, pair.destination, on))
    await pair.finish(await pair.begin())


async def test_start_source_that_cannot_be_leaves_the_vm_as_it_is(pair: Pair) -> None:
    spec = await pair.spec()
    ticket = await pair.destination.prepare(spec)
    bad = spec_pb2.DestinationTicket()
    bad.CopyFrom(ticket)
    bad.token = b""
    with pytest.raises(InvalidArgument):
        await pair.source.start_source(spec, bad)
    off = await pair.source.create(small_vm("off"))
    spec_off = await spec_between(pair.source, pair.destination, off)
    ticket_off = await pair.destination.prepare(spec_off)
    with pytest.raises(InvalidPowerState):
        await pair.source.start_source(spec_off, ticket_off)
    path = owner_record.owner_path(pair.home, "web01")
    record = owner_record.swap(path, owner_record.read(path), spec.destination.host_uuid)
    with pytest.raises(NotOwner):
        await pair.source.start_source(spec, ticket)
    owner_record.swap(path, record, spec.source.host_uuid)
    assert not (await pair.source.vms())["web01"].HasField("lock")
    await pair.source.start_source(spec, ticket)
    await pair.finish(spec)


async def test_destination_vmx_killed_frees_everything_there(pair: Pair) -> None:
    spec = await pair.begin()
    watching = asyncio.create_task(pair.destination.statuses(spec))
    pair.kill(pair.destination, "vmx.pid")
    assert (await watching)[-1].status.phase == status_pb2.MIGRATION_PHASE_FAILED
    await pair.source.migration("CancelMigration", spec)
    await pair.assert_as_before()
    await pair.finish(await pair.begin())


async def test_destination_dead_after_the_swap_gives_the_vm_back(pair: Pair) -> None:
    """COMMIT never arrives: the record names the destination, whose vmx and QEMU are dead. It gives it back."""
    spec = await pair.begin()
    await pair.tell(pair.source, "hand-over")
    assert pair.owner() == spec.destination.host_uuid
    pair.kill(pair.destination, "vmx.pid", "guest.pid")
    await pair.destination.statuses(spec)
    assert pair.owner() == spec.source.host_uuid
    assert owner_record.read(owner_record.owner_path(pair.home, "web01")).epoch == 3
    assert await pair.destination.vms() == {}


async def test_destination_vmx_killed_after_the_swap_keeps_the_guest(pair: Pair) -> None:
    """Nobody can tell whether the guest was let go: it is the destination's, and is left alone."""
    spec = await pair.begin()
    await pair.tell(pair.source, "hand-over")
    pair.kill(pair.destination, "vmx.pid")
    vm = await pair.destination.until("web01", "on")
    assert vm is not None
    while "unmanaged" not in (await pair.destination.vms())["web01"].failure:
        await asyncio.sleep(0.05)
    guest = read_pid_file(pair.destination.vmx_directory(pair.vm.uuid) / "guest.pid")
    assert guest is not None
    assert identify(guest.pid) == guest
    await pair.destination.migration("CompleteMigration", spec)
    assert not (await pair.destination.vms())["web01"].HasField("lock")


async def test_source_vmx_killed_before_the_swap_fails_the_migration_not_the_guest(pair: Pair) -> None:
    spec = await pair.begin()
    watching = asyncio.create_task(pair.source.statuses(spec))
    pair.kill(pair.source, "vmx.pid")
    assert (await watching)[-1].status.phase == status_pb2.MIGRATION_PHASE_FAILED
    vm = (await pair.source.vms())["web01"]
    assert vm.power_state == host_pb2.POWER_STATE_POWERED_ON
    assert not vm.HasField("lock")
    await pair.destination.migration("CancelMigration", spec)
    assert pair.living(pair.destination) == []


async def test_source_vmx_killed_after_the_swap_ends_what_is_left_of_its_guest(pair: Pair) -> None:
    spec = await pair.begin()
    await pair.tell(pair.source, "hand-over")
    pair.kill(pair.source, "vmx.pid")
    await pair.source.statuses(spec)
    await pair.tell(pair.destination, "arrive")
    await pair.destination.until("web01", "on")
    query = await pair.source.migration("QueryMigration", spec)
    assert query.open
    assert query.owner.owner_host_uuid == spec.destination.host_uuid
    await pair.source.migration("CompleteMigration", spec)
    await pair.destination.migration("CompleteMigration", spec)
    assert await pair.source.vms() == {}
    assert pair.living(pair.source) == []
    assert run_lock.is_held(owner_record.run_lock_path(pair.home, "web01"))


@pytest.mark.parametrize("when", ["prepared", "started", "handed over", "arrived", "succeeded"])
async def test_both_hostds_killed_at_every_step_take_the_migration_up_again(pair: Pair, when: str) -> None:
    spec = await pair.spec()
    ticket = await pair.destination.prepare(spec)
    steps = ["prepared", "started", "handed over", "arrived", "succeeded"]

    async def step(name: str) -> None:
        match name:
            case "started":
                await pair.source.start_source(spec, ticket)
            case "handed over":
                await pair.tell(pair.source, "hand-over")
            case "arrived":
                await pair.tell(pair.destination, "arrive")
            case "succeeded":
                await pair.tell(pair.source, "succeed")

    for name in steps[: steps.index(when) + 1]:
        await step(name)
    processes = {pid: identify(pid) for host in (pair.source, pair.destination) for pid in host.pids()}
    await asyncio.gather(pair.source.stop(signal.SIGKILL), pair.destination.stop(signal.SIGKILL))
    await asyncio.gather(pair.source.start(), pair.destination.start())
    assert {pid: identify(pid) for pid in processes} == processes  # no guest and no vmx was touched
    masked = when in ("prepared", "started", "handed over")
    assert ("web01" not in await pair.destination.vms()) == masked
    assert (await pair.destination.info()).usage.memory_reserved_bytes == 64 * MIB
    if when != "prepared":
        assert (await pair.source.vms())["web01"].lock.task == "task-9"
    with pytest.raises(TaskInProgress):
        await pair.destination.register(pair.vm.home)
    for name in steps[steps.index(when) + 1 :]:
        await step(name)
    assert (await pair.source.statuses(spec))[-1].status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    await pair.destination.until("web01", "on")
    await pair.destination.migration("CompleteMigration", spec)
    await pair.source.migration("CompleteMigration", spec)
    assert await pair.source.vms() == {}
    assert not (await pair.destination.vms())["web01"].HasField("lock")


async def test_hostds_killed_then_canceled_leaves_all_as_before(pair: Pair) -> None:
    spec = await pair.begin()
    await asyncio.gather(pair.source.stop(signal.SIGKILL), pair.destination.stop(signal.SIGKILL))
    await asyncio.gather(pair.source.start(), pair.destination.start())
    await pair.source.migration("CancelMigration", spec)
    await pair.destination.migration("CancelMigration", spec)
    await pair.assert_as_before()


async def test_everything_of_the_destination_killed_before_the_swap_is_cleaned_at_restart(pair: Pair) -> None:
    spec = await pair.begin()
    await pair.destination.stop(signal.SIGKILL)
    pair.kill(pair.destination, "vmx.pid")  # its shell guest still lives
    await pair.destination.start()
    await pair.destination.statuses(spec)
    await pair.source.migration("CancelMigration", spec)
    await pair.assert_as_before()
    await pair.finish(await pair.begin())


async def test_source_hostd_and_vmx_killed_after_the_swap_lets_the_guest_go_at_restart(pair: Pair) -> None:
    spec = await pair.begin()
    await pair.tell(pair.source, "hand-over")
    await pair.source.stop(signal.SIGKILL)
    pair.kill(pair.source, "vmx.pid")
    await pair.tell(pair.destination, "arrive")
    await pair.source.start()
    await pair.source.statuses(spec)
    assert pair.living(pair.source) == []
    await pair.source.migration("CompleteMigration", spec)
    assert await pair.source.vms() == {}


async def test_stale_registration_gives_way_to_the_vm_that_comes(pair: Pair) -> None:
    """The VM went from 41 to 42 by hand and 41 still lists it; then it comes back live."""
    await pair.source.call("PowerOffVm", pair.vm.uuid)
    await pair.destination.register(pair.vm.home)
    on = await pair.destination.call("PowerOnVm", pair.vm.uuid)
    assert on is not None
    spec = await spec_between(pair.destination, pair.source, on)
    ticket = await pair.source.prepare(spec)
    assert await pair.source.vms() == {}
    await pair.destination.start_source(spec, ticket)
    await pair.tell(pair.destination, "hand-over")
    await pair.tell(pair.source, "arrive")
    await pair.source.until("web01", "on")


async def test_caller_that_leaves_does_not_stop_what_it_began(pair: Pair) -> None:
    spec = await pair.spec()
    call = pair.destination.hostd.PrepareDestination(
        operations_pb2.PrepareDestinationRequest(spec=spec), timeout=30
    )
    while not (await pair.destination.info()).usage.memory_reserved_bytes:
        await asyncio.sleep(0.01)
    call.cancel()
    async with asyncio.timeout(15):
        while True:
            if '"stage": "running"' in "".join(
                path.read_text()
                for path in (pair.destination.state_directory / "hostd" / "migrations").iterdir()
            ):
                break
            await asyncio.sleep(0.05)
    await pair.destination.migration("CancelMigration", spec)
    await pair.assert_as_before()


async def test_prepare_whose_vmx_hangs_is_undone_whole(pair: Pair) -> None:
    """hostd stops while vmx prepares: nothing of the masked VM is left, not even a guest that nobody was told of."""
    spec = await pair.spec()
    spec.vm.annotation = "hang-prepare"
    preparing = asyncio.create_task(pair.destination.prepare(spec))
    async with asyncio.timeout(15):
        while not any(pair.destination.run_directory.glob("*/fake-guest.pid")):
            await asyncio.sleep(0.02)
    assert await pair.destination.stop(signal.SIGTERM) == 0
    with pytest.raises(VimFault):
        await preparing
    assert pair.living(pair.destination) == []
    await pair.destination.start()
    assert not (await pair.destination.migration("QueryMigration", spec)).open
    await pair.assert_as_before()


async def test_cancel_while_the_destination_is_prepared_undoes_it_at_once(pair: Pair) -> None:
    spec = await pair.spec()
    spec.vm.annotation = "hang-prepare"
    preparing = asyncio.create_task(pair.destination.prepare(spec))
    async with asyncio.timeout(15):
        while not any(pair.destination.run_directory.glob("*/fake-guest.pid")):
            await asyncio.sleep(0.02)
    await asyncio.gather(*(pair.destination.migration("CancelMigration", spec) for _ in range(3)))
    await pair.assert_as_before()
    with pytest.raises(RequestCanceled):
        await preparing
    await pair.finish(await pair.begin())
