"""One QMP connection to QEMU: a thin typed layer on the QEMU project's own client.

It adds what a migration needs and the client leaves to its user: a deadline on everything, errors of this
package's tree, and events that can neither be missed nor be waited for on a dead connection.

    with qmp.subscribe("STOP") as events:     from here on every STOP is kept
        await qmp.execute("stop")             even one that comes before the command's own answer
        await events.next(deadline_s=5)       QmpConnectionLost if the connection ends meanwhile

States: connected -> lost (by itself: `lost()` tells why) or closed (by `close`). There is no way back; a new
connection is a new object. QEMU's server socket serves one client at a time and takes a new one after the
old one is gone, so a vmx that was restarted just connects again.

Protocol: QEMU's docs/interop/qmp-spec.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from vmx.guest.errors import (
    QmpBadReply,
    QmpConnectFailed,
    QmpConnectionLost,
    QmpError,
    QmpFailure,
    QmpTimeout,
)

__all__ = ["EventSubscription", "QemuVersion", "QmpConnection", "QmpEvent"]

COMMAND_DEADLINE_S = 10.0
# The longest answer that is taken. The longest one in use, query-machines, is about 20 KB.
_READ_LIMIT_BYTES = 4 << 20

# Every failure leaves this module as a typed error; the library's own log lines would say it a second time.
_library_log = logging.getLogger("qemu.qmp")
_library_log.addHandler(logging.NullHandler())
_library_log.propagate = False


@dataclass(frozen=True)
class QmpEvent:
    """An event of QEMU; `arrived_ns` is this process's monotonic clock when it was read."""

    name: str
    data: Mapping[str, object]
    arrived_ns: int


@dataclass(frozen=True, order=True)
class QemuVersion:
    """The version that QEMU's greeting tells."""

    major: int
    minor: int
    micro: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


class EventSubscription:
    """Events of some names, in their order, kept from the moment of subscription.

    Made by :meth:`QmpConnection.subscribe`. For one waiter at a time.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._events: deque[QmpEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost_because: str | None = None

    async def next(self, deadline_s: float = COMMAND_DEADLINE_S) -> QmpEvent:
        """The next event that nobody has taken yet.

        :raises QmpTimeout: none came within `deadline_s`; later ones are still kept.
        :raises QmpConnectionLost: all that came has been taken, and the connection has ended.
        """
        doing = f"the wait for {' or '.join(sorted(self._names))}"
        try:
            async with asyncio.timeout(deadline_s):
                while not self._events:
                    if self._lost_because is not None:
                        raise QmpConnectionLost(doing, self._lost_because)
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError:
            raise QmpTimeout(doing, deadline_s) from None
        finally:
            self._waiter = None
        return self._events.popleft()

    async def until(
        self, wanted: Callable[[QmpEvent], bool], deadline_s: float = COMMAND_DEADLINE_S
    ) -> QmpEvent:
        """The first event that is `wanted`; those before it are dropped.

        :raises QmpTimeout: it did not come within `deadline_s`.
        :raises QmpConnectionLost: see :meth:`next`.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + deadline_s
        while True:
            event = await self.next(max(0.0, end_s - loop.time()))
            if wanted(event):
                return event

    def take(self) -> QmpEvent | None:
        """The next event if it is here already."""
        return self._events.popleft() if self._events else None

    def _deliver(self, event: QmpEvent) -> None:
        if event.name in self._names:
            self._events.append(event)
            self._wake()

    def _connection_lost(self, reason: str) -> None:
        self._lost_because = reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Dispatcher(EventListener):
    """Hands every event on at once; keeps none (the library's listeners keep a history for ever)."""

    def __init__(self, deliver: Callable[[QmpEvent], None]) -> None:
        super().__init__()
        self._deliver = deliver

    async def put(self, event: Message) -> None:
        data = event.get("data", {})
        self._deliver(
            QmpEvent(str(event["event"]), data if isinstance(data, dict) else {}, time.monotonic_ns())
        )


