"""Pure: no I/O, no clock, no logging. What this host is and can, as values."""

import re
from dataclasses import dataclass, field

from hostd.host.cpu_features import CpuFeatures
from hostd.network.port_groups import Networks
from proto.vim.v1 import host_pb2

# Streams that vmx of this version speaks (vmx/stream); a test compares them.
STREAM_VERSION_MIN = 1
STREAM_VERSION_MAX = 2


@dataclass(frozen=True)
class Capability:
    """What a QEMU binary offers on this machine."""

    qemu_version: str
    machine_types: tuple[str, ...]
    cpu_models: tuple[str, ...]
    accelerator: str
    cpu: CpuFeatures = field(default_factory=CpuFeatures)


@dataclass(frozen=True)
class HostFacts:
    """What the host is and can, for as long as hostd runs."""

    uuid: str
    name: str
    management_address: str
    vmotion_address: str
    memory_bytes: int
    cpu_cores: int
    vcpu_capacity: int
    version: str
    capability: Capability
    networks: Networks = field(default_factory=Networks)

    @property
    def machine_types(self) -> tuple[str, ...]:
        """Versioned machine types of its QEMU."""
        return self.capability.machine_types

    def to_proto(self, datastores: list[host_pb2.Datastore]) -> host_pb2.HostInfo:
        """As vpxd is told."""
        return host_pb2.HostInfo(
            uuid=self.uuid,
            name=self.name,
            management_address=self.management_address,
            vmotion_address=self.vmotion_address,
            memory_bytes=self.memory_bytes,
            cpu_cores=self.cpu_cores,
            vcpu_capacity=self.vcpu_capacity,
            capability=host_pb2.HostCapability(
                qemu_version=self.capability.qemu_version,
                machine_types=self.capability.machine_types,
                cpu_models=self.capability.cpu_models,
                accelerator=self.capability.accelerator,
                stream_version_min=STREAM_VERSION_MIN,
                stream_version_max=STREAM_VERSION_MAX,
                cpu_features=sorted(self.capability.cpu.features),
                cpu_vendor=self.capability.cpu.vendor,
                evc_modes=[baseline.key for baseline in self.capability.cpu.offered()],
            ),
            datastores=datastores,
            version=self.version,
            port_groups=self.networks.to_proto(),
        )


def machine_order(machine_type: str) -> tuple[bool, tuple[int, ...]]:
    """Sorts machine types by preference: q35 above i440fx, then by version."""
    return "q35" in machine_type, tuple(int(number) for number in re.findall(r"[0-9]+", machine_type)[1:])
