"""The journal of migrations on this host: one durable file each, and the table of them in memory.

    BEGUN ──▶ RUNNING ──▶ HANDED_OVER ──▶ COMPLETED
      │          │             │
      └──────────┴─────────────┴────────▶ FAILED

    BEGUN         before anything was made (destination) or told to vmx (source)
    RUNNING       destination: prepared, its ticket is out; source: vmx sends
    HANDED_OVER   the guest is the destination's: it runs there, or the owner record says that it may
    COMPLETED     both ends are as after a success;   FAILED   this end is as before

A stage is durable before its effect. The last 100 closed migrations are kept, so that what became of one can be asked
afterwards. The one-time key is never written.
"""

import asyncio
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import json_format

from hostd.host.changes import Changes
from hostd.vmotion.spec_check import destination_home
from proto.host.v1 import operations_pb2
from proto.vim.v1 import fault_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import CannotAccessFile, InvalidArgument, ManagedObjectNotFound
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import read_bounded, remove_durably, write_durably

_log = structlog.get_logger(__name__)
KEPT_CLOSED = 100
_MAX_BYTES = 4 << 20


class Role(StrEnum):
    """Which end this host is."""

    SOURCE = "source"
    DESTINATION = "destination"
    RELOCATION = "relocation"  # both: the files move within this host


class Stage(StrEnum):
    """How far this host's end has come."""

    BEGUN = "begun"  # next: RUNNING, HANDED_OVER (found so at a restart), FAILED
    RUNNING = "running"  # next: HANDED_OVER, FAILED
    HANDED_OVER = "handedOver"  # next: COMPLETED, FAILED (the owner record came back)
    COMPLETED = "completed"  # end
    FAILED = "failed"  # end


MOVES: frozenset[tuple[Stage, Stage]] = frozenset(
    {
        (Stage.BEGUN, Stage.RUNNING),
        (Stage.BEGUN, Stage.HANDED_OVER),
        (Stage.BEGUN, Stage.FAILED),
        (Stage.RUNNING, Stage.HANDED_OVER),
        (Stage.RUNNING, Stage.FAILED),
        (Stage.HANDED_OVER, Stage.COMPLETED),
        (Stage.HANDED_OVER, Stage.FAILED),
    }
)
_CLOSED = frozenset({Stage.COMPLETED, Stage.FAILED})
_ROLES = {
    Role.SOURCE: operations_pb2.MIGRATION_ROLE_SOURCE,
    Role.DESTINATION: operations_pb2.MIGRATION_ROLE_DESTINATION,
    Role.RELOCATION: operations_pb2.MIGRATION_ROLE_RELOCATION,
}
LAST_PHASES = frozenset({status_pb2.MIGRATION_PHASE_SUCCEEDED, status_pb2.MIGRATION_PHASE_FAILED})


