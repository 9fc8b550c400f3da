"""The demonstration on docker-compose: `python -m demo.compose`, what `make compose-demo` runs.

    engine, images      one that answers, else our own for the while; the base image where it's missing; vpx:local
    cluster             vpxd and three hosts as containers; hosts join with one-time tokens
    VM on esx01         512 MiB, rewrites its own memory and checks it
      kill -9 hostd     the guest lives on, the host comes back, the VM is still listed running
    esx01 → esx02
      kill -9 vpxd      docker starts it again: inventory, hosts and the running VM are there
    esx02 → esx03       with a cap on the bandwidth, so that there is time to look at the sockets in every container
    esx03 → esx01
    down                nothing of the project is left

Everything is asked of the product by gRPC from this machine and judged from outside: by the guest's own words, by the
bytes on each network, by the sockets. Whatever happens, what was started is taken down; if something didn't hold, the
end of each container's log is shown before.
"""

import asyncio
import itertools
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from demo.cluster_layout import PROJECT, free_ports
from demo.compose_cluster import (
    VPXD,
    fetch_client,
    join_hosts,
    kill_container,
    kill_supervised,
    wait_until_settled,
)
from demo.compose_network import (
    Connection,
    Traffic,
    attachment_problems,
    connection_problems,
    networks_of,
    traffic_between,
    traffic_problems,
)
from demo.compose_project import ComposeProject, build_image, engine
from demo.compose_result import ComposeResult, Restart
from demo.compose_watch import network_counters, watched_connections, watched_heartbeat
from demo.demonstration import RAM_BYTES, RATE_MIB_S, ROUTE, STAMPER_MIB, VM, save
from demo.errors import ClusterError
from demo.guest_console import GuestSilent, read_all, wait_for
from demo.heartbeat_observer import Beat, guest_gap_ms
from demo.result import Migration, heartbeat_problems, migration_problems
from demo.screen import Screen
from images.cmdline import HEARTBEAT_MS_DEFAULT, kernel_command_line
from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import VimFault
from vpxd.cli.client import VpxdClient, connect, task_error
from vpxd.cli.errors import CliError
from vpxd.cli.vm_commands import DEFAULT_INITRD, DEFAULT_KERNEL

if TYPE_CHECKING:
    import grpc

    Request = TypeVar("Request")
    Method = Callable[..., grpc.aio.UnaryUnaryCall[Request, task_pb2.TaskInfo]]
else:
    Request = TypeVar("Request")

RESULT_FILE = PROJECT / "out" / "compose.json"
CLIENT_DIRECTORY = PROJECT / "out" / "compose-client"
# Its own project and networks: a cluster that somebody has started by hand isn't touched.
PROJECT_NAME = "vpx-demo"
NETWORK = "10.78"
HOSTS = tuple(dict.fromkeys(ROUTE))
NETWORKS = networks_of(NETWORK, HOSTS)
CAPPED_MOVE = 1
CAP_BYTES_PER_S = 48 << 20

_HEARTBEAT_FILE = f"/vmfs/volumes/shared/{VM}/heartbeat.log"
_OBSERVING_HOST = HOSTS[-1]
_HEALTHY_S = 60.0
_BOOT_S = 120.0
_TASK_S = 120.0
_STATUS_S = 30.0
_STEADY_LINES = 2


@dataclass(frozen=True)
class Stage:
    """What every step of the demonstration needs."""

    project: ComposeProject
    client: VpxdClient
    screen: Screen
    result: ComposeResult
    beats: list[Beat]


async def run(screen: Screen) -> ComposeResult:
    """The whole demonstration; every failure is a problem in the result, and nothing is left running."""
    result = ComposeResult()
    began_s = time.monotonic()
    port = free_ports(1)[0]
    project = ComposeProject(PROJECT_NAME, {"VPX_NETWORK": NETWORK, "VPX_PORT": str(port)})
    try:
        async with engine(screen.say):
            await build_image(screen.say)
            result.seconds["engine_and_images"] = time.monotonic() - began_s
            try:
                async with project.running():
                    await _judged_with_logs(project, f"127.0.0.1:{port}", screen, result)
            finally:
                left = await project.leftovers()
                result.problems += [f"after the end there is still {what}" for what in left]
                screen.say(
                    f"left are: {', '.join(left)}" if left else "containers, networks and volumes are gone"
                )
    except (VimFault, CliError, ClusterError, GuestSilent, OSError) as error:
        result.problems.append(f"{type(error).__name__}: {error}")
    except ExceptionGroup as group:
        result.problems.append(f"{group.message}: {'; '.join(map(str, group.exceptions))}")
    finally:
        shutil.rmtree(CLIENT_DIRECTORY, ignore_errors=True)  # a key of a cluster that is gone
    result.seconds["all"] = time.monotonic() - began_s
    return result


