"""The checks of what moves: disks, networks, rules, policies, priority; each by a table."""

from dataclasses import replace
from typing import Any

import pytest

from runtime import faults
from vpxd.compatibility.check import findings
from vpxd.compatibility.finding import FindingGroup, HostFacts, Move, Surroundings, VmFacts
from vpxd.inventory.records import AffinityRule, Datastore, RuleKind, StoragePolicy, VmPolicies
from vpxd.inventory.values import (
    Boot,
    DiskFormat,
    ExecutionState,
    HostCapability,
    HostConnection,
    HostDatastore,
    HostInfo,
    HostUsage,
    NetworkAdapter,
    PortGroup,
    PowerState,
    VirtualDisk,
    VmConfig,
)
from vpxd.inventory.vm_lock import Holder
from vpxd.relocation.resolve import HOME_BYTES, resolve
from vpxd.relocation.spec import DiskLocator, NicMapping, RelocateSpec

GIB = 1024**3
SHARED = HostDatastore("shared", "u-shared", 100 * GIB, 50 * GIB)
_CAPABILITY = HostCapability("7.2", ("pc-q35-7.2",), ("qemu64",), "tcg", 1, 2)
_GROUPS = (PortGroup("LAN", 7), PortGroup("DMZ", 9))


def _host(number: int) -> HostFacts:
    local = HostDatastore("local", f"u-local{number}", 100 * GIB, 20 * GIB)
    info = HostInfo(
        uuid=f"h{number}",
        name=f"esx0{number}",
        vmotion_address=f"127.0.2.{number}",
        memory_bytes=8 * GIB,
        cpu_cores=4,
        vcpu_capacity=8,
        capability=_CAPABILITY,
        datastores=(SHARED, local),
        port_groups=_GROUPS,
    )
    return HostFacts(f"host-{number}", f"esx0{number}", HostConnection.CONNECTED, info, HostUsage())


HERE, THERE = _host(1), _host(2)
_LOCAL = THERE.info.datastores[1]
CONFIG = VmConfig(
    "uuid",
    "web01",
    2,
    GIB,
    "pc-q35-7.2",
    "qemu64",
    disks=(VirtualDisk(2000, "[local] web01/root.vmdk", 10 * GIB, DiskFormat.THIN),),
    nics=(NetworkAdapter(4000, "02:00:00:00:00:01", "LAN"),),
)
VM = VmFacts(
    "vm-1",
    CONFIG,
    "[local] web01/web01.vmx",
    "local",
    "u-local1",
    PowerState.POWERED_ON,
    ExecutionState.RUNNING,
)
OFF = replace(VM, power_state=PowerState.POWERED_OFF, execution_state=ExecutionState.OFF)
ALL = RelocateSpec(datastore="local")


def _info(**changes: Any) -> HostFacts:
    return replace(THERE, info=replace(THERE.info, **changes))


def _disk(disk_format: DiskFormat, vm: VmFacts = VM) -> VmFacts:
    disk = replace(CONFIG.disks[0], format=disk_format)
    return replace(vm, config=replace(vm.config, disks=(disk,)))


def _move(
    spec: RelocateSpec = ALL, there: HostFacts = THERE, vm: VmFacts = VM, around: Surroundings | None = None
) -> Move:
    return Move(vm, HERE, there, resolve(vm, spec, HERE, there), around or Surroundings())


def _found(move: Move) -> list[tuple[type[faults.VimFault], bool, FindingGroup]]:
    found = findings(move)
    assert all(finding.fault.message and finding.remedy for finding in found)
    return [(type(finding.fault), finding.error, finding.group) for finding in found]


def _free(free_bytes: int) -> HostFacts:
    return _info(datastores=(SHARED, replace(_LOCAL, free_bytes=free_bytes)))


_DS, _NET, _POOL, _SRC = (
    FindingGroup.DATASTORE,
    FindingGroup.NETWORK,
    FindingGroup.RESOURCE_POOL,
    FindingGroup.SOURCE,
)
_QCOW2, _EAGER, _SAME = DiskFormat.QCOW2, DiskFormat.THICK_EAGER_ZEROED, DiskFormat.SAME_AS_SOURCE
_KNOWN = replace(VM, disk_usage=((2000, 6 * GIB),))
_LOCKED = replace(VM, holder=Holder("task-9", "VirtualMachine.powerOff"))
_BOOTS = replace(VM, config=replace(CONFIG, boot=Boot(kernel="[local] images/vmlinuz")))
_UNPLUGGED = replace(VM, config=replace(CONFIG, nics=(replace(CONFIG.nics[0], connected=False),)))
_DARK = replace(HERE, info=replace(HERE.info, datastores=()))


