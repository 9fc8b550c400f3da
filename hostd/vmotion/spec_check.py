"""Pure: no I/O, no clock, no logging. Is a migration spec (and the ticket with it) what this host can act on?

Everything in a spec is checked before anything is done with it: by the destination, which reserves and creates, and by
the source, which sends.
"""

import ipaddress
import math

from hostd.host.cpu_features import require_features
from hostd.host.facts import HostFacts
from hostd.vm import configuration
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from runtime.faults import (
    FeatureRequirementsNotMet,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidVmConfig,
    VirtualHardwareVersionNotSupported,
    VMotionNotConfigured,
)
from runtime.ondisk.datastore_path import DatastorePath

KEY_BYTES = 32
TOKEN_BYTES = 32
_MIGRATION_ID_MAX = (1 << 63) - 1
_STREAMS_MAX = 16
_ITERATIONS_MAX = 1000
_TIMEOUT_MAX_S = 3600.0
_GOAL_MAX_MS = 100_000
_TRACERS = ("", "pagemap_scan", "hash_scan")
_TEXT_MAX_CHARS = 200


def destination_config(spec: spec_pb2.MigrationSpec) -> vm_config_pb2.VmConfig:
    """The configuration that the VM has afterwards."""
    return spec.destination_vm if spec.HasField("destination_vm") else spec.vm


def moves_home(spec: spec_pb2.MigrationSpec) -> bool:
    """Whether the VM's home is another one afterwards: two hosts may have different datastores of one name."""
    if spec.destination_home in ("", spec.vm_home):
        there = spec.destination_home_datastore_uuid
        return bool(spec.destination_home) and there not in ("", spec.home_datastore_uuid)
    return True


def destination_home(spec: spec_pb2.MigrationSpec) -> DatastorePath:
    """The .vmx file's path afterwards, of a spec that was checked."""
    return DatastorePath.parse(spec.destination_home or spec.vm_home)


def check_spec(spec: spec_pb2.MigrationSpec) -> DatastorePath:
    """What both hosts check; returns the home's path, as it is now.

    :raises InvalidArgument: `argument` names the field.
    """
    if not 0 < spec.migration_id <= _MIGRATION_ID_MAX:
        raise InvalidArgument("The migration id isn't a positive 63-bit number.", "spec.migration_id")
    for name in ("task_id", "operation_id", "vm_id", "home_datastore_uuid"):
        text = getattr(spec, name)
        if len(text) > _TEXT_MAX_CHARS or not text.isprintable():
            raise InvalidArgument(f"The {name} is too long or has control characters.", f"spec.{name}")
    try:
        configuration.validate(spec.vm)
    except InvalidVmConfig as error:
        raise InvalidArgument("The spec's configuration can't be.", f"spec.vm.{error.property}") from error
    if spec.source.host_uuid != spec.destination.host_uuid:  # within a host nothing is sent
        _check_key(spec.key)
    _check_endpoint(spec.source, "spec.source")
    _check_endpoint(spec.destination, "spec.destination")
    _check_options(spec.options)
    home = _check_home(spec.vm_home, spec.vm.name, "spec.vm_home")
    _check_move(spec)
    return home


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise InvalidArgument(f"The key has {len(key)} bytes, not {KEY_BYTES}.", "spec.key")
    if not any(key):
        raise InvalidArgument("The key is all zeros.", "spec.key")


def _check_home(path: str, vm_name: str, argument: str) -> DatastorePath:
    try:
        home = DatastorePath.parse(path)
    except InvalidDatastorePath as error:
        raise InvalidArgument("The home isn't a datastore path.", argument) from error
    if home.name != f"{vm_name}.vmx":
        raise InvalidArgument("The home isn't the VM's .vmx file.", argument)
    return home


