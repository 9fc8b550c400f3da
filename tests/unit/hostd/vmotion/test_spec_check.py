"""Every field of a spec and a ticket is checked before anything is done with it."""

from collections.abc import Callable

import pytest

from hostd.host.facts import Capability, HostFacts
from hostd.vmotion.spec_check import check_destination, check_source, check_spec, moves_home
from proto.vim.v1.vm_config_pb2 import DISK_FORMAT_THIN, VmConfig
from proto.vmotion.v1.spec_pb2 import DestinationTicket, HostEndpoint, MigrationSpec
from runtime.faults import (
    FeatureRequirementsNotMet,
    InvalidArgument,
    VimFault,
    VirtualHardwareVersionNotSupported,
    VMotionNotConfigured,
)
from runtime.ondisk.datastore_path import DatastorePath

HERE = "11111111-1111-4111-8111-111111111111"
THERE = "22222222-2222-4222-8222-222222222222"
VM = "33333333-3333-4333-8333-333333333333"
HOME = DatastorePath.parse("[shared] web01/web01.vmx")


def host(uuid: str = HERE, vmotion: str = "127.0.2.2") -> HostFacts:
    capability = Capability("7.2.22", ("pc-q35-7.2",), ("qemu64", "max"), "tcg")
    return HostFacts(uuid, "esx02", "127.0.1.2:8443", vmotion, 1 << 30, 2, 16, "0", capability)


def a_spec() -> MigrationSpec:
    return MigrationSpec(
        migration_id=77,
        vm=VmConfig(
            uuid=VM,
            name="web01",
            vcpus=1,
            ram_bytes=64 << 20,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            change_version=1,
        ),
        vm_home=str(HOME),
        home_datastore_uuid="u",
        source=HostEndpoint(host_uuid=THERE, name="esx01", vmotion_address="127.0.2.1"),
        destination=HostEndpoint(host_uuid=HERE, name="esx02", vmotion_address="127.0.2.2"),
        key=b"k" * 32,
    )


def a_ticket() -> DestinationTicket:
    return DestinationTicket(
        migration_id=77, vmotion_address="127.0.2.2", port=8000, token=b"t" * 32, ram_bytes=64 << 20
    )


def test_check_destination_good_spec_gives_the_home() -> None:
    assert check_destination(a_spec(), host()) == HOME


_BAD: list[tuple[str, Callable[[MigrationSpec], object]]] = [
    ("spec.migration_id", lambda spec: spec.ClearField("migration_id")),
    ("spec.migration_id", lambda spec: setattr(spec, "migration_id", 1 << 63)),
    ("spec.task_id", lambda spec: setattr(spec, "task_id", "x" * 300)),
    ("spec.operation_id", lambda spec: setattr(spec, "operation_id", "a\nb")),
    ("spec.vm.ram_bytes", lambda spec: setattr(spec.vm, "ram_bytes", 5)),
    ("spec.vm.name", lambda spec: setattr(spec.vm, "name", "../x")),
    ("spec.vm.uuid", lambda spec: spec.ClearField("vm")),
    ("spec.key", lambda spec: setattr(spec, "key", b"k" * 31)),
    ("spec.key", lambda spec: setattr(spec, "key", b"\0" * 32)),
    ("spec.source.host_uuid", lambda spec: setattr(spec.source, "host_uuid", "x")),
    ("spec.source.vmotion_address", lambda spec: setattr(spec.source, "vmotion_address", "esx01")),
    ("spec.source.name", lambda spec: setattr(spec.source, "name", "\x1b[2J")),
    ("spec.destination.host_uuid", lambda spec: setattr(spec.source, "host_uuid", HERE)),
    ("spec.destination.host_uuid", lambda spec: setattr(spec.destination, "host_uuid", VM)),
    (
        "spec.destination.vmotion_address",
        lambda spec: setattr(spec.destination, "vmotion_address", "127.0.2.9"),
    ),
    ("spec.vm_home", lambda spec: setattr(spec, "vm_home", "/etc/passwd")),
    ("spec.vm_home", lambda spec: setattr(spec, "vm_home", "[shared] web01/other.vmx")),
    ("spec.options.streams", lambda spec: setattr(spec.options, "streams", 65)),
    ("spec.options.tracer", lambda spec: setattr(spec.options, "tracer", "soft_dirty")),
    ("spec.options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", float("nan"))),
    ("spec.options.network_timeout_s", lambda spec: setattr(spec.options, "network_timeout_s", -1.0)),
    ("spec.options.verify", lambda spec: setattr(spec.options, "verify", 9)),
]


