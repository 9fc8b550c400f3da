"""A fake control channel: what the two hand-over drivers ask of a stream, without one. The test is the peer."""

import asyncio

from vmx.stream import ControlCode, ControlMessage, Received, StreamError
from vmx.stream.errors import PeerClosed, PeerSilent
from vmx.stream.verify import DigestTable


class FakeControlChannel:
    """Stands in for ControlChannel and, with `control` being itself, for DestinationStreams."""

    def __init__(self) -> None:
        self.sent: list[ControlMessage] = []
        self.digests: DigestTable | None = None
        self._inbox: asyncio.Queue[Received] = asyncio.Queue()
        self._lost = asyncio.Event()
        self._was_sent = asyncio.Event()

    @property
    def control(self) -> "FakeControlChannel":
        """As DestinationStreams has it."""
        return self

    def say(self, code: ControlCode, value: int = 0) -> None:
        """The peer's next message."""
        self._inbox.put_nowait(ControlMessage(code, value))

    def lose(self) -> None:
        """The connection ends, after what has been said."""
        self._lost.set()

    async def until_sent(self, code: ControlCode) -> ControlMessage:
        """Waits for a message to the peer."""
        while not (found := [one for one in self.sent if one.code is code]):
            self._was_sent.clear()
            await self._was_sent.wait()
        return found[-1]

    async def send(self, message: ControlMessage) -> None:
        """:raises StreamError: the connection is lost."""
        if self._lost.is_set():
            raise PeerClosed(0, "lost")
        self.sent.append(message)
        self._was_sent.set()

    async def send_digests(self, digests: DigestTable) -> None:
        """:raises StreamError: as `send`."""
        await self.send(ControlMessage(ControlCode.DIGESTS_WANTED, len(digests)))

    async def receive(self, timeout_s: float) -> Received:
        """:raises StreamError: the connection is lost, or nothing came in time."""
        getting = asyncio.ensure_future(self._inbox.get())
        losing = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((getting, losing), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            error: StreamError = PeerSilent(0, "a control message", timeout_s)
            raise PeerClosed(0, "lost") if losing.done() else error
        finally:
            getting.cancel()
            losing.cancel()
