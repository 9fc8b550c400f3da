"""Pure: no I/O, no clock, no logging. Is a migration spec (and the ticket with it) what this host can act on?

Everything in a spec is checked before anything is done with it: by the destination, which reserves and creates, and by
the source, which sends.
"""

import ipaddress
import math

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


def check_spec(spec: spec_pb2.MigrationSpec) -> DatastorePath:
    """What both hosts check; returns the home's path.

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
    if len(spec.key) != KEY_BYTES:
        raise InvalidArgument(f"The key has {len(spec.key)} bytes, not {KEY_BYTES}.", "spec.key")
    if not any(spec.key):
        raise InvalidArgument("The key is all zeros.", "spec.key")
    _check_endpoint(spec.source, "spec.source")
    _check_endpoint(spec.destination, "spec.destination")
    if spec.source.host_uuid == spec.destination.host_uuid:
        raise InvalidArgument("Source and destination are one host.", "spec.destination.host_uuid")
    _check_options(spec.options)
    try:
        home = DatastorePath.parse(spec.vm_home)
    except InvalidDatastorePath as error:
        raise InvalidArgument("The home isn't a datastore path.", "spec.vm_home") from error
    if home.name != f"{spec.vm.name}.vmx":
        raise InvalidArgument("The home isn't the VM's .vmx file.", "spec.vm_home")
    return home


def check_destination(spec: spec_pb2.MigrationSpec, host: HostFacts) -> DatastorePath:
    """What the destination checks before it does anything; returns the home's path.

    :raises InvalidArgument: :raises VMotionNotConfigured: :raises VirtualHardwareVersionNotSupported:
    :raises FeatureRequirementsNotMet: the CPU model isn't known here.
    """
    home = check_spec(spec)
    _check_own_endpoint(spec.destination, host, "spec.destination")
    if spec.vm.machine_type not in host.machine_types:
        message = f"{host.name} can't run the machine type {spec.vm.machine_type}."
        raise VirtualHardwareVersionNotSupported(message, machine_type=spec.vm.machine_type, host=host.name)
    model = spec.vm.cpu_model.partition(",")[0]
    if model not in host.capability.cpu_models:
        message = f"{host.name} doesn't know the CPU model {model}."
        raise FeatureRequirementsNotMet(message, feature=model, host=host.name)
    return home


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
    _check_own_endpoint(spec.source, host, "spec.source")
    if home != vmx_path:
        raise InvalidArgument("The home isn't the VM's on this host.", "spec.vm_home")
    if spec.vm.ram_bytes != config.ram_bytes or spec.vm.vcpus != config.vcpus:
        raise InvalidArgument("The spec's hardware isn't the running VM's.", "spec.vm")
    if ticket.migration_id != spec.migration_id:
        raise InvalidArgument("The ticket is another migration's.", "ticket.migration_id")
    if len(ticket.token) != TOKEN_BYTES:
        raise InvalidArgument(f"The token has {len(ticket.token)} bytes, not {TOKEN_BYTES}.", "ticket.token")
    if ticket.ram_bytes != spec.vm.ram_bytes:
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
