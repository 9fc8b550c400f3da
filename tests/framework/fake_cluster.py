"""FAKE cluster: what fake hosts share: datastores with the homes of VMs and their owner records, and migrations."""

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING

from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from tests.framework.fake_host_storage import FakeFiles
from tests.framework.fake_migration import PHASES_TO_SUCCESS, FakeHome, FakeMigration

if TYPE_CHECKING:
    from tests.framework.fake_vpxa import FakeVpxaHost

GIB = 1024**3


class FakeCluster:
    """What the fake hosts share. `script`: not None: a started migration runs to its end; None: the test moves it."""

    def __init__(self) -> None:
        self.homes: dict[str, FakeHome] = {}
        self.files = FakeFiles()
        self.hosts: dict[str, FakeVpxaHost] = {}
        self.migrations: dict[int, FakeMigration] = {}
        self.script: tuple[status_pb2.MigrationPhase.ValueType, ...] | None = PHASES_TO_SUCCESS
        self.shared = host_pb2.Datastore(
            name="shared",
            uuid=str(uuid.uuid4()),
            capacity_bytes=100 * GIB,
            free_bytes=50 * GIB,
            accessible=True,
        )
        self._news = asyncio.Event()

    def host(self, host_uuid: str) -> "FakeVpxaHost":
        return next(host for host in self.hosts.values() if host.info.uuid == host_uuid)

    def homes_of(self, spec: spec_pb2.MigrationSpec) -> list[FakeHome]:
        """The homes that a migration goes from and to; one where the home stays."""
        keys = [self.host(spec.source.host_uuid).home_key(spec.vm_home)]
        if spec.destination_home:
            keys.append(self.host(spec.destination.host_uuid).home_key(spec.destination_home))
        return [self.homes[key] for key in keys if key in self.homes]

    def make_home(self, spec: spec_pb2.MigrationSpec) -> None:
        """The destination's home, if it is a new one: it belongs to the source until the hand-over."""
        if spec.destination_home:
            source = self.host(spec.source.host_uuid)
            epoch = self.homes[source.home_key(spec.vm_home)].epoch
            key = self.host(spec.destination.host_uuid).home_key(spec.destination_home)
            self.homes[key] = FakeHome(config_afterwards(spec), spec.source.host_uuid, epoch)

    def drop_home(self, spec: spec_pb2.MigrationSpec, *, new: bool) -> None:
        """The new home after a failure, or the old one after success."""
        host_uuid = spec.destination.host_uuid if new else spec.source.host_uuid
        home = spec.destination_home if new else spec.vm_home
        if spec.destination_home:
            self.homes.pop(self.host(host_uuid).home_key(home), None)

    def add(self, migration: FakeMigration) -> None:
        self.migrations[migration.spec.migration_id] = migration
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def migration_of(self, vm_name: str, *, started: bool = True) -> FakeMigration:
        """Waits until a migration of this VM that hasn't ended is there."""
        while True:
            for migration in self.migrations.values():
                if migration.spec.vm.name == vm_name and not migration.ended and migration.started >= started:
                    return migration
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 0.05)

    def unmask(self, migration: FakeMigration) -> None:
        destination = self.host(migration.spec.destination.host_uuid)
        source = self.host(migration.spec.source.host_uuid)
        vm = host_pb2.VmState()
        vm.CopyFrom(source.vms[migration.spec.vm.uuid])
        if not migration.within_host:
            vm.ClearField("lock")
        vm.config.CopyFrom(config_afterwards(migration.spec))
        vm.home = migration.spec.destination_home or vm.home
        set_power(vm, on=not migration.spec.powered_off)
        destination.vms[vm.uuid] = vm
        destination.changed()


def config_afterwards(spec: spec_pb2.MigrationSpec) -> vm_config_pb2.VmConfig:
    """The VM's configuration at the destination."""
    return spec.destination_vm if spec.HasField("destination_vm") else spec.vm


def set_power(vm: host_pb2.VmState, *, on: bool) -> None:
    """Switches it."""
    vm.power_state = host_pb2.POWER_STATE_POWERED_ON if on else host_pb2.POWER_STATE_POWERED_OFF
    vm.execution_state = host_pb2.EXECUTION_STATE_RUNNING if on else host_pb2.EXECUTION_STATE_OFF
