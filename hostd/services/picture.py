"""The host's picture as messages: what it has, what is reserved, and how each VM does."""

from collections.abc import AsyncIterator

from hostd.datastore.mount import Datastores
from hostd.host.changes import Changes
from hostd.host.facts import HostFacts
from hostd.vm.config_lock import ConfigLocks
from hostd.vm.machine import Machine
from hostd.vm.registry import VmRegistry
from hostd.vmotion.admission import Admission
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2

DEFAULT_HEARTBEAT_S = 1.0
_HEARTBEAT_MIN_S = 0.05
_HEARTBEAT_MAX_S = 60.0


class HostPicture:
    """Makes the messages; masked VMs are in none of them, only in what is reserved."""

    def __init__(
        self,
        host: HostFacts,
        registry: VmRegistry,
        locks: ConfigLocks,
        admission: Admission,
        datastores: Datastores,
        changes: Changes,
    ) -> None:
        self._host = host
        self._registry = registry
        self._locks = locks
        self._admission = admission
        self._datastores = datastores
        self._changes = changes

    def host(self) -> host_pb2.HostInfo:
        """What the host is and has."""
        return self._host.to_proto([datastore.to_proto() for datastore in self._datastores.all()])

    def usage(self) -> host_pb2.HostUsage:
        """What is reserved and used now."""
        machines = self._registry.all()
        return host_pb2.HostUsage(
            memory_reserved_bytes=self._admission.memory_reserved_bytes,
            vcpus_reserved=self._admission.vcpus_reserved,
            memory_used_bytes=sum(machine.state.memory_used_bytes for machine in machines),
            cpu_percent=sum(machine.cpu_percent for machine in machines),
        )

    def vm(self, machine: Machine) -> host_pb2.VmState:
        """One VM."""
        powered_on = machine.powered_on
        state = host_pb2.VmState(
            uuid=machine.uuid,
            name=machine.name,
            home=str(machine.vmx_path),
            power_state=host_pb2.POWER_STATE_POWERED_ON if powered_on else host_pb2.POWER_STATE_POWERED_OFF,
            execution_state=machine.execution_state,
            memory_used_bytes=machine.state.memory_used_bytes,
            cpu_percent=machine.cpu_percent,
            uptime_s=machine.state.uptime_s,
            failure=machine.failure,
            config=machine.config,
        )
        if not machine.active:  # what it was before the last power-off doesn't count any more
            state.config.ClearField("guest_cpu")
        holder = self._locks.holder(machine.uuid)
        if holder is not None:
            state.lock.operation = holder.operation
            state.lock.task = holder.task
            state.lock.migration_id = holder.migration_id
        return state

    async def watch(self, heartbeat_s: float) -> AsyncIterator[operations_pb2.WatchHostResponse]:
        """The picture at once, after every change, and at least every `heartbeat_s`; changes meanwhile are one."""
        if not heartbeat_s > 0:  # NaN as well
            heartbeat_s = DEFAULT_HEARTBEAT_S
        heartbeat_s = min(max(heartbeat_s, _HEARTBEAT_MIN_S), _HEARTBEAT_MAX_S)
        sequence = 0
        told: host_pb2.HostInfo | None = None
        while True:
            sequence += 1
            version = self._changes.version
            vms = [self.vm(machine) for machine in self._registry.all()]
            response = operations_pb2.WatchHostResponse(usage=self.usage(), vms=vms, sequence=sequence)
            host = self.host()
            if host != told:
                response.host.CopyFrom(host)
                told = host
            yield response
            await self._changes.wait_past(version, timeout_s=heartbeat_s)