@pytest.mark.parametrize(
    ("move", "found"),
    [
        (_move(), []),
        (_move(vm=OFF), []),
        (_move(RelocateSpec()), [(faults.InaccessibleDatastore, True, _DS)]),
        (_move(RelocateSpec(datastore="shared"), HERE), []),
        (_move(RelocateSpec(datastore="local"), HERE), [(faults.InvalidArgument, True, FindingGroup.HOST)]),
        (_move(RelocateSpec(datastore="nfs")), [(faults.InaccessibleDatastore, True, _DS)]),
        (_move(there=_info(datastores=(SHARED,))), [(faults.InaccessibleDatastore, True, _DS)]),
        (
            replace(_move(RelocateSpec(datastore="shared"), HERE), source=_DARK),
            [(faults.InaccessibleDatastore, True, _SRC)],
        ),
        (_move(vm=_LOCKED), [(faults.TaskInProgress, True, _SRC)]),
        (_move(vm=_BOOTS), [(faults.InaccessibleDatastore, True, _DS)]),
        (_move(there=_info(vmotion_address=""), vm=OFF), [(faults.VMotionNotConfigured, True, FindingGroup.HOST)]),
        # Room: thin counts what it takes where that is known; else it may grow, a warning.
        (_move(there=_free(9 * GIB)), [(faults.NoDiskSpace, False, _DS)]),
        (_move(there=_free(HOME_BYTES - 1)), [(faults.NoDiskSpace, True, _DS)]),
        (_move(there=_free(6 * GIB), vm=_KNOWN), [(faults.NoDiskSpace, True, _DS)]),
        (_move(there=_free(6 * GIB + HOME_BYTES), vm=_KNOWN), [(faults.NoDiskSpace, False, _DS)]),
        (_move(RelocateSpec(datastore="local", format=_EAGER), _free(10 * GIB)), [(faults.NoDiskSpace, True, _DS)]),
        (_move(RelocateSpec(datastore="local", format=_EAGER), _free(10 * GIB + HOME_BYTES)), []),
        # Formats.
        (_move(vm=_disk(_QCOW2)), [(faults.NotSupported, False, _DS)]),
        (_move(vm=_disk(_QCOW2, OFF)), [(faults.NotSupported, False, _DS)]),
        (_move(RelocateSpec(datastore="shared"), HERE, vm=_disk(_QCOW2, OFF)), []),
        (_move(RelocateSpec(datastore="local", format=_QCOW2), vm=_disk(_QCOW2)), [(faults.NotSupported, True, _DS)]),
        (_move(RelocateSpec(datastore="local", format=_QCOW2), vm=OFF), [(faults.NotSupported, True, _DS)]),
        (_move(RelocateSpec(datastore="local", format=_EAGER), vm=_disk(_QCOW2)), []),
        # Networks.
        (_move(there=_info(port_groups=())), [(faults.CannotAccessNetwork, True, _NET)]),
        (_move(there=_info(port_groups=()), vm=_UNPLUGGED), [(faults.CannotAccessNetwork, False, _NET)]),
        (_move(there=_info(port_groups=(PortGroup("LAN", 8),))), [(faults.CannotAccessNetwork, False, _NET)]),
        (_move(replace(ALL, networks=(NicMapping(4000, "", "DMZ"),)), _info(port_groups=(PortGroup("DMZ", 1),))), []),
        (_move(replace(ALL, networks=(NicMapping(0, "LAN", "WAN"),))), [(faults.CannotAccessNetwork, True, _NET)]),
        (
            _move(RelocateSpec(datastore="shared", networks=(NicMapping(4000, "", "DMZ"),)), HERE),
            [(faults.NotSupported, True, _NET)],
        ),
    ],
)  # fmt: skip
def test_obstacle_is_found_alone_in_its_group(
    move: Move, found: list[tuple[type[faults.VimFault], bool, FindingGroup]]
) -> None:
    assert _found(move) == found


def test_no_disk_space_has_the_figures_of_the_whole_datastore() -> None:
    disks = (CONFIG.disks[0], replace(CONFIG.disks[0], key=2001, path="[local] web01/data.vmdk"))
    vm = replace(VM, config=replace(CONFIG, disks=disks))
    found = findings(_move(RelocateSpec(datastore="local", format=_EAGER), _free(15 * GIB), vm))
    assert len(found) == 1
    fault = found[0].fault
    assert isinstance(fault, faults.NoDiskSpace)
    assert (fault.requested_bytes, fault.free_bytes) == (20 * GIB + HOME_BYTES, 15 * GIB)
    assert fault.datastore == "local"


def test_all_files_of_one_datastore_are_one_finding_that_names_them() -> None:
    message = findings(_move(RelocateSpec()))[0].fault.message
    assert "the home and disk 2000" in message


def test_local_disk_that_stays_is_told_to_move_too() -> None:
    spec = RelocateSpec(datastore="local", disks=(DiskLocator(2000),))
    found = findings(_move(spec))
    assert [type(finding.fault) for finding in found] == [faults.InaccessibleDatastore]
    assert "move disk 2000 too" in found[0].remedy


