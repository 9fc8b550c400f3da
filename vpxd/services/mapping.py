"""vpxd's values to the messages of its services."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from proto.vim.v1 import host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime.rpc.faults import fault_to_proto
from vpxd.compatibility.finding import Finding
from vpxd.events.event import Event, Severity
from vpxd.inventory.records import Cluster, Datastore, Host, Network, Vm
from vpxd.inventory.values import PowerState, VmConnection
from vpxd.migration.options import MigrationOptions
from vpxd.operations.parts import Parts
from vpxd.operations.vm_migrate import HostFindings
from vpxd.tasks.state import TaskRecord, TaskState
from vpxd.wire import (
    CONNECTION_TO_WIRE,
    EXECUTION_TO_WIRE,
    POWER_TO_WIRE,
    host_info_to_wire,
    host_usage_to_wire,
    vm_config_to_wire,
)

ORIGIN = "vpxd"
_TASK_STATES = {
    TaskState.QUEUED: task_pb2.TASK_STATE_QUEUED,
    TaskState.RUNNING: task_pb2.TASK_STATE_RUNNING,
    TaskState.SUCCESS: task_pb2.TASK_STATE_SUCCESS,
    TaskState.ERROR: task_pb2.TASK_STATE_ERROR,
}
_SEVERITIES = {
    Severity.INFO: task_pb2.EVENT_SEVERITY_INFO,
    Severity.WARNING: task_pb2.EVENT_SEVERITY_WARNING,
    Severity.ERROR: task_pb2.EVENT_SEVERITY_ERROR,
}
_VM_CONNECTIONS = {
    VmConnection.CONNECTED: inventory_pb2.VM_CONNECTION_STATE_CONNECTED,
    VmConnection.DISCONNECTED: inventory_pb2.VM_CONNECTION_STATE_DISCONNECTED,
    VmConnection.ORPHANED: inventory_pb2.VM_CONNECTION_STATE_ORPHANED,
    VmConnection.INACCESSIBLE: inventory_pb2.VM_CONNECTION_STATE_INACCESSIBLE,
}


def task_info(record: TaskRecord) -> task_pb2.TaskInfo:
    """A task."""
    message = task_pb2.TaskInfo(
        id=record.id,
        operation=record.operation,
        entity=record.entity,
        entity_name=record.entity_name,
        state=_TASK_STATES[record.state],
        progress_percent=record.progress_percent,
        description=record.description,
        cancelable=record.cancelable,
        cancel_requested=record.cancel_requested,
        queue_time=_timestamp(record.queue_time),
        start_time=_timestamp(record.start_time),
        complete_time=_timestamp(record.complete_time),
        result=record.result,
        user=record.user,
        operation_id=record.operation_id,
        queue_position=record.queue_position,
        queue_reason=record.queue_reason,
    )
    if record.error is not None:
        message.error.CopyFrom(fault_to_proto(record.error, ORIGIN))
    if record.migration:
        message.migration.CopyFrom(status_pb2.MigrationStatus.FromString(record.migration))
    return message


def event(value: Event) -> task_pb2.Event:
    """An event."""
    draft = value.draft
    return task_pb2.Event(
        id=value.id,
        time=_timestamp(value.time),
        type=draft.type,
        severity=_SEVERITIES[draft.severity],
        message=draft.message,
        entity=draft.entity,
        entity_name=draft.entity_name,
        task=draft.task,
    )


def cluster(parts: Parts, record: Cluster) -> inventory_pb2.Cluster:
    """A cluster."""
    hosts = sum(host.cluster == record.id for host in parts.store.inventory.hosts.values())
    return inventory_pb2.Cluster(
        id=record.id,
        name=record.name,
        datacenter=record.datacenter,
        host_count=hosts,
        evc_mode=record.evc_mode,
    )


def host(parts: Parts, record: Host, vm_count: int) -> inventory_pb2.Host:
    """A host with what it said last."""
    live = parts.live.host(record.id)
    return inventory_pb2.Host(
        id=record.id,
        name=record.name,
        cluster=record.cluster,
        address=record.address,
        connection_state=CONNECTION_TO_WIRE[live.connection],
        info=host_info_to_wire(live.info or record.info),
        usage=host_usage_to_wire(live.usage),
        last_heartbeat=_timestamp(live.last_heartbeat),
        vm_count=vm_count,
    )


def datastore(parts: Parts, record: Datastore) -> inventory_pb2.Datastore:
    """A datastore with the hosts that see it and the free space that the first connected one of them tells."""
    hosts = sorted(
        parts.store.inventory.hosts.values(), key=lambda host: not parts.live.host(host.id).connected
    )
    seen = [
        (host.id, store)
        for host in hosts
        if (store := parts.live.host_info(host).datastore_with_uuid(record.uuid)) is not None
    ]
    return inventory_pb2.Datastore(
        id=record.id,
        name=record.name,
        uuid=record.uuid,
        capacity_bytes=record.capacity_bytes,
        free_bytes=seen[0][1].free_bytes if seen else 0,
        hosts=[host_id for host_id, _store in seen],
        tags=record.tags,
    )


def network(parts: Parts, record: Network, vmotion: bool) -> inventory_pb2.Network:
    """A network with the hosts that offer it as a port group; of vpxd's own two, those that have an address on it."""
    hosts = []
    for entry in parts.store.inventory.hosts.values():
        info = parts.live.host_info(entry)
        address = info.vmotion_address if vmotion else info.management_address
        there = info.port_group(record.name) is not None if record.segment_id else bool(address)
        if there:
            hosts.append(entry.id)
    return inventory_pb2.Network(id=record.id, name=record.name, hosts=hosts, segment_id=record.segment_id)


