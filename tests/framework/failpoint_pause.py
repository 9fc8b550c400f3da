"""Where a process waits at a failpoint with the action pause (runtime/failpoint.py): a test knows that it is there."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

_REACHED_DEADLINE_S = 30.0


class FailpointPause:
    """One unix socket for one failpoint: `action` arms it, `reached` waits for the process, `release` lets it go on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reached = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    @property
    def action(self) -> str:
        """What stands behind the failpoint's name in the environment."""
        return f"pause:{self._path}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._take, str(self._path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "entered"
        self._server.close()
        self.release()

    async def reached(self) -> None:
        """Waits until the process stands at the failpoint."""
        async with asyncio.timeout(_REACHED_DEADLINE_S):
            await self._reached.wait()

    def release(self) -> None:
        """Lets it go on; nothing where it is gone."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self._writer = writer
        self._reached.set()
