"""What a client wants moved (VirtualMachineRelocateSpec). Pure: no I/O, no clock, no logging.

The twin of proto.vpxd.v1.RelocateSpec. What is unset stays as it is. Hosts, clusters and datastores are named by id
or name. `require_valid` refuses what contradicts itself whatever the VM is, `require_fits` what can't be of this VM.
"""

from dataclasses import dataclass

from runtime.faults import InvalidArgument
from vpxd.inventory.values import DiskFormat, VmConfig

NO_POLICY = "-"  # as a policy: none afterwards
MAX_LOCATORS = 64
MAX_MAPPINGS = 64


@dataclass(frozen=True)
class DiskLocator:
    """Where one disk goes. An empty datastore: it stays on its own, `format` may still change there."""

    key: int
    datastore: str = ""
    format: DiskFormat = DiskFormat.SAME_AS_SOURCE
    policy: str = ""


@dataclass(frozen=True)
class NicMapping:
    """Either all NICs of one port group (`from_network`), or one NIC (`nic`, its key; it wins)."""

    nic: int = 0
    from_network: str = ""
    network: str = ""


@dataclass(frozen=True)
class RelocateSpec:
    """As a client chose it. `datastore`, `policy`: of the home and of every disk that `disks` doesn't name."""

    host: str = ""
    cluster: str = ""
    datastore: str = ""
    format: DiskFormat = DiskFormat.SAME_AS_SOURCE
    policy: str = ""
    disks: tuple[DiskLocator, ...] = ()
    networks: tuple[NicMapping, ...] = ()

    @property
    def changes_storage(self) -> bool:
        """Whether it names a datastore or a format, for anything."""
        return bool(self.datastore) or any(disk.datastore or disk.format for disk in self.disks)

    def locator(self, key: int) -> DiskLocator | None:
        """What it says of one disk by name."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def network_of(self, nic: int, present: str) -> str:
        """The port group of a NIC afterwards: by its own mapping, else by its port group's, else `present`."""
        own = next((entry.network for entry in self.networks if entry.nic == nic), "")
        shared = next(
            (entry.network for entry in self.networks if not entry.nic and entry.from_network == present), ""
        )
        return own or shared or present

    def require_valid(self) -> None:
        """:raises InvalidArgument: it contradicts itself; `argument` names the part."""
        if self.host and self.cluster:
            raise _invalid("name a host or a cluster, not both", "spec.cluster")
        if self.format and not self.datastore:
            raise _invalid("a format for all disks needs the datastore that they go to", "spec.format")
        if len(self.disks) > MAX_LOCATORS or len(self.networks) > MAX_MAPPINGS:
            raise _invalid(
                f"at most {MAX_LOCATORS} disks and {MAX_MAPPINGS} networks can be named", "spec.disks"
            )
        _require_once([disk.key for disk in self.disks], "disk", "spec.disks")
        _require_once([entry.nic for entry in self.networks if entry.nic], "NIC", "spec.networks")
        groups = [entry.from_network for entry in self.networks if not entry.nic]
        _require_once(groups, "port group", "spec.networks")
        for entry in self.networks:
            if not entry.network:
                raise _invalid("a NIC's mapping names no destination network", "spec.networks")
            if bool(entry.nic) == bool(entry.from_network):
                raise _invalid(
                    "a mapping is of one NIC or of one port group: name exactly one", "spec.networks"
                )

    def require_fits(self, vm: VmConfig) -> None:
        """:raises InvalidArgument: it names a disk, NIC or port group that the VM doesn't have."""
        disks = {disk.key for disk in vm.disks}
        for disk in self.disks:
            if disk.key not in disks:
                raise _invalid(f"{vm.name} has no disk {disk.key}", "spec.disks")
        nics, networks = {nic.key for nic in vm.nics}, {nic.network for nic in vm.nics}
        for entry in self.networks:
            if entry.nic and entry.nic not in nics:
                raise _invalid(f"{vm.name} has no NIC {entry.nic}", "spec.networks")
            if entry.from_network and entry.from_network not in networks:
                raise _invalid(
                    f"no NIC of {vm.name} is plugged into {entry.from_network[:80]!r}", "spec.networks"
                )


def _require_once(keys: list[int] | list[str], what: str, argument: str) -> None:
    seen: set[int | str] = set()
    for key in keys:
        if key in seen:
            raise _invalid(f"the {what} {key!s:.80} is named twice", argument)
        seen.add(key)


def _invalid(text: str, argument: str) -> InvalidArgument:
    return InvalidArgument(text, argument=argument)
