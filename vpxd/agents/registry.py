"""The agents of all hosts that were added."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.faults import HostNotConnected
from runtime.rpc.channel import network_channel
from runtime.rpc.identity import Role
from vpxd.agents.host_agent import AgentParts, HostAgent
from vpxd.agents.storage_client import StorageClient
from vpxd.agents.vpxa_client import VpxaClient
from vpxd.inventory.records import Host
from vpxd.inventory.values import HostInfo, HostUsage


class AgentRegistry:
    """One agent per host, by the host's id. Use as `async with registry.running(hosts):`."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._agents: dict[str, HostAgent] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self, hosts: list[Host]) -> AsyncIterator[None]:
        """Listens to the hosts, and to those added inside; ends all agents at the end."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for host in hosts:
                self.add(host)
            try:
                yield
            finally:
                self._group = None
                for host_id in list(self._agents):
                    await self.remove(host_id)

    def add(self, host: Host) -> HostAgent:
        """Begins to listen to a host."""
        assert self._group is not None
        agent = HostAgent(host, self._parts)
        self._parts.live.watch_begins(host.id, host.info)
        self._agents[host.id] = agent
        self._runs[host.id] = self._group.create_task(agent.run(), name=f"agent {host.name}")
        return agent

    async def remove(self, host_id: str) -> None:
        """Ends listening; nothing happens to the host."""
        run, agent = self._runs.pop(host_id, None), self._agents.pop(host_id, None)
        if run is not None:
            run.cancel()
            await asyncio.wait({run})
        if agent is not None:
            await agent.close()
        self._parts.live.watch_ends(host_id)

    def client(self, host_id: str) -> VpxaClient | None:
        """The client of a host whether it answers or not; None when it was removed."""
        agent = self._agents.get(host_id)
        return agent.client if agent is not None else None

    def connected_client(self, host: Host) -> VpxaClient:
        """The client of a host that answers. :raises HostNotConnected: it doesn't."""
        return self._connected(host).client

    def connected_storage(self, host: Host) -> StorageClient:
        """The datastores of a host that answers. :raises HostNotConnected: it doesn't."""
        return self._connected(host).storage

    async def ask(self, name: str, address: str) -> tuple[HostInfo, HostUsage]:
        """Asks a host that isn't added yet what it is.

        :raises HostNotReachable: nobody, or not the holder of this name's certificate, answers there.
        """
        channel = network_channel(address, self._parts.identity, Role.HOST, name)
        try:
            return await VpxaClient(channel, name).get_host()
        finally:
            await channel.close()

    def _connected(self, host: Host) -> HostAgent:
        live, agent = self._parts.live.host(host.id), self._agents.get(host.id)
        if agent is None or not live.connected:
            raise HostNotConnected(
                f"{host.name} is {live.connection.value}", host=host.name, state=live.connection.value
            )
        return agent
