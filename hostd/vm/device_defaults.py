"""Pure: no I/O, no clock, no logging. What a wanted configuration leaves open of its disks and NICs, filled in.

    disk    key 0: the next from 2000      path "": "[home] name.vmdk", "name_1.vmdk", ...
            of a disk that the VM has already: path, capacity and format as they are
    NIC     key 0: the next from 4000      MAC "": locally administered (02:...), not used on this host

Disks and NICs come out in the order of their keys, as a .vmx file keeps them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hostd.datastore import disk_descriptor
from hostd.vm.devices import DISK_KEYS, NIC_KEYS
from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidDatastorePath, InvalidVmConfig
from runtime.ondisk.datastore_path import DatastorePath

_Device: TypeAlias = vm_config_pb2.VirtualDisk | vm_config_pb2.NetworkAdapter
_MAC_PREFIX = 0x02  # IEEE 802: locally administered, unicast


@dataclass(frozen=True)
class Surroundings:
    """What the choice depends on. `taken_names`: of the files in the home folder; `present`: what the VM has."""

    home: DatastorePath
    taken_names: Collection[str]
    taken_macs: Collection[str]
    random_bytes: Callable[[int], bytes]
    present: vm_config_pb2.VmConfig = field(default_factory=vm_config_pb2.VmConfig)


def with_device_defaults(
    wanted: vm_config_pb2.VmConfig, surroundings: Surroundings
) -> vm_config_pb2.VmConfig:
    """A copy of `wanted` in which every disk has a key and a path, and every NIC a key and a MAC.

    :raises InvalidVmConfig: there are more devices than keys, or a path isn't one.
    """
    config = vm_config_pb2.VmConfig()
    config.CopyFrom(wanted)
    _give_keys(config.disks, surroundings.present.disks, DISK_KEYS, "disks")
    _give_keys(config.nics, surroundings.present.nics, NIC_KEYS, "nics")
    present = {disk.key: disk for disk in surroundings.present.disks}
    for disk in config.disks:
        kept = present.get(disk.key)
        if kept is not None:
            disk.path = disk.path or kept.path
            disk.capacity_bytes = disk.capacity_bytes or kept.capacity_bytes
            disk.format = disk.format or kept.format
    _give_paths(config, surroundings)
    _give_macs(config, surroundings)
    disks = sorted(config.disks, key=lambda disk: disk.key)
    nics = sorted(config.nics, key=lambda nic: nic.key)
    del config.disks[:], config.nics[:]
    config.disks.extend(disks)
    config.nics.extend(nics)
    return config


def _give_keys(devices: Sequence[_Device], present: Sequence[_Device], keys: range, field_name: str) -> None:
    """A key of a device that goes isn't given to one that comes in the same change: it would be taken for it."""
    used = {device.key for device in (*devices, *present)}
    free = (key for key in keys if key not in used)
    for device in devices:
        if device.key == 0:
            key = next(free, None)
            if key is None:
                raise InvalidVmConfig(f"A VM can't have more than {len(keys)} {field_name}.", field_name)
            device.key = key


def _give_paths(config: vm_config_pb2.VmConfig, surroundings: Surroundings) -> None:
    used = {disk.path for disk in [*config.disks, *surroundings.present.disks]}
    number = 0
    for disk in config.disks:
        while not disk.path:
            stem = f"{config.name}_{number}" if number else config.name
            number += 1
            try:
                path = surroundings.home.child(f"{stem}{disk_descriptor.SUFFIX}")
            except InvalidDatastorePath as error:
                raise InvalidVmConfig(
                    "The VM's name is too long for its disks' names.", f"disks[{disk.key}]"
                ) from error
            files = {
                path.name,
                *(disk_descriptor.extent_name(path.name, one) for one in disk_descriptor.FORMATS),
            }
            if str(path) not in used and not files & set(surroundings.taken_names):
                disk.path = str(path)
                used.add(disk.path)


def _give_macs(config: vm_config_pb2.VmConfig, surroundings: Surroundings) -> None:
    used = {nic.mac for nic in config.nics} | set(surroundings.taken_macs)
    present = {nic.key: nic for nic in surroundings.present.nics}
    for nic in config.nics:
        if not nic.mac and nic.key in present:
            nic.mac = present[nic.key].mac
        while not nic.mac:
            mac = ":".join(f"{byte:02x}" for byte in (_MAC_PREFIX, *surroundings.random_bytes(5)))
            if mac not in used:
                nic.mac = mac
                used.add(mac)
