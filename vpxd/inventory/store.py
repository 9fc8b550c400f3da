"""The inventory: all records in memory, every change written down first.

Reads are plain attribute access on `Inventory`. A change is a transaction: its records are written in one
database transaction, and only when that is committed do they replace those in memory; so what a reader sees is
always what a restart would find. Transactions run one at a time; what is decided inside one can't be overtaken.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import select

from vpxd.events.event import EventDraft
from vpxd.events.log import EventLog
from vpxd.inventory.database import Database, Write
from vpxd.inventory.ids import Kind, id_of
from vpxd.inventory.model import CounterRow
from vpxd.inventory.records import (
    AffinityRule,
    Cluster,
    Datacenter,
    Datastore,
    Enrollment,
    Host,
    JoinToken,
    MigrationEntry,
    Network,
    Record,
    StoragePolicy,
    Vm,
    VmPolicies,
)
from vpxd.inventory.rows import TABLES


class Inventory:
    """The committed records, by id. Read only for everybody but the store."""

    def __init__(self) -> None:
        self._records: dict[type, dict[str, Any]] = {kind: {} for kind in TABLES}
        self._vm_by_uuid: dict[str, Vm] = {}

    @property
    def datacenters(self) -> Mapping[str, Datacenter]:
        return self._records[Datacenter]

    @property
    def clusters(self) -> Mapping[str, Cluster]:
        return self._records[Cluster]

    @property
    def hosts(self) -> Mapping[str, Host]:
        return self._records[Host]

    @property
    def datastores(self) -> Mapping[str, Datastore]:
        return self._records[Datastore]

    @property
    def networks(self) -> Mapping[str, Network]:
        return self._records[Network]

    @property
    def vms(self) -> Mapping[str, Vm]:
        return self._records[Vm]

    @property
    def enrollments(self) -> Mapping[str, Enrollment]:
        return self._records[Enrollment]

    @property
    def join_tokens(self) -> Mapping[str, JoinToken]:
        return self._records[JoinToken]

    @property
    def migrations(self) -> Mapping[str, MigrationEntry]:
        return self._records[MigrationEntry]

    @property
    def storage_policies(self) -> Mapping[str, StoragePolicy]:
        return self._records[StoragePolicy]

    @property
    def vm_policies(self) -> Mapping[str, VmPolicies]:
        """By the VM's id."""
        return self._records[VmPolicies]

    @property
    def affinity_rules(self) -> Mapping[str, AffinityRule]:
        return self._records[AffinityRule]

    def has(self, record: Record) -> bool:
        """Whether a record with this one's key is there."""
        return TABLES[type(record)].key(record) in self._records[type(record)]

    def vm_with_uuid(self, uuid: str) -> Vm | None:
        """The VM with this instance uuid."""
        return self._vm_by_uuid.get(uuid)

    def vms_on(self, host: str) -> Iterator[Vm]:
        """The VMs that are registered on a host, by the host's id."""
        return (vm for vm in self.vms.values() if vm.host == host)

    def apply(self, put: list[Record], deleted: list[Record]) -> None:
        """Replaces and forgets records. For the store only, after its commit."""
        for record in deleted:
            self._records[type(record)].pop(TABLES[type(record)].key(record), None)
            if isinstance(record, Vm):
                self._vm_by_uuid.pop(record.uuid, None)
        for record in put:
            self._records[type(record)][TABLES[type(record)].key(record)] = record
            if isinstance(record, Vm):
                self._vm_by_uuid[record.uuid] = record


class Transaction:
    """Changes that become true together. The inventory shows them only after the end of the transaction."""

    def __init__(self, inventory: Inventory, write: Write) -> None:
        self.inventory = inventory
        self._write = write
        self.put_records: list[Record] = []
        self.deleted_records: list[Record] = []
        self.events: list[EventDraft] = []

    def put(self, record: Record) -> None:
        """Adds the record or replaces the one with its key."""
        self.put_records.append(record)

    def last_puts(self) -> list[Record]:
        """What was put, each record once, as it was put last."""
        return list(
            {(type(record), TABLES[type(record)].key(record)): record for record in self.put_records}.values()
        )

    def delete(self, record: Record) -> None:
        """Forgets the record; no error when it isn't there."""
        self.deleted_records.append(record)

    def emit(self, *events: EventDraft) -> None:
        """Events that tell of this change."""
        self.events.extend(events)

    async def new_id(self, kind: Kind) -> str:
        """An id that was never given out before."""
        counter = await self._write.session.get(CounterRow, kind.counter)
        if counter is None:
            counter = CounterRow(name=kind.counter, last=0)
            self._write.session.add(counter)
        counter.last += 1
        return id_of(kind, counter.last)


class InventoryStore:
    """The inventory with its database."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events
        self.inventory = Inventory()

    async def load(self) -> None:
        """Reads all records. Once, at start."""
        async with self._database.read() as session:
            for table in TABLES.values():
                rows = await session.scalars(select(table.row))
                self.inventory.apply([table.from_row(row) for row in rows], [])

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One change. Nothing of it is left when the body raises."""
        async with self._database.write() as write:
            transaction = Transaction(self.inventory, write)
            yield transaction
            for record in transaction.deleted_records:
                table = TABLES[type(record)]
                row = await write.session.get(table.row, table.key(record))
                if row is not None:
                    await write.session.delete(row)
            await write.session.flush()
            kind: type | None = None
            for record in transaction.last_puts():
                if type(record) is not kind:
                    await (
                        write.session.flush()
                    )  # in the order of the puts: a later kind may refer to an earlier one
                    kind = type(record)
                row = TABLES[type(record)].to_row(record)
                if self.inventory.has(record):
                    await write.session.merge(row)
                else:
                    write.session.add(
                        row
                    )  # what memory doesn't have the database doesn't have: no need to look
            self._events.add(write, transaction.events)
            write.after_commit.append(lambda: self._commit(transaction))

    def _commit(self, transaction: Transaction) -> None:
        self.inventory.apply(transaction.put_records, transaction.deleted_records)