class QmpConnection:
    """A QMP session. Made by :meth:`connect`; its owner must `close` it."""

    def __init__(self, client: QMPClient, version: QemuVersion) -> None:
        self._client = client
        self.version = version
        self._subscriptions: list[EventSubscription] = []
        self._lost_because: str | None = None
        self._close_asked = asyncio.Event()
        self._ended = asyncio.Event()
        client.register_listener(_Dispatcher(self._on_event))
        self._watch = asyncio.create_task(self._watch_for_loss(), name="qmp-watch")

    @classmethod
    async def connect(cls, socket_path: Path, deadline_s: float = COMMAND_DEADLINE_S) -> QmpConnection:
        """Connects, reads QEMU's greeting and negotiates.

        While QEMU still starts, or serves another client, this waits: the socket already listens.

        :raises QmpConnectFailed: nothing listens there, or what does is no QMP server, or it is busy for
            longer than `deadline_s`.
        """
        client = QMPClient(readbuflen=_READ_LIMIT_BYTES)
        # The client's own listener keeps every event until somebody reads it. Nobody does.
        client.events.event_filter = lambda _event: False
        try:
            async with asyncio.timeout(deadline_s):
                await client.connect(str(socket_path))
        except TimeoutError:
            raise QmpConnectFailed(str(socket_path), f"no greeting within {deadline_s:g} s") from None
        except ConnectError as error:
            raise QmpConnectFailed(str(socket_path), str(error)) from error
        return cls(client, _version_of(client))

    async def pass_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a duplicate of `descriptor`, which it keeps under `name` (`getfd`) until it ends.

        :raises QmpFailure: it was refused, or the connection has ended.
        """
        if self._lost_because is not None:
            raise QmpConnectionLost("getfd", self._lost_because)
        # The library's own way asks for an asyncio socket's inside, which uvloop's doesn't have.
        writer = self._client._writer
        assert writer is not None, "connected"
        fileno = writer.transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(fileno)) as duplicate:
            socket.send_fds(duplicate, [b" "], [descriptor])
        await self.execute("getfd", {"fdname": name})

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = COMMAND_DEADLINE_S,
    ) -> object:
        """Runs one command and returns its answer.

        :raises QmpError: QEMU refused it; nothing has changed.
        :raises QmpTimeout: no answer in time; the command may still be carried out.
        :raises QmpConnectionLost: the connection ended; whether it was carried out is not known.
        :raises QmpBadReply: the answer has neither a result nor an error.
        """
        doing = f"command {command}"
        try:
            async with asyncio.timeout(deadline_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise QmpTimeout(doing, deadline_s) from None
        except ExecuteError as error:
            raise QmpError(command, error.error_class, str(error)) from error
        except (ExecInterruptedError, StateError) as error:
            raise await self._loss(doing) from error
        except QMPError as error:
            raise QmpBadReply(command, str(error)) from error

    async def query(self, command: str, *, deadline_s: float = COMMAND_DEADLINE_S) -> Mapping[str, object]:
        """Runs a command without arguments whose answer is an object.

        :raises QmpFailure: as :meth:`execute`; QmpBadReply also for another kind of answer.
        """
        reply = await self.execute(command, deadline_s=deadline_s)
        if not isinstance(reply, dict):
            raise QmpBadReply(command, f"not an object: {reply!r:.100}")
        return reply

    @contextlib.contextmanager
    def subscribe(self, *names: str) -> Iterator[EventSubscription]:
        """Keeps every event of these names from now to the end of the block."""
        subscription = EventSubscription(frozenset(names))
        if self._lost_because is not None:
            subscription._connection_lost(self._lost_because)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    @property
    def is_connected(self) -> bool:
        """Whether commands can still be sent."""
        return self._client.runstate is Runstate.RUNNING

    async def lost(self) -> str:
        """Waits for the end of the connection and tells its reason."""
        await self._ended.wait()
        return self._lost_because or "closed"

    async def close(self) -> None:
        """Ends the connection. QEMU and the guest go on. Idempotent; never raises for a broken connection."""
        self._close_asked.set()
        await asyncio.wait([self._watch])

    async def _watch_for_loss(self) -> None:
        waiting = (
            asyncio.ensure_future(self._client.runstate_changed()),
            asyncio.ensure_future(self._close_asked.wait()),
        )
        try:
            if self._client.runstate is Runstate.RUNNING:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
            # Only ever called here: the library's disconnect() is not made for two callers.
            self._end(await self._disconnect())

    async def _disconnect(self) -> str:
        try:
            await self._client.disconnect()
        except (EOFError, OSError) as error:
            return str(error) or "QEMU closed the connection"
        except Exception as error:  # noqa: BLE001 - disconnect() re-raises whatever ended its reader or writer
            return f"{type(error).__name__}: {error}"
        return "closed"

    def _end(self, reason: str) -> None:
        if self._lost_because is not None:
            return
        self._lost_because = reason
        for subscription in self._subscriptions:
            subscription._connection_lost(reason)
        self._ended.set()

    async def _loss(self, doing: str) -> QmpFailure:
        # The library wakes a waiting command before it has found out why the connection ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._ended.wait()
        return QmpConnectionLost(doing, self._lost_because or "disconnecting")

    def _on_event(self, event: QmpEvent) -> None:
        for subscription in self._subscriptions:
            subscription._deliver(event)


def _version_of(client: QMPClient) -> QemuVersion:
    greeting = client.greeting
    if greeting is None:
        return QemuVersion(0, 0, 0)
    qemu = greeting.QMP.version.get("qemu")
    numbers = qemu if isinstance(qemu, dict) else {}
    parts = [numbers.get(key) for key in ("major", "minor", "micro")]
    major, minor, micro = (part if isinstance(part, int) else 0 for part in parts)
    return QemuVersion(major, minor, micro)
