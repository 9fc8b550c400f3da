"""Collects what the checks and the placement look at, from the inventory and from what hosts report."""

from collections.abc import Collection, Mapping

from vpxd.compatibility.finding import HostFacts, Surroundings, VmFacts
from vpxd.inventory.live import LiveState, datastore_of
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import Inventory
from vpxd.inventory.values import ExecutionState, PowerState
from vpxd.inventory.vm_lock import EntityLocks


class Facts:
    """The facts of hosts and VMs, now."""

    def __init__(self, inventory: Inventory, live: LiveState, locks: EntityLocks | None = None) -> None:
        self._inventory = inventory
        self._live = live
        self._locks = locks or EntityLocks()
        self._disk_usage: dict[str, Mapping[int, int]] = {}
        self._files: dict[str, frozenset[tuple[str, str]]] = {}

    def host(self, host: Host) -> HostFacts:
        """A host, with its last reported usage."""
        live = self._live.host(host.id)
        cluster = self._inventory.clusters.get(host.cluster)
        evc_mode = cluster.evc_mode if cluster is not None else ""
        info = live.info or host.info
        return HostFacts(host.id, host.name, live.connection, info, live.usage, host.cluster, evc_mode)

    def vm(self, vm: Vm, task: str = "") -> VmFacts:
        """A VM, with its home's datastore resolved by its present host. `task` itself doesn't count as its holder."""
        host = self._inventory.hosts.get(vm.host)
        datastore = datastore_of(vm.home)
        store = self._live.host_info(host).datastore_named(datastore) if host is not None else None
        state = self._live.vm(vm)
        off = vm.power_state is PowerState.POWERED_OFF
        unknown = ExecutionState.OFF if off else ExecutionState.UNKNOWN
        holder = self._locks.holder(vm.uuid)
        return VmFacts(
            id=vm.id,
            config=vm.config,
            home=vm.home,
            home_datastore=datastore,
            home_datastore_uuid=store.uuid if store is not None else "",
            power_state=vm.power_state,
            execution_state=state.execution_state if state is not None else unknown,
            policies=self._inventory.vm_policies.get(vm.id),
            disk_usage=tuple(sorted(self._disk_usage.get(vm.uuid, {}).items())),
            holder=holder if holder is not None and holder.task != task else None,
        )

    def learn_disk_usage(self, vm: Vm, allocated_bytes: Mapping[int, int]) -> None:
        """What the VM's disks take on their datastores, by key, as its host has just told."""
        self._disk_usage[vm.uuid] = dict(allocated_bytes)

    def learn_files(self, vm: Vm, files: Collection[tuple[str, str]]) -> None:
        """Files where the VM's own may move to, as hosts have just told: (datastore's uuid, path on it)."""
        self._files[vm.uuid] = frozenset(files)

    def datastore_uuids(self) -> dict[str, str]:
        """The uuids of all datastores by their ids: what a relocation's specification may name."""
        return {store.id: store.uuid for store in self._inventory.datastores.values()}

    def surroundings(self, vm: Vm, destination: Host) -> Surroundings:
        """What else counts for the VM on this destination."""
        inventory = self._inventory
        others = [other for other in inventory.vms.values() if other.id != vm.id]
        return Surroundings(
            rules=tuple(
                rule
                for rule in inventory.affinity_rules.values()
                if rule.enabled and rule.cluster == destination.cluster and vm.id in rule.vms
            ),
            running={
                other.id: other.host
                for other in others
                if other.host and other.power_state is PowerState.POWERED_ON
            },
            names={
                **{other.id: other.name for other in inventory.vms.values()},
                **{host.id: host.name for host in inventory.hosts.values()},
            },
            policies=inventory.storage_policies,
            datastores={store.uuid: store for store in inventory.datastores.values()},
            seen_by=self._seen_by(destination.cluster),
            taken=dict.fromkeys(self._files.get(vm.uuid, ()), "") | self._taken(others),
        )

    def _seen_by(self, cluster: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for host in self._inventory.hosts.values():
            if host.cluster != cluster:
                continue
            for store in self._live.host_info(host).datastores:
                counts[store.uuid] = counts.get(store.uuid, 0) + 1
        return counts

    def _taken(self, others: list[Vm]) -> dict[tuple[str, str], str]:
        taken = {}
        for other in others:
            host = self._inventory.hosts.get(other.host)
            if host is None:
                continue
            info = self._live.host_info(host)
            for path in (other.home, *(disk.path for disk in other.config.disks)):
                store = info.datastore_named(datastore_of(path))
                if store is not None:
                    taken[store.uuid, path.partition("]")[2].strip()] = other.name
        return taken
