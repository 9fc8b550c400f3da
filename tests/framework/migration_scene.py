"""One migration between real vmx processes, for tests that trouble it: it stops where they say, and they have a hand on
the wire."""

import asyncio
from enum import Enum

import grpc

from proto.host.v1 import operations_pb2
from proto.vim.v1 import fault_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.vmotion_link import VMotionLink
from tests.framework.vmx_hosts import VmxHosts, VmxProcess
from tests.framework.vmx_invariants import (
    VERIFIED,
    assert_it_can_move_on,
    assert_vm_is_off,
    assert_vm_is_on,
)


class Ends(Enum):
    """Where the VM is in the end."""

    AT_SOURCE = "at the source"
    AT_DESTINATION = "at the destination"
    OFF = "off"


HERE, THERE, OFF = Ends.AT_SOURCE, Ends.AT_DESTINATION, Ends.OFF


class Scene:
    """One migration whose source and destination are real vmx processes, with a hand on the wire between them."""

    def __init__(self, hosts: VmxHosts) -> None:
        self.hosts = hosts
        self.source: VmxProcess
        self.destination: VmxProcess
        self.spec: spec_pb2.MigrationSpec
        self.link: VMotionLink
        self.qemu_pids: tuple[int, int]
        self.watching: asyncio.Task[operations_pb2.WatchMigrationResponse]

    async def begin(self, options: spec_pb2.MigrationOptions = VERIFIED) -> None:
        """Everything up to the source's start; the failpoints must be armed in `hosts.environment` before."""
        hosts = self.hosts
        await hosts.warm_up(*hosts.hosts)
        self.source = await hosts.power_on()
        await hosts.heartbeats_beyond(5)
        self.spec = hosts.spec(hosts.hosts[0], hosts.hosts[1], options)
        self.spec.options.network_timeout_s = 2.0
        self.destination, ticket = await hosts.prepare(hosts.hosts[1], self.spec)
        source_pid = (await self.source.state()).qemu_pid
        self.qemu_pids = (source_pid, await self._destination_pid())
        self.link = VMotionLink(hosts.hosts[0], ticket)
        await self.link.__aenter__()
        await hosts.start(self.source, self.spec, self.link.ticket)
        self.watching = asyncio.create_task(hosts.outcome(self.source, self.spec.migration_id))

    async def _destination_pid(self) -> int:
        """Its guest's; 0 where the destination has failed as soon as it was prepared, and has ended."""
        try:
            return (await self.destination.state()).qemu_pid
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            assert await self.destination.ended() == 0
            return 0

    async def close(self) -> None:
        """End everything."""
        if hasattr(self, "watching"):
            self.watching.cancel()
            await asyncio.gather(self.watching, return_exceptions=True)
        if hasattr(self, "link"):
            await self.link.__aexit__(None, None, None)
        await self.hosts.close()

    async def outcome(self) -> operations_pb2.WatchMigrationResponse:
        """The source's last word."""
        return await self.watching

    async def expect(self, ends: Ends, *, told: bool = True) -> None:
        """What holds in the end, where both vmx processes live on (as far as they should).

        `told`: the sides had a connection. Else the destination waits, and its owner has to cancel it.
        """
        if ends is not THERE and not told:
            await self.outcome()
            await self.hosts.cancel(self.destination, self.spec.migration_id)
        if ends is HERE:
            assert (await self.outcome()).HasField("fault")
            assert await self.destination.ended() == 0
            await assert_vm_is_on(self.hosts, self.source)
            await assert_it_can_move_on(self.hosts, self.source, 2)
        elif ends is THERE:
            outcome = await self.outcome()
            assert outcome.status.phase == status_pb2.MIGRATION_PHASE_SUCCEEDED, outcome
            await self.hosts.complete(self.destination, self.spec.migration_id)
            await self.hosts.complete(self.source, self.spec.migration_id)
            assert await self.source.ended() == 0
            await assert_vm_is_on(self.hosts, self.destination)
            await assert_it_can_move_on(self.hosts, self.destination, 2)
        else:
            assert (await self.outcome()).fault.type == fault_pb2.FAULT_TYPE_GUEST_DIED
            assert await self.source.ended() == 0
            assert await self.destination.ended() == 0
            await assert_vm_is_off(self.hosts)


def arm(hosts: VmxHosts, point: str, action: str, **environment: str) -> None:
    """Arm a failpoint on the host that has it."""
    host = hosts.hosts[0 if point.startswith("source.") else 1]
    hosts.environment[host.name] = {"VPX_FAILPOINTS": f"{point}={action}", **environment}


async def pause_at(
    scene: Scene, point: str, options: spec_pb2.MigrationOptions = VERIFIED, **environment: str
) -> FailpointPause:
    """The migration stands at `point`."""
    pause = FailpointPause(scene.hosts.run_root / "pause.sock")
    await pause.__aenter__()
    arm(scene.hosts, point, pause.action, **environment)
    await scene.begin(options)
    await pause.reached()
    return pause
