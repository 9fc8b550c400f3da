"""Which files of a datastore belong to VMs. Pure: no I/O, no clock, no logging.

A host knows the files of its own VMs; on a datastore that several hosts see only vpxd knows all of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from runtime.faults import InvalidDatastorePath
from runtime.ondisk.datastore_path import DatastorePath
from vpxd.inventory.records import Vm

UuidOf = Callable[[Vm, str], str]  # the uuid of the datastore that the VM's host calls so; empty: unknown
_HOME_SUFFIXES = (".vmx", ".owner", ".runlock")
_EXTENTS = ("-flat.vmdk", ".qcow2")


@dataclass(frozen=True)
class UsedFile:
    """A file of a VM. `relative` is its path on the datastore."""

    vm: Vm
    relative: str


def used_on(vms: Iterable[Vm], datastore_uuid: str, uuid_of: UuidOf) -> list[UsedFile]:
    """The files that VMs have on a datastore: of the home those that make it a VM, and disks with their extents."""
    found: list[UsedFile] = []
    for vm in vms:
        home = _on(vm, vm.home, datastore_uuid, uuid_of)
        if home is not None:
            stem = home.relative.removesuffix(".vmx")
            found.extend(UsedFile(vm, f"{stem}{suffix}") for suffix in _HOME_SUFFIXES)
        for disk in vm.config.disks:
            path = _on(vm, disk.path, datastore_uuid, uuid_of)
            if path is not None:
                stem = path.relative.removesuffix(".vmdk")
                found.append(UsedFile(vm, path.relative))
                found.extend(UsedFile(vm, f"{stem}{suffix}") for suffix in _EXTENTS)
    return found


def in_the_way(used: Iterable[UsedFile], relative: str) -> UsedFile | None:
    """A VM's file that is this one, or is in this folder; the whole datastore where `relative` is empty."""
    prefix = f"{relative}/" if relative else ""
    return next(
        (entry for entry in used if entry.relative == relative or entry.relative.startswith(prefix)), None
    )


def _on(vm: Vm, text: str, datastore_uuid: str, uuid_of: UuidOf) -> DatastorePath | None:
    try:
        path = DatastorePath.parse(text)
    except InvalidDatastorePath:
        return None  # a host's word that can't be read names no file
    return path if uuid_of(vm, path.datastore) == datastore_uuid else None
