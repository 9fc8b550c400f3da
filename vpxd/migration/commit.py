"""What a migration's beginning and end make of the inventory: records, journal and event in one transaction."""

import time
from dataclasses import replace

from runtime.faults import RequestCanceled, VimFault
from vpxd.events.event import EventDraft, EventType, Severity
from vpxd.inventory.changes import record_of
from vpxd.inventory.live import datastore_of
from vpxd.inventory.records import MigrationEntry, Vm
from vpxd.inventory.values import VmState
from vpxd.migration.parts import WorkflowParts
from vpxd.migration.steps import Migration
from vpxd.migration.way import events_of


async def begin(parts: WorkflowParts, migration: Migration, reason: str) -> None:
    """The journal entry, and the event that it begins."""
    entry = migration.entry
    text = f"{migration.vm.name} is being {_verb(entry)} {route(migration)} ({reason})"
    async with parts.store.transaction() as transaction:
        transaction.put(entry)
        transaction.emit(_event(migration, events_of(entry).begun, text))


async def succeed(
    parts: WorkflowParts, migration: Migration, state: VmState | None, unheard: tuple[str, ...]
) -> MigrationEntry | None:
    """The VM is at the destination. `state`: as the destination told it; None: as it was planned.

    Answers the journal entry that stays for the hosts that are `unheard`; None where all have been told.
    """
    entry, destination = migration.entry, migration.destination
    present = parts.store.inventory.vms.get(migration.vm.id, migration.vm)
    known = state is not None and state.uuid == present.uuid
    if state is not None and known:
        moved = record_of(present.id, destination.id, state)
    else:
        moved = _as_planned(present, destination.id, entry)
    left = replace(entry, completing=True, terms=replace(entry.terms, unheard=unheard)) if unheard else None
    text = f"{moved.name} was {_verb(entry)} {route(migration)}"
    async with parts.store.transaction() as transaction:
        transaction.put(moved)
        if entry.terms.policies is not None:
            transaction.put(replace(entry.terms.policies, vm=present.id))
        if left is not None:
            transaction.put(left)
        else:
            transaction.delete(entry)
        transaction.emit(_event(migration, events_of(entry).done, text))
    now_s = time.monotonic()
    if state is not None and known:
        parts.live.learned(destination.id, state, now_s)
    else:
        parts.live.forgotten(present.uuid, now_s)
    return left


async def fail(parts: WorkflowParts, migration: Migration, error: Exception) -> MigrationEntry | None:
    """The VM is where it was. Answers the journal entry that stays for hosts that haven't heard of it."""
    entry = migration.entry
    severity = Severity.WARNING if isinstance(error, RequestCanceled) else Severity.ERROR
    reason = error.message if isinstance(error, VimFault) else "a defect in vpxd"
    text = f"{migration.vm.name} was not {_verb(entry)} {route(migration)}: {reason}"
    unheard = tuple(dict.fromkeys(migration.unheard))
    left = replace(entry, canceling=True, terms=replace(entry.terms, unheard=unheard)) if unheard else None
    async with parts.store.transaction() as transaction:
        if left is not None:
            transaction.put(left)
        else:
            transaction.delete(entry)
        transaction.emit(_event(migration, events_of(entry).failed, text, severity))
    return left


async def forget(parts: WorkflowParts, entry: MigrationEntry) -> None:
    """Ends the journal of a migration."""
    async with parts.store.transaction() as transaction:
        transaction.delete(entry)


def route(migration: Migration) -> str:
    """ "from esx01 [local] to esx02 [fast]", "on esx01 from [local] to [fast]", "from esx01 to esx02"."""
    source, destination = migration.source.name, migration.destination.name
    copied = migration.entry.terms.copied
    if not copied:
        return f"from {source} to {destination}"
    left, reached = _datastores(migration)
    if source == destination:
        return f"on {source} from {left} to {reached}"
    return f"from {source} {left} to {destination} {reached}"


def _datastores(migration: Migration) -> tuple[str, str]:
    """Those that its files are on now, and afterwards."""
    terms, vm = migration.entry.terms, migration.vm
    after = terms.config if terms.config is not None else vm.config
    before_paths = {vm.home, *(disk.path for disk in vm.config.disks)}
    after_paths = {terms.home or vm.home, *(disk.path for disk in after.disks)}
    moved_from, moved_to = before_paths - after_paths, after_paths - before_paths
    return _names(moved_from or before_paths), _names(moved_to or after_paths)


def _names(paths: set[str]) -> str:
    return ", ".join(f"[{name}]" for name in sorted({datastore_of(path) for path in paths}))


def _as_planned(present: Vm, host: str, entry: MigrationEntry) -> Vm:
    terms = entry.terms
    config = terms.config if terms.config is not None else present.config
    return replace(present, host=host, home=terms.home or present.home, config=config)


def _verb(entry: MigrationEntry) -> str:
    return "relocated" if events_of(entry).done is EventType.VM_RELOCATED else "migrated"


def _event(
    migration: Migration, kind: EventType, text: str, severity: Severity = Severity.INFO
) -> EventDraft:
    vm = migration.vm
    return EventDraft(kind, text, vm.id, vm.name, migration.entry.task, severity)
