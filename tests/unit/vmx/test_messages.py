"""What comes in a message is checked field by field, and the fault names the field."""

from collections.abc import Callable
from pathlib import Path

import pytest

from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import InvalidArgument, InvalidVmConfig, VMotionProtocolIncompatible
from vmx import messages
from vmx.guest.command_line import Accelerator
from vmx.migration.order import Options, Verification
from vmx.stream import OLDEST_STREAM_VERSION, STREAM_VERSION
from vmx.trace.contract import TracerKind

UUID = "00000000-0000-4000-8000-000000000001"


def good_config() -> vm_config_pb2.VmConfig:
    return vm_config_pb2.VmConfig(
        uuid=UUID, name="web01", vcpus=1, ram_bytes=64 << 20, machine_type="pc-q35-7.2", cpu_model="qemu64"
    )


def good_spec() -> spec_pb2.MigrationSpec:
    return spec_pb2.MigrationSpec(
        migration_id=2**63 - 1,
        task_id="task-7",
        vm=good_config(),
        source=spec_pb2.HostEndpoint(host_uuid="u1", name="esx01", vmotion_address="10.0.0.1"),
        destination=spec_pb2.HostEndpoint(host_uuid="u2", name="esx02", vmotion_address="10.0.0.2"),
        key=bytes(32),
    )


def good_ticket() -> spec_pb2.DestinationTicket:
    return spec_pb2.DestinationTicket(
        migration_id=2**63 - 1,
        vmotion_address="10.0.0.2",
        port=8000,
        token=bytes(32),
        ram_bytes=64 << 20,
        stream_version_min=OLDEST_STREAM_VERSION,
        stream_version_max=STREAM_VERSION,
    )


def test_good_spec_becomes_an_order_with_the_defaults() -> None:
    order = messages.migration_order(good_spec())
    assert order.options == Options()
    assert (order.vm_uuid, order.vm_name, order.ram_bytes) == (UUID, "web01", 64 << 20)
    assert (order.source.host_uuid, order.destination.vmotion_address) == ("u1", "10.0.0.2")
    assert "key" not in repr(order)


def test_options_that_are_given_are_taken() -> None:
    spec = good_spec()
    spec.options.CopyFrom(
        spec_pb2.MigrationOptions(
            verify=spec_pb2.VERIFY_MODE_BEFORE_RESUME,
            encryption=spec_pb2.ENCRYPTION_MODE_DISABLED,
            switchover_goal_ms=250,
            max_iterations=7,
            streams=16,
            bandwidth_bytes_per_s=10**9,
            tracer="hash_scan",
            network_timeout_s=0.5,
        )
    )
    options = messages.migration_order(spec).options
    assert options.verification is Verification.BEFORE_RESUME
    assert not options.encrypted
    assert (options.limits.switchover_goal_ms, options.limits.max_iterations) == (250, 7)
    assert (options.streams, options.bandwidth_bytes_per_s) == (16, 10**9)
    assert options.tracer is TracerKind.HASH_SCAN
    assert options.timeouts.silent_peer_s == 0.5


Spoil = Callable[[spec_pb2.MigrationSpec], object]
BAD_SPECS: list[tuple[str, Spoil]] = [
    ("migration_id", lambda spec: setattr(spec, "migration_id", 0)),
    ("migration_id", lambda spec: setattr(spec, "migration_id", 2**63)),
    ("key", lambda spec: setattr(spec, "key", b"")),
    ("key", lambda spec: setattr(spec, "key", bytes(31))),
    ("key", lambda spec: setattr(spec, "key", bytes(33))),
    ("vm.uuid", lambda spec: spec.vm.ClearField("uuid")),
    ("vm.ram_bytes", lambda spec: spec.vm.ClearField("ram_bytes")),
    ("vm.ram_bytes", lambda spec: setattr(spec.vm, "ram_bytes", 4095)),
    ("source.host_uuid", lambda spec: spec.source.ClearField("host_uuid")),
    ("destination.host_uuid", lambda spec: spec.destination.ClearField("host_uuid")),
    ("source.vmotion_address", lambda spec: spec.source.ClearField("vmotion_address")),
    ("source.vmotion_address", lambda spec: setattr(spec.source, "vmotion_address", "esx01.example.com")),
    ("source.vmotion_address", lambda spec: setattr(spec.source, "vmotion_address", "0.0.0.0")),
    ("destination.vmotion_address", lambda spec: setattr(spec.destination, "vmotion_address", "::")),
    ("destination.vmotion_address", lambda spec: setattr(spec.destination, "vmotion_address", "224.0.0.1")),
    ("destination.vmotion_address", lambda spec: setattr(spec.destination, "vmotion_address", "10.0.0.1")),
    ("options.verify", lambda spec: setattr(spec.options, "verify", 99)),
    ("options.encryption", lambda spec: setattr(spec.options, "encryption", 99)),
    ("options.streams", lambda spec: setattr(spec.options, "streams", 17)),
    ("options.tracer", lambda spec: setattr(spec.options, "tracer", "guess")),
    ("options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", 0.4)),
    ("options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", 601)),
    ("options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", -1)),
    ("options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", float("nan"))),
    ("options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", float("inf"))),
]


