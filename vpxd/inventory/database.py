"""The database: one engine, one writer at a time.

SQLite by default. WAL keeps readers and the writer apart; synchronous=FULL because an id that was given out
must not come back after a power cut.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine


@dataclass
class Write:
    """A transaction that writes. `after_commit` is called when it is committed, before the next write begins."""

    session: AsyncSession
    after_commit: list[Callable[[], None]] = field(default_factory=list)


class Database:
    """Sessions to read, and a single session at a time to write."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = create_async_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Write]:
        """The one write at a time; committed at the end, rolled back on any error."""
        async with self._writer, self._sessions() as session:
            write = Write(session)
            async with session.begin():
                yield write
            for told in write.after_commit:
                told()

    async def close(self) -> None:
        """Closes all connections."""
        await self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
