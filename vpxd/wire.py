"""Host values to and from protobuf: the one place where vpxd's own code meets proto.vim.v1's messages.

What hosts say is taken as it is; numbers that this version doesn't know become UNKNOWN or powered off, never an
error, so that a newer host doesn't cut itself off.
"""

from dataclasses import replace

from google.protobuf import json_format

from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from vpxd.inventory.values import (
    Boot,
    DiskFormat,
    ExecutionState,
    GuestCpu,
    HostCapability,
    HostConnection,
    HostDatastore,
    HostInfo,
    HostReport,
    HostUsage,
    NetworkAdapter,
    PortGroup,
    PowerState,
    VirtualDisk,
    VmConfig,
    VmState,
)

POWER_TO_WIRE = {
    PowerState.POWERED_OFF: host_pb2.POWER_STATE_POWERED_OFF,
    PowerState.POWERED_ON: host_pb2.POWER_STATE_POWERED_ON,
}
EXECUTION_TO_WIRE = {
    ExecutionState.UNKNOWN: host_pb2.EXECUTION_STATE_UNSPECIFIED,
    ExecutionState.OFF: host_pb2.EXECUTION_STATE_OFF,
    ExecutionState.STARTING: host_pb2.EXECUTION_STATE_STARTING,
    ExecutionState.RUNNING: host_pb2.EXECUTION_STATE_RUNNING,
    ExecutionState.STUNNED: host_pb2.EXECUTION_STATE_STUNNED,
    ExecutionState.EMIGRATING: host_pb2.EXECUTION_STATE_EMIGRATING,
    ExecutionState.IMMIGRATING: host_pb2.EXECUTION_STATE_IMMIGRATING,
    ExecutionState.FAILED: host_pb2.EXECUTION_STATE_FAILED,
}
CONNECTION_TO_WIRE = {
    HostConnection.CONNECTED: host_pb2.HOST_CONNECTION_STATE_CONNECTED,
    HostConnection.NOT_RESPONDING: host_pb2.HOST_CONNECTION_STATE_NOT_RESPONDING,
    HostConnection.DISCONNECTED: host_pb2.HOST_CONNECTION_STATE_DISCONNECTED,
}
_EXECUTION_FROM_WIRE = {wire: value for value, wire in EXECUTION_TO_WIRE.items()}


def vm_config_from_wire(message: vm_config_pb2.VmConfig) -> VmConfig:
    """A VM's configuration."""
    return VmConfig(
        uuid=message.uuid,
        name=message.name,
        vcpus=message.vcpus,
        ram_bytes=message.ram_bytes,
        machine_type=message.machine_type,
        cpu_model=message.cpu_model,
        boot=Boot(message.boot.kernel, message.boot.initrd, message.boot.kernel_command_line),
        annotation=message.annotation,
        change_version=message.change_version,
        disks=tuple(
            VirtualDisk(disk.key, disk.path, disk.capacity_bytes, disk_format_from_wire(disk.format))
            for disk in message.disks
        ),
        nics=tuple(NetworkAdapter(nic.key, nic.mac, nic.network, nic.connected) for nic in message.nics),
        evc_mode=message.evc_mode,
        guest_cpu=_guest_cpu_from_wire(message.guest_cpu) if message.HasField("guest_cpu") else None,
    )


def disk_format_from_wire(number: int) -> DiskFormat:
    """A format; one that this version doesn't know is SAME_AS_SOURCE."""
    return DiskFormat(number) if number in DiskFormat.__members__.values() else DiskFormat.SAME_AS_SOURCE


def _guest_cpu_from_wire(message: vm_config_pb2.GuestCpu) -> GuestCpu:
    return GuestCpu(
        message.model, tuple(message.features), tuple(message.disabled_features), message.baseline
    )


def _guest_cpu_to_wire(cpu: GuestCpu) -> vm_config_pb2.GuestCpu:
    return vm_config_pb2.GuestCpu(
        model=cpu.model,
        features=cpu.features,
        disabled_features=cpu.disabled_features,
        baseline=cpu.baseline,
    )


def vm_config_to_wire(config: VmConfig) -> vm_config_pb2.VmConfig:
    """The inverse of `vm_config_from_wire`."""
    return vm_config_pb2.VmConfig(
        uuid=config.uuid,
        name=config.name,
        vcpus=config.vcpus,
        ram_bytes=config.ram_bytes,
        machine_type=config.machine_type,
        cpu_model=config.cpu_model,
        boot=vm_config_pb2.Boot(
            kernel=config.boot.kernel,
            initrd=config.boot.initrd,
            kernel_command_line=config.boot.kernel_command_line,
        ),
        annotation=config.annotation,
        change_version=config.change_version,
        disks=[
            vm_config_pb2.VirtualDisk(
                key=disk.key,
                path=disk.path,
                capacity_bytes=disk.capacity_bytes,
                format=vm_config_pb2.DiskFormat.ValueType(disk.format),
            )
            for disk in config.disks
        ],
        nics=[
            vm_config_pb2.NetworkAdapter(
                key=nic.key, mac=nic.mac, network=nic.network, connected=nic.connected
            )
            for nic in config.nics
        ],
        evc_mode=config.evc_mode,
        guest_cpu=_guest_cpu_to_wire(config.guest_cpu) if config.guest_cpu is not None else None,
    )


