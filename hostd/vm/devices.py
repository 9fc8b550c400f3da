"""Pure: no I/O, no clock, no logging. A VM's disks, NICs and CPU: their rules, and their entries in a .vmx file.

    scsi0:0.present = "TRUE"                       disk with the key 2000 + 0
    scsi0:0.fileName = "[local] web01/web01.vmdk"
    ethernet0.present = "TRUE"                     NIC with the key 4000 + 0
    ethernet0.networkName = "VM Network"

Keys and the device keys behind them are VMware's; the rest begins with "vpx.". A device that was taken out keeps a line
`present = "FALSE"`, as VMware writes it, so that entries of it which we don't know mean nothing.
"""

import re
from collections.abc import Mapping

from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidDatastorePath, InvalidVmConfig
from runtime.ondisk.datastore_path import DatastorePath

MIB = 1 << 20
DISK_KEYS = range(2000, 2016)
NIC_KEYS = range(4000, 4010)
DISK_MAX_BYTES = 62 << 40  # VMFS's own largest file
DISK_SUFFIX = ".vmdk"
_DISK_NAME_MAX_BYTES = 250  # "root.vmdk" -> "root-flat.vmdk", within NAME_MAX (255)
_FORMATS = {
    vm_config_pb2.DISK_FORMAT_THIN: "thin",
    vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED: "zeroedthick",
    vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED: "eagerzeroedthick",
    vm_config_pb2.DISK_FORMAT_QCOW2: "qcow2",
}
_FORMAT_OF = {name: number for number, name in _FORMATS.items()}
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_NETWORK_MAX_CHARS = 80
_FEATURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FEATURES_MAX = 1000
_EVC_MODE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_NUMBER = re.compile(r"[0-9]{1,19}")


def validate(config: vm_config_pb2.VmConfig) -> None:
    """Check disks, NICs, EVC mode and the guest's CPU.

    :raises InvalidVmConfig: the first that can't be; `property` names it.
    """
    _validate_keys([disk.key for disk in config.disks], DISK_KEYS, "disks")
    _validate_keys([nic.key for nic in config.nics], NIC_KEYS, "nics")
    paths = [disk.path for disk in config.disks]
    if len(set(paths)) != len(paths):
        raise InvalidVmConfig("Two disks have the same path.", "disks")
    for disk in config.disks:
        _validate_disk(disk)
    for nic in config.nics:
        _validate_nic(nic)
    if config.evc_mode and not _EVC_MODE.fullmatch(config.evc_mode):
        raise InvalidVmConfig("The EVC mode isn't a baseline's key.", "evc_mode")
    cpu = config.guest_cpu
    features = [*cpu.features, *cpu.disabled_features]
    words = [word for word in (cpu.model, *features) if word]
    if len(features) > _FEATURES_MAX or not all(_FEATURE.fullmatch(word) for word in words):
        raise InvalidVmConfig(
            "The guest's CPU has names that can't be a model's or a feature's.", "guest_cpu"
        )
    if cpu.baseline and not _EVC_MODE.fullmatch(cpu.baseline):
        raise InvalidVmConfig("The guest's CPU has a baseline that can't be one.", "guest_cpu")


def to_entries(config: vm_config_pb2.VmConfig) -> dict[str, str]:
    """The .vmx entries that say these devices, those that aren't there too. They must be valid."""
    entries: dict[str, str] = {"vpx.evcMode": config.evc_mode}
    disks = {disk.key: disk for disk in config.disks}
    for key in DISK_KEYS:
        slot = f"scsi0:{key - DISK_KEYS.start}"
        entries[f"{slot}.present"] = _truth(key in disks)
        if key in disks:
            disk = disks[key]
            entries[f"{slot}.fileName"] = disk.path
            entries[f"{slot}.vpx.capacityBytes"] = str(disk.capacity_bytes)
            entries[f"{slot}.vpx.format"] = _FORMATS[disk.format]
    nics = {nic.key: nic for nic in config.nics}
    for key in NIC_KEYS:
        slot = f"ethernet{key - NIC_KEYS.start}"
        entries[f"{slot}.present"] = _truth(key in nics)
        if key in nics:
            nic = nics[key]
            entries[f"{slot}.address"] = nic.mac
            entries[f"{slot}.networkName"] = nic.network
            entries[f"{slot}.startConnected"] = _truth(nic.connected)
    cpu = config.guest_cpu
    entries["vpx.guestCpu.model"] = cpu.model
    entries["vpx.guestCpu.features"] = " ".join(cpu.features)
    entries["vpx.guestCpu.disabledFeatures"] = " ".join(cpu.disabled_features)
    entries["vpx.guestCpu.baseline"] = cpu.baseline
    return entries