def _check_move(spec: spec_pb2.MigrationSpec) -> None:
    """What changes beside the host: the home, disks, NICs' networks, and nothing else."""
    if spec.destination_home:
        _check_home(spec.destination_home, spec.vm.name, "spec.destination_home")
    after = vm_config_pb2.VmConfig()
    after.CopyFrom(destination_config(spec))
    try:
        configuration.validate(after)
    except InvalidVmConfig as error:
        raise InvalidArgument("The new configuration can't be.", "spec.destination_vm") from error
    moved = set(spec.moved_disks)
    before = {disk.key: disk for disk in spec.vm.disks}
    for disk in after.disks:
        same = before.get(disk.key)
        if same is None or same.capacity_bytes != disk.capacity_bytes:
            raise InvalidArgument(f"The disk {disk.key} isn't the VM's.", "spec.destination_vm.disks")
        # On another host the same path may be on another datastore; what is there already is never overwritten.
        may_stay = disk.key not in moved or spec.source.host_uuid != spec.destination.host_uuid
        if disk.key not in moved if same.path != disk.path else not may_stay:
            message = f"The disk {disk.key} has another path and doesn't move, or the other way round."
            raise InvalidArgument(message, "spec.moved_disks")
    if not moved <= before.keys() or len(moved) != len(spec.moved_disks):
        raise InvalidArgument("A disk that moves isn't the VM's, or moves twice.", "spec.moved_disks")
    networks = {nic.key: nic.network for nic in spec.vm.nics}
    for nic in after.nics:
        nic.network = networks.get(nic.key, nic.network)
    rest = vm_config_pb2.VmConfig()
    rest.CopyFrom(spec.vm)
    for config in (after, rest):
        config.ClearField("disks")
        config.ClearField("guest_cpu")
    after.change_version = rest.change_version
    if after != rest or len(before) != len(destination_config(spec).disks):
        message = "The new configuration changes more than disks' places and NICs' networks."
        raise InvalidArgument(message, "spec.destination_vm")


def _require_two_hosts(spec: spec_pb2.MigrationSpec) -> None:
    if spec.source.host_uuid == spec.destination.host_uuid:
        raise InvalidArgument("Source and destination are one host.", "spec.destination.host_uuid")


def check_relocation(
    spec: spec_pb2.MigrationSpec,
    host: HostFacts,
    config: vm_config_pb2.VmConfig,
    vmx_path: DatastorePath,
) -> None:
    """What a move within this host checks before it does anything.

    :raises InvalidArgument:
    """
    home = check_spec(spec)
    if {spec.source.host_uuid, spec.destination.host_uuid} != {host.uuid}:
        raise InvalidArgument(f"The spec names another host than {host.name}.", "spec.destination.host_uuid")
    if home != vmx_path:
        raise InvalidArgument("The home isn't the VM's on this host.", "spec.vm_home")
    if spec.vm.disks != config.disks:
        raise InvalidArgument("The spec's disks aren't the VM's.", "spec.vm.disks")
    if not moves_home(spec) and not spec.moved_disks:
        raise InvalidArgument("Neither the home nor a disk moves.", "spec.moved_disks")
    if [nic.network for nic in destination_config(spec).nics] != [nic.network for nic in spec.vm.nics]:
        message = "A NIC's network isn't changed by a move within the host."
        raise InvalidArgument(message, "spec.destination_vm.nics")


def check_destination(spec: spec_pb2.MigrationSpec, host: HostFacts) -> DatastorePath:
    """What the destination checks before it does anything; returns the home's path afterwards.

    :raises InvalidArgument: :raises VMotionNotConfigured: :raises VirtualHardwareVersionNotSupported:
    :raises FeatureRequirementsNotMet: the CPU model isn't known here, or a feature that the guest has can't be given.
    """
    check_spec(spec)
    _require_two_hosts(spec)
    _check_own_endpoint(spec.destination, host, "spec.destination")
    if spec.vm.machine_type not in host.machine_types:
        message = f"{host.name} can't run the machine type {spec.vm.machine_type}."
        raise VirtualHardwareVersionNotSupported(message, machine_type=spec.vm.machine_type, host=host.name)
    require_features(host.capability.cpu, spec.vm.guest_cpu, host.name)
    for model in filter(None, (spec.vm.cpu_model.partition(",")[0], spec.vm.guest_cpu.model)):
        if model not in host.capability.cpu_models:
            message = f"{host.name} doesn't know the CPU model {model}."
            raise FeatureRequirementsNotMet(message, feature=model, host=host.name)
    return destination_home(spec)


