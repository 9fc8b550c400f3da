"""Collects what the checks and the placement look at, from the inventory and from what hosts report."""

from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.live import LiveState, datastore_of
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import Inventory
from vpxd.inventory.values import ExecutionState, PowerState


class Facts:
    """The facts of hosts and VMs, now."""

    def __init__(self, inventory: Inventory, live: LiveState) -> None:
        self._inventory = inventory
        self._live = live

    def host(self, host: Host) -> HostFacts:
        """A host, with its last reported usage."""
        live = self._live.host(host.id)
        return HostFacts(host.id, host.name, live.connection, live.info or host.info, live.usage)

    def vm(self, vm: Vm) -> VmFacts:
        """A VM, with its home's datastore resolved by its present host."""
        host = self._inventory.hosts.get(vm.host)
        datastore = datastore_of(vm.home)
        store = self._live.host_info(host).datastore_named(datastore) if host is not None else None
        state = self._live.vm(vm)
        off = vm.power_state is PowerState.POWERED_OFF
        unknown = ExecutionState.OFF if off else ExecutionState.UNKNOWN
        return VmFacts(
            id=vm.id,
            config=vm.config,
            home=vm.home,
            home_datastore=datastore,
            home_datastore_uuid=store.uuid if store is not None else "",
            power_state=vm.power_state,
            execution_state=state.execution_state if state is not None else unknown,
        )
