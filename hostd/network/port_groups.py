"""Pure: no I/O, no clock, no logging. The host's port groups, and where a VM's NICs are plugged in.

<net>/<segment id>/switch.sock                    the virtual switch's, every VM of the port group sends to it
                   <uuid, 13 characters>-<NIC's key>.sock    the NIC's own, made by QEMU
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import CannotAccessNetwork

DEFAULT_PORT_GROUPS = ("VM Network=100",)
SEGMENT_ID_MAX = (1 << 24) - 1
_NAME_MAX_CHARS = 80


@dataclass(frozen=True)
class PortGroup:
    """A network as this host offers it. Port groups with one segment id are one network on all hosts."""

    name: str
    segment_id: int


@dataclass(frozen=True)
class Networks:
    """All port groups of the host. `directory` is the virtual switch's."""

    host_name: str = ""
    directory: Path = field(default_factory=Path)
    port_groups: tuple[PortGroup, ...] = ()

    def find(self, name: str) -> PortGroup | None:
        """The port group of this name."""
        return next((group for group in self.port_groups if group.name == name), None)

    def places(self, config: vm_config_pb2.VmConfig) -> list[service_pb2.NicPlace]:
        """Where the VM's NICs go on this host; a disconnected one goes nowhere.

        :raises CannotAccessNetwork: a connected NIC's port group isn't here.
        """
        return [self._place(config.uuid, nic) for nic in config.nics]

    def to_proto(self) -> list[host_pb2.PortGroup]:
        """As vpxd is told."""
        return [
            host_pb2.PortGroup(name=group.name, segment_id=group.segment_id) for group in self.port_groups
        ]

    def _place(self, vm_uuid: str, nic: vm_config_pb2.NetworkAdapter) -> service_pb2.NicPlace:
        if not nic.connected:
            return service_pb2.NicPlace(key=nic.key)
        group = self.find(nic.network)
        if group is None:
            message = f"{self.host_name} has no port group {nic.network}."
            raise CannotAccessNetwork(
                message, network=nic.network, host=self.host_name, nic=f"ethernet{nic.key - 4000}"
            )
        folder = self.directory / str(group.segment_id)
        return service_pb2.NicPlace(
            key=nic.key,
            port_path=str(folder / f"{vm_uuid[:13]}-{nic.key}.sock"),
            switch_path=str(folder / "switch.sock"),
        )


def parse_port_groups(entries: Iterable[str]) -> tuple[PortGroup, ...]:
    """Port groups from "name=segment id" each.

    :raises ValueError: one can't be, or a name or a segment id is there twice.
    """
    groups: list[PortGroup] = []
    for entry in entries:
        name, number = (part.strip() for part in entry.rpartition("=")[::2])
        is_number = number.isascii() and number.isdigit() and len(number) <= 8
        if not 1 <= len(name) <= _NAME_MAX_CHARS or not name.isprintable() or not is_number:
            raise ValueError(f'must be "name=segment id", not {entry!r}')
        if not 1 <= int(number) <= SEGMENT_ID_MAX:
            raise ValueError(f"has the segment id {number}, which isn't from 1 to {SEGMENT_ID_MAX}")
        groups.append(PortGroup(name, int(number)))
    if len({group.name for group in groups}) != len(groups):
        raise ValueError("has a name twice")
    if len({group.segment_id for group in groups}) != len(groups):
        raise ValueError("has a segment id twice")
    return tuple(groups)
