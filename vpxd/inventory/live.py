"""What hosts report at this moment: kept in memory only, as it is old news after a restart.

A task that has just changed a VM knows its state from the host's own answer, but a report that was sent before
may come in after it. For SETTLE_S after a task, what the task learned stands against a report that says
otherwise about the power state.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime

from vpxd.inventory.records import Host, Vm
from vpxd.inventory.values import HostConnection, HostInfo, HostReport, HostUsage, VmConnection, VmState

SETTLE_S = 2.5  # two heartbeats and the network's delay


@dataclass(frozen=True)
class HostLive:
    """A host now. `vms` is its last word even when it is silent; `reported` whether it has said anything yet."""

    connection: HostConnection = HostConnection.NOT_RESPONDING
    info: HostInfo | None = None
    usage: HostUsage = field(default_factory=HostUsage)
    last_heartbeat: datetime | None = None
    vms: dict[str, VmState] = field(default_factory=dict)
    reported: bool = False

    @property
    def connected(self) -> bool:
        """Whether it answers."""
        return self.connection is HostConnection.CONNECTED


_UNKNOWN = HostLive(HostConnection.DISCONNECTED)


class LiveState:
    """All hosts' present states, by the host's id."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostLive] = {}
        self._settling: dict[str, float] = {}

    def host(self, host_id: str) -> HostLive:
        """A host now; disconnected when nobody watches it."""
        return self._hosts.get(host_id, _UNKNOWN)

    def watch_begins(self, host_id: str, info: HostInfo) -> None:
        """The host was added, or vpxd started: nothing is heard yet."""
        self._hosts[host_id] = HostLive(info=info)

    def watch_ends(self, host_id: str) -> None:
        """The host was removed; nothing that a task learned of its VMs counts any more."""
        gone = self._hosts.pop(host_id, None)
        for uuid in gone.vms if gone is not None else ():
            self._settling.pop(uuid, None)

    def heard(self, host_id: str, report: HostReport, now: datetime, monotonic_s: float) -> None:
        """A report came in: the host is connected."""
        before = self.host(host_id)
        vms = {vm.uuid: vm for vm in report.vms}
        for uuid in self._still_settling(monotonic_s):
            known, told = before.vms.get(uuid), vms.get(uuid)
            if known is not None and (told is None or told.power_state is not known.power_state):
                vms[uuid] = known
            elif known is None:
                vms.pop(uuid, None)
        self._hosts[host_id] = HostLive(
            connection=HostConnection.CONNECTED,
            info=report.info or before.info,
            usage=report.usage,
            last_heartbeat=now,
            vms=vms,
            reported=True,
        )

    def silent(self, host_id: str) -> None:
        """Nothing was heard in time."""
        self._hosts[host_id] = replace(self.host(host_id), connection=HostConnection.NOT_RESPONDING)

    def told(self, host_id: str, info: HostInfo) -> None:
        """A host answered a task with what it is and has now."""
        live = self._hosts.get(host_id)
        if live is not None:
            self._hosts[host_id] = replace(live, info=info)

    def learned(self, host_id: str, vm: VmState, monotonic_s: float) -> None:
        """A host answered a task with the VM's new state: true at once, and only this host has the VM."""
        self.forgotten(vm.uuid, monotonic_s)
        live = self._hosts.get(host_id)
        if live is not None:
            self._hosts[host_id] = replace(live, vms={**live.vms, vm.uuid: vm})

    def forgotten(self, uuid: str, monotonic_s: float) -> None:
        """A task took the VM off its host."""
        self._settling[uuid] = monotonic_s + SETTLE_S
        for host_id, live in self._hosts.items():
            if uuid in live.vms:
                others = {key: vm for key, vm in live.vms.items() if key != uuid}
                self._hosts[host_id] = replace(live, vms=others)

    def settling(self, monotonic_s: float) -> frozenset[str]:
        """The uuids of VMs whose reports may still be older than what a task has learned."""
        return frozenset(self._still_settling(monotonic_s))

    def vm(self, vm: Vm) -> VmState | None:
        """The VM as its host last told."""
        return self.host(vm.host).vms.get(vm.uuid)

    def vm_connection(self, vm: Vm) -> VmConnection:
        """Whether vpxd can reach the VM, and if not, why."""
        if not vm.host:
            return VmConnection.ORPHANED
        live = self.host(vm.host)
        if not live.connected:
            return VmConnection.DISCONNECTED
        store = live.info.datastore_named(datastore_of(vm.home)) if live.info is not None else None
        if store is not None and not store.accessible:
            return VmConnection.INACCESSIBLE
        return VmConnection.CONNECTED

    def host_info(self, host: Host) -> HostInfo:
        """What the host is and has, by its last word."""
        return self.host(host.id).info or host.info

    def _still_settling(self, monotonic_s: float) -> list[str]:
        self._settling = {uuid: until for uuid, until in self._settling.items() if until > monotonic_s}
        return list(self._settling)


def datastore_of(path: str) -> str:
    """The datastore's name in a path such as "[shared] web01/web01.vmx"; empty where there is none."""
    name, bracket, _rest = path.removeprefix("[").partition("]")
    return name if bracket and path.startswith("[") else ""