def host_info_from_wire(message: host_pb2.HostInfo) -> HostInfo:
    """What a host is and has."""
    capability = message.capability
    return HostInfo(
        uuid=message.uuid,
        name=message.name,
        management_address=message.management_address,
        vmotion_address=message.vmotion_address,
        memory_bytes=message.memory_bytes,
        cpu_cores=message.cpu_cores,
        vcpu_capacity=message.vcpu_capacity,
        capability=HostCapability(
            qemu_version=capability.qemu_version,
            machine_types=tuple(capability.machine_types),
            cpu_models=tuple(capability.cpu_models),
            accelerator=capability.accelerator,
            stream_version_min=capability.stream_version_min,
            stream_version_max=capability.stream_version_max,
            cpu_features=tuple(capability.cpu_features),
            cpu_vendor=capability.cpu_vendor,
            evc_modes=tuple(capability.evc_modes),
        ),
        datastores=tuple(
            HostDatastore(
                store.name,
                store.uuid,
                store.capacity_bytes,
                store.free_bytes,
                store.accessible,
                store.location,
            )
            for store in message.datastores
        ),
        version=message.version,
        port_groups=tuple(PortGroup(group.name, group.segment_id) for group in message.port_groups),
    )


def host_info_to_wire(info: HostInfo) -> host_pb2.HostInfo:
    """The inverse of `host_info_from_wire`."""
    capability = info.capability
    return host_pb2.HostInfo(
        uuid=info.uuid,
        name=info.name,
        management_address=info.management_address,
        vmotion_address=info.vmotion_address,
        memory_bytes=info.memory_bytes,
        cpu_cores=info.cpu_cores,
        vcpu_capacity=info.vcpu_capacity,
        capability=host_pb2.HostCapability(
            qemu_version=capability.qemu_version,
            machine_types=capability.machine_types,
            cpu_models=capability.cpu_models,
            accelerator=capability.accelerator,
            stream_version_min=capability.stream_version_min,
            stream_version_max=capability.stream_version_max,
            cpu_features=capability.cpu_features,
            cpu_vendor=capability.cpu_vendor,
            evc_modes=capability.evc_modes,
        ),
        datastores=[
            host_pb2.Datastore(
                name=store.name,
                uuid=store.uuid,
                capacity_bytes=store.capacity_bytes,
                free_bytes=store.free_bytes,
                accessible=store.accessible,
                location=store.location,
            )
            for store in info.datastores
        ],
        version=info.version,
        port_groups=[
            host_pb2.PortGroup(name=group.name, segment_id=group.segment_id) for group in info.port_groups
        ],
    )


def host_usage_from_wire(message: host_pb2.HostUsage) -> HostUsage:
    """What is reserved and used on a host."""
    return HostUsage(
        message.memory_reserved_bytes, message.vcpus_reserved, message.memory_used_bytes, message.cpu_percent
    )


def host_usage_to_wire(usage: HostUsage) -> host_pb2.HostUsage:
    """The inverse of `host_usage_from_wire`."""
    return host_pb2.HostUsage(
        memory_reserved_bytes=usage.memory_reserved_bytes,
        vcpus_reserved=usage.vcpus_reserved,
        memory_used_bytes=usage.memory_used_bytes,
        cpu_percent=usage.cpu_percent,
    )


def vm_state_from_wire(message: host_pb2.VmState) -> VmState:
    """One VM as its host sees it; uuid and name are the host's word where its config lacks them."""
    config = vm_config_from_wire(message.config)
    config = replace(config, uuid=config.uuid or message.uuid, name=config.name or message.name)
    powered_on = message.power_state == host_pb2.POWER_STATE_POWERED_ON
    return VmState(
        config=config,
        home=message.home,
        power_state=PowerState.POWERED_ON if powered_on else PowerState.POWERED_OFF,
        execution_state=_EXECUTION_FROM_WIRE.get(message.execution_state, ExecutionState.UNKNOWN),
        memory_used_bytes=message.memory_used_bytes,
        cpu_percent=message.cpu_percent,
        uptime_s=message.uptime_s,
        lock_operation=message.lock.operation,
        lock_task=message.lock.task,
        failure=message.failure,
    )


def host_report_from_wire(message: operations_pb2.WatchHostResponse) -> HostReport:
    """One message of a host's state. A VM without a uuid isn't one and is left out."""
    return HostReport(
        info=host_info_from_wire(message.host) if message.HasField("host") else None,
        usage=host_usage_from_wire(message.usage),
        vms=tuple(vm_state_from_wire(vm) for vm in message.vms if vm.uuid or vm.config.uuid),
        sequence=message.sequence,
    )


def vm_config_to_json(config: VmConfig) -> str:
    """As the database keeps it: proto3's JSON form, so that an older database can be read by a newer vpxd."""
    return json_format.MessageToJson(vm_config_to_wire(config), indent=None)


def vm_config_from_json(text: str) -> VmConfig:
    """The inverse of `vm_config_to_json`; unknown fields are left out."""
    return vm_config_from_wire(json_format.Parse(text, vm_config_pb2.VmConfig(), ignore_unknown_fields=True))


def host_info_to_json(info: HostInfo) -> str:
    """As the database keeps it."""
    return json_format.MessageToJson(host_info_to_wire(info), indent=None)


def host_info_from_json(text: str) -> HostInfo:
    """The inverse of `host_info_to_json`; unknown fields are left out."""
    return host_info_from_wire(json_format.Parse(text, host_pb2.HostInfo(), ignore_unknown_fields=True))