async def _judged_with_logs(
    project: ComposeProject, server: str, screen: Screen, result: ComposeResult
) -> None:
    """Works on the cluster; when something doesn't hold, shows the containers' last words while they are there."""
    try:
        await _on_project(project, server, screen, result)
    except Exception as error:
        screen.say(f"FAILED: {type(error).__name__}: {error}")
        await _show_logs(project, screen)
        raise
    if result.problems:
        await _show_logs(project, screen)


async def _show_logs(project: ComposeProject, screen: Screen) -> None:
    for service, text in (await project.logs()).items():
        screen.say(f"the end of {service}'s log:")
        print(text)  # as it is: it may hold what would be markup on the screen


async def _on_project(project: ComposeProject, server: str, screen: Screen, result: ComposeResult) -> None:
    began_s = time.monotonic()
    screen.say(f"containers of vpxd and {len(HOSTS)} hosts are started")
    async with connect(await fetch_client(project, CLIENT_DIRECTORY, server)) as client:
        screen.say(f"vpxd serves at {server}")
        await join_hosts(project, client, HOSTS)
        result.seconds["cluster_up"] = time.monotonic() - began_s
        screen.say(f"{len(HOSTS)} hosts have joined and are connected: {', '.join(HOSTS)}")
        began_s = time.monotonic()
        stage = Stage(project, client, screen, result, [])
        await _power_on(stage)
        facts = await wait_for(client, VM, _STEADY_LINES, _BOOT_S)
        result.seconds["guest_ready"] = time.monotonic() - began_s
        screen.say(
            f"{VM} is up: {STAMPER_MIB} MiB rewritten at {RATE_MIB_S} MiB/s, {facts.wrong} wrong stamps"
        )
        await project.wait_until_healthy(_HEALTHY_S)
        screen.say("all containers are healthy")
        async with watched_heartbeat(project, _OBSERVING_HOST, _HEARTBEAT_FILE) as beats:
            await _all_moves(Stage(project, client, screen, result, beats))
        await _task(client, client.stub.PowerOffVm, service_pb2.VmOperationRequest(vm=VM))
        await _task(client, client.stub.DestroyVm, service_pb2.VmOperationRequest(vm=VM))
        screen.say(f"{VM} is powered off and deleted")


async def _power_on(stage: Stage) -> None:
    boot = vm_config_pb2.Boot(
        kernel=DEFAULT_KERNEL,
        initrd=DEFAULT_INITRD,
        kernel_command_line=kernel_command_line(STAMPER_MIB, RATE_MIB_S),
    )
    config = vm_config_pb2.VmConfig(name=VM, vcpus=1, ram_bytes=RAM_BYTES, boot=boot)
    client = stage.client
    request = service_pb2.CreateVmRequest(config=config, datastore="shared", host=ROUTE[0])
    await _task(client, client.stub.CreateVm, request)
    await _task(client, client.stub.PowerOnVm, service_pb2.VmOperationRequest(vm=VM))
    stage.screen.say(f"{VM} is powered on at {ROUTE[0]}: {RAM_BYTES >> 20} MiB; waiting for its Linux")


async def _all_moves(stage: Stage) -> None:
    async with _killed(stage, f"hostd in {ROUTE[0]}", ROUTE[0]):
        await kill_supervised(stage.project, ROUTE[0], "hostd")
    for number, (source, destination) in enumerate(itertools.pairwise(ROUTE)):
        if number == CAPPED_MOVE:
            async with _killed(stage, "vpxd and its container", source):
                await kill_container(stage.project, VPXD)
            async with _watched_sockets(stage, source, destination):
                await _move(stage, source, destination, CAP_BYTES_PER_S)
        else:
            await _move(stage, source, destination)
        await _judge_guest(stage, destination)


@asynccontextmanager
async def _killed(stage: Stage, what: str, where: str) -> AsyncIterator[None]:
    """Around a kill: waits until all is as before, and says how long it took. Raises as wait_until_settled."""
    began_s = time.monotonic()
    yield
    await wait_until_settled(stage.client, HOSTS, VM, where, time.time())
    await _judge_guest(stage, where)
    one = Restart(f"{what} killed", time.monotonic() - began_s)
    stage.result.restarts.append(one)
    stage.screen.say(f"{one.what}; {one.back_s:.1f} s later hosts are connected and {VM} is listed running")


@asynccontextmanager
async def _watched_sockets(stage: Stage, source: str, destination: str) -> AsyncIterator[None]:
    """Looks at every container's connections while the body runs, and judges them."""
    seen: dict[str, list[tuple[str, int, str, int]]] = {}
    async with AsyncExitStack() as stack:
        for name in (VPXD, *HOSTS):
            seen[name] = await stack.enter_async_context(watched_connections(stage.project, name))
        yield
    judged: dict[str, list[Connection]] = {name: list(found) for name, found in seen.items()}
    problems = connection_problems(judged, source, destination, NETWORKS)
    stage.result.problems += problems
    stage.result.connections = {name: len(found) for name, found in seen.items()}
    if not problems:
        stage.screen.say("sockets: hosts spoke with each other between their vMotion addresses only")


