"""Orders that can't be: each gets its typed fault from the right daemon, nothing changes, and the guest runs on."""

import math
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio

from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime import faults
from runtime.rpc.channel import network_channel, unix_channel
from runtime.rpc.identity import Role
from tests.framework.cluster_rig import (
    MIB,
    ClusterRig,
    assert_no_traceback,
    failure,
    refusal,
    removed_afterwards,
    small_vm,
    until,
)

if TYPE_CHECKING:
    RawCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def web01(rig: ClusterRig) -> AsyncIterator[str]:
    """A VM that runs on esx01 all the time."""
    yield await rig.power_on_new("web01", "esx01")
    await rig.remove("web01")


@pytest_asyncio.fixture(loop_scope="package")
async def unchanged(rig: ClusterRig, web01: str) -> AsyncIterator[None]:
    """Whatever the test orders, it changes nothing."""
    before = await rig.picture()
    yield
    assert await rig.picture() == before
    await rig.assert_alive("web01", "esx01")


def migrate(
    vm: str, host: str, options: spec_pb2.MigrationOptions | None = None
) -> service_pb2.MigrateVmRequest:
    return service_pb2.MigrateVmRequest(vm=vm, host=host, options=options)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("vm", "host", "fault", "fields"),
    [
        ("nobody", "esx02", faults.ManagedObjectNotFound, {"kind": "vm", "key": "nobody"}),
        ("vm-4711", "esx02", faults.ManagedObjectNotFound, {"kind": "vm", "key": "vm-4711"}),
        ("", "esx02", faults.InvalidArgument, {}),
        ("\n\0" * 5000, "esx02", faults.ManagedObjectNotFound, {"kind": "vm"}),
        ("web01", "nowhere", faults.ManagedObjectNotFound, {"kind": "host", "key": "nowhere"}),
        ("web01", "host-4711", faults.ManagedObjectNotFound, {"kind": "host", "key": "host-4711"}),
        ("web01", "esx01", faults.InvalidArgument, {"argument": "host"}),
    ],
    ids=["vm_name", "vm_id", "vm_empty", "vm_rubbish", "host_name", "host_id", "destination_is_source"],
)
async def test_migrate_unknown_or_same_is_refused_at_once(
    rig: ClusterRig, vm: str, host: str, fault: type[faults.VimFault], fields: dict[str, str]
) -> None:
    refused = await refusal(rig.client.stub.MigrateVm(migrate(vm, host)))
    assert type(refused) is fault
    assert refused.origin == "vpxd"
    assert {name: getattr(refused, name) for name in fields} == fields


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("options", "argument"),
    [
        (spec_pb2.MigrationOptions(streams=17), "options.streams"),
        (spec_pb2.MigrationOptions(max_iterations=10**9), "options.max_iterations"),
        (spec_pb2.MigrationOptions(switchover_goal_ms=2**32 - 1), "options.switchover_goal_ms"),
        (spec_pb2.MigrationOptions(network_timeout_s=-1), "options.network_timeout_s"),
        (spec_pb2.MigrationOptions(network_timeout_s=math.nan), "options.network_timeout_s"),
        (spec_pb2.MigrationOptions(tracer="magic"), "options.tracer"),
        (spec_pb2.MigrationOptions(verify=77), "options.verify"),  # type: ignore[arg-type]
        (spec_pb2.MigrationOptions(encryption=-1), "options.encryption"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_migrate_with_options_that_cannot_be_names_the_option(
    rig: ClusterRig, options: spec_pb2.MigrationOptions, argument: str
) -> None:
    refused = await refusal(rig.client.stub.MigrateVm(migrate("web01", "esx02", options)))
    assert isinstance(refused, faults.InvalidArgument)
    assert (refused.argument, refused.origin) == (argument, "vpxd")


@pytest.mark.usefixtures("unchanged")
async def test_migrate_to_full_host_fails_before_anything_starts(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "big01"):
        await rig.power_on_new("big01", "esx02", config=small_vm(ram_mib=480))
        before = await rig.picture()
        fault = failure(await rig.ended(await rig.start_migration("web01", "esx02")))
        assert isinstance(fault, faults.InsufficientMemoryResources)
        assert (fault.requested_bytes, fault.unreserved_bytes) == (64 * MIB, 32 * MIB)
        assert fault.origin == "vpxd"
        # hostd itself says the same to who asks it directly.
        spec = await rig.spec("web01", "esx02")
        async with rig.vpxa("esx02") as vpxa:
            request = operations_pb2.PrepareDestinationRequest(spec=spec)
            refused = await refusal(vpxa.PrepareDestination(request, timeout=10))
        assert isinstance(refused, faults.InsufficientMemoryResources)
        assert refused.origin == "hostd@esx02"
        assert (refused.requested_bytes, refused.unreserved_bytes) == (64 * MIB, 32 * MIB)
        # A VM too large for what is left is made, but not started.
        async with removed_afterwards(rig, "big02"):
            await rig.create("big02", "esx02", config=small_vm(ram_mib=128))
            order = service_pb2.VmOperationRequest(vm="big02")
            task = await rig.client.call(rig.client.stub.PowerOnVm, order)
            fault = failure(await rig.ended(task.id))
            assert isinstance(fault, faults.InsufficientMemoryResources)
            assert fault.origin == "hostd@esx02"
        assert await rig.picture() == before
        await rig.beats("big01")


@pytest.mark.usefixtures("unchanged")
async def test_migrate_of_vm_on_local_datastore_is_refused_with_the_datastore(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "loc01"):
        await rig.power_on_new("loc01", "esx01", datastore="local")
        fault = failure(await rig.ended(await rig.start_migration("loc01", "esx02")))
        assert isinstance(fault, faults.InaccessibleDatastore)
        assert (fault.datastore, fault.host, fault.origin) == ("local", "esx02", "vpxd")
        # Asked directly, the destination sees that its "local" is another one.
        spec = await rig.spec("loc01", "esx02")
        async with rig.vpxa("esx02") as vpxa:
            refused = await refusal(
                vpxa.PrepareDestination(operations_pb2.PrepareDestinationRequest(spec=spec), timeout=10)
            )
        assert isinstance(refused, faults.InaccessibleDatastore)
        assert (refused.datastore, refused.origin) == ("local", "hostd@esx02")
        running = await rig.vm("loc01")
        assert (running.host_name, running.power_state) == ("esx01", host_pb2.POWER_STATE_POWERED_ON)
        log = rig.layout.local_datastore("esx01") / "loc01" / "heartbeat.log"
        size = log.stat().st_size
        await until(lambda: log.stat().st_size > size, "the guest runs on")


@pytest.mark.usefixtures("unchanged")
async def test_migrate_through_a_host_whose_hostd_is_gone_says_so_and_changes_nothing(
    rig: ClusterRig,
) -> None:
    await rig.cluster.end_daemon("esx02-hostd")
    try:
        async with rig.vpxa("esx02") as vpxa:
            refused = await refusal(vpxa.GetHost(operations_pb2.GetHostRequest(), timeout=10))
        assert isinstance(refused, faults.HostNotReachable)
        assert refused.origin == "vpxa@esx02"
        # vpxd may know it already, or hear it from vpxa.
        try:
            fault = failure(await rig.ended(await rig.start_migration("web01", "esx02")))
        except faults.HostNotConnected as known:
            fault = known
        assert isinstance(fault, faults.HostNotConnected | faults.HostNotReachable)
        await rig.assert_alive("web01", "esx01")
    finally:
        await rig.start_daemon("esx02-hostd")
    await rig.until_connected()


Mutation = Callable[[spec_pb2.MigrationSpec], object]


def _set(path: str, value: object) -> Mutation:
    def mutate(spec: spec_pb2.MigrationSpec) -> None:
        *parents, last = path.split(".")
        target = spec
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)

    return mutate


OTHER_UUID = "11111111-2222-4333-8444-555555555555"
MALFORMED: dict[str, tuple[Mutation, type[faults.VimFault], str]] = {
    "empty": (lambda spec: spec.Clear(), faults.InvalidArgument, "spec.migration_id"),
    "id_0": (_set("migration_id", 0), faults.InvalidArgument, "spec.migration_id"),
    "id_64_bits": (_set("migration_id", 2**63), faults.InvalidArgument, "spec.migration_id"),
    "key_short": (_set("key", b"k" * 31), faults.InvalidArgument, "spec.key"),
    "key_long": (_set("key", b"k" * 33), faults.InvalidArgument, "spec.key"),
    "key_zeros": (_set("key", bytes(32)), faults.InvalidArgument, "spec.key"),
    "task_control_characters": (_set("task_id", "task\n-1"), faults.InvalidArgument, "spec.task_id"),
    "uuid_none": (_set("vm.uuid", ""), faults.InvalidArgument, "spec.vm.uuid"),
    "uuid_not_one": (_set("vm.uuid", "../../etc"), faults.InvalidArgument, "spec.vm.uuid"),
    "uuid_of_another_vm": (_set("vm.uuid", OTHER_UUID), faults.MigrationNotReady, ""),
    "ram_0": (_set("vm.ram_bytes", 0), faults.InvalidArgument, "spec.vm.ram_bytes"),
    "ram_odd": (_set("vm.ram_bytes", 64 * MIB + 1), faults.InvalidArgument, "spec.vm.ram_bytes"),
    "ram_absurd": (_set("vm.ram_bytes", 2**63), faults.InvalidArgument, "spec.vm.ram_bytes"),
    "vcpus_0": (_set("vm.vcpus", 0), faults.InvalidArgument, "spec.vm.vcpus"),
    "vcpus_absurd": (_set("vm.vcpus", 2**31), faults.InvalidArgument, "spec.vm.vcpus"),
    "machine_type_unknown": (
        _set("vm.machine_type", "pc-q35-99.0"),
        faults.VirtualHardwareVersionNotSupported,
        "",
    ),
    "machine_type_option": (
        _set("vm.machine_type", "q35,accel=kvm"),
        faults.InvalidArgument,
        "spec.vm.machine_type",
    ),
    "cpu_model_unknown": (_set("vm.cpu_model", "z80"), faults.FeatureRequirementsNotMet, ""),
    "stale_change_version": (_set("vm.change_version", 99), faults.MigrationNotReady, ""),
    "name_with_slash": (_set("vm.name", "a/b"), faults.InvalidArgument, "spec.vm.name"),
    "kernel_outside": (
        _set("vm.boot.kernel", "[shared] ../../../etc/passwd"),
        faults.InvalidArgument,
        "spec.vm.boot.kernel",
    ),
    "home_outside": (_set("vm_home", "[shared] ../web01.vmx"), faults.InvalidArgument, "spec.vm_home"),
    "home_of_another": (_set("vm_home", "[shared] web02/web02.vmx"), faults.InvalidArgument, "spec.vm_home"),
    "home_moved": (_set("vm_home", "[shared] x/web01.vmx"), faults.FileNotFound, ""),
    "datastore_unknown": (_set("vm_home", "[nfs9] web01/web01.vmx"), faults.InaccessibleDatastore, ""),
    "datastore_uuid": (_set("home_datastore_uuid", OTHER_UUID), faults.InaccessibleDatastore, ""),
    "destination_is_another_host": (
        _set("destination.host_uuid", OTHER_UUID),
        faults.InvalidArgument,
        "spec.destination.host_uuid",
    ),
    "destination_address": (
        _set("destination.vmotion_address", "127.0.0.1"),
        faults.InvalidArgument,
        "spec.destination.vmotion_address",
    ),
    "source_address_name": (
        _set("source.vmotion_address", "localhost"),
        faults.InvalidArgument,
        "spec.source.vmotion_address",
    ),
    "source_address_any": (
        _set("source.vmotion_address", "0.0.0.0"),
        faults.InvalidArgument,
        "spec.source.vmotion_address",
    ),
    "source_not_owner": (_set("source.host_uuid", OTHER_UUID), faults.MigrationNotReady, ""),
    "one_host": (
        lambda spec: spec.source.CopyFrom(spec.destination),
        faults.InvalidArgument,
        "spec.destination.host_uuid",
    ),
    "streams": (_set("options.streams", 17), faults.InvalidArgument, "spec.options.streams"),
    "timeout_nan": (
        _set("options.network_timeout_s", math.nan),
        faults.InvalidArgument,
        "spec.options.network_timeout_s",
    ),
    "tracer": (_set("options.tracer", "x" * 100), faults.InvalidArgument, "spec.options.tracer"),
}


async def test_prepare_with_malformed_spec_is_refused_by_hostd_and_leaves_nothing(
    rig: ClusterRig, unchanged: None
) -> None:
    wrong = []
    async with rig.vpxa("esx02") as vpxa:
        good = await rig.spec("web01", "esx02")
        before = await rig.host_itself("esx02")
        for name, (mutate, kind, argument) in MALFORMED.items():
            spec = spec_pb2.MigrationSpec()
            spec.CopyFrom(good)
            mutate(spec)
            request = operations_pb2.PrepareDestinationRequest(spec=spec)
            refused = await refusal(vpxa.PrepareDestination(request, timeout=10))
            told = (type(refused), refused.origin, getattr(refused, "argument", ""))
            if told != (kind, "hostd@esx02", argument):
                wrong.append((name, told, str(refused)))
            usage = (await rig.host_itself("esx02")).usage
            assert usage.memory_reserved_bytes == before.usage.memory_reserved_bytes, name
        assert wrong == []
        # The control: the same specification without a flaw is taken, and given up again.
        await vpxa.PrepareDestination(operations_pb2.PrepareDestinationRequest(spec=good), timeout=20)
        await vpxa.CancelMigration(
            operations_pb2.MigrationRequest(migration_id=good.migration_id), timeout=20
        )


async def test_start_source_with_ticket_that_cannot_be_is_refused_and_the_lock_is_free(
    rig: ClusterRig, unchanged: None
) -> None:
    spec = await rig.spec("web01", "esx02")
    good = spec_pb2.DestinationTicket(
        migration_id=spec.migration_id,
        vmotion_address=spec.destination.vmotion_address,
        port=8000,
        token=b"t" * 32,
        ram_bytes=spec.vm.ram_bytes,
        stream_version_min=1,
        stream_version_max=1,
    )
    flaws: dict[str, tuple[str, object]] = {
        "ticket.migration_id": ("migration_id", 5),
        "ticket.token": ("token", b"short"),
        "ticket.ram_bytes": ("ram_bytes", 4096),
        "ticket.vmotion_address": ("vmotion_address", "127.0.0.1"),
        "ticket.port": ("port", 0),
    }
    async with rig.vpxa("esx01") as vpxa:
        for argument, (field, value) in flaws.items():
            ticket = spec_pb2.DestinationTicket()
            ticket.CopyFrom(good)
            setattr(ticket, field, value)
            request = operations_pb2.StartSourceRequest(spec=spec, ticket=ticket)
            refused = await refusal(vpxa.StartSource(request, timeout=10))
            assert isinstance(refused, faults.InvalidArgument), refused
            assert (refused.argument, refused.origin) == (argument, "hostd@esx01")


async def test_requests_that_are_no_protobuf_get_a_status_without_a_traceback(
    rig: ClusterRig, unchanged: None
) -> None:
    layout, client = rig.layout, rig.client.config
    garbage = b"\xff\xff\xff\xff garbage \x00\x80" * 50
    network = [
        (layout.server, Role.VPXD, "vpxd", "proto.vpxd.v1.Vpxd", ("MigrateVm", "ListVms", "WatchTask")),
        (
            rig.vpxa_address("esx01"),
            Role.HOST,
            "esx01",
            "proto.vpxa.v1.Vpxa",
            ("PrepareDestination", "WatchHost"),
        ),
    ]
    admin = rig.authority.new_identity(Role.CLIENT, "tester")
    assert client.server == layout.server
    channels = [
        (
            network_channel(target, admin if role is Role.VPXD else rig.vpxd_identity, role, name),
            service,
            methods,
        )
        for target, role, name, service, methods in network
    ]
    channels.append(
        (unix_channel(layout.hostd_socket("esx01")), "proto.hostd.v1.Hostd", ("StartSource", "PowerOffVm"))
    )
    vmx = next(layout.host_run_directory("esx01").glob("*/vmx.sock"))
    channels.append((unix_channel(vmx), "proto.vmx.v1.Vmx", ("PowerOff", "StartSource")))
    for channel, service, methods in channels:
        async with channel:
            for method in methods:
                send: RawCall = channel.unary_unary(f"/{service}/{method}")
                refused = await refusal(send(garbage, timeout=10))
                assert isinstance(refused, faults.InvalidArgument), (service, method, refused)


async def test_unknown_rpcs_and_oversize_messages_are_refused(rig: ClusterRig, unchanged: None) -> None:
    admin = rig.authority.new_identity(Role.CLIENT, "tester")
    async with network_channel(rig.layout.server, admin, Role.VPXD, "vpxd") as channel:
        unknown: RawCall = channel.unary_unary("/proto.vpxd.v1.Vpxd/FormatDisk")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        oversize: RawCall = channel.unary_unary("/proto.vpxd.v1.Vpxd/MigrateVm")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await oversize(b"\x0a" + bytes(5 * MIB), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert_no_traceback(str(caught.value.details()))
