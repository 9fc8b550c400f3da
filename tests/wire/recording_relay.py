"""A TCP relay that records what passes and can do what a bad network, or somebody on it, does.

It listens on an address of its own and connects onward from the source's vMotion address, so the destination's address
check sees the real source. Each direction of each connection is a task; what it forwarded is in `connections`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from vmx.stream.recorded import ConnectionRecording

# (connection number, bytes forwarded to the destination so far, the next piece) -> the piece to forward instead
Tamper = Callable[[int, int, bytes], bytes]


def forward_unchanged(_connection: int, _at: int, piece: bytes) -> bytes:
    """The tamper of an honest network."""
    return piece


@dataclass
class RelayedConnection:
    """One connection's bytes in both directions, in order."""

    to_destination: bytearray = field(default_factory=bytearray)
    to_source: bytearray = field(default_factory=bytearray)


class RecordingRelay:
    """See the module. Made by `recording_relay`."""

    def __init__(self, onward: tuple[str, int], onward_from: str, tamper: Tamper) -> None:
        self._onward = onward
        self._onward_from = onward_from
        self._tamper = tamper
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.connections: list[RelayedConnection] = []

    @property
    def recordings(self) -> list[ConnectionRecording]:
        """What passed so far, as the checker takes it."""
        return [ConnectionRecording(bytes(c.to_destination), bytes(c.to_source)) for c in self.connections]

    def cut(self) -> None:
        """End every connection at once, on both sides."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both directions have ended."""
        number = len(self.connections)
        record = RelayedConnection()
        self.connections.append(record)
        onward_reader, onward_writer = await asyncio.open_connection(
            *self._onward, local_addr=(self._onward_from, 0), limit=1 << 20
        )
        self._writers += [writer, onward_writer]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward_writer, record.to_destination, number))
                group.create_task(self._pump(onward_reader, writer, record.to_source, None))
        finally:
            writer.close()
            onward_writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        record: bytearray,
        number: int | None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 20):
                if number is not None:
                    piece = self._tamper(number, len(record), piece)
                record += piece
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(ConnectionError, OSError):
            writer.write_eof()


@contextlib.asynccontextmanager
async def recording_relay(
    onward: tuple[str, int], onward_from: str, tamper: Tamper = forward_unchanged, listen: str = "127.0.2.9"
) -> AsyncIterator[tuple[RecordingRelay, int]]:
    """A relay on `listen` to `onward`; yields it and its port. All of it ends with the block."""
    relay = RecordingRelay(onward, onward_from, tamper)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(relay.serve(reader, writer))
        serving.add(task)

    server = await asyncio.start_server(accept, listen, 0, limit=1 << 20)
    try:
        yield relay, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        relay.cut()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
