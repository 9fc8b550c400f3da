"""From what a client wants to what the VM is afterwards, on one destination. Pure: no I/O, no clock, no logging.

    home   to "[<datastore>] <vm name>/<vm name>.vmx" where the named datastore isn't the present one
    disk   to "[<datastore>] <vm name>/<its descriptor's name>" where the datastore or the format changes; on its own
           datastore, and where a file of this VM has that name, a number is put behind it: nothing is overwritten
    NIC    into the port group that it is mapped to

A datastore is the same one where its uuid is. Nothing is refused here: what can't be is left for the checks, which see
it in the result (an empty uuid: the destination doesn't have that datastore).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.live import datastore_of
from vpxd.inventory.records import VmPolicies
from vpxd.inventory.values import DiskFormat, NetworkAdapter, VirtualDisk
from vpxd.relocation.relocation import HOME, FilePlace, Relocation, RelocationKind
from vpxd.relocation.spec import NO_POLICY, DiskLocator, RelocateSpec

__all__ = ["HOME_BYTES", "FilePlace", "Relocation", "RelocationKind", "resolve"]

HOME_BYTES = 1024 * 1024  # configuration, owner record and locks; logs are small
_THICK = frozenset({DiskFormat.THICK_LAZY_ZEROED, DiskFormat.THICK_EAGER_ZEROED})
# Formats whose allocation says how much data a thin copy will hold; a thick disk has everything allocated.
_SPARSE = frozenset({DiskFormat.THIN, DiskFormat.QCOW2})


def resolve(
    vm: VmFacts,
    spec: RelocateSpec,
    source: HostFacts | None,
    destination: HostFacts,
    datastores: Mapping[str, str] | None = None,
) -> Relocation:
    """The VM on `destination` under a valid `spec`. `datastores`: uuids by the inventory's datastore ids."""
    view = _View(vm, spec, source, destination, datastores or {})
    home = _home_place(view)
    disks = [(disk, _disk_place(view, disk)) for disk in vm.config.disks]
    destination_home = f"[{home.name}] {vm.config.name}/{vm.config.name}.vmx" if home.moved else vm.home
    config = replace(
        vm.config,
        disks=_disks_afterwards(vm.config.name, disks),
        nics=tuple(_nic_afterwards(spec, nic) for nic in vm.config.nics),
    )
    return Relocation(
        destination_vm=config,
        destination_home=destination_home,
        source_home_datastore_uuid=vm.home_datastore_uuid,
        destination_home_datastore_uuid=home.uuid,
        moved_disks=tuple(disk.key for disk, place in disks if place.moved),
        moves_home=home.moved,
        changes_host=source is None or source.id != destination.id,
        powered_off=not vm.live,
        policies=_policies(vm, spec),
        places=(home, *(place for _disk, place in disks)),
    )


@dataclass(frozen=True)
class _View:
    """What is resolved against what."""

    vm: VmFacts
    spec: RelocateSpec
    source: HostFacts | None
    destination: HostFacts
    datastores: Mapping[str, str]

    @property
    def keeps_images(self) -> bool:
        """Whether a qcow2 image can stay one: only its own host makes one, and not of a running VM's disk."""
        return not self.vm.live and self.source is not None and self.source.id == self.destination.id

    def present(self, path: str) -> tuple[str, str]:
        """Name and uuid of the datastore that a path is on; the uuid is empty where the source doesn't say."""
        name = datastore_of(path)
        store = self.source.info.datastore_named(name) if self.source is not None else None
        return name, store.uuid if store is not None else ""

    def target(self, key: str) -> tuple[str, str]:
        """Name and uuid at the destination of the datastore that the specification names so."""
        info = self.destination.info
        uuid = self.datastores.get(key, "")
        store = info.datastore_with_uuid(uuid) if uuid else info.datastore_named(key)
        return (store.name, store.uuid) if store is not None else (key, "")


def _home_place(view: _View) -> FilePlace:
    name, uuid = view.vm.home_datastore, view.vm.home_datastore_uuid
    if not view.spec.datastore:
        return FilePlace(HOME, name, uuid, name, uuid, moved=False)
    new_name, new_uuid = view.target(view.spec.datastore)
    if new_uuid and new_uuid == uuid:
        return FilePlace(HOME, name, uuid, name, uuid, moved=False)
    return FilePlace(
        HOME, name, uuid, new_name, new_uuid, moved=True, needed_bytes=HOME_BYTES, most_bytes=HOME_BYTES
    )