def vm(parts: Parts, record: Vm) -> inventory_pb2.Vm:
    """A VM with what its host said last."""
    its_host = parts.store.inventory.hosts.get(record.host)
    state = parts.live.vm(record)
    holder = parts.locks.holder(record.uuid)
    message = inventory_pb2.Vm(
        id=record.id,
        name=record.name,
        host=record.host,
        host_name=its_host.name if its_host is not None else "",
        home=record.home,
        connection_state=_VM_CONNECTIONS[parts.live.vm_connection(record)],
        power_state=POWER_TO_WIRE[record.power_state],
        config=vm_config_to_wire(record.config),
        locked_by=holder.task if holder is not None else "",
        failure=record.failure,
    )
    if state is not None:
        message.execution_state = EXECUTION_TO_WIRE[state.execution_state]
        message.memory_used_bytes = state.memory_used_bytes
        message.cpu_percent = state.cpu_percent
        message.uptime_s = state.uptime_s
        message.failure = state.failure or record.failure
    elif record.power_state is PowerState.POWERED_OFF:
        message.execution_state = host_pb2.EXECUTION_STATE_OFF
    return message


def host_findings(value: HostFindings) -> service_pb2.HostFindings:
    """What speaks against a host."""
    return service_pb2.HostFindings(
        host=value.host.id,
        host_name=value.host.name,
        findings=[finding(entry, value.host.id) for entry in value.findings],
    )


def migration_options(message: spec_pb2.MigrationOptions) -> MigrationOptions:
    """The options of a migration, not yet checked."""
    return MigrationOptions(
        verify=message.verify,
        encryption=message.encryption,
        priority=message.priority,
        switchover_goal_ms=message.switchover_goal_ms,
        max_iterations=message.max_iterations,
        streams=message.streams,
        bandwidth_bytes_per_s=message.bandwidth_bytes_per_s,
        tracer=message.tracer,
        network_timeout_s=message.network_timeout_s,
    )


def finding(value: Finding, host_id: str) -> task_pb2.Finding:
    """One result of a compatibility check."""
    return task_pb2.Finding(
        error=value.error,
        fault=fault_to_proto(value.fault, ORIGIN),
        remedy=value.remedy,
        host=host_id,
        group=task_pb2.FindingGroup.ValueType(value.group),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
