"""What a host's report changes in the inventory. Pure: no I/O, no clock, no logging.

A report holds all of a host's VMs. Most reports change nothing and cost nothing but a comparison; vpxd writes
only when `plan` finds a difference.

    reported, unknown               -> registered in the inventory
    reported, known here            -> configuration, home and power state taken over
    reported, known on another host -> the host that runs it wins, else the one that still reports it
    known here, not reported        -> orphaned, or moved to another connected host that reports it
    held by a task, or just let go  -> left alone: the task knows better
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vpxd.events.event import EventDraft, EventType, Severity
from vpxd.inventory.live import HostLive
from vpxd.inventory.names import MAX_NAME_CHARS
from vpxd.inventory.records import Datastore, Host, Network, Vm
from vpxd.inventory.values import HostInfo, PowerState, VmState


@dataclass(frozen=True)
class Known:
    """What `plan` compares with. `live` holds the other hosts' last words; `untouchable` the uuids that tasks hold."""

    host: Host
    vms: Mapping[str, Vm]
    datastores: Mapping[str, Datastore]
    live: Mapping[str, HostLive]
    untouchable: frozenset[str]
    networks: Mapping[str, Network] = field(default_factory=dict)


@dataclass
class Plan:
    """What has to be written. New records have an empty id: the transaction gives them one."""

    host: Host | None = None
    new_datastores: list[Datastore] = field(default_factory=list)
    changed_datastores: list[Datastore] = field(default_factory=list)
    new_networks: list[Network] = field(default_factory=list)
    changed_networks: list[Network] = field(default_factory=list)
    new_vms: list[Vm] = field(default_factory=list)
    changed_vms: list[Vm] = field(default_factory=list)
    events: list[EventDraft] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing has to be written."""
        return not (
            self.host
            or self.new_datastores
            or self.changed_datastores
            or self.new_networks
            or self.changed_networks
            or self.new_vms
            or self.changed_vms
            or self.events
        )


def plan(known: Known, info: HostInfo, reported: Mapping[str, VmState]) -> Plan:
    """What changes when `known.host` says that it is `info` and has `reported`, its VMs by uuid."""
    result = Plan()
    if without_free_space(info) != without_free_space(known.host.info):
        result.host = replace(known.host, info=info)
    _plan_datastores(known, info, result)
    _plan_networks(known, info, result)
    by_uuid = {vm.uuid: vm for vm in known.vms.values()}
    for uuid, state in reported.items():
        if uuid not in known.untouchable:
            _plan_reported(known, by_uuid.get(uuid), state, result)
    for vm in known.vms.values():
        if vm.host == known.host.id and vm.uuid not in reported and vm.uuid not in known.untouchable:
            _plan_missing(known, vm, result)
    return result


def without_free_space(info: HostInfo) -> HostInfo:
    """The part of it that is worth writing down: free space changes all the time."""
    return replace(info, datastores=tuple(replace(store, free_bytes=0) for store in info.datastores))


def record_of(vm_id: str, host: str, state: VmState) -> Vm:
    """The VM's record, by its host's word."""
    return Vm(vm_id, host, state.home, state.power_state, state.config, state.failure)


def _plan_datastores(known: Known, info: HostInfo, result: Plan) -> None:
    by_uuid = {store.uuid: store for store in known.datastores.values()}
    for store in info.datastores:
        record = by_uuid.get(store.uuid)
        if record is None:
            record = Datastore("", store.name, store.uuid, store.capacity_bytes)
            by_uuid[store.uuid] = record
            result.new_datastores.append(record)
        elif store.capacity_bytes and record.id and record.capacity_bytes != store.capacity_bytes:
            result.changed_datastores.append(replace(record, capacity_bytes=store.capacity_bytes))


def _plan_networks(known: Known, info: HostInfo, result: Plan) -> None:
    """A port group's name is the network's identity. Its segment is what the first host said, until no host says so."""
    by_name = {network.name: network for network in known.networks.values()}
    for group in info.port_groups:
        if not group.segment_id or not (0 < len(group.name) <= MAX_NAME_CHARS and group.name.isprintable()):
            continue  # no network that could be written down
        record = by_name.get(group.name)
        if record is None:
            by_name[group.name] = record = Network("", group.name, group.segment_id)
            result.new_networks.append(record)
            continue
        moved = record.segment_id not in (0, group.segment_id)  # 0: one of vpxd's own two
        if record.id and moved and not _still_offered(known, record):
            result.changed_networks.append(replace(record, segment_id=group.segment_id))


def _still_offered(known: Known, network: Network) -> bool:
    """Whether another host still has the port group with the segment that is written down."""
    for host_id, live in known.live.items():
        group = live.info.port_group(network.name) if live.info is not None else None
        if host_id != known.host.id and group is not None and group.segment_id == network.segment_id:
            return True
    return False


def _plan_reported(known: Known, vm: Vm | None, state: VmState, result: Plan) -> None:
    if vm is None:
        result.new_vms.append(record_of("", known.host.id, state))
        return
    if vm.host != known.host.id and not _takes_over(known, vm, state):
        return
    changed = record_of(vm.id, known.host.id, state)
    if changed == vm:
        return
    result.changed_vms.append(changed)
    if vm.host != known.host.id:
        text = f"{vm.name} was found on {known.host.name}"
        result.events.append(EventDraft(EventType.VM_FOUND_ON_HOST, text, vm.id, vm.name))
    if vm.power_state is not changed.power_state:
        result.events.append(_power_event(known.host, changed))
    elif changed.failure and not vm.failure:
        result.events.append(_died(known.host, changed))


def _takes_over(known: Known, vm: Vm, state: VmState) -> bool:
    """Whether this host's claim beats the one of the host that the inventory names."""
    if state.lock_operation:
        return False  # it is leaving, or not let go yet: whoever has it is the other one
    if not vm.host or vm.host not in known.live:
        return True
    other = known.live[vm.host]
    runs_here = state.power_state is PowerState.POWERED_ON
    if not other.connected:
        return runs_here
    claim = other.vms.get(vm.uuid)
    if claim is None:
        return True
    return runs_here and claim.power_state is not PowerState.POWERED_ON


def _plan_missing(known: Known, vm: Vm, result: Plan) -> None:
    for host_id, live in known.live.items():
        state = live.vms.get(vm.uuid)
        if host_id != known.host.id and live.connected and state is not None:
            result.changed_vms.append(record_of(vm.id, host_id, state))
            text = f"{vm.name} is not on {known.host.name} any more; it was found on another host"
            result.events.append(EventDraft(EventType.VM_FOUND_ON_HOST, text, vm.id, vm.name))
            return
    result.changed_vms.append(replace(vm, host="", power_state=PowerState.POWERED_OFF))
    text = f"{vm.name} is registered on no host: {known.host.name} doesn't have it any more"
    result.events.append(EventDraft(EventType.VM_ORPHANED, text, vm.id, vm.name, severity=Severity.WARNING))


def _power_event(host: Host, vm: Vm) -> EventDraft:
    if vm.power_state is PowerState.POWERED_ON:
        return EventDraft(EventType.VM_POWERED_ON, f"{vm.name} runs on {host.name}", vm.id, vm.name)
    if vm.failure:
        return _died(host, vm)
    return EventDraft(EventType.VM_POWERED_OFF, f"{vm.name} on {host.name} is off", vm.id, vm.name)


def _died(host: Host, vm: Vm) -> EventDraft:
    text = f"the guest of {vm.name} on {host.name} ended: {vm.failure}"
    return EventDraft(EventType.VM_GUEST_DIED, text, vm.id, vm.name, severity=Severity.ERROR)
