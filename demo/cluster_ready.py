"""Waiting until daemons serve: by their health service, and for hosts by vpxd's events."""

from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from demo.errors import NotReady
from proto.vim.v1 import host_pb2
from proto.vpxd.v1 import service_pb2
from runtime.rpc.channel import network_channel, unix_channel
from runtime.rpc.identity import Identity, Role
from vpxd.cli.client import VpxdClient

_READY_TIMEOUT_S = 60.0


async def wait_until_serving(target: str, identity: Identity, role: Role, name: str) -> None:
    """Until the daemon at "address:port" says SERVING. :raises NotReady: not in time, or it is another."""
    async with network_channel(target, identity, role, name) as channel:
        await _serving(channel, f"{name} at {target}")


async def wait_until_serving_locally(path: Path) -> None:
    """Until the daemon at this unix socket says SERVING. :raises NotReady: not in time."""
    async with unix_channel(path) as channel:
        await _serving(channel, str(path))


async def _serving(channel: grpc.aio.Channel, who: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(
            health_pb2.HealthCheckRequest(), timeout=_READY_TIMEOUT_S, wait_for_ready=True
        )
    except grpc.aio.AioRpcError as error:
        raise NotReady(f"{who} isn't ready: {error.code().name} {error.details()}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotReady(f"{who} isn't serving.")


async def connected_hosts(client: VpxdClient, *, connected_only: bool = True) -> set[str]:
    """Names of the hosts that vpxd knows, or is connected to."""
    answer = await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest())
    return {
        host.name
        for host in answer.hosts
        if not connected_only or host.connection_state == host_pb2.HOST_CONNECTION_STATE_CONNECTED
    }


async def wait_for_hosts(client: VpxdClient, names: Iterable[str]) -> None:
    """Until all of them are connected: looks again at each event. Raises as VpxdClient.call."""
    wanted = set(names)
    newest = await client.call(client.stub.ListEvents, service_pb2.ListEventsRequest(limit=1))
    # Events from before the first look on, so that nothing falls between the look and the watch.
    after = newest.events[-1].id if newest.events else 0
    if wanted <= await connected_hosts(client):
        return
    request = service_pb2.ListEventsRequest(after_id=after)
    async with aclosing(client.stream(client.stub.WatchEvents, request, _READY_TIMEOUT_S)) as events:
        async for _ in events:
            if wanted <= await connected_hosts(client):
                return