@pytest.mark.parametrize(
    ("argument", "spoil"), BAD_SPECS, ids=[f"{n}-{a}" for n, (a, _) in enumerate(BAD_SPECS)]
)
def test_bad_spec_is_refused_by_the_fields_name(argument: str, spoil: Spoil) -> None:
    spec = good_spec()
    spoil(spec)
    with pytest.raises(InvalidArgument) as refused:
        messages.migration_order(spec)
    assert refused.value.argument == argument


def test_empty_spec_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        messages.migration_order(spec_pb2.MigrationSpec())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("migration_id", 1),
        ("ram_bytes", 4096),
        ("vmotion_address", "10.0.0.3"),
        ("vmotion_address", ""),
        ("port", 0),
        ("port", 65536),
        ("token", b""),
        ("token", bytes(15)),
        ("token", bytes(257)),
    ],
)
def test_bad_ticket_is_refused_by_the_fields_name(field: str, value: object) -> None:
    ticket = good_ticket()
    setattr(ticket, field, value)
    with pytest.raises(InvalidArgument) as refused:
        messages.ticket_of(ticket, messages.migration_order(good_spec()))
    assert refused.value.argument == f"ticket.{field}"


@pytest.mark.parametrize(
    ("oldest", "newest"), [(0, 0), (STREAM_VERSION + 1, STREAM_VERSION + 2), (STREAM_VERSION, 0)]
)
def test_ticket_without_a_common_stream_version_is_refused(oldest: int, newest: int) -> None:
    ticket = good_ticket()
    ticket.stream_version_min, ticket.stream_version_max = oldest, newest
    with pytest.raises(VMotionProtocolIncompatible) as refused:
        messages.ticket_of(ticket, messages.migration_order(good_spec()))
    assert refused.value.supported == f"{oldest}-{newest}"


def test_ticket_survives_the_way_there_and_back() -> None:
    order = messages.migration_order(good_spec())
    ticket = messages.ticket_of(good_ticket(), order)
    again = messages.ticket_message(ticket, OLDEST_STREAM_VERSION, STREAM_VERSION)
    assert again == good_ticket()
    assert "token" not in repr(ticket)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\x00b", "a\nb", "x" * 81])
def test_name_that_cant_be_a_files_is_refused(name: str) -> None:
    config = good_config()
    config.name = name
    with pytest.raises(InvalidVmConfig) as refused:
        messages.vm_files(config, service_pb2.VmPlace(home_directory="/vmfs/web01"))
    assert refused.value.property == "name"


@pytest.mark.parametrize("home", ["", "vmfs/web01", "../x", "/vmfs/\x00", "/vmfs/\n"])
def test_home_that_isnt_an_absolute_path_is_refused(home: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        messages.vm_files(good_config(), service_pb2.VmPlace(home_directory=home))
    assert refused.value.argument == "place.home_directory"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("uuid", "x", "vm_uuid"),
        ("vcpus", 0, "vcpus"),
        ("ram_bytes", 4096, "ram_bytes"),
        ("machine_type", "pc,accel=kvm", "machine_type"),
        ("cpu_model", "host;", "cpu_model"),
    ],
)
def test_configuration_that_cant_run_is_refused_by_the_property(
    field: str, value: object, named: str
) -> None:
    config = good_config()
    setattr(config, field, value)
    place = service_pb2.VmPlace(home_directory="/vmfs/web01")
    with pytest.raises(InvalidVmConfig) as refused:
        messages.guest_spec(config, place, Path("/run/vpx/x"), Accelerator.TCG, incoming=False)
    assert refused.value.property == named


def spec_within_one_host() -> spec_pb2.MigrationSpec:
    spec = good_spec()
    spec.destination.CopyFrom(spec.source)
    spec.ClearField("key")
    spec.vm_home, spec.destination_home = "[ds1] web01/web01.vmx", "[ds2] web01/web01.vmx"
    return spec


def test_move_within_one_host_has_no_key_and_is_no_migration_between_two() -> None:
    order = messages.migration_order(spec_within_one_host())
    messages.require_one_host(order)
    with pytest.raises(InvalidArgument) as refused:
        messages.require_two_hosts(order)
    assert refused.value.argument == "destination.host_uuid"


def test_migration_between_two_hosts_is_no_move_within_one() -> None:
    order = messages.migration_order(good_spec())
    messages.require_two_hosts(order)
    with pytest.raises(InvalidArgument) as refused:
        messages.require_one_host(order)
    assert refused.value.argument == "destination.host_uuid"


def test_move_within_one_host_that_moves_nothing_is_refused() -> None:
    spec = spec_within_one_host()
    spec.destination_home = spec.vm_home
    with pytest.raises(InvalidArgument) as refused:
        messages.require_one_host(messages.migration_order(spec))
    assert refused.value.argument == "moved_disks"


def test_home_of_the_same_path_moves_where_the_datastore_of_that_name_is_another() -> None:
    spec = good_spec()
    spec.home_datastore_uuid = spec.destination_home_datastore_uuid = "here"
    spec.destination_home = spec.vm_home
    assert not messages.migration_order(spec).moves_home
    spec.destination_home_datastore_uuid = "there"
    spec.vm_home = spec.destination_home = "[local] web01/web01.vmx"
    assert messages.migration_order(spec).moves_home
