"""The journal outlives hostd, keeps no key, and knows only legal moves."""

import asyncio
import itertools
from pathlib import Path

import pytest

from hostd.vmotion.journal import KEPT_CLOSED, MOVES, Journal, Role, Stage
from proto.vim.v1.fault_pb2 import FAULT_TYPE_MIGRATION_FAULT, Fault
from proto.vmotion.v1 import status_pb2
from proto.vmotion.v1.spec_pb2 import MigrationSpec
from proto.vmotion.v1.status_pb2 import MigrationStatus
from runtime.faults import InvalidArgument, ManagedObjectNotFound

ID = (1 << 62) + 12345


def a_spec(migration_id: int = ID) -> MigrationSpec:
    spec = MigrationSpec(
        migration_id=migration_id, vm_home="[s] a/a.vmx", task_id="task-1", key=b"secret-key-" * 3
    )
    spec.vm.uuid = "33333333-3333-4333-8333-333333333333"
    return spec


def reloaded(directory: Path) -> Journal:
    journal = Journal(directory)
    journal.load()
    return journal


async def test_journal_reloaded_has_stage_status_and_fault(tmp_path: Path) -> None:
    journal = reloaded(tmp_path / "m")
    migration = await journal.begin(Role.SOURCE, a_spec())
    await journal.move(migration, Stage.RUNNING)
    status = MigrationStatus(migration_id=ID, phase=status_pb2.MIGRATION_PHASE_PRE_COPY, wire_bytes=1 << 60)
    migration.publish(status)
    migration.publish_failure(Fault(type=FAULT_TYPE_MIGRATION_FAULT, message="broken", origin="vmx@a"))
    await journal.move(migration, Stage.FAILED)
    again = reloaded(tmp_path / "m").get(ID)
    assert (again.role, again.stage, again.open) == (Role.SOURCE, Stage.FAILED, False)
    assert again.status == migration.status
    assert again.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    assert again.status.failure == "broken"
    assert again.fault is not None
    assert again.fault.origin == "vmx@a"
    assert again.spec.vm_home == "[s] a/a.vmx"


async def test_journal_never_writes_the_key(tmp_path: Path) -> None:
    migration = await reloaded(tmp_path).begin(Role.DESTINATION, a_spec())
    assert migration.spec.key == b""
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes()
        assert "c2VjcmV0" not in path.read_text()  # as JSON would have it


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Stage, Stage)))
async def test_move_only_along_the_table(tmp_path: Path, before: Stage, after: Stage) -> None:
    journal = reloaded(tmp_path)
    migration = await journal.begin(Role.SOURCE, a_spec())
    migration.stage = before
    if before is after or (before, after) in MOVES:
        await journal.move(migration, after)
        assert migration.stage is after
    else:
        with pytest.raises(ValueError, match="->"):
            await journal.move(migration, after)
        assert migration.stage is before


async def test_begin_used_id_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    await reloaded(tmp_path).begin(Role.SOURCE, a_spec())
    with pytest.raises(InvalidArgument):
        await reloaded(tmp_path).begin(Role.DESTINATION, a_spec())


async def test_load_damaged_file_leaves_it_and_the_others(tmp_path: Path) -> None:
    await reloaded(tmp_path).begin(Role.SOURCE, a_spec())
    for name, content in (("1", b"{"), ("2", b"[]"), ("3", b'{"role": "x"}'), ("4", b"\xff")):
        (tmp_path / f"{name}.json").write_bytes(content)
    journal = reloaded(tmp_path)
    assert [migration.id for migration in journal.open_migrations()] == [ID]
    assert len(list(tmp_path.glob("*.json"))) == 5
    with pytest.raises(ManagedObjectNotFound):
        journal.get(1)


async def test_closed_migrations_only_the_last_are_kept_open_ones_all(tmp_path: Path) -> None:
    journal = reloaded(tmp_path)
    await journal.begin(Role.SOURCE, a_spec(1))
    for number in range(2, KEPT_CLOSED + 12):
        migration = await journal.begin(Role.SOURCE, a_spec(number))
        await journal.move(migration, Stage.FAILED)
    assert len(list(tmp_path.glob("*.json"))) == KEPT_CLOSED + 1
    assert journal.get(1).open
    with pytest.raises(ManagedObjectNotFound):
        journal.get(2)
    assert not journal.get(KEPT_CLOSED + 11).open


async def test_publish_failure_after_success_changes_nothing(tmp_path: Path) -> None:
    migration = await reloaded(tmp_path).begin(Role.SOURCE, a_spec())
    migration.publish(MigrationStatus(phase=status_pb2.MIGRATION_PHASE_SUCCEEDED))
    migration.publish_failure(Fault(message="late"))
    assert migration.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED
    assert migration.fault is None


async def test_closed_wakes_when_the_journal_is(tmp_path: Path) -> None:
    journal = reloaded(tmp_path)
    migration = await journal.begin(Role.SOURCE, a_spec())
    assert not await migration.closed(0.01)
    waiting = asyncio.create_task(migration.closed(10))
    await journal.move(migration, Stage.FAILED)
    assert await waiting