def check_source(
    spec: spec_pb2.MigrationSpec,
    ticket: spec_pb2.DestinationTicket,
    host: HostFacts,
    config: vm_config_pb2.VmConfig,
    vmx_path: DatastorePath,
) -> None:
    """What the source checks before it does anything; `config` and `vmx_path` are the VM's as registered there.

    :raises InvalidArgument: :raises VMotionNotConfigured:
    """
    home = check_spec(spec)
    _require_two_hosts(spec)
    _check_own_endpoint(spec.source, host, "spec.source")
    if home != vmx_path:
        raise InvalidArgument("The home isn't the VM's on this host.", "spec.vm_home")
    if spec.vm.ram_bytes != config.ram_bytes or spec.vm.vcpus != config.vcpus:
        raise InvalidArgument("The spec's hardware isn't the running VM's.", "spec.vm")
    if spec.vm.guest_cpu != config.guest_cpu:
        raise InvalidArgument("The spec's CPU isn't the one that the guest runs on.", "spec.vm.guest_cpu")
    if ticket.migration_id != spec.migration_id:
        raise InvalidArgument("The ticket is another migration's.", "ticket.migration_id")
    if len(ticket.token) != TOKEN_BYTES:
        raise InvalidArgument(f"The token has {len(ticket.token)} bytes, not {TOKEN_BYTES}.", "ticket.token")
    if ticket.ram_bytes != (0 if spec.powered_off else spec.vm.ram_bytes):
        raise InvalidArgument("The ticket's memory layout isn't the VM's.", "ticket.ram_bytes")
    if ticket.vmotion_address != spec.destination.vmotion_address:
        message = "The ticket's address isn't the destination's vMotion address."
        raise InvalidArgument(message, "ticket.vmotion_address")
    if not 0 < ticket.port < 65536:
        raise InvalidArgument("The ticket's port isn't one.", "ticket.port")


def _check_own_endpoint(endpoint: spec_pb2.HostEndpoint, host: HostFacts, argument: str) -> None:
    if endpoint.host_uuid != host.uuid:
        raise InvalidArgument(f"The spec names another host than {host.name}.", f"{argument}.host_uuid")
    if not host.vmotion_address:
        raise VMotionNotConfigured(f"{host.name} has no vMotion address.", host=host.name)
    if endpoint.vmotion_address != host.vmotion_address:
        message = f"The spec says another vMotion address than {host.name} has."
        raise InvalidArgument(message, f"{argument}.vmotion_address")


def _check_endpoint(endpoint: spec_pb2.HostEndpoint, argument: str) -> None:
    if not configuration.is_canonical_uuid(endpoint.host_uuid):
        raise InvalidArgument("The host's uuid isn't one.", f"{argument}.host_uuid")
    if len(endpoint.name) > _TEXT_MAX_CHARS or not endpoint.name.isprintable():
        raise InvalidArgument("The host's name can't be one.", f"{argument}.name")
    message = "The vMotion address isn't the IP address of a host."
    try:
        address = ipaddress.ip_address(endpoint.vmotion_address)
    except ValueError as error:
        raise InvalidArgument(message, f"{argument}.vmotion_address") from error
    if address.is_unspecified or address.is_multicast:
        raise InvalidArgument(message, f"{argument}.vmotion_address")


def _check_options(options: spec_pb2.MigrationOptions) -> None:
    limits: tuple[tuple[str, float, float], ...] = (
        ("streams", options.streams, _STREAMS_MAX),
        ("max_iterations", options.max_iterations, _ITERATIONS_MAX),
        ("switchover_goal_ms", options.switchover_goal_ms, _GOAL_MAX_MS),
        ("network_timeout_s", options.network_timeout_s, _TIMEOUT_MAX_S),
    )
    for name, value, maximum in limits:
        if not math.isfinite(value) or not 0 <= value <= maximum:
            raise InvalidArgument(f"{name} isn't between 0 and {maximum:g}.", f"spec.options.{name}")
    if options.tracer not in _TRACERS:
        raise InvalidArgument("There is no such tracer.", "spec.options.tracer")
    for name, kind in (
        ("verify", spec_pb2.VerifyMode),
        ("encryption", spec_pb2.EncryptionMode),
        ("priority", spec_pb2.Priority),
    ):
        if getattr(options, name) not in kind.values():
            raise InvalidArgument(f"There is no such {name}.", f"spec.options.{name}")