def add_from_entries(entries: Mapping[str, str], config: vm_config_pb2.VmConfig) -> None:
    """Put the devices that the entries say into `config`; not validated yet.

    :raises InvalidVmConfig: an entry is missing or can't be; `property` names it.
    """
    config.evc_mode = entries.get("vpx.evcMode", "")
    for key in DISK_KEYS:
        slot = f"scsi0:{key - DISK_KEYS.start}"
        if _is_true(entries, f"{slot}.present"):
            config.disks.add(
                key=key,
                path=_required(entries, f"{slot}.fileName"),
                capacity_bytes=_number(entries, f"{slot}.vpx.capacityBytes"),
                format=_format(entries, f"{slot}.vpx.format"),
            )
    for key in NIC_KEYS:
        slot = f"ethernet{key - NIC_KEYS.start}"
        if _is_true(entries, f"{slot}.present"):
            config.nics.add(
                key=key,
                mac=_required(entries, f"{slot}.address"),
                network=_required(entries, f"{slot}.networkName"),
                connected=_is_true(entries, f"{slot}.startConnected"),
            )
    if entries.get("vpx.guestCpu.model"):
        config.guest_cpu.model = entries["vpx.guestCpu.model"]
        config.guest_cpu.features.extend(entries.get("vpx.guestCpu.features", "").split())
        config.guest_cpu.disabled_features.extend(entries.get("vpx.guestCpu.disabledFeatures", "").split())
        config.guest_cpu.baseline = entries.get("vpx.guestCpu.baseline", "")


def _validate_keys(keys: list[int], allowed: range, field: str) -> None:
    if len(set(keys)) != len(keys):
        raise InvalidVmConfig("Two devices have the same key.", field)
    for key in keys:
        if key not in allowed:
            message = f"The key {key} isn't between {allowed.start} and {allowed.stop - 1}."
            raise InvalidVmConfig(message, field)


def _validate_disk(disk: vm_config_pb2.VirtualDisk) -> None:
    field = f"disks[{disk.key}]"
    try:
        path = DatastorePath.parse(disk.path)
    except InvalidDatastorePath as error:
        raise InvalidVmConfig("A disk's path isn't a datastore path.", field) from error
    if not str(path).endswith(DISK_SUFFIX):
        raise InvalidVmConfig(f"A disk's path doesn't end in {DISK_SUFFIX}.", field)
    if len(path.name.encode()) > _DISK_NAME_MAX_BYTES:
        raise InvalidVmConfig("A disk's name is too long for its extent's beside it.", field)
    if not MIB <= disk.capacity_bytes <= DISK_MAX_BYTES or disk.capacity_bytes % MIB:
        message = f"A capacity of {disk.capacity_bytes} bytes isn't a multiple of 1 MiB up to 62 TiB."
        raise InvalidVmConfig(message, field)
    if disk.format not in _FORMATS:
        raise InvalidVmConfig("A disk's format isn't known.", field)


def _validate_nic(nic: vm_config_pb2.NetworkAdapter) -> None:
    field = f"nics[{nic.key}]"
    if not _MAC.fullmatch(nic.mac) or nic.mac == "00:00:00:00:00:00":
        raise InvalidVmConfig("A NIC's MAC isn't a unicast address in lower case with colons.", field)
    if not 1 <= len(nic.network) <= _NETWORK_MAX_CHARS or not nic.network.isprintable():
        raise InvalidVmConfig("A NIC's network isn't a port group's name.", field)


def _truth(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _is_true(entries: Mapping[str, str], key: str) -> bool:
    text = entries.get(key, "FALSE").upper()
    if text not in ("TRUE", "FALSE"):
        raise InvalidVmConfig(f"{key} in the .vmx file is neither TRUE nor FALSE.", key)
    return text == "TRUE"


def _required(entries: Mapping[str, str], key: str) -> str:
    if key not in entries:
        raise InvalidVmConfig(f"The .vmx file has no {key}.", key)
    return entries[key]


def _number(entries: Mapping[str, str], key: str) -> int:
    text = _required(entries, key)
    if not _NUMBER.fullmatch(text) or int(text) > DISK_MAX_BYTES:
        raise InvalidVmConfig(f"{key} in the .vmx file isn't a number up to {DISK_MAX_BYTES}.", key)
    return int(text)


def _format(entries: Mapping[str, str], key: str) -> vm_config_pb2.DiskFormat.ValueType:
    name = _required(entries, key)
    if name not in _FORMAT_OF:
        raise InvalidVmConfig(f"{key} in the .vmx file isn't one of {', '.join(_FORMAT_OF)}.", key)
    return _FORMAT_OF[name]
