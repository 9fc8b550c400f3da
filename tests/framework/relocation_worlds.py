"""Random clusters, VMs and relocations for property tests: drawn as values, put into a real inventory.

`World` holds the inventory and the hosts' live state exactly as vpxd has them after the hosts' reports.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hypothesis import strategies as st

from vpxd.compatibility.facts import Facts
from vpxd.inventory.live import LiveState, datastore_of
from vpxd.inventory.records import (
    AffinityRule,
    Cluster,
    Datacenter,
    Datastore,
    Host,
    Record,
    RuleKind,
    StoragePolicy,
    Vm,
    VmPolicies,
)
from vpxd.inventory.store import Inventory
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
from vpxd.relocation.spec import DiskLocator, NicMapping, RelocateSpec

GIB = 1024**3
NOW = datetime(2025, 1, 1, tzinfo=UTC)
MACHINES = ("pc-q35-7.2", "pc-q35-10.0")
FEATURES = ("aes", "avx", "avx2", "sse4.1")
NETWORKS = ("VM Network", "Storage", "DMZ")


@dataclass(frozen=True)
class World:
    """A cluster of hosts with one VM of interest, `vm`, and a relocation of it."""

    inventory: Inventory
    live: LiveState
    vm: Vm
    spec: RelocateSpec
    high_priority: bool

    @property
    def facts(self) -> Facts:
        return Facts(self.inventory, self.live)

    def host(self, host_id: str) -> tuple[HostInfo, HostUsage, bool]:
        """What a host is, what is reserved on it, and whether it answers."""
        live = self.live.host(host_id)
        return live.info or self.inventory.hosts[host_id].info, live.usage, live.connected


@dataclass(frozen=True)
class _Stores:
    """The datastores of a world: shared ones by name, and a local one per host."""

    shared: dict[str, HostDatastore]
    local: dict[str, HostDatastore]


def rarely(true_every: int) -> st.SearchStrategy[bool]:
    """True once in so many times, and never the simplest case."""
    return st.integers(0, true_every - 1).map(lambda drawn: drawn == true_every - 1)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two to four hosts in one or two clusters; a VM with up to three disks and two NICs; a specification."""
    names = [f"esx0{number}" for number in range(1, draw(st.integers(2, 4)) + 1)]
    stores = _stores(draw, names)
    infos = {name: _info(draw, name, stores) for name in names}
    vm = _vm(draw, names, infos)
    records: list[Record] = [Datacenter("datacenter-1", "dc"), Cluster("domain-c1", "A", "datacenter-1")]
    records.append(Cluster("domain-c2", "B", "datacenter-1"))
    for number, name in enumerate(names, 1):
        cluster = "domain-c2" if draw(rarely(8)) else "domain-c1"
        records.append(Host(f"host-{number}", name, cluster, "127.0.0.1:1", infos[name]))
    for number, store in enumerate([*stores.shared.values(), *stores.local.values()], 1):
        tags = ("tier:gold",) if draw(st.booleans()) else ()
        records.append(Datastore(f"datastore-{number}", store.name, store.uuid, store.capacity_bytes, tags))
    records += [vm, *_neighbours(draw, names, vm), *_rules(draw, names), *_policies(draw, vm)]
    inventory = Inventory()
    inventory.apply(records, [])
    return World(
        inventory, _live(draw, names, infos, vm), vm, draw(specs(vm, names, stores)), draw(rarely(3))
    )


def _stores(draw: st.DrawFn, names: list[str]) -> _Stores:
    def store(name: str, uuid: str) -> HostDatastore:
        return HostDatastore(name, uuid, 100 * GIB, draw(st.sampled_from([200, 60, 20, 2, 0])) * GIB)

    shared = {name: store(name, f"uuid-{name}") for name in ("nfs1", "nfs2")}
    return _Stores(shared, {name: store("local", f"uuid-local-{name}") for name in names})


