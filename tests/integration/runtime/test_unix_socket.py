"""Unix sockets: their modes, and what happens to the one that is already there."""

import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runtime.faults import InvalidArgument, ResourceInUse
from runtime.rpc.channel import unix_channel
from runtime.rpc.server import RpcServer, unix_server

Serve = Callable[[RpcServer], Awaitable[RpcServer]]


async def _is_serving(path: Path) -> bool:
    async with unix_channel(path) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_unix_socket_only_its_user_can_open_it(serve: Serve, run_directory: Path) -> None:
    run_directory.mkdir(mode=0o755)
    path = run_directory / "hostd.sock"
    server = await serve(unix_server(path, "hostd@esx01"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(run_directory.stat().st_mode) == 0o700
    assert await _is_serving(path)
    await server.stop()
    assert not path.exists()


async def test_unix_socket_left_by_a_dead_process_is_replaced(serve: Serve, run_directory: Path) -> None:
    run_directory.mkdir()
    path = run_directory / "hostd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    await serve(unix_server(path, "hostd@esx01"))
    assert await _is_serving(path)


async def test_unix_socket_that_another_serves_is_left_alone(serve: Serve, run_directory: Path) -> None:
    path = run_directory / "hostd.sock"
    await serve(unix_server(path, "hostd@esx01"))
    with pytest.raises(ResourceInUse):
        await serve(unix_server(path, "hostd@esx01"))
    assert await _is_serving(path)


async def test_unix_socket_doesnt_replace_a_file(serve: Serve, run_directory: Path) -> None:
    run_directory.mkdir()
    path = run_directory / "hostd.sock"
    path.write_text("precious")
    with pytest.raises(ResourceInUse):
        await serve(unix_server(path, "hostd@esx01"))
    assert path.read_text() == "precious"


async def test_unix_socket_path_too_long_for_the_kernel_is_refused(serve: Serve, run_directory: Path) -> None:
    with pytest.raises(InvalidArgument):
        await serve(unix_server(run_directory / ("x" * 120), "hostd@esx01"))


async def test_health_watch_streams_until_the_server_stops(serve: Serve, run_directory: Path) -> None:
    server = await serve(unix_server(run_directory / "hostd.sock", "hostd@esx01"))
    async with unix_channel(run_directory / "hostd.sock") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        first = await watch.read()
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop(5.0))
        second = await watch.read()
        assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await stopping
