"""vpxa put together: wait for the host's identity, then serve vpxd on the management address until told to stop."""

import asyncio

import structlog

from runtime.faults import InvalidArgument
from runtime.rpc.channel import unix_channel
from runtime.rpc.identity import Identity, Role
from runtime.rpc.server import network_server
from vpxa.config import Config
from vpxa.service import HostdRelay

_log = structlog.get_logger(__name__)
_STOP_GRACE_S = 1.0
# `python -m vpxa join` is another process and may run once in the host's life: its file is looked for this often.
_IDENTITY_INTERVAL_S = 0.2


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run vpxa until `stop` is set. Without an identity of the cluster nothing is served on the network.

    :raises InvalidArgument: the identity is another host's, or isn't a host's.
    :raises ResourceInUse: the management address is taken or isn't this machine's.
    """
    identity = await _wait_for_identity(config, stop)
    if identity is None:
        return
    if identity.role is not Role.HOST or identity.name != config.host_name:
        message = f"The identity is of {identity.peer.peer}, this host is {config.host_name}."
        raise InvalidArgument(message, "HOST_NAME")
    origin = f"vpxa@{config.host_name}"
    server = network_server(config.management_address, identity, frozenset({Role.VPXD}), origin)
    hostd = unix_channel(config.hostd_socket)
    try:
        server.grpc.add_generic_rpc_handlers(HostdRelay(hostd, config.host_name).handlers())
        await server.start()
        _log.info("serving", address=server.address, hostd=str(config.hostd_socket))
        await stop.wait()
    finally:
        await server.stop(_STOP_GRACE_S)
        await hostd.close()


async def _wait_for_identity(config: Config, stop: asyncio.Event) -> Identity | None:
    """The identity, as soon as there is one; None when `stop` came first."""
    waiting_logged = False
    while not Identity.exists(config.identity_directory):
        if not waiting_logged:
            _log.info("waiting_for_identity", directory=str(config.identity_directory))
            waiting_logged = True
        try:
            async with asyncio.timeout(_IDENTITY_INTERVAL_S):
                await stop.wait()
        except TimeoutError:
            continue
        return None
    return Identity.load(config.identity_directory)
