"""Real vpxa processes for tests."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc

from proto.host.v1 import operations_pb2
from proto.vpxa.v1 import service_pb2_grpc
from runtime.rpc.channel import network_channel
from runtime.rpc.identity import ClusterAuthority, Identity, Role
from tests.framework.hostd_process import ROOT


def free_port(address: str) -> int:
    """A port that nobody uses now."""
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


class VpxaAgent:
    """One vpxa; `environment` is the host's."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        port = free_port(environment["HOST_MANAGEMENT_ADDRESS"])
        self.environment = {**environment, "HOST_MANAGEMENT_PORT": str(port)}
        self.name = environment["HOST_NAME"]
        self.address = f"{environment['HOST_MANAGEMENT_ADDRESS']}:{port}"
        self.identity_directory = Path(environment["HOST_STATE_DIR"]) / "vpxa" / "identity"
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory / "vpxa.log"

    def enroll(self, authority: ClusterAuthority, name: str = "") -> None:
        """Give the host its identity, as `join` does."""
        authority.new_identity(Role.HOST, name or self.name).save(self.identity_directory)

    def start(self) -> None:
        """Start it; it may not serve yet."""
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vpxa"], env=self.environment, cwd=ROOT, stdout=log, stderr=log
            )

    def end(self) -> int:
        """Kill it if it lives; its exit status."""
        if self.process is None:
            return 0
        self.process.kill()
        return self.process.wait(10)

    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def channel(self, caller: Identity) -> grpc.aio.Channel:
        """A channel to it."""
        return network_channel(self.address, caller, Role.HOST, self.name)

    async def until_serving(self, caller: Identity) -> None:
        """Wait until it answers, with whatever."""
        async with self.channel(caller) as channel:
            stub = service_pb2_grpc.VpxaStub(channel)
            try:
                await stub.GetHost(operations_pb2.GetHostRequest(), timeout=20, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
        await asyncio.sleep(0)
