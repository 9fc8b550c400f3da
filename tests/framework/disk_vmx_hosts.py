"""Real vmx processes on hosts that have a datastore each: a VM's home and its disk move with it. The test is hostd."""

from dataclasses import dataclass, field
from pathlib import Path

from proto.host.v1 import operations_pb2
from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from proto.vmx.v1 import service_pb2
from runtime.ondisk import owner_record
from runtime.rpc.faults import remote_faults
from tests.framework.guest_disks import KEY, MIB, empty_extent
from tests.framework.vmx_hosts import VmxHost, VmxHosts, VmxProcess

_DEADLINE_S = 90.0


@dataclass
class DiskVmxHosts(VmxHosts):
    """Without `boot_words` the guest has no operating system."""

    boot_words: str = ""
    capacity_bytes: int = 24 * MIB
    homes: dict[str, Path] = field(default_factory=dict)

    def home_on(self, host: VmxHost) -> Path:
        """The VM's folder on the host's datastore."""
        return self.homes.setdefault(host.name, self.home)

    def extent_in(self, home: Path) -> Path:
        """The disk there."""
        return home / "web01-flat.vmdk"

    @property
    def config(self) -> vm_config_pb2.VmConfig:
        """With a disk."""
        config = super().config
        config.boot.kernel_command_line = self.boot_words
        config.disks.add(key=KEY, capacity_bytes=self.capacity_bytes, format=vm_config_pb2.DISK_FORMAT_THIN)
        return config

    def place(self, host: VmxHost) -> service_pb2.VmPlace:
        """On the host's own datastore."""
        return self.place_in(host, self.home_on(host))

    def place_in(self, host: VmxHost, home: Path) -> service_pb2.VmPlace:
        """In this folder."""
        place = super().place(host)
        place.home_directory = str(home)
        if not self.boot_words:
            place.kernel_path = place.initrd_path = ""
        place.disks.add(
            key=KEY,
            extent_path=str(self.extent_in(home)),
            format=vm_config_pb2.DISK_FORMAT_THIN,
            capacity_bytes=self.capacity_bytes,
        )
        return place

    def spec(
        self, source: VmxHost, destination: VmxHost, options: spec_pb2.MigrationOptions | None = None
    ) -> spec_pb2.MigrationSpec:
        """With home and disk."""
        spec = super().spec(source, destination, options)
        spec.vm_home, spec.destination_home = "[here] web01/web01.vmx", "[there] web01/web01.vmx"
        spec.destination_vm.CopyFrom(spec.vm)
        spec.moved_disks.append(KEY)
        return spec

    def make_home(self, name: str, owner: VmxHost) -> Path:
        """What hostd makes before a move."""
        home = self.folder / name / "web01"
        home.mkdir(parents=True)
        owner_record.create(owner_record.owner_path(home, "web01"), self.vm_uuid, owner.uuid)
        empty_extent(self.extent_in(home), self.capacity_bytes)
        return home

    async def watched(
        self, vmx: VmxProcess, spec: spec_pb2.MigrationSpec
    ) -> list[status_pb2.MigrationStatus]:
        """All statuses of a move, to its end."""
        statuses = []
        request = operations_pb2.MigrationRequest(migration_id=spec.migration_id)
        with remote_faults("vmx"):
            async for response in vmx.stub.WatchMigration(request, timeout=_DEADLINE_S):
                assert not response.HasField("fault"), response.fault
                statuses.append(response.status)
                if (
                    response.status.phase == status_pb2.MIGRATION_PHASE_SWITCHOVER
                    and spec.source.host_uuid == spec.destination.host_uuid
                ):
                    await vmx.stub.CommitRelocation(request, timeout=_DEADLINE_S)
        return statuses