@pytest.mark.parametrize(("owner", "words"), [("db01", "belongs to db01"), ("", "is there already")])
def test_file_of_that_name_at_the_destination_is_an_error(owner: str, words: str) -> None:
    around = Surroundings(
        taken={("u-local2", "web01/root.vmdk"): owner, ("u-local1", "web01/web01.vmx"): "x"}
    )
    found = findings(_move(around=around))
    assert [(type(entry.fault), entry.group) for entry in found] == [(faults.FileAlreadyExists, _DS)]
    assert words in found[0].fault.message


def _rules(kind: RuleKind, *, mandatory: bool, hosts: tuple[str, ...] = ()) -> Surroundings:
    vms = ("vm-1", "vm-2") if kind <= RuleKind.VM_ANTI_AFFINITY else ("vm-1",)
    rule = AffinityRule("domain-c1", "r", kind, vms, hosts, mandatory)
    return Surroundings(rules=(rule,), running={"vm-2": "host-2", "vm-3": "host-2"}, names={"vm-2": "db01"})


@pytest.mark.parametrize("mandatory", [True, False])
@pytest.mark.parametrize(
    ("kind", "hosts", "breaks"),
    [
        (RuleKind.VM_AFFINITY, (), False),
        (RuleKind.VM_ANTI_AFFINITY, (), True),
        (RuleKind.VM_HOST_AFFINITY, ("host-1",), True),
        (RuleKind.VM_HOST_AFFINITY, ("host-1", "host-2"), False),
        (RuleKind.VM_HOST_ANTI_AFFINITY, ("host-2",), True),
        (RuleKind.VM_HOST_ANTI_AFFINITY, ("host-1",), False),
    ],
)
def test_broken_rule_is_an_error_only_where_it_is_mandatory(
    kind: RuleKind, hosts: tuple[str, ...], breaks: bool, mandatory: bool
) -> None:
    around = _rules(kind, mandatory=mandatory, hosts=hosts)
    assert _found(_move(around=around)) == [(faults.RuleViolation, mandatory, _POOL)] * breaks
    on_its_host = _move(RelocateSpec(datastore="shared"), HERE, around=around)
    assert _found(on_its_host) == [], "who doesn't leave its host breaks nothing"


def test_vms_to_be_kept_together_are_apart_where_the_other_runs_elsewhere() -> None:
    around = replace(_rules(RuleKind.VM_AFFINITY, mandatory=True), running={"vm-2": "host-1"})
    assert _found(_move(around=around)) == [(faults.RuleViolation, True, _POOL)]
    assert "db01" in findings(_move(around=around))[0].fault.message


_GOLD = Surroundings(
    policies={"gold": StoragePolicy("gold", required_tags=("tier:gold",)), "any": StoragePolicy("any")},
    datastores={"u-shared": Datastore("datastore-1", "shared", "u-shared", 0, ("tier:gold",))},
    seen_by={"u-shared": 2},
)
_HAS_GOLD = replace(VM, policies=VmPolicies("vm-1", "gold", ((2000, "gold"),)))


@pytest.mark.parametrize(
    ("spec", "vm", "found"),
    [
        (ALL, _HAS_GOLD, [True]),
        (replace(ALL, policy="any"), _HAS_GOLD, []),
        (replace(ALL, policy="-"), _HAS_GOLD, []),
        (replace(ALL, policy="gold"), VM, [True]),
        (RelocateSpec(datastore="shared", policy="gold"), VM, []),
        (replace(ALL, policy="forgotten"), VM, []),
    ],
)
def test_what_moves_must_satisfy_its_policy(spec: RelocateSpec, vm: VmFacts, found: list[bool]) -> None:
    assert _found(_move(spec, vm=vm, around=_GOLD)) == [
        (faults.PolicyNotSatisfied, error, _DS) for error in found
    ]


def test_what_stays_under_its_policy_is_only_warned_of() -> None:
    spec = RelocateSpec(datastore="shared", disks=(DiskLocator(2000),))
    assert _found(_move(spec, HERE, _HAS_GOLD, _GOLD)) == [(faults.PolicyNotSatisfied, False, _DS)]


@pytest.mark.parametrize(
    ("here_used", "there_used", "found"),
    [
        (7, 5, []),
        (8, 0, [(faults.InsufficientCpuResources, True, _SRC)]),
        (0, 6, [(faults.InsufficientCpuResources, True, _POOL)]),
        (0, 7, [(faults.InsufficientCpuResources, True, _POOL)]),
    ],
)
def test_high_priority_needs_a_vcpu_on_both_hosts(
    here_used: int, there_used: int, found: list[tuple[type[faults.VimFault], bool, FindingGroup]]
) -> None:
    there = replace(THERE, usage=HostUsage(vcpus_reserved=there_used))
    here = replace(HERE, usage=HostUsage(vcpus_reserved=here_used))
    move = replace(_move(there=there), source=here, high_priority=True)
    assert _found(move) == found
    assert _found(replace(move, vm=OFF, resolved=resolve(OFF, ALL, here, there))) == []