def _info(draw: st.DrawFn, name: str, stores: _Stores) -> HostInfo:
    seen = [stores.local[name]]
    for store in stores.shared.values():
        if not draw(rarely(5)):
            renamed = replace(store, name=f"{store.name}-too") if draw(rarely(9)) else store
            seen.append(replace(renamed, accessible=not draw(rarely(9))))
    groups = tuple(
        PortGroup(group, 100 + NETWORKS.index(group) + 50 * draw(rarely(8)))
        for group in NETWORKS
        if not draw(rarely(4))
    )
    number = int(name[-1])
    return HostInfo(
        uuid=f"host-uuid-{name}",
        name=name,
        management_address=f"127.0.1.{number}",
        vmotion_address="" if draw(rarely(9)) else f"127.0.2.{number}",
        memory_bytes=draw(st.sampled_from([16, 8, 1])) * GIB,
        cpu_cores=4,
        vcpu_capacity=draw(st.sampled_from([32, 8, 2])),
        capability=HostCapability(
            qemu_version="7.2",
            machine_types=MACHINES[:1] if draw(rarely(3)) else MACHINES,
            cpu_models=("qemu64", "Haswell") if not draw(rarely(8)) else ("qemu64",),
            accelerator="kvm" if draw(rarely(9)) else "tcg",
            stream_version_min=3 if draw(rarely(12)) else 1,
            stream_version_max=3 if draw(rarely(4)) else 2,
            cpu_features=FEATURES[: draw(st.sampled_from([4, 4, 3, 1]))],
        ),
        datastores=tuple(seen),
        port_groups=groups,
    )


def _vm(draw: st.DrawFn, names: list[str], infos: dict[str, HostInfo]) -> Vm:
    host = draw(st.integers(1, len(names)))
    info = infos[names[host - 1]]
    present = st.sampled_from([store.name for store in info.datastores])
    home = draw(present)
    live = draw(st.booleans())
    folder = draw(st.sampled_from(["web01", "old"]))
    formats = st.sampled_from(list(DiskFormat)[1:])
    port_groups, plugged = st.sampled_from(NETWORKS), st.booleans()
    disks = tuple(
        VirtualDisk(
            2000 + number,
            f"[{draw(present)}] {folder}/{draw(st.sampled_from(['root', f'disk{number}']))}{number % 2}.vmdk",
            draw(st.sampled_from([1, 10, 40])) * GIB,
            draw(formats),
        )
        for number in range(draw(st.integers(0, 3)))
    )
    nics = tuple(
        NetworkAdapter(4000 + number, f"02:00:00:00:00:0{number}", draw(port_groups), draw(plugged))
        for number in range(draw(st.integers(0, 2)))
    )
    features = info.capability.cpu_features[: draw(st.integers(0, 4))]
    model = draw(st.sampled_from(info.capability.cpu_models))
    config = VmConfig(
        uuid="vm-uuid",
        name="web01",
        vcpus=draw(st.sampled_from([1, 4])),
        ram_bytes=draw(st.sampled_from([1, 4])) * GIB,
        machine_type=draw(st.sampled_from(info.capability.machine_types)),
        cpu_model=model,
        boot=Boot(kernel=f"[{draw(present)}] images/vmlinuz") if draw(st.booleans()) else Boot(),
        change_version=1,
        disks=disks,
        nics=nics,
        guest_cpu=GuestCpu(model, features) if live else None,
    )
    power = PowerState.POWERED_ON if live else PowerState.POWERED_OFF
    return Vm("vm-1", f"host-{host}", f"[{home}] {folder}/web01.vmx", power, config)


def _neighbours(draw: st.DrawFn, names: list[str], vm: Vm) -> list[Record]:
    """Other VMs that run; one may have its home where this one's would go."""
    found: list[Record] = []
    for number in range(2, 2 + draw(st.integers(0, 2))):
        config = VmConfig(f"uuid-{number}", f"db{number}", 1, GIB)
        home = "[nfs2] web01/web01.vmx" if draw(rarely(6)) else f"[nfs1] db{number}/db{number}.vmx"
        if home == vm.home:
            continue
        host = f"host-{draw(st.integers(1, len(names)))}"
        found.append(Vm(f"vm-{number}", host, home, PowerState.POWERED_ON, config))
    return found


