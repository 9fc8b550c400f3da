"""Storage policies, deadlines and files in use: the pure decisions."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.faults import PolicyNotSatisfied
from vpxd.compatibility.finding import FindingGroup
from vpxd.inventory.records import StoragePolicy, Vm
from vpxd.inventory.values import DiskFormat, PowerState, VirtualDisk, VmConfig
from vpxd.storage.deadlines import UNKNOWN_IMAGE_S, creation_s, import_s, transfer_s
from vpxd.storage.files_in_use import in_the_way, used_on
from vpxd.storage.policy import DatastoreFacts, DiskFacts, findings

GIB = 1 << 30
STORE = DatastoreFacts("datastore-3", "ssd01", ("ssd", "tier:gold"), 100 * GIB, 30 * GIB, 2)


def requirements(policy: StoragePolicy, store: DatastoreFacts, *disks: DiskFacts) -> list[str]:
    found = findings(policy, store, disks)
    faults = [entry.fault for entry in found]
    assert all(isinstance(fault, PolicyNotSatisfied) for fault in faults)
    assert all(entry.error and entry.remedy and entry.group is FindingGroup.DATASTORE for entry in found)
    return [fault.requirement for fault in faults if isinstance(fault, PolicyNotSatisfied)]


def test_empty_policy_takes_every_datastore() -> None:
    assert not findings(StoragePolicy("any"), DatastoreFacts("datastore-1", "local"), (DiskFacts(2000),))


def test_every_requirement_that_fails_is_told() -> None:
    policy = StoragePolicy("p", "", ("ssd", "near"), ("old",), True, (DiskFormat.THIN,), 50.0)
    store = DatastoreFacts("datastore-1", "local", ("old",), 100 * GIB, 10 * GIB, 1)

    found = requirements(
        policy, store, DiskFacts(2000, DiskFormat.THICK_LAZY_ZEROED), DiskFacts(2001, DiskFormat.THIN)
    )

    assert found == [
        "required tag ssd",
        "required tag near",
        "forbidden tag old",
        "shared",
        "format thin",
        "50 % free",
    ]


@pytest.mark.parametrize(("hosts", "fits"), [(0, False), (1, False), (2, True)])
def test_shared_means_more_than_one_host(hosts: int, fits: bool) -> None:
    store = DatastoreFacts("datastore-1", "x", (), GIB, GIB, hosts)

    assert (not findings(StoragePolicy("p", shared=True), store)) is fits


def test_free_space_is_counted_after_the_disks_are_there() -> None:
    policy = StoragePolicy("p", min_free_percent=20.0)

    assert not findings(policy, STORE, (DiskFacts(2000, DiskFormat.THIN, 10 * GIB),))
    assert findings(policy, STORE, (DiskFacts(2000, DiskFormat.THIN, 10 * GIB + 1),))
    assert findings(
        policy, STORE, (DiskFacts(0, new_bytes=6 * GIB), DiskFacts(2000, DiskFormat.THIN, 6 * GIB))
    )
    assert findings(policy, DatastoreFacts("datastore-1", "unknown"))


def test_home_has_no_format_to_comply_with() -> None:
    assert not findings(StoragePolicy("p", formats=(DiskFormat.THIN,)), STORE, (DiskFacts(0),))


@given(
    st.sets(st.sampled_from("abcdef")),
    st.sets(st.sampled_from("abcdef")),
    st.sets(st.sampled_from("abcdef")),
)
def test_tags_are_compatible_exactly_when_all_required_and_none_forbidden_are_there(
    required: set[str], forbidden: set[str], tags: set[str]
) -> None:
    policy = StoragePolicy("p", "", tuple(required), tuple(forbidden))

    found = findings(policy, DatastoreFacts("datastore-1", "x", tuple(tags)))

    assert (not found) == (required <= tags and not forbidden & tags)
    assert len(found) == len(required - tags) + len(forbidden & tags)


def test_deadlines_grow_with_what_is_written() -> None:
    assert creation_s(1 << 40, DiskFormat.THIN) == transfer_s(0)
    assert creation_s(1 << 40, DiskFormat.THICK_EAGER_ZEROED) == transfer_s(1 << 40)
    assert transfer_s(0) < creation_s(1 << 40, DiskFormat.THICK_LAZY_ZEROED) < transfer_s(1 << 40)
    qcow2 = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 80 * GIB)
    assert import_s(qcow2, GIB, 0) == transfer_s(80 * GIB)
    assert import_s(qcow2, GIB, 100 * GIB) == transfer_s(100 * GIB)
    assert import_s(qcow2[:20], GIB, 0) == transfer_s(GIB)
    assert import_s(b"KDMV", 1, 0) == UNKNOWN_IMAGE_S


def vm_of(name: str, *disks: str) -> Vm:
    config = VmConfig(
        uuid=name,
        name=name,
        vcpus=1,
        ram_bytes=GIB,
        disks=tuple(VirtualDisk(2000 + number, path, GIB) for number, path in enumerate(disks)),
    )
    return Vm("vm-1", "host-1", f"[shared] {name}/{name}.vmx", PowerState.POWERED_OFF, config)


@pytest.mark.parametrize(
    ("path", "hit"),
    [
        ("web01", True),
        ("", True),
        ("web01/web01.vmx", True),
        ("web01/root-flat.vmdk", True),
        ("web01/root.qcow2", True),
        ("data/x.vmdk", True),
        ("data", True),
        ("web", False),
        ("web01/notes.txt", False),
        ("data/other.vmdk", False),
        ("far/y.vmdk", False),
    ],
)
def test_files_of_a_vm_are_in_the_way_of_their_deletion(path: str, hit: bool) -> None:
    vm = vm_of("web01", "[shared] web01/root.vmdk", "[shared] data/x.vmdk", "[local] far/y.vmdk", "nonsense")
    uuids = {"shared": "u-1", "local": "u-2"}

    used = used_on([vm], "u-1", lambda _vm, name: uuids[name])

    assert (in_the_way(used, path) is not None) is hit
