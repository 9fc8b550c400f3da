"""Between vmx's own values and the messages of proto/: the one place where both are known, beside status_message.py.

Everything that comes from a message is checked here; what leaves here as a value is sound.
"""

import ipaddress
import re
from pathlib import Path

from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import InvalidArgument, InvalidVmConfig, VMotionProtocolIncompatible
from vmx.disk.contract import DiskFormat
from vmx.files import VmFiles
from vmx.guest.command_line import Accelerator, GuestSpec
from vmx.guest.cpu_model import FixedCpu
from vmx.guest.disk_devices import DiskDevice
from vmx.guest.errors import GuestSpecError
from vmx.guest.nic_devices import NicDevice
from vmx.guest.pages import PAGE_BYTES
from vmx.migration.destination import DestinationDisk
from vmx.migration.disk_copy import SourceDisk
from vmx.migration.order import Endpoint, MigrationOrder, Options, Ticket, Verification
from vmx.precopy.policy import DEFAULT_MAX_ITERATIONS, DEFAULT_SWITCHOVER_GOAL_MS, Limits
from vmx.stream import OLDEST_STREAM_VERSION, STREAM_VERSION
from vmx.stream.spec import (
    KEY_BYTES,
    MAX_PAGE_CHANNELS,
    MAX_TOKEN_BYTES,
    MIN_TOKEN_BYTES,
    DiskExtent,
    StreamTimeouts,
)
from vmx.trace.contract import TracerKind
from vmx.vm_state import ExecutionState

_MAX_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,80}")
_MIN_SILENT_PEER_S, _MAX_SILENT_PEER_S = 0.5, 600.0

_VERIFICATION = {
    spec_pb2.VERIFY_MODE_UNSPECIFIED: Verification.OFF,
    spec_pb2.VERIFY_MODE_OFF: Verification.OFF,
    spec_pb2.VERIFY_MODE_AFTER_RESUME: Verification.AFTER_RESUME,
    spec_pb2.VERIFY_MODE_BEFORE_RESUME: Verification.BEFORE_RESUME,
}
_ENCRYPTED = {
    spec_pb2.ENCRYPTION_MODE_UNSPECIFIED: True,
    spec_pb2.ENCRYPTION_MODE_REQUIRED: True,
    spec_pb2.ENCRYPTION_MODE_DISABLED: False,
}
_EXECUTION_STATE = {
    ExecutionState.OFF: host_pb2.EXECUTION_STATE_OFF,
    ExecutionState.STARTING: host_pb2.EXECUTION_STATE_STARTING,
    ExecutionState.RUNNING: host_pb2.EXECUTION_STATE_RUNNING,
    ExecutionState.STUNNED: host_pb2.EXECUTION_STATE_STUNNED,
    ExecutionState.EMIGRATING: host_pb2.EXECUTION_STATE_EMIGRATING,
    ExecutionState.IMMIGRATING: host_pb2.EXECUTION_STATE_IMMIGRATING,
    ExecutionState.FAILED: host_pb2.EXECUTION_STATE_FAILED,
}
_DISK_FORMAT = {
    vm_config_pb2.DISK_FORMAT_THIN: DiskFormat.THIN,
    vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED: DiskFormat.THICK_LAZY_ZEROED,
    vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED: DiskFormat.THICK_EAGER_ZEROED,
    vm_config_pb2.DISK_FORMAT_QCOW2: DiskFormat.QCOW2,
}


def guest_spec(
    config: vm_config_pb2.VmConfig,
    place: service_pb2.VmPlace,
    run_dir: Path,
    accelerator: Accelerator,
    incoming: bool,
) -> GuestSpec:
    """The guest's process as this configuration wants it.

    :raises InvalidVmConfig: the configuration can't be run; names the property.
    """
    files = vm_files(config, place)
    try:
        return GuestSpec(
            vm_uuid=config.uuid,
            name=config.name,
            vcpus=config.vcpus,
            ram_bytes=config.ram_bytes,
            machine_type=config.machine_type,
            cpu_model=config.cpu_model,
            accelerator=accelerator,
            console_log_path=files.console_log,
            heartbeat_log_path=files.heartbeat_log,
            run_dir=run_dir,
            kernel_path=Path(place.kernel_path) if place.kernel_path else None,
            initrd_path=Path(place.initrd_path) if place.initrd_path else None,
            kernel_command_line=config.boot.kernel_command_line,
            incoming=incoming,
            disks=_disks(config, place),
            nics=_nics(config, place),
            cpu=_fixed_cpu(config.guest_cpu) if config.guest_cpu.model else None,
        )
    except GuestSpecError as error:
        raise InvalidVmConfig(str(error), property=error.field) from error


