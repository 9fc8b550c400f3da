"""One host's agent: owns the channel to its vpxa and listens to its state.

    notResponding --first report--> connected --silence for heartbeat_timeout_s--> notResponding --report--> connected

A broken stream is made again at once and then with growing pauses; it is the silence that counts, not the
break: a vpxa that restarts within the timeout isn't noticed by anybody.
"""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from runtime.faults import InvalidState, VimFault
from runtime.rpc.channel import network_channel
from runtime.rpc.identity import Identity, Role
from runtime.rpc.operation_id import new_operation_id, use_operation_id
from vpxd.agents.intake import Intake
from vpxd.agents.storage_client import StorageClient
from vpxd.agents.vpxa_client import VpxaClient
from vpxd.events.event import EventDraft, EventType, Severity
from vpxd.events.log import EventLog
from vpxd.inventory.live import LiveState
from vpxd.inventory.records import Host
from vpxd.inventory.values import HostReport

_log = structlog.get_logger(__name__)
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class AgentParts:
    """What all agents share. `heartbeat_s`: the longest silence of a healthy host."""

    identity: Identity
    intake: Intake
    live: LiveState
    events: EventLog
    heartbeat_s: float
    heartbeat_timeout_s: float


class HostAgent:
    """The connection to one host; `run` until it is canceled, then `close`."""

    def __init__(self, host: Host, parts: AgentParts) -> None:
        self.host = host
        self._parts = parts
        self._channel = network_channel(host.address, parts.identity, Role.HOST, host.name)
        self.client = VpxaClient(self._channel, host.name)
        self.storage = StorageClient(self._channel, host.name)
        self._heard = asyncio.Event()
        self._connected = asyncio.Event()

    async def run(self) -> None:
        """Listens to the host until it is canceled."""
        structlog.contextvars.clear_contextvars()  # those of the task that added the host
        use_operation_id(new_operation_id())
        structlog.contextvars.bind_contextvars(host=self.host.name)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._watch_silence())

    async def wait_connected(self) -> None:
        """Until the host's first report is taken in."""
        await self._connected.wait()

    async def close(self) -> None:
        """Closes the channel; calls under way end."""
        await self._channel.close()

    async def _listen(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                reports = self.client.watch_host(self._parts.heartbeat_s, self._parts.heartbeat_timeout_s)
                async with aclosing(reports):
                    async for report in reports:
                        await self._take_in(report)
                        pause_s = _FIRST_PAUSE_S
            except InvalidState as fault:
                _log.error("host_refused", reason=fault.message)
            except SQLAlchemyError as error:
                _log.error("host_state_not_written", exc_info=error)
            except VimFault as fault:
                _log.debug("host_stream_broken", fault=type(fault).__name__, reason=fault.message)
            # A refused connection comes back at once: without a pause this would spin.
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _take_in(self, report: HostReport) -> None:
        connected_before = self._parts.live.host(self.host.id).connected
        self._parts.intake.require_same_host(self.host.id, report)
        self._heard.set()  # before the report is written: a slow disk of ours is no silence of the host
        await self._parts.intake.take_in(self.host.id, report)
        if connected_before:
            return
        _log.info("host_connected")
        text = f"{self.host.name} is connected"
        await self._parts.events.post(
            EventDraft(EventType.HOST_CONNECTED, text, self.host.id, self.host.name)
        )
        self._connected.set()

    async def _watch_silence(self) -> None:
        while True:
            self._heard.clear()
            try:
                async with asyncio.timeout(self._parts.heartbeat_timeout_s):
                    await self._heard.wait()
            except TimeoutError:
                await self._lost()
                await self._heard.wait()

    async def _lost(self) -> None:
        was_connected = self._parts.live.host(self.host.id).connected
        self._parts.live.silent(self.host.id)
        self._connected.clear()
        if not was_connected:
            return  # it has never answered since vpxd started: nothing was lost
        _log.warning("host_not_responding", timeout_s=self._parts.heartbeat_timeout_s)
        text = f"{self.host.name} doesn't respond"
        await self._parts.events.post(
            EventDraft(
                EventType.HOST_CONNECTION_LOST,
                text,
                self.host.id,
                self.host.name,
                severity=Severity.ERROR,
            )
        )
