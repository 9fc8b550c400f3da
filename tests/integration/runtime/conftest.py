"""A cluster's certificates, and servers that live as long as a test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from runtime.rpc.identity import ClusterAuthority, Identity, Role
from runtime.rpc.server import RpcServer


@dataclass(frozen=True)
class Pki:
    """The authority of a cluster, one identity of each role, and another cluster's authority."""

    authority: ClusterAuthority
    vpxd: Identity
    host: Identity
    client: Identity
    foreign: ClusterAuthority


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    authority = ClusterAuthority.create(folder / "ca", "lab")
    return Pki(
        authority,
        authority.new_identity(Role.VPXD, "vpxd"),
        authority.new_identity(Role.HOST, "esx01"),
        authority.new_identity(Role.CLIENT, "admin"),
        ClusterAuthority.create(folder / "foreign", "lab"),
    )


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[RpcServer], Awaitable[RpcServer]]]:
    """Starts a server that is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(server: RpcServer) -> RpcServer:
            stack.push_async_callback(server.stop, 0.0)
            await server.start()
            return server

        yield start


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: the daemons run on uvloop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