def _fixed_cpu(cpu: vm_config_pb2.GuestCpu) -> FixedCpu:
    return FixedCpu(cpu.model, tuple(cpu.features), tuple(cpu.disabled_features))


def _disks(config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> tuple[DiskDevice, ...]:
    places = {one.key: one for one in place.disks}
    disks = []
    for disk in config.disks:
        where = places.get(disk.key)
        if where is None:
            raise InvalidVmConfig("A disk has no place on this host.", property=f"disks[{disk.key}]")
        if where.format not in _DISK_FORMAT:
            raise InvalidVmConfig("A disk's format isn't known.", property=f"disks[{disk.key}]")
        disks.append(DiskDevice(disk.key, Path(where.extent_path), _DISK_FORMAT[where.format]))
    return tuple(disks)


def _nics(config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> tuple[NicDevice, ...]:
    places = {one.key: one for one in place.nics}
    nics = []
    for nic in config.nics:
        where = places.get(nic.key, service_pb2.NicPlace())
        if nic.connected != bool(where.port_path) or bool(where.port_path) != bool(where.switch_path):
            message = f"The place doesn't say where the NIC {nic.key} goes."
            raise InvalidArgument(message, argument="place.nics")
        port = Path(where.port_path) if where.port_path else None
        nics.append(NicDevice(nic.key, nic.mac, port, Path(where.switch_path) if port else None))
    return tuple(nics)


def vm_files(config: vm_config_pb2.VmConfig, place: service_pb2.VmPlace) -> VmFiles:
    """Where the VM's files are on this host.

    :raises InvalidVmConfig: the name can't be a file's name.
    :raises InvalidArgument: the home folder isn't an absolute path.
    """
    if not _MAX_NAME.fullmatch(config.name) or config.name in {".", ".."}:
        raise InvalidVmConfig("The VM's name can't be the name of a file.", property="name")
    home = Path(place.home_directory)
    if not home.is_absolute() or not place.home_directory.isprintable():
        raise InvalidArgument("The home folder isn't an absolute path.", argument="place.home_directory")
    return VmFiles(home, config.name)


def migration_order(spec: spec_pb2.MigrationSpec) -> MigrationOrder:
    """The specification, checked.

    :raises InvalidArgument: a field can't be; names it.
    """
    if not 0 < spec.migration_id < 2**63:
        raise InvalidArgument("The migration's id isn't a positive 63-bit number.", argument="migration_id")
    within_one_host = spec.source.host_uuid == spec.destination.host_uuid
    if len(spec.key) != (0 if within_one_host else KEY_BYTES):  # within a host nothing is sent
        raise InvalidArgument(f"The one-time key hasn't {KEY_BYTES} bytes.", argument="key")
    source, destination = _endpoint(spec.source, "source"), _endpoint(spec.destination, "destination")
    if not within_one_host and source.vmotion_address == destination.vmotion_address:
        message = "Both hosts have the same vMotion address."
        raise InvalidArgument(message, argument="destination.vmotion_address")
    if not spec.vm.uuid:
        raise InvalidArgument("The VM has no UUID.", argument="vm.uuid")
    if spec.vm.ram_bytes == 0 or spec.vm.ram_bytes % PAGE_BYTES:
        raise InvalidArgument("The VM's memory isn't a number of whole pages.", argument="vm.ram_bytes")
    return MigrationOrder(
        migration_id=spec.migration_id,
        task_id=spec.task_id,
        vm_uuid=spec.vm.uuid,
        vm_name=spec.vm.name,
        ram_bytes=0 if spec.powered_off else spec.vm.ram_bytes,
        source=source,
        destination=destination,
        key=spec.key,
        options=_options(spec.options),
        moves_home=_moves_home(spec),
        disks=_moved_disks(spec),
        powered_off=spec.powered_off,
    )


def _moves_home(spec: spec_pb2.MigrationSpec) -> bool:
    """Two hosts may have different datastores of one name."""
    if spec.destination_home in ("", spec.vm_home):
        there = spec.destination_home_datastore_uuid
        return bool(spec.destination_home) and there not in ("", spec.home_datastore_uuid)
    return True


def require_two_hosts(order: MigrationOrder) -> None:
    """:raises InvalidArgument: source and destination are one host."""
    if order.source.host_uuid == order.destination.host_uuid:
        raise InvalidArgument("The destination is the source.", argument="destination.host_uuid")


def require_one_host(order: MigrationOrder) -> None:
    """:raises InvalidArgument: source and destination aren't one host, or nothing moves."""
    if order.source.host_uuid != order.destination.host_uuid:
        raise InvalidArgument("The destination isn't the source.", argument="destination.host_uuid")
    if not order.disks and not order.moves_home:
        raise InvalidArgument("Neither the home nor a disk moves.", argument="moved_disks")


def destination_config(spec: spec_pb2.MigrationSpec) -> vm_config_pb2.VmConfig:
    """The configuration that the VM has afterwards."""
    return spec.destination_vm if spec.HasField("destination_vm") else spec.vm


def _moved_disks(spec: spec_pb2.MigrationSpec) -> tuple[DiskExtent, ...]:
    here = {disk.key: disk for disk in spec.vm.disks}
    there = {disk.key: disk for disk in destination_config(spec).disks}
    moved = sorted(spec.moved_disks)
    if len(set(moved)) != len(moved):
        raise InvalidArgument("A disk moves twice.", argument="moved_disks")
    for key in moved:
        if key not in here or key not in there:
            raise InvalidArgument(f"The VM has no disk {key}.", argument="moved_disks")
        if here[key].capacity_bytes != there[key].capacity_bytes:
            raise InvalidArgument(f"The disk {key} changes its capacity.", argument="destination_vm.disks")
    return tuple(DiskExtent(key, here[key].capacity_bytes) for key in moved)


def disk_places(place: service_pb2.VmPlace) -> tuple[SourceDisk, ...]:
    """Where the VM's disks are.

    :raises InvalidArgument: a path isn't absolute, or a format isn't known.
    """
    disks = []
    for disk in place.disks:
        path = Path(disk.extent_path)
        if not path.is_absolute() or not disk.extent_path.isprintable():
            raise InvalidArgument("A disk's extent isn't an absolute path.", argument="place.disks")
        if disk.format not in _DISK_FORMAT:
            raise InvalidArgument("A disk's format isn't known.", argument="place.disks")
        disks.append(SourceDisk(disk.key, path, _DISK_FORMAT[disk.format], disk.capacity_bytes))
    return tuple(disks)


def empty_disks(place: service_pb2.VmPlace, order: MigrationOrder) -> tuple[DestinationDisk, ...]:
    """The disks that move here, as hostd has made them.

    :raises InvalidArgument: as `disk_places`; one is missing, or isn't as large as the order says.
    """
    there = {disk.key: disk for disk in disk_places(place)}
    for wanted in order.disks:
        found = there.get(wanted.key)
        if found is None or found.capacity_bytes != wanted.capacity_bytes:
            message = f"There is no empty disk {wanted.key} of {wanted.capacity_bytes} bytes."
            raise InvalidArgument(message, argument="place.disks")
    return tuple(
        DestinationDisk(key, there[key].extent_path, there[key].layout)
        for key in (wanted.key for wanted in order.disks)
    )


def _endpoint(endpoint: spec_pb2.HostEndpoint, argument: str) -> Endpoint:
    if not endpoint.host_uuid:
        raise InvalidArgument("A host has no UUID.", argument=f"{argument}.host_uuid")
    message = f"The vMotion address of the {argument} isn't the IP address of a host."
    try:
        address = ipaddress.ip_address(endpoint.vmotion_address)
    except ValueError as error:
        raise InvalidArgument(message, argument=f"{argument}.vmotion_address") from error
    if address.is_unspecified or address.is_multicast:  # page data stays on one network
        raise InvalidArgument(message, argument=f"{argument}.vmotion_address")
    return Endpoint(endpoint.host_uuid, endpoint.name, endpoint.vmotion_address)


def _options(options: spec_pb2.MigrationOptions) -> Options:
    if options.verify not in _VERIFICATION:
        raise InvalidArgument("This way to verify isn't known.", argument="options.verify")
    if options.encryption not in _ENCRYPTED:
        raise InvalidArgument("This encryption mode isn't known.", argument="options.encryption")
    if options.streams > MAX_PAGE_CHANNELS:
        raise InvalidArgument(f"More than {MAX_PAGE_CHANNELS} streams.", argument="options.streams")
    silent_peer_s = options.network_timeout_s or StreamTimeouts().silent_peer_s
    if not _MIN_SILENT_PEER_S <= silent_peer_s <= _MAX_SILENT_PEER_S:
        allowed = f"between {_MIN_SILENT_PEER_S} and {_MAX_SILENT_PEER_S} s"
        raise InvalidArgument(f"The network timeout isn't {allowed}.", argument="options.network_timeout_s")
    try:
        tracer = TracerKind(options.tracer) if options.tracer else None
    except ValueError as error:
        raise InvalidArgument(f"There is no tracer {options.tracer!r}.", argument="options.tracer") from error
    defaults = Options()
    return Options(
        verification=_VERIFICATION[options.verify],
        encrypted=_ENCRYPTED[options.encryption],
        limits=Limits(
            switchover_goal_ms=options.switchover_goal_ms or DEFAULT_SWITCHOVER_GOAL_MS,
            max_iterations=options.max_iterations or DEFAULT_MAX_ITERATIONS,
        ),
        streams=options.streams or defaults.streams,
        bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
        tracer=tracer,
        timeouts=StreamTimeouts(silent_peer_s=silent_peer_s),
    )


def ticket_of(message: spec_pb2.DestinationTicket, order: MigrationOrder) -> Ticket:
    """The destination's answer, checked against the order that it answers.

    :raises InvalidArgument: it belongs to another migration, or a field can't be.
    :raises VMotionProtocolIncompatible: the destination speaks no version of the stream that this host does.
    """
    if message.migration_id != order.migration_id:
        raise InvalidArgument("The ticket belongs to another migration.", argument="ticket.migration_id")
    if message.ram_bytes != order.ram_bytes:
        raise InvalidArgument("The ticket is for another size of memory.", argument="ticket.ram_bytes")
    if message.vmotion_address != order.destination.vmotion_address:
        text = "The ticket's address isn't the destination's vMotion address."
        raise InvalidArgument(text, argument="ticket.vmotion_address")
    if not 0 < message.port < 65536:
        raise InvalidArgument("The ticket's port can't be.", argument="ticket.port")
    if not MIN_TOKEN_BYTES <= len(message.token) <= MAX_TOKEN_BYTES:
        raise InvalidArgument("The ticket's token has no proper length.", argument="ticket.token")
    newest_common = min(message.stream_version_max, STREAM_VERSION)
    if newest_common < max(message.stream_version_min, OLDEST_STREAM_VERSION):
        raise VMotionProtocolIncompatible(
            "The two hosts have no version of the vMotion stream in common.",
            phase="handshake",
            offered=f"{OLDEST_STREAM_VERSION}-{STREAM_VERSION}",
            supported=f"{message.stream_version_min}-{message.stream_version_max}",
        )
    return Ticket(
        message.migration_id, message.vmotion_address, message.port, message.token, message.ram_bytes
    )


def ticket_message(ticket: Ticket, version_min: int, version_max: int) -> spec_pb2.DestinationTicket:
    """The ticket as a message."""
    return spec_pb2.DestinationTicket(
        migration_id=ticket.migration_id,
        vmotion_address=ticket.address,
        port=ticket.port,
        token=ticket.token,
        ram_bytes=ticket.ram_bytes,
        stream_version_min=version_min,
        stream_version_max=version_max,
    )


def execution_state(state: ExecutionState) -> host_pb2.ExecutionState.ValueType:
    """The state as a message's value."""
    return _EXECUTION_STATE[state]
