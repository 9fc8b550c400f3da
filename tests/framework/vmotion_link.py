"""A vMotion connection with a test in the middle: every channel passes a relay that can be cut or fall silent."""

import asyncio
import socket
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

from proto.vmotion.v1 import spec_pb2
from tests.framework.vmx_hosts import VmxHost

_CHUNK_BYTES = 256 * 1024


class VMotionLink:
    """Between two hosts: `ticket` leads the source here, `cut` ends all connections, `stall` lets nothing through."""

    def __init__(self, source: VmxHost, ticket: spec_pb2.DestinationTicket) -> None:
        self._source_address = source.vmotion_address
        self._real = ticket
        self._pumps: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._opened = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener = socket.create_server((ticket.vmotion_address, 0))
        self._listener.setblocking(False)

    @property
    def ticket(self) -> spec_pb2.DestinationTicket:
        """The destination's ticket with the relay's port."""
        ticket = spec_pb2.DestinationTicket()
        ticket.CopyFrom(self._real)
        ticket.port = self._listener.getsockname()[1]
        return ticket

    async def __aenter__(self) -> Self:
        self._start(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for one in self._sockets:
            one.close()
        self._listener.close()

    async def opened(self) -> None:
        """Waits until the source has connected."""
        await self._opened.wait()

    def cut(self) -> None:
        """Both sides see the end of every connection."""
        for one in self._sockets:
            _shut_down(one)

    def stall(self) -> None:
        """Both sides see silence."""
        self._flowing.clear()

    def flow(self) -> None:
        """The silence is over."""
        self._flowing.set()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._pumps.add(asyncio.ensure_future(work))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            incoming, _ = await loop.sock_accept(self._listener)
            outgoing = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._sockets += [incoming, outgoing]
            outgoing.bind((self._source_address, 0))
            try:
                await loop.sock_connect(outgoing, (self._real.vmotion_address, self._real.port))
            except OSError:
                incoming.close()  # what the source would have seen
                continue
            for one in (incoming, outgoing):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._opened.set()
            self._start(self._pump(incoming, outgoing))
            self._start(self._pump(outgoing, incoming))

    async def _pump(self, from_: socket.socket, to: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(from_, _CHUNK_BYTES):
                await self._flowing.wait()
                await loop.sock_sendall(to, data)
            to.shutdown(socket.SHUT_WR)
        except OSError:  # cut, or one side has reset it: the other side hears of it as if there were no relay
            _shut_down(from_)
            _shut_down(to)


def _shut_down(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