@pytest.mark.parametrize(("argument", "break_it"), _BAD)
def test_check_destination_bad_field_is_named(
    argument: str, break_it: Callable[[MigrationSpec], object]
) -> None:
    spec = a_spec()
    break_it(spec)
    with pytest.raises(InvalidArgument) as caught:
        check_destination(spec, host())
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("machine_type", "cpu_model", "vmotion", "fault"),
    [
        ("pc-q35-10.0", "qemu64", "127.0.2.2", VirtualHardwareVersionNotSupported),
        ("pc-q35-7.2", "Foo,+aes", "127.0.2.2", FeatureRequirementsNotMet),
        ("pc-q35-7.2", "qemu64", "", VMotionNotConfigured),
    ],
)
def test_check_destination_host_cannot_says_what(
    machine_type: str, cpu_model: str, vmotion: str, fault: type[VimFault]
) -> None:
    spec = a_spec()
    spec.vm.machine_type, spec.vm.cpu_model = machine_type, cpu_model
    with pytest.raises(fault):
        check_destination(spec, host(vmotion=vmotion))


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("ticket.migration_id", "migration_id", 78),
        ("ticket.token", "token", b"t"),
        ("ticket.ram_bytes", "ram_bytes", 1),
        ("ticket.vmotion_address", "vmotion_address", "127.0.1.2"),
        ("ticket.port", "port", 0),
        ("ticket.port", "port", 65536),
    ],
)
def test_check_source_bad_ticket_is_named(argument: str, field: str, value: object) -> None:
    spec, ticket = a_spec(), a_ticket()
    source = host(THERE, "127.0.2.1")
    check_source(spec, ticket, source, spec.vm, HOME)
    setattr(ticket, field, value)
    with pytest.raises(InvalidArgument) as caught:
        check_source(spec, ticket, source, spec.vm, HOME)
    assert caught.value.argument == argument


def test_check_source_other_hardware_or_home_is_refused() -> None:
    spec, source = a_spec(), host(THERE, "127.0.2.1")
    running = VmConfig()
    running.CopyFrom(spec.vm)
    running.ram_bytes *= 2
    for config, home in ((running, HOME), (spec.vm, DatastorePath.parse("[shared] web02/web01.vmx"))):
        with pytest.raises(InvalidArgument):
            check_source(spec, a_ticket(), source, config, home)


def test_home_of_the_same_path_moves_where_the_datastore_of_that_name_is_another() -> None:
    spec = a_spec()
    assert not moves_home(spec)
    spec.destination_home = spec.vm_home
    spec.destination_home_datastore_uuid = spec.home_datastore_uuid
    assert not moves_home(spec)
    spec.destination_home_datastore_uuid = "another"
    assert moves_home(spec)


def test_disk_of_the_same_path_may_move_between_hosts_and_not_within_one() -> None:
    spec = a_spec()
    spec.vm.disks.add(key=2000, path="[local] a/a.vmdk", capacity_bytes=1 << 20, format=DISK_FORMAT_THIN)
    spec.moved_disks.append(2000)
    check_spec(spec)
    spec.source.CopyFrom(spec.destination)
    with pytest.raises(InvalidArgument) as caught:
        check_spec(spec)
    assert caught.value.argument == "spec.moved_disks"