def _rules(draw: st.DrawFn, names: list[str]) -> list[Record]:
    found: list[Record] = []
    for number in range(draw(st.sampled_from([0, 0, 1, 2]))):
        kind = draw(st.sampled_from(list(RuleKind)))
        hosts = tuple(f"host-{n}" for n in draw(st.sets(st.integers(1, len(names)), min_size=1)))
        vms = ("vm-1", "vm-2") if kind <= RuleKind.VM_ANTI_AFFINITY else ("vm-1",)
        mandatory, enabled = draw(st.booleans()), not draw(rarely(4))
        found.append(
            AffinityRule(
                "domain-c1",
                f"rule{number}",
                kind,
                vms,
                hosts if kind > RuleKind.VM_ANTI_AFFINITY else (),
                mandatory,
                enabled,
            )
        )
    return found


def _policies(draw: st.DrawFn, vm: Vm) -> list[Record]:
    found: list[Record] = [StoragePolicy("gold", required_tags=("tier:gold",)), StoragePolicy("any")]
    if draw(rarely(4)):
        found.append(VmPolicies(vm.id, "gold", tuple((disk.key, "gold") for disk in vm.config.disks)))
    return found


def _live(draw: st.DrawFn, names: list[str], infos: dict[str, HostInfo], vm: Vm) -> LiveState:
    live = LiveState()
    for number, name in enumerate(names, 1):
        info, vms = infos[name], []
        usage = HostUsage(
            draw(st.sampled_from([0, info.memory_bytes // 2, info.memory_bytes])),
            draw(st.sampled_from([0, info.vcpu_capacity - 1, info.vcpu_capacity])),
            0,
            draw(st.sampled_from([0.0, 150.0, 400.0])),
        )
        if vm.host == f"host-{number}":
            state = ExecutionState.RUNNING if vm.power_state is PowerState.POWERED_ON else ExecutionState.OFF
            vms.append(VmState(vm.config, vm.home, vm.power_state, state))
        live.watch_begins(f"host-{number}", info)
        live.heard(f"host-{number}", HostReport(info, usage, tuple(vms)), NOW, 0.0)
        if draw(rarely(12)):
            live.silent(f"host-{number}")
            assert live.host(f"host-{number}").connection is HostConnection.NOT_RESPONDING
    return live


@st.composite
def specs(draw: st.DrawFn, vm: Vm, names: list[str], stores: _Stores) -> RelocateSpec:
    """A valid specification for the VM; its host is drawn by the test."""
    known = [*stores.shared, "local"]
    optional = st.sampled_from(["", "", *known])
    datastore = draw(optional)
    formats = st.sampled_from([DiskFormat.SAME_AS_SOURCE, *DiskFormat])
    policies = st.sampled_from(["", "", "any", "gold", "-"])
    disks = tuple(
        DiskLocator(disk.key, draw(optional), draw(formats), draw(policies))
        for disk in vm.config.disks
        if draw(rarely(3))
    )
    networks: tuple[NicMapping, ...] = ()
    if draw(st.booleans()) and vm.config.nics:
        nic = draw(st.sampled_from(vm.config.nics))
        target = draw(st.sampled_from(NETWORKS))
        by_key = draw(st.booleans())
        networks = (NicMapping(nic.key, "", target) if by_key else NicMapping(0, nic.network, target),)
    spec = RelocateSpec(
        datastore=datastore,
        format=draw(formats) if datastore else DiskFormat.SAME_AS_SOURCE,
        policy=draw(policies),
        disks=disks,
        networks=networks,
    )
    assert {datastore_of(disk.path) for disk in vm.config.disks} <= {
        *known,
        *(f"{name}-too" for name in known),
    }
    spec.require_valid()
    spec.require_fits(vm.config)
    return spec