async def _move(stage: Stage, source: str, destination: str, cap_bytes_per_s: int = 0) -> None:
    """One migration, judged. :raises VimFault: it failed; the VM runs where it did."""
    before = await _all_counters(stage)
    begin_ns = time.monotonic_ns()
    task = await _migrate(stage, source, destination, cap_bytes_per_s)
    after = await _all_counters(stage)
    # Alive at the destination: the stamper has told of a second that began there.
    told = len((await read_all(stage.client, VM)).statuses)
    await wait_for(stage.client, VM, 1, _STATUS_S, beyond=told)

    status, result = task.migration, stage.result
    gap_ms = guest_gap_ms(stage.beats, begin_ns, time.monotonic_ns(), HEARTBEAT_MS_DEFAULT)
    one = Migration(source, destination, status, gap_ms)
    traffic = Traffic(source, destination, status.wire_bytes, *traffic_between(before, after, NETWORKS))
    result.migrations.append(one)
    result.network.append(traffic)
    result.problems += migration_problems(one)
    result.problems += attachment_problems(after, NETWORKS)
    result.problems += traffic_problems(traffic)
    vmotion, management = traffic.vmotion_bytes[source] / 1e6, traffic.management_bytes[source] / 1e6
    stage.screen.say(
        f"{one.name}: stun {status.stun_ms:.1f} ms, total {status.total_ms:.0f} ms; on the wire "
        f"{status.wire_bytes / 1e6:.1f} MB, vMotion interface {vmotion:.1f} MB, management {management:.2f} MB"
    )


async def _all_counters(stage: Stage) -> dict[str, dict[str, dict[str, int]]]:
    return {name: await network_counters(stage.project, name) for name in (VPXD, *HOSTS)}


async def _migrate(stage: Stage, source: str, destination: str, cap_bytes_per_s: int) -> task_pb2.TaskInfo:
    """:raises VimFault: the migration failed."""
    options = spec_pb2.MigrationOptions(
        verify=spec_pb2.VERIFY_MODE_AFTER_RESUME,
        encryption=spec_pb2.ENCRYPTION_MODE_REQUIRED,
        bandwidth_bytes_per_s=cap_bytes_per_s,
    )
    client = stage.client
    request = service_pb2.MigrateVmRequest(vm=VM, host=destination, options=options)
    task = await client.call(client.stub.MigrateVm, request)
    capped = f", at most {cap_bytes_per_s >> 20} MiB/s" if cap_bytes_per_s else ""
    with stage.screen.migration(f"{VM}: {source} → {destination}{capped}") as view:
        async with aclosing(client.watch(task.id, _TASK_S)) as states:
            async for task in states:
                view.update(task)
    if task.state == task_pb2.TASK_STATE_ERROR:
        raise task_error(task)
    return task


async def _judge_guest(stage: Stage, where: str) -> None:
    """By what vpxd says of the VM, and by all that the guest has said since its boot, read through vpxd."""
    client, result = stage.client, stage.result
    vm = await client.call(client.stub.GetVm, service_pb2.GetVmRequest(vm=VM))
    if vm.host_name != where:
        result.problems.append(f"vpxd says that {VM} is on {vm.host_name} instead of {where}")
    facts = await read_all(client, VM)
    result.wrong_stamps = facts.wrong
    found = [f"the guest says: {line}" for line in facts.complaints]
    if facts.wrong:
        found.append(f"the guest found {facts.wrong} wrong stamps in its memory")
    if facts.boots != 1:
        found.append(f"the guest has booted {facts.boots} times")
    beats = await _heartbeat_lines(client)
    result.heartbeats = len(beats)
    found += heartbeat_problems(beats)
    result.problems += [text for text in found if text not in result.problems]


async def _heartbeat_lines(client: VpxdClient) -> list[str]:
    """Every whole line on the heartbeat's port since the boot."""
    text = bytearray()
    request = service_pb2.ReadConsoleRequest(vm=VM, port="heartbeat")
    async with aclosing(client.stream(client.stub.ReadConsole, request, _STATUS_S)) as pieces:
        async for piece in pieces:
            text += piece.data
    return text.decode("utf-8", "replace").rpartition("\n")[0].split("\n")


async def _task(client: VpxdClient, method: "Method[Request]", request: Request) -> task_pb2.TaskInfo:
    """Starts a task and waits for its success. Raises as VpxdClient.wait."""
    task = await client.call(method, request)
    return await client.wait(task.id, _TASK_S)


async def _until_signal(screen: Screen) -> ComposeResult:
    """`run`, taken down in order by SIGTERM as by Ctrl-C."""
    own = asyncio.current_task()
    assert own is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own.cancel)
    return await run(screen)


def main() -> int:
    """The exit status: 0 only if everything held."""
    screen = Screen()
    with suppress(FileNotFoundError):
        RESULT_FILE.unlink()  # an earlier run's word must not pass for this one's
    try:
        result = asyncio.run(_until_signal(screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("interrupted; everything that was started has been taken down")
        return 130
    save(result, RESULT_FILE)
    screen.conclude(result, RESULT_FILE)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
