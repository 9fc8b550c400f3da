"""The event log: kept in the database, told to those who watch.

Ids rise by one without gaps: the number is taken under the database's write lock and counts only when the transaction
that holds the event is committed. Watchers read from the database after their last id, so nobody misses one.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, func, select

from vpxd.events.event import Event, EventDraft, Severity
from vpxd.inventory.database import Database, Write
from vpxd.inventory.model import EventRow
from vpxd.inventory.rows import aware_utc, naive_utc

KEPT_EVENTS = 100_000  # older ones are deleted at start
_PAGE = 500


class EventLog:
    """All events of the cluster."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_id = 0
        self._news = asyncio.Event()

    async def load(self) -> None:
        """Finds the last id and drops what is older than the newest KEPT_EVENTS. Once, at start."""
        async with self._database.write() as write:
            self._last_id = await write.session.scalar(select(func.max(EventRow.id))) or 0
            await write.session.execute(delete(EventRow).where(EventRow.id <= self._last_id - KEPT_EVENTS))

    async def post(self, *drafts: EventDraft) -> None:
        """Writes events that belong to no other change."""
        async with self._database.write() as write:
            self.add(write, drafts)

    def add(self, write: Write, drafts: Sequence[EventDraft]) -> None:
        """Adds events to a write of the caller, once in that write; told when it is committed."""
        now = naive_utc(datetime.now(UTC))
        for number, draft in enumerate(drafts, self._last_id + 1):
            write.session.add(
                EventRow(
                    id=number,
                    time=now,
                    type=str(draft.type),
                    severity=draft.severity.value,
                    message=draft.message,
                    entity=draft.entity,
                    entity_name=draft.entity_name,
                    task=draft.task,
                )
            )
        if drafts:
            write.after_commit.append(lambda: self._told(len(drafts)))

    def _told(self, count: int) -> None:
        self._last_id += count
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def newest(self, after_id: int, entity: str, limit: int) -> list[Event]:
        """The newest `limit` events with an id above `after_id`, of one entity where one is named, newest last."""
        query = select(EventRow).where(EventRow.id > after_id)
        if entity:
            query = query.where(EventRow.entity == entity)
        async with self._database.read() as session:
            rows = await session.scalars(query.order_by(EventRow.id.desc()).limit(limit))
            return [_event(row) for row in rows][::-1]

    async def watch(self, after_id: int, entity: str) -> AsyncGenerator[Event, None]:
        """Every event with an id above `after_id`, and each new one, without end."""
        while True:
            news, last_id = self._news, self._last_id
            query = select(EventRow).where(EventRow.id > after_id, EventRow.id <= last_id)
            if entity:
                query = query.where(EventRow.entity == entity)
            async with self._database.read() as session:
                rows = await session.scalars(query.order_by(EventRow.id).limit(_PAGE))
                page = [_event(row) for row in rows]
            for event in page:
                yield event
            if len(page) == _PAGE:
                after_id = page[-1].id
                continue
            after_id = max(after_id, last_id)
            await news.wait()


def _event(row: EventRow) -> Event:
    draft = EventDraft(
        type=row.type,
        message=row.message,
        entity=row.entity,
        entity_name=row.entity_name,
        task=row.task,
        severity=Severity(row.severity),
    )
    return Event(row.id, aware_utc(row.time), draft)
