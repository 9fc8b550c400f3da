"""A value that others watch: each watcher gets the newest one, some in between may be left out, the last one never."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")


class Watched(Generic[T]):
    """One owner sets it, many watch it, all on one event loop. `close()` ends the watchers after the last value."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake the watchers.

        :raises RuntimeError: it is closed: its last value was the last.
        """
        if self._closed:
            raise RuntimeError("a closed value doesn't change any more")
        self._value = value
        self._version += 1
        self._wake()

    def close(self) -> None:
        """No more values come. Idempotent."""
        if not self._closed:
            self._closed = True
            self._closing.set()
            self._wake()

    async def watch(self, min_interval_s: float = 0.0) -> AsyncGenerator[T, None]:
        """The value now, then each newest one after a change, until `close()`.

        With `min_interval_s` at most one in that time, except the last one, which doesn't wait.
        """
        seen = -1
        while True:
            if seen != self._version:
                seen = self._version
                yield self._value
                if min_interval_s > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min_interval_s):
                            await self._closing.wait()
            elif self._closed:
                return
            else:
                await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
