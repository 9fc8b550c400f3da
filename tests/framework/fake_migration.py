"""FAKE migration: what both fake hosts know of one migration, moved on by a test or by a script."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import VimFault

if TYPE_CHECKING:
    from tests.framework.fake_cluster import FakeCluster

PHASES_TO_SUCCESS = (
    status_pb2.MIGRATION_PHASE_HANDSHAKE,
    status_pb2.MIGRATION_PHASE_PRE_COPY,
    status_pb2.MIGRATION_PHASE_STUN,
    status_pb2.MIGRATION_PHASE_CHECKPOINT,
    status_pb2.MIGRATION_PHASE_SWITCHOVER,
    status_pb2.MIGRATION_PHASE_VERIFY,
    status_pb2.MIGRATION_PHASE_COMPLETE,
    status_pb2.MIGRATION_PHASE_SUCCEEDED,
)
FILES_TO_SUCCESS = (
    status_pb2.MIGRATION_PHASE_HANDSHAKE,
    status_pb2.MIGRATION_PHASE_DISK_COPY,
    status_pb2.MIGRATION_PHASE_SWITCHOVER,
    status_pb2.MIGRATION_PHASE_COMPLETE,
    status_pb2.MIGRATION_PHASE_SUCCEEDED,
)
ENDS = (status_pb2.MIGRATION_PHASE_SUCCEEDED, status_pb2.MIGRATION_PHASE_FAILED)
DISK_BYTES = 64 * 1024 * 1024


def phases_of(spec: spec_pb2.MigrationSpec) -> "tuple[status_pb2.MigrationPhase.ValueType, ...]":
    """The phases of a migration under this specification, to its success."""
    if spec.powered_off or spec.source.host_uuid == spec.destination.host_uuid:
        return FILES_TO_SUCCESS
    if not spec.moved_disks and not spec.destination_home:
        return PHASES_TO_SUCCESS
    return (PHASES_TO_SUCCESS[0], status_pb2.MIGRATION_PHASE_DISK_COPY, *PHASES_TO_SUCCESS[1:])


@dataclass
class FakeHome:
    """A VM's home folder: its configuration and its owner record."""

    config: vm_config_pb2.VmConfig
    owner: str
    epoch: int = 1


class FakeMigration:
    """One migration as both hosts see it. Between hosts with a new home there are two owner records, one at each."""

    def __init__(self, spec: spec_pb2.MigrationSpec, cluster: "FakeCluster") -> None:
        self.spec = spec
        self.status = status_pb2.MigrationStatus(
            migration_id=spec.migration_id,
            phase=status_pb2.MIGRATION_PHASE_PREPARE,
            ram_bytes=spec.vm.ram_bytes,
        )
        self.fault: VimFault | None = None
        self.started = False
        self.completed: set[str] = set()
        self.canceled: set[str] = set()
        self._cluster = cluster
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.status.phase in ENDS

    @property
    def within_host(self) -> bool:
        return self.spec.source.host_uuid == self.spec.destination.host_uuid

    def move_to(self, phase: "status_pb2.MigrationPhase.ValueType", **fields: int) -> None:
        """The next published phase; from SWITCHOVER on the owner record names the destination."""
        if self.ended:
            return
        self.status.phase = phase
        if phase == status_pb2.MIGRATION_PHASE_DISK_COPY and not self.status.disks:
            for key in self.spec.moved_disks:
                self.status.disks.add(
                    key=key, capacity_bytes=DISK_BYTES, data_bytes=DISK_BYTES, copied_bytes=DISK_BYTES // 2
                )
        for name, value in fields.items():
            setattr(self.status, name, value)
        if phase == status_pb2.MIGRATION_PHASE_SWITCHOVER:
            self.hand_over()
        if phase == status_pb2.MIGRATION_PHASE_SUCCEEDED:
            self.status.stun_ms = 7.5
            self._cluster.unmask(self)
        self._wake()

    def hand_over(self) -> None:
        """The owner record's swap."""
        owner = self.spec.destination.host_uuid
        for home in self._cluster.homes_of(self.spec):
            if home.owner != owner:
                home.owner, home.epoch = owner, home.epoch + 1

    def fail(self, fault: VimFault) -> None:
        """It fails before the hand-over; the source is as it was."""
        self.fault = fault
        self.status.failure = fault.message
        self.status.phase = status_pb2.MIGRATION_PHASE_FAILED
        self._wake()

    async def watch(self) -> AsyncIterator[status_pb2.MigrationStatus]:
        while True:
            changed, status = self._changed, status_pb2.MigrationStatus()
            status.CopyFrom(self.status)
            yield status
            if status.phase in ENDS:
                return
            await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def run_script(migration: FakeMigration) -> None:
    """Moves the migration through its phases, one every 10 ms."""
    total = migration.spec.vm.ram_bytes // 4096
    for phase in phases_of(migration.spec):
        await asyncio.sleep(0.01)
        if phase == status_pb2.MIGRATION_PHASE_PRE_COPY:
            migration.move_to(phase, pages_total=total, pages_sent=total // 2, pages_remaining=total // 2)
        else:
            migration.move_to(phase)
