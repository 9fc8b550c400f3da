"""Specifications: what is refused whatever the VM is; resolution: names, formats, what moves, and its invariants."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from runtime.faults import InvalidArgument
from tests.framework.relocation_worlds import World, worlds
from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.live import datastore_of
from vpxd.inventory.records import VmPolicies
from vpxd.inventory.values import (
    DiskFormat,
    ExecutionState,
    GuestCpu,
    HostConnection,
    HostDatastore,
    HostInfo,
    HostUsage,
    NetworkAdapter,
    PowerState,
    VirtualDisk,
    VmConfig,
)
from vpxd.relocation.relocation import Relocation, RelocationKind
from vpxd.relocation.resolve import HOME_BYTES, resolve
from vpxd.relocation.spec import DiskLocator, NicMapping, RelocateSpec

GIB = 1024**3
SHARED = HostDatastore("shared", "u-shared", 100 * GIB, 50 * GIB)
THIN, LAZY, EAGER, QCOW2 = list(DiskFormat)[1:]


def _host(number: int) -> HostFacts:
    name = f"esx0{number}"
    local = HostDatastore("local", f"u-local{number}", 100 * GIB, 50 * GIB)
    info = HostInfo(f"h{number}", name, datastores=(SHARED, local))
    return HostFacts(f"host-{number}", name, HostConnection.CONNECTED, info, HostUsage())


HERE, THERE = _host(1), _host(2)
DISKS = (
    VirtualDisk(2000, "[local] web01/root.vmdk", 10 * GIB, THIN),
    VirtualDisk(2001, "[shared] data/root.vmdk", 20 * GIB, LAZY),
    VirtualDisk(2002, "[local] web01/image.vmdk", 4 * GIB, QCOW2),
)
NICS = (NetworkAdapter(4000, "02:00:00:00:00:01", "LAN"), NetworkAdapter(4001, "02:00:00:00:00:02", "LAN"))
VM = VmFacts(
    "vm-1",
    VmConfig("uuid", "web01", 2, GIB, disks=DISKS, nics=NICS, guest_cpu=GuestCpu("qemu64", ("aes",))),
    "[local] web01/web01.vmx",
    "local",
    "u-local1",
    PowerState.POWERED_ON,
    ExecutionState.RUNNING,
)
OFF = replace(VM, power_state=PowerState.POWERED_OFF, execution_state=ExecutionState.OFF)


def _resolve(spec: RelocateSpec, destination: HostFacts = THERE, vm: VmFacts = VM) -> Relocation:
    return resolve(vm, spec, HERE, destination, {"datastore-9": "u-shared"})


def _paths(relocation: Relocation) -> list[str]:
    return [disk.path for disk in relocation.destination_vm.disks]


@pytest.mark.parametrize(
    "spec",
    [
        RelocateSpec(host="esx01", cluster="A"),
        RelocateSpec(format=THIN),
        RelocateSpec(disks=(DiskLocator(2000), DiskLocator(2000))),
        RelocateSpec(networks=(NicMapping(4000, "", "A"), NicMapping(4000, "", "B"))),
        RelocateSpec(networks=(NicMapping(0, "LAN", "A"), NicMapping(0, "LAN", "B"))),
        RelocateSpec(networks=(NicMapping(4000, "LAN", "A"),)),
        RelocateSpec(networks=(NicMapping(0, "", "A"),)),
        RelocateSpec(networks=(NicMapping(4000, "", ""),)),
        RelocateSpec(disks=tuple(DiskLocator(key) for key in range(100))),
    ],
)
def test_spec_that_contradicts_itself_is_refused(spec: RelocateSpec) -> None:
    with pytest.raises(InvalidArgument) as refused:
        spec.require_valid()
    assert refused.value.argument.startswith("spec.")


@pytest.mark.parametrize(
    "spec",
    [
        RelocateSpec(disks=(DiskLocator(2015),)),
        RelocateSpec(networks=(NicMapping(4009, "", "A"),)),
        RelocateSpec(networks=(NicMapping(0, "DMZ", "A"),)),
    ],
)
def test_spec_that_names_what_the_vm_does_not_have_is_refused(spec: RelocateSpec) -> None:
    spec.require_valid()
    with pytest.raises(InvalidArgument):
        spec.require_fits(VM.config)


def test_another_host_alone_leaves_every_file_where_it_is() -> None:
    found = _resolve(RelocateSpec())
    assert (found.kind, found.moves_files, found.changes_host) == (RelocationKind.COMPUTE, False, True)
    assert found.destination_vm == VM.config
    assert (found.destination_home, found.needed_bytes) == (VM.home, ())
    assert found.destination_home_datastore_uuid == found.source_home_datastore_uuid == "u-local1"


def test_a_datastore_of_the_same_name_is_another_one_by_its_uuid() -> None:
    found = _resolve(RelocateSpec(datastore="local"))
    assert (found.kind, found.moves_home, found.moved_disks) == (
        RelocationKind.BOTH,
        True,
        (2000, 2001, 2002),
    )
    assert found.destination_home == "[local] web01/web01.vmx"
    assert found.destination_home_datastore_uuid == "u-local2"
    assert _paths(found) == [
        "[local] web01/root.vmdk",
        "[local] web01/root_1.vmdk",
        "[local] web01/image.vmdk",
    ]
    assert found.destination_vm.guest_cpu == VM.config.guest_cpu


@pytest.mark.parametrize("key", ["shared", "datastore-9"])
def test_what_is_on_the_target_already_stays(key: str) -> None:
    found = _resolve(RelocateSpec(datastore=key), HERE)
    assert (found.kind, found.moves_home, found.moved_disks) == (RelocationKind.STORAGE, True, (2000, 2002))
    assert found.destination_home == "[shared] web01/web01.vmx"
    assert _paths(found) == [
        "[shared] web01/root.vmdk",
        "[shared] data/root.vmdk",
        "[shared] web01/image.vmdk",
    ]


def test_home_and_disks_go_different_ways() -> None:
    disks = (DiskLocator(2000, "shared", EAGER), DiskLocator(2001), DiskLocator(2002, "local", THIN))
    found = _resolve(RelocateSpec(datastore="local", disks=disks))
    assert found.moved_disks == (2000, 2002)
    assert _paths(found) == [
        "[shared] web01/root.vmdk",
        "[shared] data/root.vmdk",
        "[local] web01/image.vmdk",
    ]
    assert [disk.format for disk in found.destination_vm.disks] == [EAGER, LAZY, THIN]
    assert dict(found.needed_bytes) == {"u-local2": HOME_BYTES, "u-shared": 10 * GIB}
    assert dict(found.most_bytes) == {"u-local2": HOME_BYTES + 4 * GIB, "u-shared": 10 * GIB}


def test_converting_in_place_never_overwrites_the_disk() -> None:
    found = _resolve(RelocateSpec(disks=(DiskLocator(2000, "", EAGER), DiskLocator(2001, "", LAZY))), HERE)
    assert (found.moved_disks, found.moves_home) == ((2000,), False)
    assert _paths(found)[:2] == ["[local] web01/root_1.vmdk", DISKS[1].path]
    same = _resolve(RelocateSpec(datastore="local"), HERE)
    assert same.moved_disks == (2001,)


@pytest.mark.parametrize(
    ("vm", "there", "becomes"), [(VM, HERE, THIN), (OFF, HERE, QCOW2), (VM, THERE, THIN), (OFF, THERE, THIN)]
)
def test_moved_qcow2_keeps_its_format_only_within_its_host_while_the_vm_is_off(
    vm: VmFacts, there: HostFacts, becomes: DiskFormat
) -> None:
    found = _resolve(RelocateSpec(datastore="local" if there is THERE else "shared"), there, vm=vm)
    assert found.destination_vm.disks[2].format is becomes
    assert found.powered_off is not vm.live


def test_what_a_thin_copy_takes_is_its_allocation_where_it_is_known() -> None:
    known = replace(VM, disk_usage=((2000, 3 * GIB), (2001, 20 * GIB)))
    found = _resolve(RelocateSpec(datastore="local", format=THIN), vm=known)
    assert dict(found.needed_bytes) == {"u-local2": HOME_BYTES + 3 * GIB}
    assert dict(found.most_bytes) == {"u-local2": HOME_BYTES + 34 * GIB}


def test_a_nic_s_own_mapping_wins_over_its_port_group_s() -> None:
    spec = RelocateSpec(networks=(NicMapping(0, "LAN", "DMZ"), NicMapping(4001, "", "WAN")))
    spec.require_valid()
    spec.require_fits(VM.config)
    assert [nic.network for nic in _resolve(spec).destination_vm.nics] == ["DMZ", "WAN"]


def test_policies_are_kept_changed_or_dropped() -> None:
    vm = replace(VM, policies=VmPolicies("vm-1", "gold", ((2000, "gold"), (2001, "gold"))))
    spec = RelocateSpec(policy="silver", disks=(DiskLocator(2000, policy="-"), DiskLocator(2001)))
    found = _resolve(spec, vm=vm).policies
    assert (found.home, found.disks) == ("silver", ((2001, "gold"), (2002, "silver")))
    assert _resolve(RelocateSpec(), vm=vm).policies == vm.policies
    assert _resolve(RelocateSpec(policy="-"), vm=vm).policies == VmPolicies("vm-1")


def test_a_datastore_that_the_destination_does_not_see_has_no_uuid() -> None:
    without = replace(THERE, info=replace(THERE.info, datastores=()))
    found = _resolve(RelocateSpec(datastore="shared"), without)
    assert {place.uuid for place in found.places} == {""}
    assert found.needed_bytes == ()


def _each_host(check: Callable[[World, str, Any], None]) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def holds(world: World) -> None:
        facts = world.facts
        source = facts.host(world.inventory.hosts[world.vm.host])
        for host in world.inventory.hosts.values():
            there = facts.host(host)
            check(
                world,
                host.id,
                resolve(facts.vm(world.vm), world.spec, source, there, facts.datastore_uuids()),
            )

    holds()


def test_no_file_of_the_vm_is_ever_written_over_another() -> None:
    def check(world: World, _host: str, found: Relocation) -> None:
        present = {
            (place.source_uuid, disk.path.partition("]")[2])
            for disk, place in zip(world.vm.config.disks, found.places[1:], strict=True)
        }
        after = []
        for disk, place in zip(found.destination_vm.disks, found.places[1:], strict=True):
            file = (place.uuid, disk.path.partition("]")[2])
            after.append(file)
            assert not place.moved or file not in present
            assert place.moved or disk in world.vm.config.disks
        moved = [file for file, place in zip(after, found.places[1:], strict=True) if place.moved]
        assert len(set(moved)) == len(moved)

    _each_host(check)


def test_the_same_specification_again_moves_nothing() -> None:
    def check(world: World, host_id: str, found: Relocation) -> None:
        if any(not place.uuid for place in found.places):
            return
        there = world.facts.host(world.inventory.hosts[host_id])
        if any(there.info.datastore_named(place.name) is None for place in found.places):
            return
        home = datastore_of(found.destination_home)
        again = resolve(
            replace(
                world.facts.vm(world.vm),
                config=found.destination_vm,
                home=found.destination_home,
                home_datastore=home,
                home_datastore_uuid=found.destination_home_datastore_uuid,
            ),
            # A chosen qcow2 that isn't one is refused by the checks; what would come of it isn't asked.
            world.spec,
            there,
            there,
            world.facts.datastore_uuids(),
        )
        if all(place.uuid == there.info.datastore_named(place.name).uuid for place in found.places):  # type: ignore[union-attr]
            assert not again.moves_files
            assert again.destination_vm.disks == found.destination_vm.disks

    _each_host(check)