def _disk_place(view: _View, disk: VirtualDisk) -> FilePlace:
    name, uuid = view.present(disk.path)
    wanted = view.spec.locator(disk.key) or DiskLocator(disk.key, view.spec.datastore, view.spec.format)
    new_name, new_uuid = view.target(wanted.datastore) if wanted.datastore else (name, uuid)
    other_place = bool(wanted.datastore) and (not new_uuid or new_uuid != uuid)
    other_format = wanted.format not in (DiskFormat.SAME_AS_SOURCE, disk.format)
    if not other_place and not other_format:
        return FilePlace(disk.key, name, uuid, name, uuid, False, disk.format, disk.format)
    if not other_place:
        # A new file on the datastore that it is on: by the name which the destination has for it.
        there = view.destination.info.datastore_with_uuid(uuid)
        new_name, new_uuid = (there.name if there is not None else name), uuid
    chosen = wanted.format is not DiskFormat.SAME_AS_SOURCE
    target_format = wanted.format if chosen else _same_format(disk.format, view.keeps_images)
    needed = disk.capacity_bytes if target_format in _THICK else _known_bytes(view.vm, disk)
    return FilePlace(
        key=disk.key,
        source_name=name,
        source_uuid=uuid,
        name=new_name,
        uuid=new_uuid,
        moved=True,
        source_format=disk.format,
        format=target_format,
        needed_bytes=needed,
        most_bytes=max(needed, disk.capacity_bytes),
        format_chosen=chosen,
    )


def _same_format(present: DiskFormat, keeps_images: bool) -> DiskFormat:
    """What is mirrored or sent goes into a raw extent: a qcow2 image becomes a thin disk."""
    if present is DiskFormat.SAME_AS_SOURCE or (not keeps_images and present is DiskFormat.QCOW2):
        return DiskFormat.THIN
    return present


def _known_bytes(vm: VmFacts, disk: VirtualDisk) -> int:
    """What a thin copy of it takes for certain: its allocation where that is known, else nothing can be said."""
    if disk.format not in _SPARSE:
        return 0
    return min(dict(vm.disk_usage).get(disk.key, 0), disk.capacity_bytes)


def _disks_afterwards(vm_name: str, disks: list[tuple[VirtualDisk, FilePlace]]) -> tuple[VirtualDisk, ...]:
    """The disks with their new paths and formats. The VM's present files stay taken until the end."""
    taken = {(place.source_uuid, file) for disk, place in disks for file in _files(_relative(disk.path))}
    afterwards = []
    for disk, place in disks:
        if place.moved:
            relative = _free_name(vm_name, _relative(disk.path).rpartition("/")[2], place.uuid, taken)
            taken |= {(place.uuid, file) for file in _files(relative)}
            afterwards.append(replace(disk, path=f"[{place.name}] {relative}", format=place.format))
        else:
            afterwards.append(disk)
    return tuple(afterwards)


def _free_name(folder: str, name: str, uuid: str, taken: set[tuple[str, str]]) -> str:
    """ "web01/root.vmdk", or "web01/root_1.vmdk" where the first is taken, and so on."""
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, "vmdk"
    number = 0
    while True:
        numbered = f"{folder}/{stem}_{number}.{suffix}" if number else f"{folder}/{stem}.{suffix}"
        if all((uuid, file) not in taken for file in _files(numbered)):
            return numbered
        number += 1


def _files(relative: str) -> tuple[str, str, str]:
    """A disk's descriptor and the names that its extent can have."""
    stem = relative.removesuffix(".vmdk")
    return relative, f"{stem}-flat.vmdk", f"{stem}.qcow2"


def _relative(path: str) -> str:
    return path.partition("]")[2].strip()


def _nic_afterwards(spec: RelocateSpec, nic: NetworkAdapter) -> NetworkAdapter:
    return replace(nic, network=spec.network_of(nic.key, nic.network))


def _policies(vm: VmFacts, spec: RelocateSpec) -> VmPolicies:
    before = dict(vm.policies.disks) if vm.policies is not None else {}
    after = {}
    for disk in vm.config.disks:
        locator = spec.locator(disk.key)
        chosen = locator.policy if locator is not None else spec.policy
        policy = _policy(chosen, before.get(disk.key, ""))
        if policy:
            after[disk.key] = policy
    home = _policy(spec.policy, vm.policies.home if vm.policies is not None else "")
    return VmPolicies(vm.id, home, tuple(sorted(after.items())))


def _policy(chosen: str, present: str) -> str:
    return "" if chosen == NO_POLICY else chosen or present
