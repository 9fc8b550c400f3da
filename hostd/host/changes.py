"""What makes the host's picture change: a counter that rises and can be waited for."""

import asyncio


class Changes:
    """Rises by one at each change. Waiters see every rise, several at once as one."""

    def __init__(self) -> None:
        self.version = 0
        self._risen = asyncio.Event()

    def ring(self) -> None:
        """Something changed."""
        self.version += 1
        self._risen.set()
        self._risen = asyncio.Event()

    async def wait_past(self, version: int, timeout_s: float | None = None) -> bool:
        """Wait until the counter is past `version`. True: it is. False: `timeout_s` went by."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.version <= version:
                    await self._risen.wait()
        except TimeoutError:
            return False
        return True