class Migration:
    """One migration at this end. `published` rises with each status; `spec` has no key."""

    def __init__(self, role: Role, spec: spec_pb2.MigrationSpec) -> None:
        self.role = role
        self.spec = spec_pb2.MigrationSpec()
        self.spec.CopyFrom(spec)
        self.spec.ClearField("key")
        self.stage = Stage.BEGUN
        self.status = status_pb2.MigrationStatus(
            migration_id=spec.migration_id,
            phase=status_pb2.MIGRATION_PHASE_PREPARE,
            ram_bytes=spec.vm.ram_bytes,
        )
        self.fault: fault_pb2.Fault | None = None
        # Of a source whose home moves: vpxd has brought the destination's word.
        self.destination_has_vm = False
        self.published = Changes()

    @property
    def id(self) -> int:
        """The migration's id."""
        return int(self.spec.migration_id)

    @property
    def home(self) -> DatastorePath:
        """The VM's home as this end has it, with the owner record that counts for it."""
        return (
            destination_home(self.spec)
            if self.role is Role.DESTINATION
            else DatastorePath.parse(self.spec.vm_home)
        )

    @property
    def open(self) -> bool:
        """Whether it's neither completed nor undone at this end."""
        return self.stage not in _CLOSED

    @property
    def proto_role(self) -> operations_pb2.MigrationRole.ValueType:
        """The role as a message says it."""
        return _ROLES[self.role]

    def publish(self, status: status_pb2.MigrationStatus, fault: fault_pb2.Fault | None = None) -> None:
        """Replace the status; watchers see it."""
        self.status = status
        self.fault = fault if fault is not None else self.fault
        self.published.ring()

    def publish_failure(self, fault: fault_pb2.Fault) -> None:
        """End the status with a failure, unless it has ended already."""
        if self.status.phase in LAST_PHASES:
            self.published.ring()
            return
        status = status_pb2.MigrationStatus()
        status.CopyFrom(self.status)
        status.phase = status_pb2.MIGRATION_PHASE_FAILED
        status.failure = fault.message
        self.publish(status, fault)

    async def closed(self, timeout_s: float) -> bool:
        """Wait until it's no longer open; False: `timeout_s` went by."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.open:
                    await self.published.wait_past(self.published.version)
        except TimeoutError:
            return False
        return True


class Journal:
    """All migrations that this host knows, each with its file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._migrations: dict[int, Migration] = {}
        self._writing = asyncio.Lock()

    def get(self, migration_id: int) -> Migration:
        """The migration of this id.

        :raises ManagedObjectNotFound: this host knows none.
        """
        migration = self._migrations.get(migration_id)
        if migration is None:
            message = f"The migration {migration_id} isn't known on this host."
            raise ManagedObjectNotFound(message, kind="Migration", key=str(migration_id))
        return migration

    def open_migrations(self) -> list[Migration]:
        """Those that aren't closed."""
        return [migration for migration in self._migrations.values() if migration.open]

    async def begin(self, role: Role, spec: spec_pb2.MigrationSpec) -> Migration:
        """Write down a new one, before anything is done for it.

        :raises InvalidArgument: its id was used before.
        :raises CannotAccessFile: it can't be written; nothing is kept.
        """
        if spec.migration_id in self._migrations:
            message = f"The migration id {spec.migration_id} was used before."
            raise InvalidArgument(message, "spec.migration_id")
        migration = Migration(role, spec)
        self._migrations[migration.id] = migration
        try:
            await self._write(migration)
        except BaseException:
            del self._migrations[migration.id]
            raise
        self._log_stage(migration)
        return migration

    async def move(self, migration: Migration, stage: Stage) -> None:
        """The one way to change a stage; durable on return. A stage that it's in already is no move.

        :raises ValueError: no legal move.
        :raises CannotAccessFile: it isn't durable, though it counts in memory: a restart sees the stage before, and
            decides again by the owner record.
        """
        if stage is migration.stage:
            return
        if (migration.stage, stage) not in MOVES:
            raise ValueError(f"{migration.stage} -> {stage}")
        migration.stage = stage
        self._log_stage(migration)
        try:
            await self._write(migration)
            if not migration.open:
                await self._forget_old()
        finally:
            migration.published.ring()

    async def note_destination_has_vm(self, migration: Migration) -> None:
        """The destination's word, brought to its source; durable on return. :raises CannotAccessFile:"""
        migration.destination_has_vm = True
        await self._write(migration)

    def load(self) -> None:
        """Read all files at the start; blocks. A file that can't be read is left there and logged.

        :raises CannotAccessFile: the folder can't be used.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            message = f"The migration journal can't be read: {error.strerror}."
            raise CannotAccessFile(message, path=str(self._directory)) from error
        for path in paths:
            try:
                migration = _from_json(json.loads(read_bounded(path, _MAX_BYTES)))
            except (ValueError, KeyError, TypeError, CannotAccessFile, json_format.ParseError) as error:
                _log.error("journal_entry_unreadable", path=str(path), reason=str(error))
                continue
            self._migrations[migration.id] = migration

    async def _write(self, migration: Migration) -> None:
        content = json.dumps(_to_json(migration), indent=1).encode()
        async with self._writing:
            try:
                await asyncio.to_thread(write_durably, self._path(migration), content)
            except OSError as error:
                message = f"The migration journal can't be written: {error.strerror}."
                raise CannotAccessFile(message, path=str(self._directory)) from error

    async def _forget_old(self) -> None:
        closed = [migration for migration in self._migrations.values() if not migration.open]
        for migration in closed[:-KEPT_CLOSED]:
            del self._migrations[migration.id]
            await asyncio.to_thread(remove_durably, self._path(migration))

    def _path(self, migration: Migration) -> Path:
        return self._directory / f"{migration.id}.json"

    def _log_stage(self, migration: Migration) -> None:
        _log.info(
            "migration_stage",
            migration_id=migration.id,
            role=migration.role.value,
            stage=migration.stage.value,
            vm_uuid=migration.spec.vm.uuid,
        )


def _to_json(migration: Migration) -> dict[str, Any]:
    fault = migration.fault
    return {
        "role": migration.role.value,
        "stage": migration.stage.value,
        "spec": json_format.MessageToDict(migration.spec),
        "status": json_format.MessageToDict(migration.status),
        "fault": json_format.MessageToDict(fault) if fault is not None else None,
        "destinationHasVm": migration.destination_has_vm,
    }


def _from_json(entry: Mapping[str, Any]) -> Migration:
    spec = json_format.ParseDict(entry["spec"], spec_pb2.MigrationSpec())
    migration = Migration(Role(entry["role"]), spec)
    migration.stage = Stage(entry["stage"])
    json_format.ParseDict(entry["status"], migration.status)
    migration.destination_has_vm = bool(entry.get("destinationHasVm", False))
    if entry["fault"] is not None:
        migration.fault = json_format.ParseDict(entry["fault"], fault_pb2.Fault())
    return migration
